"""Runs a batch: starts each job when those before it have succeeded, follows what runs, and submits lost ones again.

One thread asks about each running job in turn, with REQUESTS_PER_SECOND at most, however many run. What is
known here is only what Ray's table of jobs has, so a runner that is killed is replaced by the same command.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence

from client.batch.batch import Options
from client.batch.member import Changed, Event, Logged, Member, Runnable
from client.errors import (
    ClientError,
    ContactLost,
    Detached,
    JobLost,
    JobNotFound,
    NotAuthorised,
    ServerFailed,
    Unreachable,
)
from client.job.follow import Follower
from client.job.submission import Submission
from client.ray_api.jobs import RayJobs
from client.ray_api.record import JobRecord, JobResult
from client.targets.target import Target
from client.wait import Note

REQUESTS_PER_SECOND = 20
_REQUESTS = 2  # of a follower's round: the record and the log
_LOST_SECONDS = 120.0  # for a submit that does not arrive
_LAST_LINE = 500  # characters
_LONGEST_PAUSE = 60.0  # before the next attempt
_WORKER_SECONDS = 60.0  # until a worker that has lost its head has ended, with the driver on it
_LOST = frozenset(  # Ray's error types of a job whose supervisor is gone (ray/dashboard/modules/job/common.py, 2.60)
    f"JOB_SUPERVISOR_ACTOR_{kind}" for kind in ("DIED", "UNKNOWN_FAILURE", "START_FAILURE")
)


class Runner:
    """Runs the jobs of one batch.

    Attributes:
        members: all jobs, in the order of the batch.
    """

    def __init__(
        self,
        planned: Sequence[Runnable],
        target: Target,
        send: Callable[[Runnable, Submission], bool],
        options: Options,
        note: Note,
        batch: str,
    ) -> None:
        """Start nothing yet.

        Args:
            planned: the jobs, each after those it waits for.
            target: where they run.
            send: submits one, and returns False if it was there before.
            options: how they run.
            note: takes a line for the user.
            batch: the name of them all.
        """
        self.members = [Member(job, attempts=list(job.attempts)) for job in planned]
        for member in self.members:
            member.retries = max(0, len(member.attempts) - 1) if member.planned.decision == "attach" else 0
        self._by_name = {member.name: member for member in self.members}
        self._target, self._send, self._options, self._note, self._batch = target, send, options, note, batch
        self._jobs = RayJobs(target)
        self._followers: dict[str, tuple[Follower, float]] = {}  # by the job's name; when it is asked next
        self._ending = False  # start nothing more
        self._attaches = sum(member.planned.decision == "attach" for member in self.members) if batch else 0
        self._waits_since: float | None = None  # since when a submit does not arrive
        self._stops: frozenset[str] = frozenset()  # those of earlier runs

    def end(self) -> None:
        """Start nothing more."""
        self._ending = True

    @property
    def exit_code(self) -> int:
        """The highest of the jobs'; 0 if all have succeeded, now or before."""
        codes = [member.exit_code or 0 for member in self.members]
        left = any(member.state == "NOT_STARTED" and member.planned.decision != "leave" for member in self.members)
        return max([*codes, int(left)])

    def run(self) -> Iterator[Event]:
        """Run all jobs, and yield what happens.

        Raises:
            ContactLost: the cluster does not answer any more; its jobs may still run.
        """
        for member in self.members:
            if member.planned.decision in ("skip", "leave"):
                member.state = {"skip": "SKIPPED", "leave": "NOT_STARTED"}[member.planned.decision]
                yield Changed(member)
        if any(self._ready()):
            self._stops = frozenset(stops(self._jobs.list(), self._batch))
        while True:
            yield from self._start_ready()
            if not self._followers and (self._ending or not any(self._ready())):
                break
            yield from self._poll()
        for member in self.members:
            if member.state == "WAITING":  # one that failed may have waited for its next attempt
                member.state = "NOT_STARTED" if member.exit_code is None else "FAILED"
                yield Changed(member)

    def _ready(self) -> Iterator[Member]:
        """The jobs that can start, as far as those before them are concerned."""
        for member in self.members:
            after = [self._by_name[name] for name in member.planned.order.after]
            if member.state == "WAITING" and all(m.state in ("SUCCEEDED", "SKIPPED") or m.is_left_out for m in after):
                yield member

    def _start_ready(self) -> Iterator[Event]:
        for member in self._ready():
            attach = member.planned.decision == "attach" and member.began is None
            full = len(self._followers) >= self._options.max_parallel
            if full and not self._attaches:
                return
            if not (attach and self._batch) and (self._ending or full or time.monotonic() < member.not_before):
                continue
            self._attaches -= attach
            try:
                if not attach:
                    self._submit(member)
                    if self._ending:  # it was stopped while this one waited for its next attempt
                        return
            except (Unreachable, ServerFailed, ContactLost) as error:
                self._wait_to_submit(member, error)
                return
            except Detached as error:
                raise KeyboardInterrupt from error
            except NotAuthorised:
                raise
            except ClientError as error:
                member.error, member.state, member.exit_code = error, "FAILED", error.exit_code
                self._ending = self._ending or not self._options.keep_going
                yield Changed(member)
                continue
            member.state, member.began, member.ended = "PENDING", time.time(), None
            follower = Follower(self._target, self._jobs, member.attempts[-1], self._note_of(member))
            self._followers[member.name] = follower, 0.0
            yield Changed(member)

    def _submit(self, member: Member) -> None:
        if member.began is not None and self._batch_stopped():
            self._ending = True
            return
        made = member.planned.submission(
            member.planned.next_attempt + len(member.attempts) - len(member.planned.attempts)
        )
        self._send(member.planned, made)
        member.attempts.append(made.submission_id)
        self._waits_since = None

    def _wait_to_submit(self, member: Member, error: ClientError) -> None:
        """Try again in a moment, for two minutes: the same id is never run twice."""
        now = time.monotonic()
        if self._waits_since is None:
            self._waits_since = now
            self._note(f"{member.name}: connection lost, retrying ({error.what})")
        if now - self._waits_since > _LOST_SECONDS:
            what = f"job {member.name} could not be submitted ({error})"
            raise ContactLost(what, "run the same command again") from error
        member.not_before = now + 1.0

    def _poll(self) -> Iterator[Event]:
        """Ask about each job whose time has come, then wait for the next one's."""
        spacing = _REQUESTS * len(self._followers) / REQUESTS_PER_SECOND
        for name, (follower, due) in list(self._followers.items()):
            if time.monotonic() < due:
                continue
            member = self._by_name[name]
            try:
                result = yield from self._logged(member, follower)
            except (JobLost, JobNotFound) as error:
                yield from self._lost(member, error)
                continue
            except ContactLost as error:
                if not (follower.job and follower.job.finished):
                    raise
                self._note(f"{name}: {error}")  # it has ended, and its log is gone
                result = JobResult(follower.job)
            member.record = result.job if result else follower.job
            if result:
                yield from self._ended(member, result)
                continue
            self._followers[name] = follower, time.monotonic() + max(follower.pause, spacing)
            if follower.job and follower.job.status != member.state and not follower.job.finished:
                member.state = follower.job.status
                yield Changed(member)
        waits = [due for _, due in self._followers.values()]
        if not self._ending and len(waits) < self._options.max_parallel:
            waits += [member.not_before for member in self._ready()]
        time.sleep(min(1.0, max(0.0, min(waits, default=0.0) - time.monotonic())))

    def _logged(self, member: Member, follower: Follower) -> Generator[Event, None, JobResult | None]:
        log = follower.poll()
        while True:
            try:
                data = next(log)
            except StopIteration as end:
                ended: JobResult | None = end.value
                return ended
            lines = [line for line in data.decode(errors="replace").splitlines() if line.strip()]
            member.last_line = lines[-1][:_LAST_LINE] if lines else member.last_line
            yield Logged(member, data)

    def _ended(self, member: Member, result: JobResult) -> Iterator[Event]:
        del self._followers[member.name]
        member.state, member.exit_code = result.job.status, result.exit_code
        member.ended = (result.job.end_time or time.time() * 1000) / 1000
        if result.job.status == "FAILED":
            yield from self._failed(member, _failure(result.job))
            return
        if result.job.status == "STOPPED":
            try:
                self._ending = self._ending or not self._options.keep_going or self._batch_stopped()
            except ClientError:
                self._ending = True  # it is not known whether only this job was stopped
        yield Changed(member)

    def _lost(self, member: Member, error: ClientError) -> Iterator[Event]:
        del self._followers[member.name]
        member.state, member.error, member.exit_code = "LOST", error, error.exit_code
        member.ended = time.time()
        yield from self._failed(member, "lost")

    def _failed(self, member: Member, kind: str) -> Iterator[Event]:
        """Submit the job again if it may be, else start nothing that waits for it."""
        order = member.planned.order
        # What an earlier run has left is lost for that run; for this one, it is as if it had not been there.
        is_left = kind == "lost" and member.is_attached
        if (is_left or (kind in order.retry_on and member.retries < order.retries)) and not self._ending:
            member.retries += not is_left
            pause = min(2.0 ** min(member.retries - 1, 6), _LONGEST_PAUSE)
            if kind == "lost" and order.may_leave_head:  # its driver may have been on a worker
                pause = _WORKER_SECONDS
            member.not_before = time.monotonic() + pause
            member.state, member.error = "WAITING", None
            how = "was lost" if kind == "lost" else "failed"
            count = "" if is_left else f" (retry {member.retries} of {order.retries})"
            self._note(f"{order.name}: {member.submission_id} {how}; submitting it again{count}")
        else:
            self._ending = self._ending or not self._options.keep_going
        yield Changed(member)

    def _batch_stopped(self) -> bool:
        """Whether someone has stopped the whole batch since we began."""
        return bool(self._batch) and not self._stops.issuperset(stops(self._jobs.list(), self._batch))

    def _note_of(self, member: Member) -> Note:
        return lambda line: self._note(f"{member.name}: {line}")


def _failure(job: JobRecord) -> str:
    """What failed: the driver (exit), what it ran on (lost), or its start."""
    if job.driver_exit_code is not None:
        return "exit"
    return "lost" if job.error_type in _LOST else "start"


def stops(jobs: Sequence[JobRecord], batch: str) -> Iterator[str]:
    """The ids of the jobs that only say that a batch was stopped."""
    return (job.submission_id for job in jobs if job.metadata.get("batch_stop") == batch)
