"""What Ray's table of jobs knows of batches."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from client.errors import JobNotFound
from client.ray_api.jobs import RayJobs
from client.ray_api.record import JobRecord


@dataclass(frozen=True)
class Row:
    """A job of a batch that was submitted.

    Attributes:
        name: in the batch.
        jobs: all its attempts, those with an older spec included, the newest last.
    """

    name: str
    jobs: tuple[JobRecord, ...]

    @property
    def job(self) -> JobRecord:
        """The newest attempt."""
        return self.jobs[-1]

    @property
    def attempts(self) -> list[JobRecord]:
        """Those with the newest spec, the newest last."""
        spec = self.job.metadata.get("step_spec")
        return [job for job in self.jobs if job.metadata.get("step_spec") == spec]

    @property
    def parameters(self) -> dict[str, str]:
        """Its values in a sweep."""
        found: dict[str, str] = json.loads(self.job.metadata.get("parameters", "{}"))
        return found


@dataclass(frozen=True)
class Table:
    """A batch as far as it was submitted.

    Attributes:
        name: its handle.
        rows: its jobs, in the order of their first submit.
        runner: the job that runs it on the cluster, if it was detached.
    """

    name: str
    rows: tuple[Row, ...]
    runner: JobRecord | None = None

    @property
    def kind(self) -> str:
        """`chain`, `sweep` or `job`."""
        return self._newest.metadata.get("batch_kind", "chain")

    @property
    def size(self) -> int:
        """How many jobs the batch has, those that were not submitted included."""
        return max(int(self._newest.metadata.get("batch_size", "0")), len(self.rows))

    @property
    def jobs(self) -> list[JobRecord]:
        """All attempts of all jobs."""
        return [job for row in self.rows for job in row.jobs]

    @property
    def unfinished(self) -> list[JobRecord]:
        """The jobs that still run or wait, the runner included."""
        return [job for job in (*([self.runner] if self.runner else []), *self.jobs) if not job.finished]

    @property
    def exit_code(self) -> int | None:
        """The highest of the jobs'; None while one of them runs, and where some were never started and none failed."""
        if self.unfinished:
            return None
        code = max((row.job.exit_code or 0 for row in self.rows), default=0)
        return code if code or len(self.rows) == self.size else None

    @property
    def log(self) -> JobRecord | None:
        """The runner, if its log has those of all jobs; None if another client has run some of them since."""
        runner = self.runner
        end = runner and (runner.end_time or float("inf"))
        return runner if end and all((job.submit_time or 0) <= end for job in self.jobs) else None

    @property
    def submit_time(self) -> int:
        """The time of the first job, as Unix time in milliseconds."""
        return min((job.submit_time or 0 for job in self.jobs), default=self._newest.submit_time or 0)

    @property
    def _newest(self) -> JobRecord:
        jobs = [*self.jobs, *([self.runner] if self.runner else [])]
        return max(jobs, key=lambda job: job.submit_time or 0)

    def count(self) -> dict[str, int]:
        """How many jobs have each status."""
        found: dict[str, int] = {}
        for row in self.rows:
            found[row.job.status] = found.get(row.job.status, 0) + 1
        return found


def tables(jobs: Iterable[JobRecord]) -> list[Table]:
    """All batches, the one with the newest job first.

    Args:
        jobs: of the cluster, newest first.
    """
    rows: dict[str, dict[str, list[JobRecord]]] = {}
    runners: dict[str, JobRecord] = {}
    for job in jobs:
        if (name := job.metadata.get("batch")) is None:
            continue
        steps = rows.setdefault(name, {})
        if "step" in job.metadata:
            steps.setdefault(job.metadata["step"], []).append(job)
        else:
            runners.setdefault(name, job)

    def row(step: str, found: Sequence[JobRecord]) -> Row:
        return Row(step, tuple(reversed(found)))

    return [
        Table(name, tuple(sorted((row(*pair) for pair in steps.items()), key=_first)), runners.get(name))
        for name, steps in rows.items()
    ]


def _first(row: Row) -> tuple[int, str]:
    return row.jobs[0].submit_time or 0, row.name


def find(jobs: RayJobs, name: str, *, with_times: bool = False) -> Table | None:
    """The batch of a name; None if there is none.

    Args:
        jobs: of the cluster.
        name: of the batch.
        with_times: with the start times of its jobs.
    """
    found = [job for job in jobs.list() if job.metadata.get("batch") == name]
    return next(iter(tables(jobs.with_start_times(found) if with_times else found)), None)


def job_id(jobs: RayJobs, handle: str) -> str:
    """The id of a job: of the newest attempt for BATCH/JOB; all other words are ids.

    Raises:
        JobNotFound: the batch has no such job.
    """
    name, slash, step = handle.partition("/")
    if not slash or not (table := find(jobs, name)):  # other clients may use a slash in an id
        return handle
    row = next((row for row in table.rows if row.name == step), None)
    if not row:
        raise JobNotFound(f"there is no job {handle}", f"{name} has {', '.join(row.name for row in table.rows[:10])}")
    return row.job.submission_id


def hours(jobs: Iterable[JobRecord]) -> dict[str, float]:
    """The CPU-hours and GPU-hours that drivers have reserved: what they asked for, times how long they ran."""
    found = {"cpu_hours": 0.0, "gpu_hours": 0.0}
    for job in jobs:
        for name, amount in (("cpu_hours", "num_cpus"), ("gpu_hours", "num_gpus")):
            found[name] += float(job.metadata.get(amount, 0)) * (job.seconds or 0) / 3600
    return found


def data(table: Table, job_data: Any) -> dict[str, Any]:
    """A batch as `-o json` shows it.

    Args:
        table: the batch.
        job_data: makes the data of a job's record.
    """
    return {
        "name": table.name,
        "kind": table.kind,
        "size": table.size,
        "exit_code": table.exit_code,
        **hours(table.jobs),
        "jobs": [
            {
                "job": row.name,
                "parameters": row.parameters,
                **job_data(row.job),
                "seconds": row.job.seconds,
                "attempts": [job.submission_id for job in row.attempts],
            }
            for row in table.rows
        ],
    }
