"""A job's log to the last byte, once and in order, and then its end.

There is no stream to lose: each round asks for the job's record and for the log from the byte reached. A connection
that breaks, goes silent or ends early costs one request. The job has ended only if its record has a final status, and
the log, read after the record, has no more bytes.
"""

import re
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field, replace

from client.errors import ClientError, ContactLost, JobLost, JobNotFound, NotFound, ServerFailed, TimedOut, Unreachable
from client.job.stop import Stopping
from client.ray_api.jobs import RayJobs
from client.ray_api.record import JobRecord, JobResult
from client.targets.target import Target
from client.wait import Note, silent

_LOST_SECONDS = 120.0  # an API server needs a minute to end in good order, and then starts again
_LOST_SECONDS_HERE = 20.0  # of a Ray on this machine, or while the user waits for a stop
_RETURN_SECONDS = (
    600.0  # the workers of a fault tolerant cluster wait this long for its head, as KubeRay configures them
)
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_PENDING_SECONDS = 10.0
_NODE_SECONDS = 5.0  # how often to ask whether the driver's node is alive, while the log is silent
_VERDICT_SECONDS = 3.0  # for Ray to mark a job as failed after its node has died
_TAIL_BYTES = 1 << 16

Log = Generator[bytes, None, JobResult]  # yields a log's bytes, and returns how the job ended


def follow(
    target: Target,
    jobs: RayJobs,
    submission_id: str,
    note: Note = silent,
    *,
    offset: int = 0,
    seconds: float | None = None,
    stop: bool = False,
) -> Log:
    """Yield a job's log as it grows, until the job has ended, and return how it did.

    Args:
        target: where the job is.
        jobs: the jobs there.
        submission_id: of the job.
        note: takes a line about the connection.
        offset: the byte of the log to start from.
        seconds: how long to follow; None follows to the end.
        stop: stop the job meanwhile.

    Raises:
        JobNotFound: there never was such a job.
        TimedOut: the job has not ended in time.
        ContactLost: the record or the log could not be read for 2 minutes, of a Ray on this machine for 20 s, and the
            cluster does not say that its head is starting; or the job's node or the head that knew it is gone.
    """
    stopping = Stopping(target, jobs, submission_id) if stop else None
    return (yield from Follower(target, jobs, submission_id, note, stopping, offset).run(seconds))


def write_to_end(log: Log, write: Callable[[bytes], object]) -> JobResult:
    """Write all that `follow` yields, and return how the job ended."""
    with closing(log):
        while True:
            try:
                chunk = next(log)
            except StopIteration as end:
                ended: JobResult = end.value
                return ended
            write(chunk)


