"""A job that was submitted: its status, its log, its end."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Self

from client.job.follow import follow
from client.job.stop import stop
from client.ray_api.jobs import RayJobs
from client.ray_api.record import JobRecord, JobResult
from client.targets.target import Target
from client.wait import Note, silent

STOP_SECONDS = 40.0  # Ray kills a job 30 s after it was asked to end
_owners: "set[Job]" = set()  # jobs on a Ray of their own, which must outlive a caller who drops the job


class Job:
    """A submitted job; as a context manager, it is closed at the end.

    A Ray that was started for it lives until `wait` returns, `close` is called, or the interpreter ends.

    Attributes:
        submission_id: its id.
        attached: whether it was there before.
        target: where it is.
        jobs: all jobs there.
    """

    def __init__(self, submission_id: str, target: Target, stack: ExitStack, *, attached: bool = False) -> None:
        """Take over a job that exists, and what is closed with it; `submit` makes one."""
        self.submission_id, self.attached = submission_id, attached
        self.target, self.jobs = target, RayJobs(target)
        self._stack = stack
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
        return self.jobs.with_start_times([self.jobs.get(self.submission_id)])[0]

    def logs(self) -> Iterator[str]:
        """Yield the lines that the job has written so far, without their ends; bytes that are no UTF-8 as U+FFFD."""
        rest = b""
        for chunk in self.jobs.logs.read(self.jobs.get(self.submission_id), 0):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
        if rest:
            yield rest.decode(errors="replace")

    def wait(
        self,
        write: Callable[[bytes], object] = lambda _: None,
        note: Note = silent,
        *,
        timeout: float | None = None,
        offset: int = 0,
        stop: bool = False,
    ) -> JobResult:
        """Wait for the job's end. A Ray that was started for it is ended then.

        Args:
            write: takes the log's bytes as they come, for instance `sys.stdout.buffer.write`.
            note: takes a line about the waiting itself.
            timeout: seconds to wait; None waits to the end.
            offset: the byte of the log to start from.
            stop: stop the job meanwhile.

        Raises:
            TimedOut: the job has not ended in time; it goes on.
            ContactLost: the cluster is gone; the job may still run.
        """
        ended = follow(
            self.target, self.jobs, self.submission_id, write, note, offset=offset, seconds=timeout, stop=stop
        )
        self.close()
        return ended

    def stop(self, seconds: float = STOP_SECONDS) -> JobRecord:
        """Stop the job and wait for its end.

        Args:
            seconds: how long to wait. Ray kills a job 30 s after it was asked to end.

        Returns:
            The job's record, finished or not.
        """
        return stop(self.target, self.jobs, self.submission_id, seconds)

    def close(self) -> None:
        """End a Ray that was started for this job, and the job with it; any other job goes on."""
        _owners.discard(self)
        self._stack.close()
