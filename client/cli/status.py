"""The command `status`."""

import click

from client.cli.help import Command
from client.cli.options import address_option, choose, output_option


@click.command(cls=Command, examples=("status", "status -o json ID"))
@address_option
@output_option
@click.argument("submission_id", metavar="[ID]", required=False)
def status(address: str | None, as_json: bool, submission_id: str | None) -> None:
    """Show a job, or without ID the cluster in use and why it was chosen."""
    from client.cli import output
    from client.ray_api.jobs import RayJobs
    from client.targets import connect

    chosen = choose(address)
    with connect(chosen) as target:
        jobs = RayJobs(target)
        if submission_id:
            data = output.job_data(jobs.with_start_times([jobs.get(submission_id)])[0])
        else:
            where = {"address": target.address, "url": target.http.server.url, "source": chosen.source}
            data = {**where, **target.facts(), **jobs.version(), "resources": jobs.resources()}
    output.print_json(data) if as_json else output.print_pairs(data)
