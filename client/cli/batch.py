"""What `run` and `submit` share: running a batch to its end, its exit code, and what Ctrl-C means."""

import shlex
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click
from click.core import ParameterSource

from client.errors import ClientError, ContactLost, Detached, NotAuthorised, OutputLost, UsageError

if TYPE_CHECKING:
    from client.batch.batch import Batch, Options
    from client.batch.member import Member
    from client.batch.run import Runner
    from client.batch.start import Ready
    from client.job.request import Request

_GOES_ON = "the jobs that run go on, and no other is started; to continue, run the same command again"
_AGAIN_SECONDS = 2.0  # a second Ctrl-C this soon stops the batch
_STOP_SECONDS = 60.0
_OF_SWEEPS = ("max_parallel", "force", "retry_on")

max_parallel_option = click.option(
    "--max-parallel",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    metavar="N",
    help="Run at most N jobs at once.",
)
retries_option = click.option(
    "--retries",
    type=click.IntRange(0, 100),
    default=0,
    metavar="N",
    help="If a job fails, submit it again, at most N times.",
)
retry_on_option = click.option(
    "--retry-on",
    metavar="KINDS",
    default="lost,exit",
    show_default=True,
    help="Retry after these failures: lost (its node or the head was lost), exit (the driver failed).",
)
matrix_option = click.option(
    "--matrix",
    multiple=True,
    metavar="NAME=VALUES",
    help="Run a job for each value: lr=1e-3,1e-4 or seed=0-9. {NAME} in arguments and in --env becomes the value. "
    "Can be repeated.",
)
array_option = click.option(
    "--array",
    metavar="FIRST-LAST",
    help="Run a job for each number. It has the number in RAY_WORKLOAD_ARRAY_INDEX and as {index}.",
)
force_option = click.option("--force", is_flag=True, help="Also run the jobs that have succeeded before.")


def sweep_of(
    ctx: click.Context, request: "Request", matrix: Sequence[str], array: str | None, retries: int, retry_on: str
) -> "Batch | None":
    """The batch that the options of `submit` ask for; None for one job without retries."""
    if not (matrix or array is not None or retries):
        given = [name for name in _OF_SWEEPS if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT]
        if given:
            needed = "--retries" if given[0] == "retry_on" else "--matrix or --array"
            raise UsageError(f"--{given[0].replace('_', '-')} needs {needed}", "add it, or leave the option out")
        return None
    from client.batch import sweep
    from client.batch.batch import RETRY_ON

    kinds = retry_on.split(",")
    if wrong := next((kind for kind in kinds if kind not in RETRY_ON), None):
        raise UsageError(f"--retry-on has no kind {wrong}", f"use {' or '.join(RETRY_ON)}, or both with a comma")
    indexes = () if array is None else sweep.array(array)
    return sweep.make_sweep(request, sweep.matrix(matrix), indexes, retries=retries, retry_on=kinds)


def run_batch(
    ctx: click.Context,
    batch: "Batch",
    options: "Options",
    address: str | None,
    *,
    output_format: str,
    detach: bool,
    dry_run: bool,
    on_interrupt: Literal["stop", "detach"] | None,
    wait_cluster: float,
) -> NoReturn:
    """Run a batch, or hand it to the cluster, and exit.

    Args:
        ctx: of the command.
        batch: the jobs.
        options: how they run.
        address: the user's own --address.
        output_format: text, json or csv.
        detach: let the cluster run it.
        dry_run: only show what would be done.
        on_interrupt: what Ctrl-C does to the jobs.
        wait_cluster: seconds that a cluster may take to be ready.
    """
    from client.batch.start import detach as hand_over
    from client.batch.start import ready
    from client.cli import output
    from client.cli.dry_run import show_batch_plan, show_first_run
    from client.cli.options import choose, note_url
    from client.targets import is_cold

    chosen = choose(address)
    if dry_run and is_cold(chosen):
        show_first_run(batch, options, output_format)
        ctx.exit(0)
    with ready(
        batch,
        chosen,
        options,
        may_start=not detach,
        wait_cluster=wait_cluster,
        note=output.note,
        progress=output.progress,
    ) as found:
        note_url(found.target)
        if dry_run:
            show_batch_plan(found, output_format)
            ctx.exit(0)
        if detach and any(job.decision in ("run", "attach") for job in found.planned):
            runner_id = hand_over(found)
            output.note(f"{batch.kind} {batch.name} runs on the cluster, as job {runner_id}")
            follow, status = (_command(ctx, address, *words, batch.name) for words in (("logs", "-f"), ("status",)))
            output.note(f"follow it with {follow}; show its status with {status}")
            as_json = output_format == "json"
            output.print_json({"name": batch.name, "runner": runner_id}) if as_json else output.print_line(batch.name)
            ctx.exit(0)
        runner = found.runner()
        if batch.kind != "job":
            output.note(f"{batch.kind} {batch.name}: {len(batch.steps)} jobs")
        try:
            show(runner, batch.name, output_format)
        except KeyboardInterrupt:
            ends = found.target.ends_with_us
            _interrupted(ctx, found, address, on_interrupt or ("stop" if ends else "detach"))
        except BrokenPipeError:
            output.note(_GOES_ON)
            raise
        except (ContactLost, NotAuthorised, OutputLost) as error:
            raise type(error)(str(error), _GOES_ON) from error
        if found.target.ends_with_us and batch.kind != "job":
            output.note("this Ray ends now, and the next run starts anew: `up embedded` starts one that is kept")
        finish(ctx, runner, batch.name, output_format)