@dataclass
class Follower:
    """Follows one job. `run` does so to its end; who follows several calls `poll` on each in turn.

    Attributes:
        pause: seconds until the next round.
    """

    target: Target
    jobs: RayJobs
    id: str
    note: Note = silent
    stopping: Stopping | None = None
    offset: int = 0
    tail: bytes = b""
    job: JobRecord | None = None  # as it was last read
    start_time: int | None = None
    pause: float = 0.0
    contact: float = field(default_factory=time.monotonic)
    changed: float = field(default_factory=time.monotonic)
    node_seen: float = field(default_factory=time.monotonic)
    node_gone_since: float | None = None
    noted: set[str] = field(default_factory=set)

    def run(self, seconds: float | None) -> Log:
        """Follow the job to its end, at most so many seconds."""
        end = None if seconds is None else time.monotonic() + seconds
        while not (result := (yield from self.poll())):
            if self.pause and end is not None and time.monotonic() >= end:
                raise TimedOut(f"job {self.id} has not ended after {seconds:g} s", "it goes on")
            time.sleep(self.pause)
        return result

    def poll(self) -> Generator[bytes, None, JobResult | None]:
        """One round: yield what is new in the log, and return the result once the job has ended."""
        began, whole = time.monotonic(), False
        try:
            if result := (yield from self._round()):
                return result
            self.contact = time.monotonic()
            self.noted.discard("lost")
            whole = bool(self.job and not self.jobs.logs.resumable(self.job))
        except JobNotFound as error:
            if not self.job:
                raise
            raise JobLost(f"job {self.id} was lost when the Ray head restarted", "submit it again") from error
        except (Unreachable, ServerFailed) as error:  # the dashboard answers 500 while a part of it restarts
            self._retry(error)
            self.pause = self._next_pause(0.0)
            return None
        # A finished job's log had more, and has no more to wait for.
        ended = self.job and self.job.finished
        self.pause = 0.0 if ended else self._next_pause(time.monotonic() - began if whole else 0.0)
        return None

    def _round(self) -> Generator[bytes, None, JobResult | None]:
        """Read the record, then the log to where it ends now; the result, once both are complete."""
        before, known = self.offset, self.job
        job = self.job = self.jobs.get(self.id)
        if self.stopping:
            self.stopping.ask(job)
        for chunk in self.jobs.logs.read(job, self.offset):
            yield chunk
            self.offset += len(chunk)
            self.tail = (self.tail + chunk[-_TAIL_BYTES:])[-_TAIL_BYTES:]
            self.contact = time.monotonic()
        if self.offset > before or not known or known.status != job.status:
            self.changed = self.node_seen = time.monotonic()
        if job.status == "RUNNING":
            self._read_start_time(job)
            self._check_node(job)
        elif job.finished and self.offset == before:
            return self._result(job)
        return None

    def _result(self, job: JobRecord) -> JobResult:
        if not self.offset and not job.node_id:
            self.note("the job never started")
        elif not self.jobs.logs.resumable(job) and not self.jobs.logs.ends_with(job, self.tail):
            what = f"the log is incomplete after {self.offset} bytes"
            raise Unreachable(what, "read it again over a better connection")
        self._read_start_time(job)
        return JobResult(replace(job, start_time=self.start_time or None))

    def _read_start_time(self, job: JobRecord) -> None:
        if self.start_time is None and job.node_id:
            try:
                self.start_time = self.jobs.with_start_times([job])[0].start_time or 0
            except ClientError:
                pass  # it is only shown

    def _check_node(self, job: JobRecord) -> None:
        """Ask now and then, while the log is silent: a job whose node died may stay RUNNING forever."""
        if time.monotonic() - self.node_seen > _NODE_SECONDS:
            self.node_seen = time.monotonic()
            self._raise_if_node_gone(job)

    def _raise_if_node_gone(self, job: JobRecord) -> None:
        if not self.jobs.node_is_gone(job.node_id):
            self.node_gone_since = None
            return
        self.node_gone_since = self.node_gone_since or time.monotonic()
        if job.finished:
            raise ContactLost(f"job {self.id} ended {job.status}", "its node is gone, and its log with it")
        if time.monotonic() - self.node_gone_since > _VERDICT_SECONDS:
            raise _lost_with_node(job)
        self.node_seen = 0.0  # ask again in the next round

    def _retry(self, error: ClientError) -> None:
        """Return if the failed request should be sent again, else raise."""
        lost, job = time.monotonic() - self.contact, self.job
        if job and job.node_id and not self.target.runtime.in_place:
            try:
                self._raise_if_node_gone(job)
            except (Unreachable, ServerFailed):
                pass  # the head does not answer either
        if lost > (_LOST_SECONDS_HERE if self.stopping or self.target.runtime.in_place else _LOST_SECONDS):
            state = f"connection lost for {lost:.0f} s, job {self.id} may still be running"
            if job and job.finished:
                state = f"job {self.id} ended {job.status}, but its log cannot be read past byte {self.offset}"
            raise ContactLost(f"{state} ({error})", f"`status {self.id}` shows its state") from error
        self._note_once("lost", f"connection lost, retrying ({error})")
        self.contact += self._wait_for_head()

    def _wait_for_head(self) -> float:
        """Wait while the cluster says that its head is not ready; these seconds are no loss of contact."""
        began = time.monotonic()
        if self.target.ends_with_us:
            return 0.0
        try:
            self.target.wait_ready(lambda line: self._note_once(line, line), _RETURN_SECONDS)
        except (TimedOut, NotFound) as error:
            what = f"connection lost, job {self.id} may still be running ({error})"
            raise ContactLost(what, f"`status {self.id}` shows its state") from error
        except ClientError:
            return 0.0  # the cluster's own API does not answer either
        return time.monotonic() - began

    def _note_once(self, key: str, line: str) -> None:
        if key not in self.noted:
            self.noted.add(key)
            self.note(line)

    def _next_pause(self, whole_seconds: float) -> float:
        """The seconds until the next round; longer if the whole log is sent each time, which took so many seconds."""
        quiet, job = time.monotonic() - self.changed, self.job
        if job and job.status == "PENDING" and quiet > _PENDING_SECONDS:
            self._note_once("pending", f"the job is pending: {job.message or 'Ray gives no reason'}")
        # A log that has been silent for long is read less often: at most a second late, 5 % of the wait.
        pause = min(_LONGEST_PAUSE, max(_SHORTEST_PAUSE, quiet / 20))
        return max(pause, 4 * whole_seconds)


def read_log(jobs: RayJobs, job: JobRecord, write: Callable[[bytes], object], offset: int) -> None:
    """Write the log of a running job, from a byte to where it ends now.

    Raises:
        ContactLost: its node is gone, and the job with it.
    """
    empty = True  # the log of a node that is gone looks like this, too
    try:
        for chunk in jobs.logs.read(job, offset):
            write(chunk)
            empty = False
    except Unreachable as error:
        if jobs.node_is_gone(job.node_id):
            raise _lost_with_node(job) from error
        raise
    if empty and jobs.node_is_gone(job.node_id):
        raise _lost_with_node(job)


def _lost_with_node(job: JobRecord) -> JobLost:
    return JobLost(f"the node of job {job.submission_id} is gone, and the job is lost", "submit it again")


def tail_offset(jobs: RayJobs, job: JobRecord, lines: int) -> int:
    """The byte of a job's log at which its last lines begin."""
    size, window = jobs.logs.size(job), 64 * 1024 + 200 * lines
    while True:
        start = max(0, size - window)
        starts, position = deque([start], maxlen=lines + 1), start
        for chunk in jobs.logs.read(job, start):
            for end in re.finditer(b"\n", chunk):
                starts.append(position + end.end())
            position += len(chunk)
        if starts[-1] == position:  # the last line is complete, so no line begins after it
            starts.pop()
        if start == 0 or len(starts) > lines:
            return (list(starts)[-lines:] or [position])[0] if lines else position
        window *= 8
