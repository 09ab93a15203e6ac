"""The command line: it parses, prints and exits, and holds the one `except ClientError`."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import click

from client import __version__
from client.errors import ClientError, Detached, TimedOut, UsageError

if TYPE_CHECKING:
    from client.follow import JobResult
    from client.job import Job
    from client.ray_jobs import RayJobs

_AGAIN_SECONDS = 2.0  # a second Ctrl-C this soon stops the job
_INTERNAL, _BROKEN_PIPE = 70, 141

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _use_json(ctx: click.Context, _: click.Parameter, value: str) -> bool:
    ctx.find_root().obj["json"] = value == "json"
    return value == "json"


address_option = click.option(
    "--address", metavar="ADDRESS", help="embedded, or http(s)://HOST:PORT of a Ray dashboard."
)
output_option = click.option(
    "-o",
    "--output",
    "as_json",
    type=click.Choice(["text", "json"]),
    default="text",
    callback=_use_json,
    help="json: only JSON on stdout, all else on stderr.",
)


class _SubmitCommand(click.Command):
    """Takes `SCRIPT [ARGS]...` or `-- COMMAND...`, and knows which it was."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        rest = super().parse_args(ctx, args)
        words = ctx.params["words"]
        before = given[: len(given) - len(words)]
        ctx.params["is_command"] = bool(before) and before[-1] == "--"
        return rest


def _pairs(_: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, content = value.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE", param=option)
        pairs[name] = content
    return pairs


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="ray-workload")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Run Python scripts on Ray: on this machine, or on a cluster."""
    ctx.obj["debug"] = debug


@cli.command(cls=_SubmitCommand, context_settings={"allow_interspersed_args": False}, options_metavar="[OPTIONS]")
@address_option
@click.option("--working-dir", metavar="DIR|URI", help="What the job runs in. Default: the current directory.")
@click.option("--env", multiple=True, callback=_pairs, metavar="NAME=VALUE", help="A variable of the job.")
@click.option("--allow-plain", is_flag=True, help="Take an --env name that looks like a secret's.")
@click.option("--runtime-env", "runtime_env", metavar="FILE", help="A runtime_env of Ray, in YAML or JSON.")
@click.option("--num-cpus", type=click.FloatRange(min=0), help="CPUs kept for the driver itself.")
@click.option("--num-gpus", type=click.FloatRange(min=0), help="GPUs kept for the driver itself.")
@click.option("--name", help="What the dashboard shows as the job's name.")
@click.option("--tag", multiple=True, callback=_pairs, metavar="NAME=VALUE", help="Recorded with the job.")
@click.option("--id", "submission_id", metavar="ID", help="The job's id. The same id and job again attaches.")
@click.option("--detach", is_flag=True, help="Leave once the job is accepted; print its id.")
@click.option("--timeout", type=float, metavar="SECONDS", help="End the job after this time, with exit code 124.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing.")
@click.option("-f", "job_file", metavar="FILE", help="Arguments of Ray's submit_job, in YAML; options win.")
@output_option
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="SCRIPT [ARGS]... | -- COMMAND...")
@click.pass_context
def submit(
    ctx: click.Context, /, address: str | None, detach: bool, dry_run: bool, as_json: bool, **given: Any
) -> None:
    """Run a script or a command, show its log, and exit with its exit code."""
    from client import job, output
    from client.targets import resolve

    spec, chosen = _spec(**given), resolve(address)
    if dry_run:
        _show_plan(job.plan(spec, chosen), as_json=as_json)
        return
    submitted = job.submit(spec, chosen, detached=detach, note=output.note, progress=output.progress)
    with closing(submitted):
        ctx.obj["submission_id"] = submitted.submission_id
        output.note(
            f"job {submitted.submission_id} {'is there already: attached' if submitted.attached else 'submitted'}"
        )
        if detach:
            if as_json:
                output.print_json(output.job_data(submitted.status()))
            else:
                click.echo(submitted.submission_id)
            return
        sink = output.Sink(to_stderr=as_json)
        try:
            ended = submitted.wait(sink.write, output.note)
        except KeyboardInterrupt:
            ended = _interrupted(ctx, submitted, sink, address)
        _finish(ctx, ended, as_json=as_json)


def _spec(
    words: tuple[str, ...],
    is_command: bool,
    job_file: str | None,
    runtime_env: str | None,
    num_cpus: float | None,
    num_gpus: float | None,
    submission_id: str | None,
    tag: dict[str, str],
    **fields: Any,
) -> Any:
    from client.spec import JobSpec, read_yaml

    if is_command and not any(words):
        raise UsageError("the command behind -- is empty")
    arguments = read_yaml(job_file) if job_file else {}
    flags = {
        "runtime_env": read_yaml(runtime_env) if runtime_env else None,
        "entrypoint_num_cpus": num_cpus,
        "entrypoint_num_gpus": num_gpus,
        "submission_id": submission_id,
    }
    arguments |= {name: value for name, value in flags.items() if value is not None}
    script, command = (None, words) if is_command or not words else (words[0], words[1:])
    return JobSpec(script=script, command=command, tags=tag, arguments=arguments, **fields)


def _show_plan(plan: Any, *, as_json: bool) -> None:
    from client import output

    files = plan.upload.entries if plan.upload else ()
    if as_json:
        upload = [{"path": entry.path, "bytes": entry.size} for entry in files]
        output.print_json({**plan.arguments, "upload": upload, "withheld": list(plan.upload.withheld if files else ())})
        return
    click.echo(f"command      {plan.arguments['entrypoint']}")
    click.echo(f"working_dir  {plan.arguments['runtime_env']['working_dir']}")
    if plan.upload is None:
        click.echo("upload       nothing: the job runs where its files are")
        return
    click.echo(f"upload       {len(files)} files, {plan.upload.size} bytes, packed {plan.packed} bytes")
    for entry in files:
        click.echo(f"{entry.size:>12} {entry.path}")
    for path in plan.upload.withheld:
        click.echo(f"    withheld {path}")


def _interrupted(ctx: click.Context, job: "Job", sink: Any, address: str | None) -> "JobResult":
    """Ctrl-C: a job on a Ray of its own is stopped, another goes on unless it comes a second time."""
    from client import output

    me, where = ctx.find_root().info_name, f" --address {address}" if address else ""
    again = f"{me} logs{where} --follow {job.submission_id}, {me} stop{where} {job.submission_id}"
    try:
        if not job.jobs.endpoint.ends_with_us:
            output.note(f"the job goes on: {again} (Ctrl-C again stops it)")
            time.sleep(_AGAIN_SECONDS)
            raise Detached(f"detached from job {job.submission_id}, which goes on")
    except KeyboardInterrupt:
        pass
    output.note("stopping the job (Ctrl-C again leaves at once)")
    job.jobs.stop(job.submission_id)
    job.wait(sink.write, output.note, offset=sink.written)
    raise Detached(f"job {job.submission_id} was stopped by Ctrl-C")


def _finish(ctx: click.Context, ended: "JobResult", *, as_json: bool) -> None:
    from client import output

    if as_json:
        output.print_json(output.job_data(ended.job))
    output.print_result(ended)
    ctx.exit(ended.exit_code)


def _jobs(stack: ExitStack, address: str | None) -> "RayJobs":
    from client.ray_jobs import RayJobs
    from client.targets import connect, resolve

    return RayJobs(stack.enter_context(connect(resolve(address))))


@cli.command()
@address_option
@click.option("--follow", is_flag=True, help="Go on until the job has ended, and exit with its exit code.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Begin with the last N lines.")
@click.argument("submission_id", metavar="ID")
@click.pass_context
def logs(ctx: click.Context, address: str | None, follow: bool, tail: int | None, submission_id: str) -> None:
    """Print a job's log."""
    from client import follow as following
    from client import output

    with ExitStack() as stack:
        jobs = _jobs(stack, address)
        job = jobs.get(submission_id)
        start = 0 if tail is None else following.tail_offset(jobs, job, tail)
        sink = output.Sink(to_stderr=False)
        if follow:
            ended = following.follow(jobs, submission_id, sink.write, output.note, offset=start)
            _finish(ctx, ended, as_json=False)
        for chunk in jobs.read_log(job, start):
            sink.write(chunk)


