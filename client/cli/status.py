"""The command `status`."""

from typing import TYPE_CHECKING, Any

import click

from client.cli.help import Command
from client.cli.options import address_option, batch_output_option, opened
from client.errors import JobNotFound

if TYPE_CHECKING:
    from client.batch.table import Row, Table
    from client.ray_api.record import JobRecord


@click.command(cls=Command, examples=("status", "status -o json ID", "status -o csv SWEEP"))
@address_option
@batch_output_option
@click.argument("submission_id", metavar="[ID|NAME|NAME/JOB]", required=False)
def status(address: str | None, output_format: str, submission_id: str | None) -> None:
    """Show a job, a chain or a sweep; without ID, show the cluster in use and why it was chosen."""
    from client.batch.table import find, hours, job_id
    from client.cli import output
    from client.ray_api.jobs import RayJobs

    as_json = output_format == "json"
    with opened(address) as (target, chosen):
        jobs = RayJobs(target)
        if submission_id:
            try:
                found = jobs.get(job_id(jobs, submission_id))
            except JobNotFound:
                if not (table := find(jobs, submission_id, with_times=True)):
                    raise
                print_batch(table, output_format)
                return
            job = jobs.with_start_times([found])[0]
            outputs = output.outputs(job, in_place=target.runtime.in_place)
            output.print_json(output.job_data(job)) if as_json else output.print_pairs(
                {**_job(job), **_hours(hours([job])), "outputs": outputs}
            )
            return
        where = {"address": target.address, "url": target.http.server.url, "source": chosen.source}
        data = {**where, **target.facts(), **jobs.version(), "resources": jobs.resources()}
        output.print_json(data) if as_json else output.print_pairs(_cluster(data, jobs.used()))


def print_batch(table: "Table", output_format: str) -> None:
    """Print a chain or a sweep: what it is, and its jobs."""
    from client.batch import table as batches
    from client.cli import output
    from client.cli.board import to_csv

    data = batches.data(table, output.job_data)
    if output_format == "json":
        output.print_json(data)
    elif output_format == "csv":
        output.print_line(to_csv(data["jobs"]).rstrip("\n"))
    else:
        count = ", ".join(f"{number} {status}" for status, number in table.count().items())
        output.print_pairs(
            {
                "name": table.name,
                "kind": table.kind,
                "jobs": f"{len(table.rows)} of {table.size} submitted" + (f": {count}" if count else ""),
                "exit code": table.exit_code,
                "runner": table.runner and f"{table.runner.submission_id} {table.runner.status}",
                **_hours(batches.hours(table.jobs)),
            }
        )
        names = list(dict.fromkeys(name for row in table.rows for name in row.parameters))
        header = (*(names or ("JOB",)), "STATUS", "EXIT", "SECONDS", "ATTEMPTS", "SUBMISSION ID")
        output.print_table(header, [_row(row, names) for row in table.rows])


def _row(row: "Row", parameters: list[str]) -> list[str]:
    first = [row.parameters.get(name, "") for name in parameters] or [row.name]
    code, seconds = row.job.exit_code, row.job.seconds
    numbers = ["" if code is None else str(code), "" if seconds is None else f"{seconds:.1f}", str(len(row.attempts))]
    return [*first, row.job.status, *numbers, row.job.submission_id]


def _hours(found: dict[str, float]) -> dict[str, str]:
    """The hours that were reserved, for people."""
    return {name.replace("_", " "): f"{amount:.4g}" if amount else "" for name, amount in found.items()}


def _job(job: "JobRecord") -> dict[str, Any]:
    """A job for people; `-o json` has the rest."""
    from client.job.request import RECORDED
    from client.ray_api.record import JobResult

    known = job.metadata
    return {
        "id": job.submission_id,
        "name": known.get("job_name"),
        "status": job.status,
        "exit code": JobResult(job).exit_code if job.finished else None,
        "entrypoint": job.entrypoint,
        "message": job.message,
        "submitted": when(job.submit_time),
        "started": when(job.start_time),
        "ended": when(job.end_time),
        "user": "@".join(known[name] for name in ("user", "host") if name in known),
        "commit": known.get("git_commit", "") + (" with changes" if known.get("git_dirty") == "true" else ""),
        "tags": {name: value for name, value in known.items() if name not in RECORDED},
    }


def _cluster(data: dict[str, Any], used: dict[str, float]) -> dict[str, Any]:
    """The cluster in use for people; `-o json` has the rest."""
    wanted = data.get("pods_wanted", {})
    return {
        "address": f"{data['address']} ({data['source']})",
        "url": data["url"],
        "Ray": data["ray_version"],
        "release": data.get("release"),
        "pods ready": ", ".join(
            f"{name} {ready} of {wanted[name]}" for name, ready in data.get("pods_ready", {}).items()
        ),
        "resources": "\n".join(_resource(name, total, used.get(name)) for name, total in data["resources"].items()),
    }


def _resource(name: str, total: float, used: float | None) -> str:
    def amount(value: float) -> str:
        return f"{value / 2**30:.1f} GiB" if name in ("memory", "object_store_memory") else f"{value:g}"

    return f"{name:<20} " + (amount(total) if used is None else f"{amount(used)} used, {amount(total - used)} free")


def when(milliseconds: float | None) -> str:
    """A time in this machine's time zone, and how long ago it was."""
    from client.cli.output import ago, local_time

    return f"{local_time(milliseconds)} ({ago(milliseconds)})" if milliseconds else ""
