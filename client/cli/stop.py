"""The command `stop`."""

import click

from client.cli.help import Command
from client.cli.options import Duration, address_option, opened, output_option
from client.errors import JobNotFound, TimedOut


@click.command(cls=Command, examples=("stop ID", "stop --grace 2m ID"))
@address_option
@click.option(
    "--grace",
    type=Duration(),
    default="40s",
    show_default=True,
    metavar="DURATION",
    help="How long to wait for the job to end. Ray kills the job 30 s after the request.",
)
@output_option
@click.argument("submission_id", metavar="ID|NAME|NAME/JOB")
def stop(address: str | None, grace: float, as_json: bool, submission_id: str) -> None:
    """Stop a job, or all jobs of a chain or sweep, and wait until they have ended."""
    from client.batch.stop import stop_batch
    from client.batch.table import find, job_id
    from client.cli import output
    from client.cli.status import print_batch
    from client.job.stop import stop as stop_job
    from client.ray_api.jobs import RayJobs

    with opened(address) as (target, _):
        jobs = RayJobs(target)
        submission_id, name = job_id(jobs, submission_id), submission_id
        try:
            jobs.get(submission_id)
        except JobNotFound:
            if not find(jobs, name):
                raise
            if left := stop_batch(target, jobs, name, grace):
                what = f"{len(left)} jobs of {name} were asked to end, and have not ended"
                raise TimedOut(what, "run `stop` again") from None
            if as_json and (table := find(jobs, name, with_times=True)):
                print_batch(table, "json")
            output.note(f"no job of {name} runs any more")
            return
        job = stop_job(target, jobs, submission_id, grace)
        if not job.finished:
            hint = f"follow it with `logs -f {submission_id}`, or run `stop` again"
            raise TimedOut(f"job {submission_id} was asked to end, and is still {job.status}", hint)
        job = jobs.with_start_times([job])[0]
    if as_json:
        output.print_json(output.job_data(job))
    output.note(
        f"job {submission_id} {'was stopped' if job.status == 'STOPPED' else f'had already ended: {job.status}'}"
    )
