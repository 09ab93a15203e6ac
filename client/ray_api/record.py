"""What the server knows of a job, and the exit code that follows from it."""

import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TIMEOUT_SIGNAL = signal.SIGALRM  # the signal by which an entrypoint with a --timeout ends itself, once it ran too long
_KILLED = re.compile("WorkerCrashedError|ActorDiedError|OutOfMemoryError|NodeDiedError")  # in the last lines of its log
_TIMED_OUT, _STOPPED, _NO_CODE = 124, 143, 1


@dataclass(frozen=True)
class JobRecord:
    """The server's record of a job. It holds no environment variables.

    Attributes:
        submission_id: the job's id.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        entrypoint: the command line.
        message: why it has this status.
        error_type: Ray's own word for what failed.
        submit_time: when it was submitted, as Unix time in milliseconds.
        start_time: the same, when its driver was started; None before that, and where the server no longer knows.
        end_time: the same, of its end.
        driver_exit_code: the driver's, negative for a signal; None where no driver ended.
        metadata: names and values given at submit.
        agent: the HTTP address of the agent on the driver's node.
        node_id: that node.
    """

    submission_id: str
    status: str
    entrypoint: str = ""
    message: str | None = None
    error_type: str | None = None
    submit_time: int | None = None
    start_time: int | None = None
    end_time: int | None = None
    driver_exit_code: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    agent: str | None = None
    node_id: str | None = None

    @property
    def finished(self) -> bool:
        """True once the status is final."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")

    @property
    def was_killed(self) -> bool:
        """Whether it failed because a process of it was killed, as far as that is known."""
        by_kernel = self.driver_exit_code in (-signal.SIGKILL, 128 + signal.SIGKILL)
        return self.status == "FAILED" and (by_kernel or bool(_KILLED.search(self.message or "")))

    @property
    def seconds(self) -> float | None:
        """How long the driver ran, or has been running; None where its start is not known."""
        return _between(self.start_time, self.end_time)

    @property
    def waited_seconds(self) -> float | None:
        """How long the job waited for its driver's start, or has been waiting; None where that is not known."""
        if self.start_time is None and self.status != "PENDING":
            return None
        return _between(self.submit_time, self.start_time)

    @property
    def exit_code(self) -> int | None:
        """As in `JobResult`; None before the end."""
        return JobResult(self).exit_code if self.finished else None


def _between(start: int | None, end: int | None) -> float | None:
    return None if start is None else max(0.0, (end or time.time() * 1000) - start) / 1000


@dataclass(frozen=True)
class JobResult:
    """How a job ended.

    Attributes:
        job: its record, with a final status.
    """

    job: JobRecord

    @property
    def timed_out(self) -> bool:
        """Whether it was ended because it ran longer than its --timeout."""
        return "timeout" in self.job.metadata and self.job.driver_exit_code == -TIMEOUT_SIGNAL

    @property
    def exit_code(self) -> int:
        """0 SUCCEEDED; the driver's own code; 128+n for signal n; 124 for its timeout; 143 STOPPED; 1 for none."""
        code = self.job.driver_exit_code
        if self.job.status == "SUCCEEDED":
            return 0
        if self.job.status == "STOPPED":
            return _STOPPED
        if self.timed_out:
            return _TIMED_OUT
        if code is None:
            return _NO_CODE
        return code if code > 0 else 128 - code


def record(data: Mapping[str, Any]) -> JobRecord:
    """A job from the server's JSON: JobDetails of ray/dashboard/modules/job/pydantic_models.py, Ray 2.60.

    Its `start_time` is that of the submit.
    """
    return JobRecord(
        submission_id=data.get("submission_id") or data.get("job_id") or "",
        status=data["status"],
        entrypoint=data.get("entrypoint") or "",
        message=data.get("message"),
        error_type=data.get("error_type"),
        submit_time=data.get("start_time"),
        end_time=data.get("end_time"),
        driver_exit_code=data.get("driver_exit_code"),
        metadata=data.get("metadata") or {},
        agent=data.get("driver_agent_http_address"),
        node_id=data.get("driver_node_id"),
    )
