"""A job that was submitted: its status, its log, its end."""

import codecs
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Self

from client.errors import ClientError
from client.job.arguments import check
from client.job.follow import Log, follow, write_to_end
from client.job.stop import stop
from client.ray_api.jobs import RayJobs
from client.ray_api.record import JobRecord, JobResult
from client.targets.target import Target
from client.wait import Note, silent

STOP_SECONDS = 40.0  # Ray kills a job 30 s after it was asked to end
_CHUNK = 1 << 20
_owners: "set[Job]" = set()  # jobs on a Ray of their own, which must outlive a caller who drops the job


class Job:
    """A submitted job; as a context manager, it is closed at the end.

    A Ray that was started for it lives until its end was waited for, `close` is called, or the interpreter ends. Its
    result and its log can be read until it is closed.

    Attributes:
        submission_id: its id.
        attached: whether it was there before.
        target: where it is.
        jobs: all jobs there.
    """

    def __init__(self, submission_id: str, target: Target, stack: ExitStack, *, attached: bool = False) -> None:
        """Take over an existing job, and what is closed with it; `submit` creates one."""
        self.submission_id, self.attached = submission_id, attached
        self.target, self.jobs = target, RayJobs(target)
        self._stack, self._closed = stack, False
        self._result: JobResult | None = None
        self._log: BinaryIO | None = None  # of a Ray that has ended
        if target.ends_with_us:
            _owners.add(self)

    def __repr__(self) -> str:
        return f"<Job {self.submission_id} at {self.target.address}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def status(self) -> JobRecord:
        """The job's record as it is now."""
        if self._result:
            return self._result.job
        self._check_open()
        return self.jobs.with_start_times([self.jobs.get(self.submission_id)])[0]

    def logs(self, *, follow: bool = False) -> Iterator[str]:
        """Yield the lines of the log, without line ends; invalid UTF-8 becomes U+FFFD.

        Args:
            follow: yield each line as it comes, until the job has ended; otherwise, yield those so far.

        Raises:
            ContactLost: the cluster is gone; the job may still run.
        """
        if follow:
            return _lines(self._follow())
        self._check_open()
        return _lines(_read(self._log, 0) if self._log else self.jobs.logs.read(self.jobs.get(self.submission_id), 0))

    def wait(
        self,
        write: Callable[[bytes], object] | None = None,
        note: Note = silent,
        *,
        show: bool = False,
        timeout: float | None = None,
        offset: int = 0,
        stop: bool = False,
    ) -> JobResult:
        """Wait for the job's end, then stop a Ray that was started for it.

        Args:
            write: takes the log's bytes as they come.
            note: takes a line about the waiting itself, for instance `print`.
            show: print the log as it comes, in a notebook too.
            timeout: seconds to wait; None waits to the end.
            offset: the byte of the log to start from.
            stop: stop the job meanwhile.

        Raises:
            TimedOut: the job has not ended in time; it goes on.
            ContactLost: the cluster is gone; the job may still run.
        """
        check(write=write, note=note, timeout=timeout, offset=offset)
        if self._result and not (write or show):
            return self._result
        decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a chunk may end inside a character

        def pass_on(data: bytes, *, final: bool = False) -> None:
            if write and data:
                write(data)
            if show:
                sys.stdout.write(decoder.decode(data, final))  # a notebook's stdout takes no bytes
                sys.stdout.flush()

        ended = write_to_end(self._follow(note, offset=offset, seconds=timeout, stop=stop), pass_on)
        pass_on(b"", final=True)
        return ended

    def stop(self, seconds: float = STOP_SECONDS) -> JobRecord:
        """Stop the job and wait for its end.

        Args:
            seconds: how long to wait. Ray kills a job 30 s after it was asked to end.

        Returns:
            The job's record, finished or not.
        """
        check(seconds=seconds)
        if self._result:
            return self._result.job
        self._check_open()
        return stop(self.target, self.jobs, self.submission_id, seconds)

    def fetch(self, *patterns: str, to: str | Path | None = None) -> list[Path]:
        """Get the files that the job wrote, from all pods of its cluster.

        Args:
            *patterns: files, folders, and patterns as in .gitignore; none for all files.
            to: a folder, in which nothing is replaced; None for outputs/ID.

        Returns:
            The files that were fetched now; none from a Ray on this machine, where they are already.

        Raises:
            ClientError: there is no such file.
            ContactLost: a pod is gone, or cannot be reached.
        """
        from client.job.fetch import fetch

        check(to=to)
        return [] if self.target.runtime.in_place else list(fetch(self.target, self.status(), patterns, to))

    def close(self) -> None:
        """Stop a Ray that was started for this job, and the job with it. Any other job goes on."""
        self._closed = True
        self._end_ray()
        if self._log:
            self._log.close()

    def _end_ray(self) -> None:
        _owners.discard(self)
        self._stack.close()

    def _follow(self, note: Note = silent, *, offset: int = 0, seconds: float | None = None, stop: bool = False) -> Log:
        """Yield the log's bytes until the job has ended; then its result is known, and a Ray of its own is ended."""
        self._check_open()
        if self._result and self._log:
            yield from _read(self._log, offset)
            return self._result
        ended = yield from follow(
            self.target, self.jobs, self.submission_id, note, offset=offset, seconds=seconds, stop=stop
        )
        self._result = self._result or ended
        if self.target.ends_with_us and not self._log:
            self._keep_log()
            self._end_ray()
        return self._result

    def _keep_log(self) -> None:
        """Open the log's file, which outlives its name: nothing is copied, and nothing is left to remove."""
        path = self.target.log_file(self.submission_id)
        self._log = open(path if path and path.exists() else os.devnull, "rb")  # no file: the job never started
        weakref.finalize(self, self._log.close)

    def _check_open(self) -> None:
        if self._closed and self.target.ends_with_us:
            what = f"job {self.submission_id} is closed, and the Ray that was started for it has ended"
            raise ClientError(what, "wait for the job and read its log before you close it")


def _read(file: BinaryIO, offset: int) -> Iterator[bytes]:
    while chunk := os.pread(file.fileno(), _CHUNK, offset):
        yield chunk
        offset += len(chunk)


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Whole lines as text, without their ends."""
    rest = bytearray()
    for chunk in chunks:
        *ended, begun = chunk.split(b"\n")
        for line in ended:
            yield (rest + line).decode(errors="replace")
            rest.clear()
        rest += begun
    if rest:
        yield rest.decode(errors="replace")
