"""The command `fetch`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from client.cli.help import Command, complete_folders
from client.cli.interrupt import sigterm_interrupts
from client.cli.options import address_option, opened
from client.errors import JobNotFound, UsageError

if TYPE_CHECKING:
    from client.ray_api.record import JobRecord
    from client.targets.target import Target


@click.command(cls=Command, examples=("fetch ID", "fetch ID 'results/**' '*.pt' --to results"))
@address_option
@click.option(
    "--to",
    metavar="DIR",
    shell_complete=complete_folders,
    help="Where to put the files; nothing there is replaced. Default: outputs/ID, where files are updated.",
)
@click.argument("submission_id", metavar="ID|NAME/JOB")
@click.argument("patterns", nargs=-1, metavar="[PATH...]")
def fetch(address: str | None, to: str | None, submission_id: str, patterns: tuple[str, ...]) -> None:
    """Get the files that a job wrote, from all pods of its cluster. A PATH or pattern selects files."""
    from client.batch.table import find, job_id
    from client.ray_api.jobs import RayJobs

    with sigterm_interrupts(), opened(address) as (target, _):
        jobs = RayJobs(target)
        try:
            job = jobs.get(job_id(jobs, submission_id))
        except JobNotFound as error:
            if table := find(jobs, submission_id):
                name = f"{submission_id}/{table.rows[0].name}" if table.rows else f"{submission_id}/JOB"
                raise UsageError(f"{submission_id} has several jobs", f"use `fetch {name}`") from error
            raise
        fetch_files(target, job, patterns, to, show=True)


def fetch_files(
    target: "Target", job: "JobRecord", patterns: Sequence[str], to: str | None = None, *, show: bool = False
) -> None:
    """Get the files that a job wrote.

    Args:
        target: where it ran.
        job: which.
        patterns: which files.
        to: a folder of the user's; None for one of our own.
        show: print the path of each file.
    """
    from client.cli import output
    from client.job.fetch import counted, default_folder, fetch
    from client.upload.problems import printable

    if target.runtime.in_place:
        outputs = output.outputs(job, in_place=True)
        where = f"in {outputs}" if outputs else "where it wrote them"
        output.note(f"nothing to fetch: job {job.submission_id} ran on this machine; its files are {where}")
        return
    fetched: list[str] = []
    try:
        for path in fetch(target, job, patterns, to, note=output.note, progress=output.progress):
            fetched.append(printable(str(path)))
    finally:  # after the progress bar
        for line in fetched if show else ():
            output.print_line(line)
        if fetched:
            output.note(f"fetched {counted(len(fetched))} into {to or default_folder(job.submission_id)}")
