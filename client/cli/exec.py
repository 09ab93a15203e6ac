"""The command `exec`."""

import click

from client.cli.help import Command
from client.cli.options import address_option, choose, no_cluster


@click.command(
    "exec",
    cls=Command,
    examples=("exec", "exec --worker 0 -- nvidia-smi"),
    context_settings={"allow_interspersed_args": False},
)
@address_option
@click.option(
    "--worker", type=click.IntRange(min=0), metavar="N", help="Use worker N instead of the head. The first worker is 0."
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
@click.pass_context
def exec_command(ctx: click.Context, address: str | None, worker: int | None, command: tuple[str, ...]) -> None:
    """Open a shell in the head's pod, or run a command there and exit with its code."""
    chosen = choose(address)
    if chosen.scheme != "kubernetes":
        raise no_cluster("exec", chosen)
    from client.cli import output
    from client.kube import container, exec
    from client.targets import kubernetes

    cluster = kubernetes.find_cluster(chosen.value)
    if not address:
        output.note(f"address {cluster.address} ({chosen.source})")
    ctx.exit(exec.run(container.find(cluster, worker), command, output.note))
