"""The command `list`."""

import click

from client.cli.options import address_option, choose, output_option


@click.command("list")
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
@output_option
def list_jobs(address: str | None, limit: int, statuses: tuple[str, ...], as_json: bool) -> None:
    """List the jobs of the cluster, newest first."""
    from client.cli import output
    from client.ray_api.jobs import RayJobs
    from client.targets import connect

    with connect(choose(address)) as target:
        jobs = RayJobs(target)
        chosen = [job for job in jobs.list() if not statuses or job.status in statuses][:limit]
        shown = jobs.with_start_times(chosen)
    output.print_json([output.job_data(job) for job in shown]) if as_json else output.print_jobs(shown)
