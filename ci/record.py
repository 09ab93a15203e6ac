"""Record docs/img/session.svg: real commands on a terminal, as an animated picture that needs no network and no script.

    .venv/bin/python ci/record.py [FILE]

Every pause is shortened to at most a second. Without animation, the picture shows the whole session.
"""

import os
import pty
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

COMMANDS = (
    "ray-workload submit jobs/numpy_sum.py --blocks 8",
    "ray-workload submit jobs/progress.py --lines 4 --exit-code 3",
    "echo $?",
)
WIDTH, PAUSE = 124, 1.0
BIN = Path(sys.executable).parent
# Rich's own template loads a font from the network.
SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, monospace; font-size: {char_height}px;
  line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
@keyframes appear {{ from {{ visibility: hidden }} }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def run(command: str) -> Iterator[tuple[float, str]]:
    """Run a command on a terminal; yield each line of its output and the seconds until it came."""
    process, terminal = pty.fork()
    if not process:
        os.execvp("bash", ["bash", "-c", command])
    begin, rest = time.monotonic(), b""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # EIO: the command has ended
            break
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield time.monotonic() - begin, line.decode().rstrip("\r").replace(f"{BIN}/", "")
    os.environ["CODE"] = str(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))


def record() -> Iterator[tuple[float, str]]:
    """Yield the session's lines, each with the second of the picture at which it appears."""
    now = 0.0
    for command in COMMANDS:
        now += PAUSE
        yield now, f"\x1b[1;32m$\x1b[0m {command}"
        before = 0.0
        for at, line in run(command.replace("$?", "$CODE")):
            now += min(at - before, PAUSE)
            before = at
            yield now, line


def picture(lines: list[tuple[float, str]]) -> str:
    """Return the session as an SVG whose lines appear one after another."""
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"), force_terminal=True)
    appear = []
    for at, line in lines:
        rows = Text.from_ansi(line).wrap(console, WIDTH) or [Text("")]
        appear += [at] * len(rows)
        for row in rows:
            console.print(row)
    svg = console.export_svg(title="ray-workload", theme=MONOKAI, code_format=SVG, unique_id="session")
    return re.sub(
        r'<text (?=[^>]*clip-path="url\(#session-line-(\d+)\)")',
        lambda row: f'<text style="animation: appear {appear[int(row[1])]:.1f}s step-end" ',
        svg,
    )


def main() -> None:
    """Record the session in a home of its own."""
    file = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/img/session.svg")
    with tempfile.TemporaryDirectory(prefix="rw", dir="/tmp") as home:
        kept = {name: os.environ[name] for name in ("LANG", "LC_ALL") if name in os.environ}
        path = f"{BIN}:{os.environ['PATH']}"
        os.environ.clear()
        os.environ.update(kept, PATH=path, HOME=home, TMPDIR=home, TERM="xterm-256color", COLUMNS=str(WIDTH))
        file.write_text(picture(list(record())))


if __name__ == "__main__":
    main()
