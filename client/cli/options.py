"""Options that several commands share."""

import re
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from client.targets import Address


def _use_json(ctx: click.Context, _: click.Parameter, value: str) -> bool:
    ctx.find_root().obj["json"] = value == "json"
    return value == "json"


address_option = click.option(
    "--address",
    metavar="ADDRESS",
    help="embedded, kubernetes[://CONTEXT/NAMESPACE/CLUSTER], or http(s)://HOST:PORT of a Ray dashboard.",
)
output_option = click.option(
    "-o",
    "--output",
    "as_json",
    type=click.Choice(["text", "json"]),
    default="text",
    callback=_use_json,
    is_eager=True,  # so that an error in another option is JSON too
    help="json: only JSON on stdout, all else on stderr.",
)


class Seconds(click.ParamType[float]):
    """A time: 90, 90s, 15m or 2h. Gives seconds."""

    name = "time"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read it."""
        read = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", str(value))
        if not read:
            self.fail(f"{value!r} is not a time like 90s, 15m or 2h", param, ctx)
        return float(read[1]) * {"h": 3600, "m": 60}.get(read[2], 1)


def choose(address: str | None, *, name_it: bool = True) -> "Address":
    """Resolve --address, and say where another tool's RAY_ADDRESS is used or passed over.

    Args:
        address: the user's own.
        name_it: say which is used; `submit` does so itself.
    """
    from client.cli.output import note
    from client.targets import resolve

    chosen = resolve(address)
    if chosen.warning:
        note(chosen.warning)
    if name_it and chosen.source == "RAY_ADDRESS":
        note(f"address {chosen.value} ({chosen.source})")
    return chosen


def pairs(_: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Read NAME=VALUE options into a mapping."""
    found = {}
    for value in values:
        name, equals, content = value.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE", param=option)
        found[name] = content
    return found
