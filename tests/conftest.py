"""A home, a temporary folder and an environment of the tests' own."""

import contextlib
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

# Started in the background, where a shell has it ignored, the tests' own processes would never see Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = Path(__file__).parent.parent
Cli = Callable[..., "subprocess.CompletedProcess[bytes]"]


@contextlib.contextmanager
def own_environment() -> Iterator[Path]:
    """No Ray, token or cluster of the user's is seen, and nothing is left in their folders."""
    folder = Path(tempfile.mkdtemp(prefix="rwt", dir="/tmp"))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "GIT_", "XDG_")) and "KUBE" not in k}
    for name in ("PYTHONDONTWRITEBYTECODE", "COLUMNS", "LINES"):  # readline sets the last two for pytest's workers
        kept.pop(name, None)
    saved = dict(os.environ)
    os.environ.clear()
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"  # a head's `python` is this one
    os.environ.update(kept, HOME=str(folder), TMPDIR=str(folder), PATH=path)
    tempfile.tempdir = None
    yield folder
    os.environ.clear()
    os.environ.update(saved)
    tempfile.tempdir = None
    shutil.rmtree(folder)


@pytest.fixture(scope="session", autouse=True)
def environment() -> Iterator[Path]:
    """One for each process that runs tests."""
    with own_environment() as folder:
        yield folder


def on_terminal(command: list[str], answer: str, **options: Any) -> tuple[int, str]:
    """Run a command on a terminal, where this is typed: its exit code, and what it says on stderr."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs, **options) as process:
        os.close(theirs)
        os.write(ours, answer.encode())
        said = b""
        with contextlib.suppress(OSError):  # EIO, when the other side is closed
            while part := os.read(ours, 4096):
                said += part
    os.close(ours)
    return process.returncode, said.decode().replace("\r\n", "\n")


@pytest.fixture
def run(tmp_path: Path) -> Cli:
    """Run `python -m client` as a user does, in an empty folder."""

    def run(
        *args: str, cwd: Path = tmp_path, env: Mapping[str, str] | None = None, timeout: float = 60
    ) -> "subprocess.CompletedProcess[bytes]":
        command = [sys.executable, "-m", "client", *args]
        return subprocess.run(
            command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, timeout=timeout, check=False
        )

    return run
