"""A job watched from a terminal: its log, its end, and what Ctrl-C means."""

import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, NoReturn

import click

from client.cli.fetch import fetch_files
from client.errors import ClientError, ContactLost, Detached, NotAuthorised, OutputLost

if TYPE_CHECKING:
    from client.cli.output import Sink
    from client.job.job import Job

OnInterrupt = Literal["stop", "detach", "leave"]
_AGAIN_SECONDS = 2.0  # a second Ctrl-C this soon stops the job


def watch(
    ctx: click.Context,
    job: "Job",
    address: str | None,
    *,
    as_json: bool,
    on_interrupt: OnInterrupt,
    offset: int = 0,
    note: str = "",
    fetch: Sequence[str] = (),
    hints: Mapping[int, str] | None = None,
) -> NoReturn:
    """Show a job's log until it has ended, and exit with its exit code.

    Args:
        ctx: of the command.
        job: what to watch.
        address: the user's own --address, for the hints.
        as_json: print the job's record on stdout and all else on stderr.
        on_interrupt: what Ctrl-C does: stop the job; detach, and a second one soon after stops it; or leave.
        offset: the byte of the log to start from.
        fetch: the files to fetch at the end, as `find_files` takes them.
        note: a line to print first; Ctrl-C means the same from then on.
        hints: a line to print for an exit code.

    Raises:
        Detached: the user interrupted.
        ContactLost: contact was lost, or the user left before it was known whether a stop worked.
        NotAuthorised: the login has expired, and cannot be renewed.
        OutputLost: the log, or the record, cannot be written.
    """
    from client.cli import output
    from client.job.hints import hint

    began = time.time()
    sink = output.Sink(to_stderr=as_json, offset=offset)
    try:
        if note:
            output.note(note)
        ended = job.wait(sink.write, output.note, offset=offset)
    except ContactLost as error:
        if why := job.target.out_of_memory(began, ""):
            raise ContactLost(error.what, why) from error
        raise
    except BrokenPipeError:
        _say_what_becomes_of(ctx, job, address)
        raise
    except (OutputLost, NotAuthorised) as error:
        raise type(error)(str(error), _what_becomes_of(ctx, job, address)) from error
    except KeyboardInterrupt:
        _interrupted(ctx, job, sink, address, on_interrupt)
    output.print_result(ended)  # before the JSON, which may fail
    reason = ended.job.message or ""
    advice = (hints or {}).get(ended.exit_code) or hint(reason, ended.exit_code, job.target.runtime)
    if ended.job.was_killed:
        advice = job.target.out_of_memory((ended.job.submit_time or 0) / 1000, reason)
    if advice:
        output.note(advice)
    code = ended.exit_code
    if fetch:
        try:
            fetch_files(job.target, ended.job, fetch)
        except ClientError as error:
            output.error(str(error))
            code = code or error.exit_code
    ran = ended.job.node_id and (ended.job.status != "FAILED" or ended.job.driver_exit_code is not None)
    if ran and (where := output.outputs(ended.job, in_place=job.target.runtime.in_place)):
        if job.target.address.startswith("kubernetes") and "://" not in where:
            where += f" on the cluster; get them with {command_on(ctx, job, address, 'fetch')}"
        output.note(f"outputs: {where}")
    try:
        if as_json:
            output.print_json(output.job_data(ended.job))
    except OutputLost as error:
        raise OutputLost(error.what, f"`status {job.submission_id} -o json` shows the job's record") from error
    ctx.exit(code)


def _what_becomes_of(ctx: click.Context, job: "Job", address: str | None) -> str:
    """Say what happens to a job when the client exits."""
    if job.target.ends_with_us:
        return f"job {job.submission_id} ends with its Ray"
    return f"the job goes on; follow it with {command_on(ctx, job, address, 'logs', '-f')}"


def command_on(ctx: click.Context, job: "Job", address: str | None, name: str, *options: str) -> str:
    """The command line of another command on the same job."""
    where = ["--address", address] if address else []
    return f"{ctx.find_root().info_name} {shlex.join([name, *where, *options, job.submission_id])}"


def _say_what_becomes_of(ctx: click.Context, job: "Job", address: str | None) -> None:
    """After the reader of the log has exited, print how the job ended, or what happens to it."""
    from client.cli import output
    from client.ray_api.record import JobResult

    with suppress(ClientError):
        record = job.jobs.get(job.submission_id)
        if record.finished:
            output.print_result(JobResult(record))
            return
    output.note(_what_becomes_of(ctx, job, address))


def _interrupted(
    ctx: click.Context, job: "Job", sink: "Sink", address: str | None, on_interrupt: OnInterrupt
) -> NoReturn:
    from client.cli import output

    if on_interrupt == "leave":
        raise Detached(f"left job {job.submission_id}", _what_becomes_of(ctx, job, address))
    try:
        if on_interrupt == "detach":
            output.note(_what_becomes_of(ctx, job, address))
            output.note(f"to stop it, press Ctrl-C again now, or run {command_on(ctx, job, address, 'stop')}")
            time.sleep(_AGAIN_SECONDS)
            raise Detached(f"detached from job {job.submission_id}, which goes on")
    except KeyboardInterrupt:
        pass
    try:
        output.note("stopping the job (press Ctrl-C again to leave at once)")
        if job.target.ends_with_us and job.jobs.get(job.submission_id).status == "PENDING":
            job.close()
            raise Detached(f"job {job.submission_id} was ended before it started")
        ended = job.wait(sink.write, output.note, offset=sink.offset, stop=True).job
        sink.flush()
    except KeyboardInterrupt:
        raise ContactLost(f"interrupted before job {job.submission_id} had ended", "it may still be running") from None
    raise Detached(f"job {job.submission_id} {'was stopped' if ended.status == 'STOPPED' else f'ended {ended.status}'}")
