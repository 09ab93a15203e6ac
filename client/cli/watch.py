"""A job watched from a terminal: its log, its end, and what Ctrl-C means."""

import time
from typing import TYPE_CHECKING, NoReturn

import click

from client.errors import Detached, NotAuthorised, OutputLost

if TYPE_CHECKING:
    from client.cli.output import Sink
    from client.job.job import Job

_AGAIN_SECONDS = 2.0  # a second Ctrl-C this soon stops the job
_PENDING_SECONDS = 1.0  # between two stops: Ray does nothing with one that comes before the job has started


def watch(ctx: click.Context, job: "Job", address: str | None, *, as_json: bool, offset: int = 0) -> NoReturn:
    """Show a job's log until it has ended, and exit with its exit code.

    Args:
        ctx: of the command.
        job: what to watch.
        address: the user's own --address, for the hints.
        as_json: print the job's record on stdout and all else on stderr.
        offset: the byte of the log to start from.

    Raises:
        Detached: Ctrl-C.
        NotAuthorised: the login has run out, and cannot be had again.
        OutputLost: the log, or the record, cannot be written.
    """
    from client.cli import output
    from client.job.follow import follow

    sink = output.Sink(to_stderr=as_json, offset=offset)
    try:
        ended = follow(job.jobs, job.submission_id, sink.write, output.note, offset=offset)
    except (OutputLost, NotAuthorised) as error:
        raise type(error)(f"{error}; {_goes_on(ctx, job, address)}") from error
    except KeyboardInterrupt:
        _interrupted(ctx, job, sink, address)
    job.close()
    output.print_result(ended)  # the JSON may fail
    try:
        if as_json:
            output.print_json(output.job_data(ended.job))
    except OutputLost as error:
        raise OutputLost(f"{error}; `status {job.submission_id} -o json` has it") from error
    ctx.exit(ended.exit_code)


def _goes_on(ctx: click.Context, job: "Job", address: str | None) -> str:
    """What becomes of a job when we leave."""
    if job.jobs.endpoint.ends_with_us:
        return f"job {job.submission_id} ends with its Ray"
    where = f" --address {address}" if address else ""
    return f"the job goes on; see it: {ctx.find_root().info_name} logs{where} --follow {job.submission_id}"


def _interrupted(ctx: click.Context, job: "Job", sink: "Sink", address: str | None) -> NoReturn:
    """A job on a Ray of its own is stopped, another goes on unless Ctrl-C comes a second time."""
    from client.cli import output

    me, where = ctx.find_root().info_name, f" --address {address}" if address else ""
    try:
        if not job.jobs.endpoint.ends_with_us:
            output.note(_goes_on(ctx, job, address))
            output.note(f"stop it: Ctrl-C again now, or {me} stop{where} {job.submission_id}")
            time.sleep(_AGAIN_SECONDS)
            raise Detached(f"detached from job {job.submission_id}, which goes on")
    except KeyboardInterrupt:
        pass
    output.note("stopping the job (Ctrl-C again leaves at once)")
    while not (now := job.status()).finished:
        if now.status == "PENDING" and job.jobs.endpoint.ends_with_us:
            job.close()
            raise Detached(f"job {job.submission_id} was ended by Ctrl-C before it started")
        job.jobs.stop(job.submission_id)
        if now.status == "RUNNING":
            break
        time.sleep(_PENDING_SECONDS)
    ended = job.wait(sink.write, output.note, offset=sink.offset).job
    how = "was stopped by Ctrl-C" if ended.status == "STOPPED" else f"had ended: {ended.status}"
    raise Detached(f"job {job.submission_id} {how}")
