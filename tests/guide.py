"""Reads what the README and the pages of docs/ say to run.

A comment before a fenced block says how it is tested. Blocks with a title are written to a file of that name first.

    <!-- run: laptop -->     run by tests/client/test_docs.py, in page order, in a copy of the repository
    <!-- run: cluster -->    run by tests/e2e/test_docs.py, likewise, with the chart installed by `ci/kind install`
    <!-- run: gallery -->    a `submit` of a job that tests/gallery submits, too
    <!-- run: schedulers --> an example for a scheduler, run by tests/schedulers
    <!-- values -->          values of the chart, on top of values-local.yaml; rendered by tests/chart/test_guide.py
    <!-- values: gke -->     the same, on top of values-gke.yaml
    <!-- manifest -->        an object for `kubectl apply`, or several
    <!-- job file -->        a job file for `submit -f`
    <!-- not run: REASON --> one of NOT_RUN
"""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = (
    "CI itself runs it",
    "an example, to complete",
    "another tool's command",
    "no GKE here",
    "no GPU here",
    "no cloud storage here",
    "no kind or Docker here",
    "no minikube here",
    "no registry here",
    "opens a browser",
)
_COMMENT = re.compile(r" *<!-- (.*) -->")
_FENCE = re.compile(r'( *)```(\w*)(?:.*title="(.*?)")?')


class Block(NamedTuple):
    """A fenced block of a page, and the comment before it."""

    page: Path
    line: int
    comment: str
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    comment, lines = "", iter(enumerate(page.read_text().splitlines(), 1))
    for number, line in lines:
        if fence := _FENCE.fullmatch(line):
            indent, language, title = fence.groups(default="")
            text = []
            for _, inside in lines:
                if inside == f"{indent}```":
                    break
                text.append(inside)
            yield Block(page, number, comment, language, title, dedent("\n".join(text)) + "\n")
            comment = ""
        elif found := _COMMENT.fullmatch(line):
            comment = found[1]
        elif line.strip():
            comment = ""


def script(page: Path, comment: str) -> str:
    """Return a bash script that runs a page's blocks with this comment, in order, and writes its files."""
    lines = ["set -euo pipefail"]
    for block in blocks(page):
        if block.title:
            lines.append(f"cat >{shlex.quote(block.title)} <<'END OF FILE'\n{block.text}END OF FILE")
        elif block.comment == comment and block.language == "python":
            lines.append(f"python - <<'END OF FILE'\n{block.text}END OF FILE")
        elif block.comment == comment:
            lines.append(f"echo '--- {block}' >&2\n{block.text}")
    return "\n".join(lines)


def pages(comment: str) -> list[Path]:
    """Return the pages that have a block with this comment."""
    return [page for page in PAGES if any(block.comment == comment for block in blocks(page))]


def copy_repository(folder: Path) -> None:
    """Copy the files that git knows, and the dependencies of the chart."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    archives = [path.relative_to(ROOT) for path in ROOT.glob("charts/*/charts/*.tgz")]
    for name in [*map(Path, filter(None, map(bytes.decode, names))), *archives]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
