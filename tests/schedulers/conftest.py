"""Runs the examples of docs/schedulers.md with the real schedulers, on a Ray that `up embedded` keeps."""

import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import client
from tests.conftest import ROOT
from tests.gallery.conftest import warm as warm
from tests.guide import blocks

PAGE = list(blocks(ROOT / "docs/schedulers.md"))
JOB = """
import sys
import time
from pathlib import Path


def note(line: str) -> None:
    with open("effects", "a") as effects:
        effects.write(f"{line}\\n")


if Path(__file__).stem == "prepare":
    sys.exit(note("prepare"))
note("train begins")
while not Path("code").exists():
    time.sleep(0.05)
code = int(Path("code").read_text())
note(f"train ends with {code}")
sys.exit(code)
"""


class Jobs:
    """The two jobs of an example, in their folder: each writes what it does to a file, once for each time it runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("prepare.py", "train.py"):
            (folder / name).write_text(JOB)

    def end_with(self, code: int) -> None:
        """Let each train.py end with this exit code, one that runs and those to come."""
        (self.folder / "new").write_text(str(code))
        (self.folder / "new").rename(self.folder / "code")

    def effects(self) -> list[str]:
        file = self.folder / "effects"
        return file.read_text().splitlines() if file.exists() else []

    def reset(self) -> None:
        for name in ("code", "effects"):
            (self.folder / name).unlink(missing_ok=True)

    def ends(self, prefix: str) -> list[tuple[int, str, int | None]]:
        """The jobs of this folder whose id has this prefix, oldest first: the attempt, the status, the exit code."""
        return [
            (int(job.submission_id.rpartition("-")[2]), job.status, job.exit_code)
            for job in reversed(client.jobs())
            if job.submission_id.startswith(prefix) and job.metadata["outputs"] == f"{self.folder}/outputs"
        ]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def until(what: str, found: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not found():
        if time.monotonic() > end:
            pytest.fail(f"after {seconds:g} s: {what}")
        time.sleep(0.1)


def kill(process: "subprocess.Popen[bytes]") -> list[str]:
    """Kill a process and all that it has started, as the loss of its machine does. Returns their command lines."""
    top = psutil.Process(process.pid)
    top.suspend()  # so that it starts no more
    family, lines = [top, *top.children(recursive=True)], []
    for one in family:
        with suppress(psutil.NoSuchProcess):
            lines.append(" ".join(one.cmdline()))
            one.kill()
    process.wait(30)
    psutil.wait_procs(family, 30)
    return lines


def example(title: str) -> str:
    """The text of the block of the guide with this title."""
    (text,) = [block.text for block in PAGE if block.title == title]
    return text
