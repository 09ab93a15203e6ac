"""What `up` and `down` share: their options, the login to the cluster, and the line that shows what is waited for."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from client.errors import UsageError

if TYPE_CHECKING:
    from client.kube.login import Login
    from client.wait import Note

_POD_SUFFIX = re.compile(r"(?<=-)[a-z0-9]{5}\b")  # an operator whose pod is refused tries another name each time

target_argument = click.argument("target", type=click.Choice(["embedded", "local", "gke"]))
namespace_option = click.option("--namespace", default="ray", show_default=True, help="Namespace of the release.")
context_option = click.option(
    "--context",
    help="Context of the kubeconfig. Default: the current one, if its cluster is on this machine (local) or GKE (gke).",
)


@contextmanager
def status_line() -> Iterator["Note"]:
    """On a terminal, one line that changes; elsewhere, a line for each change."""
    from client.cli.output import note

    if sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        with Console(stderr=True).status("") as status:
            yield lambda line: status.update(Text(line))
        return
    last = ""

    def show(line: str) -> None:
        nonlocal last
        if (line_without_suffix := _POD_SUFFIX.sub("", line)) != last:
            note(line)
        last = line_without_suffix

    yield show


def refuse_options(ctx: click.Context) -> None:
    """Refuse every option that was given to `up embedded` or `down embedded`."""
    given = [
        option.opts[0]
        for option in ctx.command.params
        if isinstance(option, click.Option)
        and ctx.get_parameter_source(str(option.name)) is not click.core.ParameterSource.DEFAULT
    ]
    if given:
        raise UsageError(f"{ctx.info_name} embedded does not take {', '.join(given)}", "use it with local or gke")


def log_in(target: str, context: str | None) -> "Login":
    """Log in to the context that was named, or else to the current one, if it is of the target's kind."""
    from client.cli.output import note
    from client.kube import login as kubeconfig
    from client.kube.api import Api

    local = kubeconfig.local_context() if target == "local" else None
    login = kubeconfig.login(context or local)
    if not context:
        if not local and not (target == "gke" and (login.context or "").startswith("gke_")):
            current = f"the current context {login.context}" if login.context else "this pod's service account"
            kind = "a local cluster (`ci/kind create` makes one)" if target == "local" else "known to be on GKE"
            raise UsageError(f"{current} is not {kind}", "name the cluster with --context")
        note(f"using the current context, {login.context}")
    Api(login).get("/version")  # every login may read this, and its error is clearer than helm's
    return login
