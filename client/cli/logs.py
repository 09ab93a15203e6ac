"""The command `logs`."""

import click

from client.cli.options import address_option, choose


@click.command()
@address_option
@click.option("--follow", is_flag=True, help="Follow the log until the job has ended, and exit with its exit code.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Start with the last N lines.")
@click.argument("submission_id", metavar="ID")
@click.pass_context
def logs(ctx: click.Context, address: str | None, follow: bool, tail: int | None, submission_id: str) -> None:
    """Print a job's log."""
    from client.cli.output import Sink, note
    from client.cli.watch import watch
    from client.job.follow import read_log, tail_offset
    from client.job.submit import attach

    with attach(submission_id, choose(address)) as job:
        record = job.jobs.get(submission_id)
        offset = 0 if tail is None else tail_offset(job.jobs, record, tail)
        if follow:
            watch(ctx, job, address, as_json=False, offset=offset, on_interrupt="leave")
        sink = Sink(to_stderr=False)
        if record.finished:
            job.wait(sink.write, note, offset=offset)
        else:
            read_log(job.jobs, record, sink.write, offset)
