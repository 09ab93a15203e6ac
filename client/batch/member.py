"""A job of a running batch, and what can happen to it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from client.batch.batch import Order
from client.errors import ClientError
from client.job.submission import Submission
from client.ray_api.record import JobRecord


class Runnable(Protocol):
    """A job for a runner: `client.batch.plan.Planned`, or one that another process has planned."""

    @property
    def order(self) -> Order:
        """When it runs."""

    @property
    def decision(self) -> str:
        """`run`, `attach`, `skip` or `leave`."""

    @property
    def why(self) -> str:
        """The reason, for the user."""

    @property
    def attempts(self) -> Sequence[str]:
        """The ids of its earlier attempts."""

    @property
    def next_attempt(self) -> int:
        """The number of the next attempt."""

    def submission(self, attempt: int) -> Submission:
        """The submission of an attempt, counted from 1."""


@dataclass
class Member:
    """A job of a running batch.

    Attributes:
        planned: what it is.
        state: WAITING, PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED, LOST; SKIPPED, because it had succeeded before;
            or NOT_STARTED.
        attempts: the ids of its attempts, the newest last.
        record: of the newest attempt, as it was last read.
        error: why it could not be submitted, or was lost.
        exit_code: as `submit` would have it; None before the end, and where it did not run.
        last_line: of its log.
        began: when the newest attempt was submitted or attached to, as Unix time.
        ended: when it ended.
        not_before: the next attempt waits for this time of the monotonic clock.
        retries: how often it was submitted again.
    """

    planned: Runnable
    state: str = "WAITING"
    attempts: list[str] = field(default_factory=list)
    record: JobRecord | None = None
    error: ClientError | None = None
    exit_code: int | None = None
    last_line: str = ""
    began: float | None = None
    ended: float | None = None
    not_before: float = 0.0
    retries: int = 0

    @property
    def is_attached(self) -> bool:
        """Whether its newest attempt is one of an earlier run."""
        return self.planned.decision == "attach" and self.attempts == list(self.planned.attempts)

    @property
    def is_left_out(self) -> bool:
        """Whether it was not chosen; those that wait for it do not wait."""
        return self.planned.decision == "leave"

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state not in ("WAITING", "PENDING", "RUNNING")

    @property
    def name(self) -> str:
        """The job's name in its batch."""
        return self.planned.order.name

    @property
    def submission_id(self) -> str | None:
        """The id of the newest attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def seconds(self) -> float | None:
        """How long the newest attempt has taken, from its submit on."""
        record = self.record
        if self.is_over and record and record.end_time and record.submit_time:  # of an earlier run, too
            return (record.end_time - record.submit_time) / 1000
        return None if self.began is None else (self.ended or time.time()) - self.began


@dataclass(frozen=True)
class Logged:
    """New bytes of a job's log."""

    member: Member
    data: bytes


@dataclass(frozen=True)
class Changed:
    """A job has another state, or another attempt."""

    member: Member


Event = Logged | Changed
