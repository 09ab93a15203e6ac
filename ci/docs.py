"""Write the generated parts of the guide; with --check, only check that they are up to date.

The references come from the command line, the error classes, the docstrings of the Python API, and the comments in the
chart's values.yaml. The package, the chart and the newest entry in the changelog must have the same version.
"""

import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
import yaml

import client
from client import errors
from client.cli.main import PROGRAM, cli

CHART = Path("charts/ray-workload")
CHANGELOG = Path("CHANGELOG.md")
REFERENCE = Path("docs/reference")
UPSTREAM = ("kuberay-operator", "ray-cluster")


def commands() -> Iterator[str]:
    """Yield a section per command: its usage, its help and its options."""
    root = click.Context(cli, info_name=PROGRAM)
    for name, command in sorted(cli.commands.items()):
        if command.hidden:
            continue
        context = click.Context(command, info_name=name, parent=root)
        arguments = [p.make_metavar(context) for p in command.params if isinstance(p, click.Argument)]
        usage = " ".join([PROGRAM, name, "[OPTIONS]", *arguments])
        yield f"\n## {name}\n\n```text\n{usage}\n```\n\n{command.help}\n\n| option | what it does |\n|---|---|\n"
        for option in command.params:
            if record := isinstance(option, click.Option) and option.get_help_record(context):
                flags, text = (cell(part) for part in record)
                yield f"| `{flags}` | {text} |\n"


def cell(text: str) -> str:
    """Return the text as a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def exit_codes() -> Iterator[str]:
    """Yield a table of the errors of the client, by exit code."""
    yield "| code | error | meaning |\n|---|---|---|\n"
    found = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.ClientError)]
    for error in sorted(found, key=lambda error: error.exit_code):
        yield f"| {error.exit_code} | `{error.__name__}` | {(error.__doc__ or '').splitlines()[0]} |\n"


def python_api() -> Iterator[str]:
    """Yield a section per public name of `client`, from its signature and its docstring."""
    for name in client.__all__:
        found = getattr(client, name)
        if inspect.isfunction(found):
            yield from documented("##", f"client.{name}", found)
        elif not issubclass(found, Exception):
            yield f"\n## client.{name}\n\n{text_of(inspect.getdoc(found))}"
            for method, value in vars(found).items():
                if not method.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                    yield from documented("###", f"{name}.{method}", value)


def documented(level: str, name: str, value: object) -> Iterator[str]:
    """Yield a function's signature and docstring, or a property's docstring."""
    yield f"\n{level} {name}\n\n"
    if inspect.isfunction(value):
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(value)))
        signature = re.sub(r"self(, |,\n +)?", "", source.partition("def ")[2].partition(":\n")[0], count=1)
        yield f"```text\n{signature}\n```\n\n"
    yield text_of(inspect.getdoc(value))


def text_of(docstring: str | None) -> str:
    """Return a docstring in Google's style as Markdown: its sections with names become lists."""
    lines, section = [], ""
    for line in (docstring or "").splitlines():
        if header := re.fullmatch(r"(Args|Attributes|Returns|Raises):", line):
            section = header[1]
            lines += [f"**{section.replace('Args', 'Arguments')}**", ""]
        elif section in ("Args", "Attributes", "Raises") and (item := re.fullmatch(r"    (\S+): (.*)", line)):
            lines.append(f"- `{item[1]}`: {item[2]}")
        else:
            lines.append(line.strip())
    return "\n".join(lines) + "\n"


def values() -> Iterator[str]:
    """Yield a table of the chart's own values, each with its default and the comment above it."""
    yield "| value | default | what it is |\n|---|---|---|\n"
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
            yield f"| `{'.'.join(path)}` | {default} | {' '.join(comment)} |\n"
            comment = []
        else:
            comment = []


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
    for what, part in {"commands": commands, "exit-codes": exit_codes, "python": python_api, "values": values}.items():
        generated(REFERENCE / f"{what}.md", what, "".join(part()))
    generated(CHART / "README.md", "values", "".join(values()))


if __name__ == "__main__":
    main()
