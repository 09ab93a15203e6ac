"""The command `run`, and the one by which the cluster runs a batch that was detached."""

from typing import Literal

import click

from client.cli.batch import finish, force_option, max_parallel_option, run_batch, show
from client.cli.help import Command, complete_files
from client.cli.interrupt import sigterm_interrupts
from client.cli.options import address_option, batch_output_option, wait_cluster_option


@click.command(
    cls=Command,
    groups={
        "Which jobs": ("force", "start", "only"),
        "How it runs": ("max_parallel", "keep_going", "detach", "on_interrupt"),
        "Where": ("address", "wait_cluster"),
        "Output": ("dry_run", "output_format"),
    },
    examples=("run pipeline.yaml --dry-run", "run pipeline.yaml --from train --keep-going"),
)
@address_option
@max_parallel_option
@click.option("--keep-going", is_flag=True, help="After a failure, finish what does not wait for the failed job.")
@force_option
@click.option("--from", "start", metavar="JOB", help="Run this job and those after it, even if they have succeeded.")
@click.option("--only", metavar="JOB", help="Run this job alone, even if it has succeeded.")
@click.option(
    "--detach",
    is_flag=True,
    help="Let the cluster run the chain, with the client of its image. This machine may be switched off.",
)
@click.option(
    "--on-interrupt",
    type=click.Choice(["stop", "detach"]),
    help="What Ctrl-C and SIGTERM do to the jobs. Default: detach; jobs on a Ray of its own are stopped.",
)
@wait_cluster_option
@click.option("--dry-run", is_flag=True, help="Show what would run, what would be skipped and why, and run nothing.")
@batch_output_option
@click.argument("file", metavar="CHAIN.yaml", shell_complete=complete_files)
@click.pass_context
def run(
    ctx: click.Context,
    /,
    address: str | None,
    max_parallel: int,
    keep_going: bool,
    force: bool,
    start: str | None,
    only: str | None,
    detach: bool,
    on_interrupt: Literal["stop", "detach"] | None,
    wait_cluster: float,
    dry_run: bool,
    output_format: str,
    file: str,
) -> None:
    """Run the jobs of a chain in their order, and skip those that have succeeded before."""
    from client.batch.batch import Options, rebuild
    from client.batch.chain_file import read_chain

    with sigterm_interrupts():
        run_batch(
            ctx,
            read_chain(file),
            Options(max_parallel, keep_going, force or rebuild(), start, only),
            address,
            output_format=output_format,
            detach=detach,
            dry_run=dry_run,
            on_interrupt=on_interrupt,
            wait_cluster=wait_cluster,
        )


@click.command("run-plan", hidden=True, cls=Command, examples=("run-plan plan.json",))
@address_option
@click.argument("plan")
@click.pass_context
def run_plan(ctx: click.Context, address: str | None, plan: str) -> None:
    """Run a batch that another client has planned."""
    from client.batch.start import handed
    from client.cli.options import choose
    from client.cli.output import note

    with handed(plan, choose(address), note) as (runner, name):
        show(runner, name, "text")
        finish(ctx, runner, name, "text")