@cli.command()
@address_option
@output_option
@click.argument("submission_id", metavar="[ID]", required=False)
def status(address: str | None, as_json: bool, submission_id: str | None) -> None:
    """Show a job, or without ID the cluster that is in use and why."""
    from client import output
    from client.ray_jobs import RayJobs
    from client.targets import connect, resolve

    chosen = resolve(address)
    with connect(chosen) as endpoint:
        jobs = RayJobs(endpoint)
        if submission_id:
            data = output.job_data(jobs.get(submission_id))
        else:
            where = {"address": endpoint.address, "url": endpoint.url, "source": chosen.source}
            data = {**where, **jobs.version(), "resources": jobs.resources()}
    output.print_json(data) if as_json else output.print_pairs(data)


@cli.command("list")
@address_option
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="The newest so many.")
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
    from client import output

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
    from client import follow, output

    with ExitStack() as stack:
        job = follow.stop(_jobs(stack, address), submission_id, grace)
    if as_json:
        output.print_json(output.job_data(job))
    if job.status == "PENDING":
        raise TimedOut(f"job {submission_id} is still pending, and Ray cannot stop a job before it starts: try later")
    if not job.finished:
        raise TimedOut(
            f"job {submission_id} was asked to end and still runs: wait with `logs --follow {submission_id}`"
        )
    output.note(f"job {submission_id} {'was stopped' if job.status == 'STOPPED' else f'had ended: {job.status}'}")


@cli.command()
@click.argument("target", type=click.Choice(["embedded"]))
def up(target: str) -> None:
    """Start a Ray on this machine and keep it, so that the next submit is warm."""
    from client import output
    from client.targets import embedded

    output.note(
        f"{target} Ray {'is up' if embedded.up() else 'was up already'}: `submit` uses it until `down {target}`"
    )


@cli.command()
@click.argument("target", type=click.Choice(["embedded"]))
def down(target: str) -> None:
    """End the Ray that `up` keeps, with its jobs, and nothing else."""
    from client import output
    from client.targets import embedded

    output.note(f"{target} Ray {'is down' if embedded.down() else 'was not up'}")


def _fail(state: dict[str, Any], line: str, code: int) -> int:
    from client import output

    output.error(line)
    if state.get("json"):
        known = {key: state[key] for key in ("submission_id",) if key in state}
        output.print_json({**known, "error": line, "exit_code": code})
    return code


def main() -> None:
    """Run the command line and exit."""
    state: dict[str, Any] = {}
    try:
        code = cli.main(standalone_mode=False, obj=state) or 0
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        code = _fail(state, "interrupted", Detached.exit_code)
    except BrokenPipeError:
        # Whoever read our output has left; nothing more can be said there, not even by the interpreter's own flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _BROKEN_PIPE
    except ClientError as error:
        if state.get("debug"):
            raise
        code = _fail(state, str(error), error.exit_code)
    except Exception as error:
        if state.get("debug"):
            raise
        kind = type(error).__name__
        code = _fail(state, f"internal error, {kind}: {error} (`--debug` before the command shows where)", _INTERNAL)
    sys.exit(code)
