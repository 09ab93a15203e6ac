"""Write the generated parts of the READMEs; with --check, only check that they are up to date.

The table of commands is generated from the command line, the table of the chart's values from the comments in
values.yaml. The package, the chart and the newest entry in the changelog must have the same version.
"""

import json
import re
import sys
from pathlib import Path

import click
import yaml

import client
from client.cli.main import PROGRAM, cli

CHART = Path("charts/ray-workload")
CHANGELOG = Path("CHANGELOG.md")
UPSTREAM = ("kuberay-operator", "ray-cluster")


def commands() -> str:
    """Return a Markdown table of the commands, their help and their options."""
    lines = ["| command | what it does |", "|---|---|"]
    root = click.Context(cli, info_name=PROGRAM)
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


def values() -> str:
    """Return a Markdown table of the chart's own values, each with its default and the comment above it."""
    lines = ["| value | default | what it is |", "|---|---|---|"]
    path: list[str] = []
    comment: list[str] = []
    for line in (CHART / "values.yaml").read_text().splitlines():
        if told := re.match(r" *# (\S.*)", line):
            comment.append(told[1])
        elif key := re.match(r"( *)([\w-]+):(.*)", line):
            path[len(key[1]) // 2 :] = [key[2]]
            if path[0] in UPSTREAM:
                break
            value = yaml.safe_load(key[3])
            default = f"`{json.dumps(value)}`" if key[3] else ""
            lines.append(f"| `{'.'.join(path)}` | {default} | {' '.join(comment)} |")
            comment = []
        else:
            comment = []
    return "\n".join(lines) + "\n"


def generated(path: Path, what: str, content: str) -> None:
    """Write content between a file's markers; with --check, exit with an error if the file differs."""
    text = path.read_text()
    begin, end = f"<!-- {what}: written by ci/docs.py -->\n", "<!-- end -->"
    head, _, rest = text.partition(begin)
    wanted = head + begin + content + end + rest.partition(end)[2]
    if "--check" not in sys.argv:
        path.write_text(wanted)
    elif wanted != text:
        sys.exit(f"{path} is not up to date: run `python ci/docs.py`")


def main() -> None:
    """Write or check the generated parts."""
    newest = re.search(r"^## (\S+)", CHANGELOG.read_text(), re.MULTILINE)
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    if not newest or {newest[1], chart} != {client.__version__}:
        sys.exit(f"versions differ: CHANGELOG.md {newest and newest[1]}, package {client.__version__}, chart {chart}")
    generated(Path("README.md"), "commands", commands())
    generated(CHART / "README.md", "values", values())


if __name__ == "__main__":
    main()
