"""The command `submit`."""

import os
import re
import shlex
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import click

from client.cli.batch import (
    array_option,
    force_option,
    matrix_option,
    max_parallel_option,
    retries_option,
    retry_on_option,
    run_batch,
    sweep_of,
)
from client.cli.help import Command, complete_files, complete_folders
from client.cli.interrupt import sigterm_interrupts
from client.cli.options import (
    Duration,
    address_option,
    batch_output_option,
    choose,
    no_cluster,
    note_url,
    pairs,
    wait_cluster_option,
)
from client.cli.watch import command_on, watch
from client.errors import ClientError, Detached, UsageError

if TYPE_CHECKING:
    from client.job.job import Job
    from client.job.request import Request


class _SubmitCommand(Command):
    """Takes `SCRIPT [ARGS]...` or `-- COMMAND...`, and records which of the two it was."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        rest = super().parse_args(ctx, args)
        words = ctx.params["words"]
        before = given[: len(given) - len(words)]
        ctx.params["is_command"] = bool(before) and before[-1] == "--"
        return rest


def _secret_pairs(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str | None]:
    """Read NAME and NAME=SECRET/KEY."""
    return {name: where if equals else None for name, equals, where in (value.partition("=") for value in values)}


@click.command(
    cls=_SubmitCommand,
    groups={
        "What runs": "working_dir upload_to env secret_env allow_plain pip requirements runtime_env job_file".split(),
        "Where": ("address", "wait_cluster"),
        "Resources": ("num_cpus", "num_gpus", "accelerator"),
        "Identity": ("name", "tag", "submission_id"),
        "Sweeps": ("matrix", "array", "max_parallel", "force"),
        "How it ends": ("detach", "timeout", "retries", "retry_on", "on_interrupt"),
        "Output": ("fetch", "dry_run", "output_format"),
    },
    examples=(
        "submit jobs/simple_job.py --tasks 4",
        "submit --id train-1 --num-gpus 1 --detach -- python train.py",
        "submit --matrix lr=1e-3,1e-4 --matrix seed=0-9 train.py --lr {lr} --seed {seed}",
    ),
    context_settings={"allow_interspersed_args": False},
    options_metavar="[OPTIONS]",
)
@address_option
@click.option(
    "--working-dir",
    metavar="DIR|URI",
    shell_complete=complete_folders,
    help="The job's working directory. Default: the current one.",
)
@click.option(
    "--upload-to",
    metavar="URL",
    help="Upload to gs://BUCKET[/PREFIX] or s3://BUCKET[/PREFIX], of any size. The image needs google-cloud-storage or "
    "boto3.",
)
@click.option("--env", multiple=True, callback=pairs, metavar="NAME=VALUE", help="Set a variable of the job.")
@click.option(
    "--secret-env",
    multiple=True,
    callback=_secret_pairs,
    metavar="NAME[=SECRET/KEY]",
    help="Set a variable of the driver from a Secret that the cluster mounts.",
)
@click.option("--allow-plain", is_flag=True, help="Accept values that look like secrets in --env and in packages.")
@click.option("--pip", multiple=True, metavar="NAME", help="Install a package for the job with pip. Can be repeated.")
@click.option(
    "--requirements",
    metavar="FILE",
    shell_complete=complete_files,
    help="Install the packages of a requirements file in the same way.",
)
@click.option(
    "--runtime-env",
    "runtime_env",
    metavar="FILE",
    shell_complete=complete_files,
    help="Read Ray's runtime_env from a YAML or JSON file.",
)
@click.option("--num-cpus", type=click.FloatRange(min=0), metavar="N", help="Reserve CPUs for the driver itself.")
@click.option("--num-gpus", type=click.FloatRange(min=0), metavar="N", help="Reserve GPUs for the driver itself.")
@click.option("--accelerator", metavar="KIND", help="Reserve a GPU of this kind, as Ray names it: L4, A100.")
@click.option("--name", metavar="NAME", help="Name the job, for the dashboard and `list`.")
@click.option("--tag", multiple=True, callback=pairs, metavar="NAME=VALUE", help="Record a tag with the job.")
@click.option(
    "--id", "submission_id", metavar="ID", help="The job's id. If the same job has this id already, attach to it."
)
@click.option("--detach", is_flag=True, help="Exit once the job is accepted, and print its id.")
@click.option(
    "--timeout", type=Duration(), metavar="DURATION", help="End the job if it runs longer, with exit code 124."
)
@click.option(
    "--on-interrupt",
    type=click.Choice(["stop", "detach"]),
    help="What Ctrl-C and SIGTERM do to the job. Default: detach; a job on a Ray of its own is stopped.",
)
@wait_cluster_option
@click.option(
    "--fetch",
    multiple=True,
    metavar="PATH",
    help="Fetch these files at the end, as `fetch` does, also if the job failed.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be sent, without sending it.")
@click.option(
    "-f",
    "job_file",
    metavar="FILE",
    shell_complete=complete_files,
    help="Read arguments of Ray's submit_job from a YAML file. Options override them.",
)
@matrix_option
@array_option
@max_parallel_option
@force_option
@retries_option
@retry_on_option
@batch_output_option
@click.argument(
    "words", nargs=-1, type=click.UNPROCESSED, metavar="SCRIPT [ARGS]... | -- COMMAND...", shell_complete=complete_files
)
@click.pass_context
def submit(
    ctx: click.Context,
    /,
    address: str | None,
    detach: bool,
    wait_cluster: float,
    fetch: tuple[str, ...],
    dry_run: bool,
    on_interrupt: Literal["stop", "detach"] | None,
    matrix: tuple[str, ...],
    array: str | None,
    max_parallel: int,
    force: bool,
    retries: int,
    retry_on: str,
    output_format: str,
    **given: Any,
) -> None:
    """Run a script or a command, show its log, and exit with its code."""
    from client.cli import output
    from client.cli.dry_run import show_plan
    from client.job import submit as job

    if fetch and detach:
        raise UsageError("--fetch waits for the job's end, and --detach does not", "use `fetch ID` later")
    as_json = output_format == "json"
    with sigterm_interrupts():
        request = _request(plain=_is_plain(output_format != "text"), **given)
        if batch := sweep_of(ctx, request, matrix, array, retries, retry_on):
            from client.batch.batch import Options, rebuild

            if fetch:
                raise UsageError("--fetch takes the files of one attempt", "use `fetch NAME/JOB` later")
            run_batch(
                ctx,
                batch,
                Options(max_parallel, keep_going=True, force=force or rebuild()),
                address,
                output_format=output_format,
                detach=detach,
                dry_run=dry_run,
                on_interrupt=on_interrupt,
                wait_cluster=wait_cluster,
            )
        if output_format == "csv":
            raise UsageError("-o csv is for sweeps", "use -o json")
        chosen = choose(address)
        if dry_run:
            show_plan(job.plan(request, chosen), as_json=as_json)
            return
        if fetch:
            from client.job.files import selectors

            selectors(fetch)  # reports a wrong pattern before the job is sent
        if fetch and chosen.scheme not in ("embedded", "kubernetes"):
            raise no_cluster("--fetch", chosen)
        try:
            sent = job.send(
                request, chosen, detached=detach, wait_cluster=wait_cluster, note=output.note, progress=output.progress
            )
        except KeyboardInterrupt:
            raise Detached("interrupted before the job was sent") from None
        with sent:
            note_url(sent.target)
            ctx.obj["submission_id"] = sent.submission_id
            line = _attached(sent) if sent.attached else f"job {sent.submission_id} submitted"
            if detach:
                output.note(line)
                follow, status = command_on(ctx, sent, address, "logs", "-f"), command_on(ctx, sent, address, "status")
                output.note(f"follow it with {follow}; show its status with {status}")
                output.print_json(output.job_data(sent.status())) if as_json else output.print_line(sent.submission_id)
                return
            default: Literal["stop", "detach"] = "stop" if sent.target.ends_with_us else "detach"
            on_interrupt, hints = on_interrupt or default, _hints(ctx.command, **given)
            watch(ctx, sent, address, as_json=as_json, on_interrupt=on_interrupt, note=line, fetch=fetch, hints=hints)


def _attached(job: "Job") -> str:
    """The line for a job that existed before: attached, or nothing was run because it has ended."""
    from client.cli.output import ago

    with suppress(ClientError):
        record = job.status()
        if record.finished:
            return f"job {job.submission_id} ended {ago(record.end_time or 0)}; nothing was run"
    return f"job {job.submission_id} exists: attached to it"


def _hints(command: click.Command, words: tuple[str, ...], is_command: bool, **_: Any) -> dict[int, str]:
    """Hints by exit code, for an option or a command in the wrong place."""
    if is_command:
        line = words[0] if len(words) == 1 and re.search(r"[\s|&;<>()$]", words[0]) else None
        return {127: f"for a line of shell, use -- bash -c {shlex.quote(line)}"} if line else {}
    ours = {name for option in command.params if isinstance(option, click.Option) for name in option.opts}
    for word in (word.partition("=")[0] for word in words[1:]):
        if word in ours:
            why = f"{word} was passed to the script, because it comes after the script's name"
            code = 1 if word in ("--pip", "--requirements") else 2  # of a module that is missing, of argparse
            return {code: f"{why}: if {word} is meant for submit, put it before the script"}
    return {}


def _is_plain(as_json: bool) -> bool:
    """Whether Ray should print no colors. A Ray that this process starts gets the same setting."""
    from client.targets.target import PLAIN

    if PLAIN in os.environ:
        return False
    plain = bool(os.environ.get("NO_COLOR")) or not (sys.stderr if as_json else sys.stdout).isatty()
    if plain:
        os.environ[PLAIN] = "0"
    return plain


def _request(
    words: tuple[str, ...],
    is_command: bool,
    job_file: str | None,
    runtime_env: str | None,
    num_cpus: float | None,
    num_gpus: float | None,
    submission_id: str | None,
    tag: dict[str, str],
    **fields: Any,
) -> "Request":
    from client.job.request import Request, read_yaml

    if is_command and not any(words):
        raise UsageError("the command after -- is empty", "add one, for example -- python train.py")
    arguments = read_yaml(job_file) if job_file else {}
    flags = {
        "runtime_env": read_yaml(runtime_env) if runtime_env else None,
        "entrypoint_num_cpus": num_cpus,
        "entrypoint_num_gpus": num_gpus,
        "submission_id": submission_id,
    }
    arguments |= {name: value for name, value in flags.items() if value is not None}
    script, command = (None, words) if is_command or not words else (words[0], words[1:])
    return Request(script=script, command=command, tags=tag, arguments=arguments, **fields)
