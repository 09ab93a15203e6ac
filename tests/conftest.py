"""Gives the tests their own home, temporary folder and environment."""

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

# A shell that starts the tests in the background sets SIGINT to be ignored; their child processes would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = Path(__file__).parent.parent
Cli = Callable[..., "subprocess.CompletedProcess[bytes]"]
# A long file that starts late would run on alone when all others have ended.
START_FIRST = [
    f"tests/client/test_{name}.py"
    for name in (
        "embedded run_faults run submit packages cli errors docs python_api follow doctor package setup_environment "
        "timeout".split()
    )
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the files that take longest first, the longest of them before the others."""
    order = {str(ROOT / name): place for place, name in enumerate(START_FIRST)}
    items.sort(key=lambda item: order.get(str(item.path), len(order)))


@contextlib.contextmanager
def own_environment() -> Iterator[Path]:
    """Hide the user's Ray, tokens and clusters, and leave no files in the user's folders."""
    folder = Path(tempfile.mkdtemp(prefix="rwt", dir="/tmp"))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "GIT_", "XDG_")) and "KUBE" not in k}
    # readline sets the last two for pytest's workers
    for name in ("PYTHONDONTWRITEBYTECODE", "SSH_CONNECTION", "COLUMNS", "LINES"):
        kept.pop(name, None)
    saved = dict(os.environ)
    os.environ.clear()
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"  # so that jobs run this Python
    os.environ.update(kept, HOME=str(folder), TMPDIR=str(folder), PATH=path)
    tempfile.tempdir = None
    yield folder
    os.environ.clear()
    os.environ.update(saved)
    tempfile.tempdir = None
    shutil.rmtree(folder)


@pytest.fixture(scope="session", autouse=True)
def environment() -> Iterator[Path]:
    """One environment per test process."""
    with own_environment() as folder:
        yield folder


def on_terminal(command: list[str], answer: str, *, all_output: bool = False, **options: Any) -> tuple[int, str]:
    """Run a command on a terminal and type an answer. Returns its exit code and its stderr, or all its output."""
    ours, theirs = pty.openpty()
    stdout = theirs if all_output else subprocess.DEVNULL
    with subprocess.Popen(command, stdin=theirs, stdout=stdout, stderr=theirs, **options) as process:
        os.close(theirs)
        os.write(ours, answer.encode())
        said = b""
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while part := os.read(ours, 4096):
                said += part
    os.close(ours)
    return process.returncode, said.decode().replace("\r\n", "\n")


@pytest.fixture
def run(tmp_path: Path) -> Cli:
    """Return a function that runs `python -m client` in an empty folder."""

    def run(
        *args: str, cwd: Path = tmp_path, env: Mapping[str, str] | None = None, timeout: float = 60
    ) -> "subprocess.CompletedProcess[bytes]":
        command = [sys.executable, "-m", "client", *args]
        return subprocess.run(
            command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, timeout=timeout, check=False
        )

    return run
