"""The command `submit`."""

from contextlib import closing
from typing import Any

import click

from client.cli.options import Seconds, address_option, choose, output_option, pairs
from client.cli.watch import watch
from client.errors import UsageError


class _SubmitCommand(click.Command):
    """Takes `SCRIPT [ARGS]...` or `-- COMMAND...`, and knows which it was."""

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


@click.command(cls=_SubmitCommand, context_settings={"allow_interspersed_args": False}, options_metavar="[OPTIONS]")
@address_option
@click.option("--working-dir", metavar="DIR|URI", help="What the job runs in. Default: the current directory.")
@click.option("--env", multiple=True, callback=pairs, metavar="NAME=VALUE", help="A variable of the job.")
@click.option(
    "--secret-env",
    multiple=True,
    callback=_secret_pairs,
    metavar="NAME[=SECRET/KEY]",
    help="A variable of the driver, from a Secret that the cluster mounts.",
)
@click.option("--allow-plain", is_flag=True, help="Take an --env name that looks like a secret's.")
@click.option("--runtime-env", "runtime_env", metavar="FILE", help="A runtime_env of Ray, in YAML or JSON.")
@click.option("--num-cpus", type=click.FloatRange(min=0), metavar="N", help="CPUs kept for the driver itself.")
@click.option("--num-gpus", type=click.FloatRange(min=0), metavar="N", help="GPUs kept for the driver itself.")
@click.option("--accelerator", metavar="KIND", help="The kind of GPU for the driver, as Ray names it: L4, A100, ...")
@click.option("--name", help="What the dashboard shows as the job's name.")
@click.option("--tag", multiple=True, callback=pairs, metavar="NAME=VALUE", help="Recorded with the job.")
@click.option("--id", "submission_id", metavar="ID", help="The job's id. The same id and job again attaches.")
@click.option("--detach", is_flag=True, help="Leave once the job is accepted; print its id.")
@click.option("--timeout", type=float, metavar="SECONDS", help="End the job after this time, with exit code 124.")
@click.option(
    "--wait-cluster",
    type=Seconds(),
    default="15m",
    show_default=True,
    metavar="TIME",
    help="How long a cluster may take to be ready.",
)
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing.")
@click.option("-f", "job_file", metavar="FILE", help="Arguments of Ray's submit_job, in YAML; options win.")
@output_option
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="SCRIPT [ARGS]... | -- COMMAND...")
@click.pass_context
def submit(
    ctx: click.Context,
    /,
    address: str | None,
    detach: bool,
    wait_cluster: float,
    dry_run: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Run a script or a command, show its log, exit with its code."""
    from client.cli import output
    from client.job import job

    spec, chosen = _spec(**given), choose(address, name_it=False)
    if dry_run:
        _show_plan(job.plan(spec, chosen), as_json=as_json)
        return
    submitted = job.submit(
        spec, chosen, detached=detach, wait_cluster=wait_cluster, note=output.note, progress=output.progress
    )
    with closing(submitted):
        ctx.obj["submission_id"] = submitted.submission_id
        output.note(
            f"job {submitted.submission_id} {'is there already: attached' if submitted.attached else 'submitted'}"
        )
        if detach:
            if as_json:
                output.print_json(output.job_data(submitted.status()))
            else:
                output.print_line(submitted.submission_id)
            return
        watch(ctx, submitted, address, as_json=as_json)


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
    from client.job.request import JobSpec, read_yaml

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
    from client.cli import output

    files = plan.upload.entries if plan.upload else ()
    if as_json:
        upload = [{"path": entry.path, "bytes": entry.size} for entry in files]
        output.print_json({**plan.arguments, "upload": upload, "withheld": list(plan.upload.withheld if files else ())})
        return
    output.print_line(f"command      {plan.arguments['entrypoint']}")
    output.print_line(f"working_dir  {plan.arguments['runtime_env'].get('working_dir')}")
    if plan.upload is None:
        output.print_line("upload       nothing: the job runs where its files are")
        return
    output.print_line(f"upload       {len(files)} files, {plan.upload.size} bytes, packed {plan.packed} bytes")
    for entry in files:
        output.print_line(f"{entry.size:>12} {entry.path}")
    for path in plan.upload.withheld:
        output.print_line(f"    withheld {path}")
