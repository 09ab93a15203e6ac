"""The command `logs`."""

from contextlib import ExitStack, nullcontext

import click

from client.cli.help import Command, complete_files
from client.cli.options import address_option, opened


@click.command(cls=Command, examples=("logs -f ID", "logs -n 100 --output-file job.log ID"))
@address_option
@click.option(
    "-f", "--follow", is_flag=True, help="Follow the log until the job has ended, and exit with its exit code."
)
@click.option("-n", "--tail", type=click.IntRange(min=0), metavar="N", help="Start with the last N lines.")
@click.option(
    "--output-file",
    "file",
    metavar="FILE",
    shell_complete=complete_files,
    help="Write the log to a file, which is created when the log is complete.",
)
@click.argument("submission_id", metavar="ID")
@click.pass_context
def logs(
    ctx: click.Context, address: str | None, follow: bool, tail: int | None, file: str | None, submission_id: str
) -> None:
    """Print a job's log."""
    from client.cli.output import Sink, note, stdout_to
    from client.cli.watch import watch
    from client.job.follow import read_log, tail_offset
    from client.job.job import Job

    with opened(address) as (target, _):
        job = Job(submission_id, target, ExitStack())
        record = job.jobs.get(submission_id)
        offset = 0 if tail is None else tail_offset(job.jobs, record, tail)
        with stdout_to(file) if file else nullcontext():
            if follow:
                watch(ctx, job, address, as_json=False, offset=offset, on_interrupt="leave")
            sink = Sink(to_stderr=False)
            if record.finished:
                job.wait(sink.write, note, offset=offset)
            else:
                read_log(job.jobs, record, sink.write, offset)
