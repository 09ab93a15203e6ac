"""Options that several commands share."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import click

from client.errors import UsageError
from client.wait import read_duration

if TYPE_CHECKING:
    from client.targets import Address
    from client.targets.target import Target


def _use_json(ctx: click.Context, _: click.Parameter, value: str) -> bool:
    ctx.find_root().obj["json"] = value == "json"
    return value == "json"


address_option = click.option(
    "--address",
    metavar="ADDRESS",
    help="embedded, kubernetes[://CONTEXT/NAMESPACE/CLUSTER], or the http(s)://HOST:PORT of a Ray dashboard.",
)
output_option = click.option(
    "-o",
    "--output",
    "as_json",
    type=click.Choice(["text", "json"]),
    default="text",
    callback=_use_json,
    is_eager=True,  # so that an error in another option is JSON too
    help="json: print only JSON on stdout, and everything else on stderr.",
)


def _is_json(ctx: click.Context, _: click.Parameter, value: str) -> str:
    ctx.find_root().obj["json"] = value == "json"
    return value


batch_output_option = click.option(
    "-o",
    "--output",
    "output_format",
    type=click.Choice(["text", "json", "csv"]),
    default="text",
    callback=_is_json,
    is_eager=True,
    help="json, csv: print only that on stdout, and everything else on stderr.",
)


class Duration(click.ParamType[float]):
    """A duration: 90, 90s, 15m or 2h. Gives seconds."""

    name = "duration"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Convert the text to seconds."""
        if (seconds := read_duration(str(value))) is None:
            self.fail(f"{value!r} is not a duration like 90s, 15m or 2h", param, ctx)
        return seconds


wait_cluster_option = click.option(
    "--wait-cluster",
    type=Duration(),
    default="15m",
    show_default=True,
    metavar="DURATION",
    help="How long to wait for a cluster that is not ready.",
)


def choose(address: str | None) -> "Address":
    """Resolve --address, and print its warning, if there is one.

    Args:
        address: the user's own.
    """
    from client.cli.output import note
    from client.targets import resolve

    chosen = resolve(address)
    if chosen.warning:
        note(chosen.warning)
    return chosen


def no_cluster(what: str, chosen: "Address") -> UsageError:
    """The error for a command that needs a RayCluster, at another kind of address."""
    what = f"{what} needs a RayCluster, and the address is {chosen.value} ({chosen.source})"
    return UsageError(what, "use --address kubernetes://CONTEXT/NAMESPACE/CLUSTER")


@contextmanager
def opened(address: str | None) -> Iterator[tuple["Target", "Address"]]:
    """Connect to --address, and say which cluster is used, unless the command line names it.

    Args:
        address: the user's own.
    """
    from client.cli.output import note
    from client.targets import connect

    chosen = choose(address)
    with ExitStack() as stack:
        name = chosen.value
        try:
            target = stack.enter_context(connect(chosen))
            name = str(target)
        finally:  # also before an error
            if not address:
                note(f"address {name} ({chosen.source})")
        note_url(target)
        yield target, chosen


def note_url(target: "Target") -> None:
    """With --debug, print the URL that requests go to."""
    from client.cli.output import note

    if click.get_current_context().find_root().obj["debug"]:
        note(f"url {target.http.server.url}")


def pairs(_: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Read NAME=VALUE options into a mapping."""
    found = {}
    for value in values:
        name, equals, content = value.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE", param=option)
        found[name] = content
    return found
