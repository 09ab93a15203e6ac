"""The command `list`."""

import time
from typing import TYPE_CHECKING

import click

from client.cli.help import Command
from client.cli.options import Duration, address_option, opened, output_option

if TYPE_CHECKING:
    from client.batch.table import Table


@click.command(
    "list",
    cls=Command,
    groups={"Which jobs": ("limit", "statuses", "mine", "name", "since", "chain")},
    examples=("list --mine --since 24h", "list --status failed --status stopped -o json", "list --chain"),
)
@address_option
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="Show at most N jobs."
)
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice(["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"], case_sensitive=False),
    help="Show only jobs with this status.",
)
@click.option("--mine", is_flag=True, help="Show only jobs that you submitted, by your user name.")
@click.option("--name", metavar="NAME", help="Show only jobs with this name.")
@click.option("--since", type=Duration(), metavar="DURATION", help="Show only jobs submitted in the last DURATION.")
@click.option("--chain", is_flag=True, help="Show chains and sweeps, each in one line.")
@output_option
def list_jobs(
    address: str | None,
    limit: int,
    statuses: tuple[str, ...],
    mine: bool,
    name: str | None,
    since: float | None,
    chain: bool,
    as_json: bool,
) -> None:
    """List the jobs of the cluster, newest first."""
    from client.batch.table import tables
    from client.cli import output
    from client.job.submission import user
    from client.ray_api.jobs import RayJobs

    with opened(address) as (target, _):
        jobs, me = RayJobs(target), user()
        oldest = 0 if since is None else (time.time() - since) * 1000
        chosen = [
            job
            for job in jobs.list()
            if (not statuses or job.status in statuses)
            and (not mine or job.metadata.get("user") == me)
            and (name is None or job.metadata.get("job_name") == name)
            and (job.submit_time or 0) >= oldest
        ]
        if chain:
            found = tables(jobs.with_start_times([job for job in chosen if "batch" in job.metadata]))[:limit]
            _print_batches(found, as_json=as_json)
            return
        shown = jobs.with_start_times(chosen[:limit])
    output.print_json([output.job_data(job) for job in shown]) if as_json else output.print_jobs(shown)


def _print_batches(found: "list[Table]", *, as_json: bool) -> None:
    from client.batch.table import data, hours
    from client.cli import output

    if as_json:
        output.print_json([data(table, output.job_data) for table in found])
        return
    header = ("NAME", "KIND", "JOBS", "STATUS", "EXIT", "CPU HOURS", "GPU HOURS", "SUBMITTED")
    rows = []
    for table in found:
        used = [f"{amount:.3g}" if amount else "" for amount in hours(table.jobs).values()]
        count = ", ".join(f"{number} {status}" for status, number in table.count().items())
        code = "" if table.exit_code is None else str(table.exit_code)
        submitted = output.local_time(table.submit_time)
        rows.append([table.name, table.kind, str(table.size), count, code, *used, submitted])
    output.print_table(header, rows)
