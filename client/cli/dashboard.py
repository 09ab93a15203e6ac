"""The command `dashboard`."""

import os
import sys
from contextlib import suppress

import click

from client.cli.help import Command
from client.cli.options import address_option, opened


@click.command(
    cls=Command, examples=("dashboard", "dashboard --no-open --address kubernetes://CONTEXT/NAMESPACE/CLUSTER")
)
@address_option
@click.option("--no-open", is_flag=True, help="Print the link without opening a browser.")
def dashboard(address: str | None, no_open: bool) -> None:
    """Show Ray's dashboard in a browser, logged in, until Ctrl-C."""
    import webbrowser

    from client.cli import output
    from client.ray_api.dashboard import Dashboard
    from client.ray_api.jobs import RayJobs

    with opened(address) as (target, _):
        version = RayJobs(target).version()["ray_version"]
        with Dashboard(target.http.server) as server:
            output.note(f"serving the dashboard of {target}, Ray {version}, until Ctrl-C; the link works once")
            if tunnel := _tunnel(server.server_port):
                output.note(f"on the machine with the browser, first run: {tunnel}")
            output.print_line(server.link())
            if not no_open and sys.stdout.isatty() and _has_browser():
                webbrowser.open(server.link())
            with suppress(KeyboardInterrupt):
                server.serve_forever()


def _tunnel(port: int) -> str | None:
    """The ssh command that forwards a port of this machine to the machine that the user logged in from."""
    from client.job.submission import user

    match os.environ.get("SSH_CONNECTION", "").split():
        case [_, _, host, ssh_port]:
            option = "" if ssh_port == "22" else f"-p {ssh_port} "
            return f"ssh -N -L {port}:127.0.0.1:{port} {option}{user()}@{host}"
    return None


def _has_browser() -> bool:
    """Whether a graphical browser can start; otherwise a text browser would open in this terminal."""
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
