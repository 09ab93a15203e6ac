"""The commands that reach into a cluster: `exec` and `dashboard`."""

import os
import sys
from contextlib import suppress

import click

from client.cli.options import address_option, choose
from client.errors import UsageError


@click.command("exec", context_settings={"allow_interspersed_args": False})
@address_option
@click.option("--worker", type=click.IntRange(min=0), metavar="N", help="In the N-th worker, from 0, not in the head.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
@click.pass_context
def exec_command(ctx: click.Context, address: str | None, worker: int | None, command: tuple[str, ...]) -> None:
    """Open a shell in the head's pod, or run a command there and exit with its code."""
    chosen = choose(address)
    if chosen.value.partition("://")[0] != "kubernetes":
        raise UsageError(
            f"exec needs a RayCluster, and the address is {chosen.value} ({chosen.source}): "
            "give --address kubernetes://CONTEXT/NAMESPACE/CLUSTER"
        )
    from client.cli import output
    from client.kube import exec as pod_exec

    ctx.exit(pod_exec.run(pod_exec.find(chosen.value, worker), command, output.note))


@click.command()
@address_option
@click.option("--no-open", is_flag=True, help="Print the link, and do not open a browser.")
def dashboard(address: str | None, no_open: bool) -> None:
    """Show Ray's dashboard in a browser, logged in, until Ctrl-C."""
    import webbrowser

    from client.cli import output
    from client.ray_api.dashboard import Dashboard
    from client.ray_api.jobs import RayJobs
    from client.targets import connect

    with connect(choose(address)) as endpoint:
        version = RayJobs(endpoint).version()["ray_version"]
        with Dashboard(endpoint) as server:
            output.note(f"the dashboard of {endpoint.address}, Ray {version}, until Ctrl-C; the link works once")
            output.print_line(server.link())
            if not no_open and sys.stdout.isatty() and _has_browser():
                webbrowser.open(server.link())
            with suppress(KeyboardInterrupt):
                server.serve_forever()


def _has_browser() -> bool:
    """Whether there is a screen: else a browser of the terminal's would be started."""
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
