"""What the server knows of a job."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class JobRecord:
    """What the server knows of a job. It holds no environment variables.

    Attributes:
        submission_id: the job's id.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        entrypoint: the command line.
        message: why it has this status.
        error_type: Ray's own word for what failed.
        start_time: Unix time in milliseconds; of the submit while it is pending.
        end_time: the same, of the end.
        exit_code: the driver's, negative for a signal; None where no driver ended.
        metadata: names and values given at submit.
        agent: the HTTP address of the agent on the driver's node.
        node_id: that node.
    """

    submission_id: str
    status: str
    entrypoint: str = ""
    message: str | None = None
    error_type: str | None = None
    start_time: int | None = None
    end_time: int | None = None
    exit_code: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    agent: str | None = None
    node_id: str | None = None

    @property
    def finished(self) -> bool:
        """True once the status is final."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")

    @property
    def seconds(self) -> float | None:
        """How long it ran, or has been running."""
        if self.start_time is None:
            return None
        return (self.end_time or time.time() * 1000) / 1000 - self.start_time / 1000


def record(data: Mapping[str, Any]) -> JobRecord:
    """A job from the server's JSON: JobDetails of ray/dashboard/modules/job/pydantic_models.py, Ray 2.60."""
    return JobRecord(
        submission_id=data.get("submission_id") or data.get("job_id") or "",
        status=data["status"],
        entrypoint=data.get("entrypoint") or "",
        message=data.get("message"),
        error_type=data.get("error_type"),
        start_time=data.get("start_time"),
        end_time=data.get("end_time"),
        exit_code=data.get("driver_exit_code"),
        metadata=data.get("metadata") or {},
        agent=data.get("driver_agent_http_address"),
        node_id=data.get("driver_node_id"),
    )
