"""The command `logs`."""

import time
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import click

from client.cli.help import Command, complete_files
from client.cli.options import address_option, opened
from client.errors import ClientError, JobNotFound, UsageError

if TYPE_CHECKING:
    from client.batch.table import Table
    from client.ray_api.jobs import RayJobs
    from client.targets.target import Target

_QUIET_SECONDS = 3.0  # without a new job of a chain: no other is started


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
@click.argument("submission_id", metavar="ID|NAME|NAME/JOB")
@click.pass_context
def logs(
    ctx: click.Context, address: str | None, follow: bool, tail: int | None, file: str | None, submission_id: str
) -> None:
    """Print a job's log, or those of a chain or sweep, each line with its job's name."""
    from client.batch.table import find, job_id
    from client.cli.output import Sink, note, stdout_to
    from client.cli.watch import watch
    from client.job.follow import read_log, tail_offset
    from client.job.job import Job
    from client.ray_api.jobs import RayJobs

    with opened(address) as (target, _):
        jobs = RayJobs(target)
        submission_id = job_id(jobs, submission_id)
        try:
            record = jobs.get(submission_id)
        except JobNotFound:
            if not (table := find(jobs, submission_id)):
                raise
            if tail is not None:
                raise UsageError(
                    f"--tail takes one job, and {submission_id} has several", f"use `logs {submission_id}/JOB`"
                ) from None
            if not table.log:
                with stdout_to(file) if file else nullcontext():
                    show_logs(target, jobs, table, follow=follow)
            record = table.log
            submission_id = record.submission_id
        job = Job(submission_id, target, ExitStack())
        offset = 0 if tail is None else tail_offset(job.jobs, record, tail)
        with stdout_to(file) if file else nullcontext():
            if follow:
                watch(ctx, job, address, as_json=False, offset=offset, on_interrupt="leave")
            sink = Sink(to_stderr=False)
            if record.finished:
                job.wait(sink.write, note, offset=offset)
            else:
                read_log(job.jobs, record, sink.write, offset)


def show_logs(target: "Target", jobs: "RayJobs", table: "Table", *, follow: bool) -> NoReturn:
    """Print the logs of all jobs of a batch, and exit: with the highest exit code, if they are followed.

    Args:
        target: where they run.
        jobs: the jobs there.
        table: the batch.
        follow: until no job runs any more, and no other is started.
    """
    from client.batch.table import find
    from client.batch.watch import watch
    from client.cli.board import Board
    from client.cli.output import note
    from client.job.follow import read_log

    board = Board([row.name for row in table.rows], to_stderr=False)
    seen: set[str] = set()
    codes: dict[str, int] = {}
    quiet_since = time.monotonic()
    while not follow or time.monotonic() - quiet_since < _QUIET_SECONDS:
        rows = [row for row in table.rows if row.job.submission_id not in seen]
        seen |= {row.job.submission_id for row in rows}
        if not follow:
            for row in rows:
                try:
                    read_log(jobs, row.job, partial(board.log, row.name), 0)
                except ClientError as error:
                    note(f"{row.name}: {error}")
                board.end_log(row.name)
            click.get_current_context().exit(0)
        if rows:
            for event in watch(target, {row.name: row.job.submission_id for row in rows}, note):
                board.show(event)
                codes[event.member.name] = event.member.exit_code or 0
            quiet_since = time.monotonic()
        else:
            time.sleep(_QUIET_SECONDS / 4)
        table = find(jobs, table.name) or table
    click.get_current_context().exit(max(codes.values(), default=0))
