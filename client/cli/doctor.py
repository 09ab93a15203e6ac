"""The command `doctor`."""

from typing import TYPE_CHECKING

import click

from client.cli.help import Command
from client.cli.options import address_option, output_option

if TYPE_CHECKING:
    from client.doctor.report import Check

_COLOURS = {"ok": "green", "warn": "yellow", "FAIL": "red"}


@click.command(cls=Command, examples=("doctor", "doctor --address kubernetes"))
@address_option
@output_option
@click.pass_context
def doctor(ctx: click.Context, address: str | None, as_json: bool) -> None:
    """Check everything that a job needs, and say what is wrong and how to fix it."""
    from dataclasses import asdict

    from client.cli import output
    from client.doctor.ray import examine

    report = examine(address, (lambda _: None) if as_json else _show)
    if as_json:
        output.print_json([asdict(check) for check in report.checks])
    ctx.exit(1 if report.failed else 0)


def _show(check: "Check") -> None:
    from client.cli import output

    status = click.style(f"{check.status:<5}", fg=_COLOURS[check.status])
    output.print_line(f"{status} {check.check:<12} {check.found}{f' -> {check.fix}' if check.fix else ''}")