def show(runner: "Runner", name: str, output_format: str) -> None:
    """Show what happens until a batch has ended."""
    from client.batch.member import Changed
    from client.cli import board, output

    names, several = [member.name for member in runner.members], len(runner.members) > 1
    shown = board.Board(names, to_stderr=output_format != "text", prefixed=several)
    with ExitStack() as stack:
        take: Any = shown.show
        if output_format == "text" and several and board.is_terminal():
            take = stack.enter_context(board.live(runner.members, name))
        for event in runner.run():
            take(event)
    for member in runner.members:
        shown.end_log(member.name)
    wrong = [member for member in runner.members if member.exit_code]
    if output_format == "text" and several and board.is_terminal():
        for member in wrong[:20]:
            output.error(f"{board.said(Changed(member))}; its log: `logs {name}/{member.name}`")
    output.note(f"{name}: {board.counts(runner.members)}")


def finish(ctx: click.Context, runner: "Runner", name: str, output_format: str) -> NoReturn:
    """Print the result as data, if that is asked for, and exit with the highest exit code."""
    from client.cli import board, output

    if output_format != "text":
        rows = [member_data(member) for member in runner.members]
        if output_format == "json":
            output.print_json({"name": name, "exit_code": runner.exit_code, "jobs": rows})
        else:
            output.print_line(board.to_csv(rows).rstrip("\n"))
    ctx.exit(runner.exit_code)


def member_data(member: "Member") -> dict[str, Any]:
    """A job of a batch as `-o json` shows it."""
    return {
        "job": member.name,
        "parameters": dict(getattr(getattr(member.planned, "step", None), "parameters", {})),
        "status": member.state,
        "exit_code": member.exit_code,
        "seconds": None if member.seconds is None else round(member.seconds, 3),
        "submission_id": member.submission_id,
        "attempts": member.attempts,
        "why": member.planned.why,
        "error": str(member.error) if member.error else None,
    }


def _command(ctx: click.Context, address: str | None, *words: str) -> str:
    name, *rest = words
    where = ["--address", address] if address else []
    return f"{ctx.find_root().info_name} {shlex.join([name, *where, *rest])}"


def _interrupted(
    ctx: click.Context, found: "Ready", address: str | None, on_interrupt: Literal["stop", "detach"]
) -> NoReturn:
    from client.batch.stop import stop_batch
    from client.cli import output

    name = found.batch.name
    try:
        if on_interrupt == "detach":
            output.note(_GOES_ON)
            output.note(f"to stop them, press Ctrl-C again now, or run {_command(ctx, address, 'stop', name)}")
            time.sleep(_AGAIN_SECONDS)
            raise Detached(f"detached from {name}")
    except KeyboardInterrupt:
        pass
    try:
        output.note("stopping the jobs (press Ctrl-C again to leave at once)")
        if not found.target.ends_with_us:
            left = stop_batch(found.target, found.sender.jobs, name, _STOP_SECONDS)
            if left:
                raise ContactLost(f"{len(left)} jobs of {name} have not ended", f"run `stop {name}` again")
    except KeyboardInterrupt:
        raise ContactLost(f"interrupted before the jobs of {name} had ended", "they may still be running") from None
    except ClientError as error:
        raise ContactLost(f"the jobs of {name} may still be running ({error})", f"run `stop {name}`") from error
    raise Detached(f"{name} was stopped")
