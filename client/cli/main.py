"""The command line: it parses, prints and exits; `main` turns every error into a line and an exit code."""

import os
import sys
import traceback
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import click

from client import __version__
from client.cli.doctor import doctor
from client.cli.exec import dashboard, exec_command
from client.cli.options import address_option, choose, output_option
from client.cli.submit import submit
from client.cli.up import down, up
from client.errors import ClientError, Detached, OutputLost, TimedOut

if TYPE_CHECKING:
    from client.ray_api.jobs import RayJobs

_INTERNAL, _BROKEN_PIPE = 70, 141


class _Cli(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        """Leave with a code of its own when whoever reads our output has left; click would make it 1."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            from client.cli.output import close_stdout

            close_stdout()
            ctx.exit(_BROKEN_PIPE)


@click.group(cls=_Cli, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="ray-workload")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Run Python scripts on Ray: on this machine, or on a cluster."""
    ctx.obj["debug"] = debug


cli.add_command(submit)
cli.add_command(up)
cli.add_command(down)
cli.add_command(dashboard)
cli.add_command(doctor)
cli.add_command(exec_command)


def _jobs(stack: ExitStack, address: str | None) -> "RayJobs":
    from client.ray_api.jobs import RayJobs
    from client.targets import connect

    return RayJobs(stack.enter_context(connect(choose(address))))


@cli.command()
@address_option
@click.option("--follow", is_flag=True, help="Go on until the job has ended, and exit with its exit code.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Begin with the last N lines.")
@click.argument("submission_id", metavar="ID")
@click.pass_context
def logs(ctx: click.Context, address: str | None, follow: bool, tail: int | None, submission_id: str) -> None:
    """Print a job's log."""
    from client.cli.output import Sink, note
    from client.cli.watch import watch
    from client.job.api import attach
    from client.job.follow import follow as follow_log
    from client.job.follow import tail_offset

    job = attach(submission_id, choose(address).value)
    record = job.status()
    start = 0 if tail is None else tail_offset(job.jobs, record, tail)
    if follow:
        watch(ctx, job, address, as_json=False, offset=start)
    sink = Sink(to_stderr=False)
    if record.finished:
        follow_log(job.jobs, submission_id, sink.write, note, offset=start)
        return
    for chunk in job.jobs.read_log(record, start):
        sink.write(chunk)


@cli.command()
@address_option
@output_option
@click.argument("submission_id", metavar="[ID]", required=False)
def status(address: str | None, as_json: bool, submission_id: str | None) -> None:
    """Show a job, or without ID the cluster that is in use and why."""
    from client.cli import output
    from client.ray_api.jobs import RayJobs
    from client.targets import connect

    chosen = choose(address)
    with connect(chosen) as endpoint:
        jobs = RayJobs(endpoint)
        if submission_id:
            data = output.job_data(jobs.get(submission_id))
        else:
            where = {"address": endpoint.address, "url": endpoint.url, "source": chosen.source}
            data = {**where, **endpoint.facts(), **jobs.version(), "resources": jobs.resources()}
    output.print_json(data) if as_json else output.print_pairs(data)


@cli.command("list")
@address_option
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, metavar="N", help="The newest so many; 20 if not given."
)
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice(["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"], case_sensitive=False),
    help="Only jobs of this status.",
)
@output_option
def list_jobs(address: str | None, limit: int, statuses: tuple[str, ...], as_json: bool) -> None:
    """List the jobs of the cluster, the newest first."""
    from client.cli import output

    with ExitStack() as stack:
        jobs = [job for job in _jobs(stack, address).list() if not statuses or job.status in statuses][:limit]
    output.print_json([output.job_data(job) for job in jobs]) if as_json else output.print_jobs(jobs)


@cli.command()
@address_option
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=40,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for its end. Ray kills a job 30 s after it was asked to end.",
)
@output_option
@click.argument("submission_id", metavar="ID")
def stop(address: str | None, grace: float, as_json: bool, submission_id: str) -> None:
    """Stop a job, and wait until it has ended."""
    from client.cli import output
    from client.job import follow

    with ExitStack() as stack:
        job = follow.stop(_jobs(stack, address), submission_id, grace)
    if job.status == "PENDING":
        raise TimedOut(f"job {submission_id} is still pending, and Ray cannot stop a job before it starts: try later")
    if not job.finished:
        raise TimedOut(
            f"job {submission_id} was asked to end and still runs: wait with `logs --follow {submission_id}`"
        )
    if as_json:
        output.print_json(output.job_data(job))
    output.note(f"job {submission_id} {'was stopped' if job.status == 'STOPPED' else f'had ended: {job.status}'}")


def _fail(state: dict[str, Any], line: str, code: int) -> int:
    from client.cli import output

    if state.get("debug"):
        traceback.print_exc()
    output.error(line)
    return _fail_json(state, line, code)


def _fail_json(state: dict[str, Any], line: str, code: int) -> int:
    from client.cli import output

    if state.get("json"):
        known = {key: state[key] for key in ("submission_id",) if key in state}
        with suppress(OutputLost, BrokenPipeError):  # it has been said on stderr
            output.print_json({**known, "error": line, "exit_code": code})
    return code


def main() -> NoReturn:
    """Run the command line and exit."""
    state: dict[str, Any] = {}
    try:
        code = cli.main(standalone_mode=False, obj=state) or 0
    except click.ClickException as error:
        error.show()
        code = _fail_json(state, error.format_message(), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        code = _fail(state, "interrupted", Detached.exit_code)
    except ClientError as error:
        code = _fail(state, str(error), error.exit_code)
    except Exception as error:
        kind = type(error).__name__
        code = _fail(state, f"internal error, {kind}: {error} (`--debug` before the command shows where)", _INTERNAL)
    _leave(code)


def _leave(code: int) -> NoReturn:
    """Exit without taking the interpreter apart: with Ray imported that takes 0.15 s, and nothing is left to do."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or not there at all
            stream.flush()
    os._exit(code)
