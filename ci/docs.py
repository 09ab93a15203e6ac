"""Write the generated parts of the README, or with --check say whether they are up to date.

The table of commands comes from the command line itself. The version of the package and the newest one of the
changelog must agree.
"""

import re
import sys
from pathlib import Path

import click

import client
from client.cli import cli

README, CHANGELOG = Path("README.md"), Path("CHANGELOG.md")
BEGIN, END = "<!-- commands: written by ci/docs.py -->\n", "<!-- end -->"


def commands() -> str:
    """Each command with its help and options, as Markdown."""
    lines = ["| command | what it does |", "|---|---|"]
    root = click.Context(cli, info_name="python -m client")
    for name, command in sorted(cli.commands.items()):
        context = click.Context(command, info_name=name, parent=root)
        arguments = [p.make_metavar(context) for p in command.params if isinstance(p, click.Argument)]
        usage = " ".join([name, *arguments]).replace("|", "\\|")
        lines.append(f"| **`{usage}`** | {command.help} |")
        for option in command.params:
            if record := isinstance(option, click.Option) and option.get_help_record(context):
                flags, text = (part.replace("|", "\\|") for part in record)
                lines.append(f"| `{flags}` | {text} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write or check."""
    text = README.read_text()
    head, _, rest = text.partition(BEGIN)
    wanted = head + BEGIN + commands() + END + rest.partition(END)[2]
    newest = re.search(r"^## (\S+)", CHANGELOG.read_text(), re.MULTILINE)
    if not newest or newest[1] != client.__version__:
        sys.exit(f"CHANGELOG.md begins with {newest and newest[1]}, the package is {client.__version__}")
    if "--check" not in sys.argv:
        README.write_text(wanted)
    elif wanted != text:
        sys.exit("README.md is not up to date: run `python ci/docs.py`")


if __name__ == "__main__":
    main()
