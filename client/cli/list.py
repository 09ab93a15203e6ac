"""The command `list`."""

import time

import click

from client.cli.help import Command
from client.cli.options import Duration, address_option, opened, output_option


@click.command(
    "list",
    cls=Command,
    groups={"Which jobs": ("limit", "statuses", "mine", "name", "since")},
    examples=("list --mine --since 24h", "list --status failed --status stopped -o json"),
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
@output_option
def list_jobs(
    address: str | None,
    limit: int,
    statuses: tuple[str, ...],
    mine: bool,
    name: str | None,
    since: float | None,
    as_json: bool,
) -> None:
    """List the jobs of the cluster, newest first."""
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
        shown = jobs.with_start_times(chosen[:limit])
    output.print_json([output.job_data(job) for job in shown]) if as_json else output.print_jobs(shown)
