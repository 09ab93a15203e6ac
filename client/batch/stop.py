"""Stopping a batch: its runner, then its jobs, and what another client starts meanwhile."""

import secrets
import time
from collections.abc import Sequence

from client.batch.table import Table, find
from client.errors import JobNotFound
from client.job.stop import Stopping
from client.job.submission import user
from client.ray_api.jobs import RayJobs
from client.ray_api.record import JobRecord
from client.targets.target import Target

_QUIET_SECONDS = 1.5  # without a new job: a runner starts none any more
_POLL_SECONDS = 0.25


def stop_batch(target: Target, jobs: RayJobs, name: str, seconds: float) -> Sequence[JobRecord]:
    """Stop all jobs of a batch, and whoever starts more of them.

    Args:
        target: where they run.
        jobs: the jobs there.
        name: of the batch.
        seconds: how long to wait for their end.

    Returns:
        The jobs that have not ended.

    Raises:
        JobNotFound: there is no such batch.
    """

    def unfinished(table: Table) -> list[JobRecord]:
        lost = jobs.lost(table.unfinished)
        return [job for job in table.unfinished if job.submission_id not in lost]

    if not (table := find(jobs, name)):
        raise JobNotFound(f"there is no chain or sweep {name}", "`list --chain` shows all")
    end, left = time.monotonic() + seconds, unfinished(table)
    # A job that only says so: runners look for it when one of their jobs was stopped, and before a retry.
    said = {"batch_stop": name, "user": user(), "spec_hash": ""}
    jobs.submit({"entrypoint": "true", "submission_id": f"stop-{secrets.token_hex(6)}", "metadata": said})
    stopping: dict[str, Stopping] = {}
    quiet_since = time.monotonic()
    while time.monotonic() < end:
        for job in left:
            quiet_since = time.monotonic()
            stopping.setdefault(job.submission_id, Stopping(target, jobs, job.submission_id)).ask(job)
        if not stopping or (not left and time.monotonic() - quiet_since > _QUIET_SECONDS):
            break
        time.sleep(_POLL_SECONDS)
        table = find(jobs, name) or table
        left = unfinished(table)
    for job in table.jobs:
        if job.submission_id in stopping:
            stopping[job.submission_id].ask(job)
    return left
