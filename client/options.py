"""Options that several commands share."""

import click


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


def pairs(_: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Read NAME=VALUE options into a mapping."""
    found = {}
    for value in values:
        name, equals, content = value.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{value!r} is not NAME=VALUE", param=option)
        found[name] = content
    return found
