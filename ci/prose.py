"""Check the English of the pages and of all messages with Vale, by the rules in ci/vale.

Vale is built with Go into build/tools; it needs a C compiler. Without it, the script prints one line and exits with 0.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from ci.helm import TOOLS, go_install, version
from ci.messages import ROOT, gather

PINNED = "v3.22.0"
PAGES = ("*.md", "charts/ray-workload/*.md", "docs/**/*.md")
MESSAGES = ROOT / "build/messages.md"


def built() -> bool:
    """Return whether the pinned Vale is there."""
    return version(TOOLS / "vale", "--version").endswith(PINNED)


def why_not() -> str:
    """Build Vale if it is not there. Return why that is not possible, or an empty string."""
    if missing := [tool for tool in ("go", "cc") if not built() and not shutil.which(tool)]:
        return f"{missing[0]} is missing, install Go and a C compiler"
    command = f"github.com/vale-cli/vale/v3/cmd/vale@{PINNED}"
    return go_install(f"Vale {PINNED}", TOOLS / "vale", command, f"-X main.version={PINNED}", built, cgo="1")


def findings(*files: str | Path) -> list[str]:
    """Return Vale's findings in Markdown files, one a line."""
    command = [str(TOOLS / "vale"), "--no-global", "--config", "ci/vale/vale.ini", "--output", "line", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode not in (0, 1) or done.stderr:
        sys.exit(f"Vale failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.splitlines()


def main() -> None:
    """Check everything and print each finding with its file and line."""
    if why := why_not():
        print(f"the English is not checked: {why}")
        return
    messages = list(gather())
    # A paragraph for each message, with its placeholders as code, so that Vale checks only our words.
    MESSAGES.write_text("\n\n".join(re.sub(r"\{[^}]*\}", "`{}`", text) for _, _, text in messages) + "\n")
    pages = sorted(page.relative_to(ROOT) for glob in PAGES for page in ROOT.glob(glob))
    found = findings(*pages, MESSAGES.relative_to(ROOT))
    for line in found:
        if number := re.match(r"build/messages\.md:(\d+):\d+:", line):
            file, at, text = messages[(int(number[1]) - 1) // 2]
            line = f"{file}:{at}:{line[number.end() :]}: {text}"
        print(line)
    if found:
        sys.exit("correct these sentences; ci/vale/styles has the rules and the project's words")


if __name__ == "__main__":
    main()
