"""Runs the jobs of jobs/ as a user does: as a plain script, and with `submit` on a Ray that `up embedded` keeps."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client.targets.embedded.folder import base
from tests.conftest import ROOT

Job = Callable[..., "subprocess.CompletedProcess[str]"]
CLIENT = (sys.executable, "-m", "client")
PLAIN = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # a job's own Ray listens on 127.0.0.1 alone


def run(command: tuple[str, ...], cwd: Path, timeout: float, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=timeout, check=False
    )


def is_open(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder where the jobs run: it has a copy of jobs/, and gets their outputs/."""
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs")
    return tmp_path


@pytest.fixture
def job(folder: Path) -> Job:
    """Return a function that runs `python jobs/NAME.py`, which starts a Ray for itself."""

    def job(name: str, *args: str, timeout: float = 240, **env: str) -> "subprocess.CompletedProcess[str]":
        return run((sys.executable, f"jobs/{name}.py", *args), folder, timeout, **PLAIN, **env)

    return job


@pytest.fixture(scope="session")
def warm(environment: Path) -> Iterator[None]:
    """A Ray that `up embedded` keeps for all tests."""
    done = run((*CLIENT, "up", "embedded"), environment, 90)
    assert done.returncode == 0, done.stderr
    yield
    done = run((*CLIENT, "down", "embedded"), environment, 60)
    assert done.returncode == 0, done.stderr
    while any(base().iterdir()):  # `down` does not wait until the last file is gone
        time.sleep(0.05)


@pytest.fixture
def submit(folder: Path, warm: None) -> Job:
    """Return a function that runs `ray-workload submit jobs/NAME.py` on the Ray that is kept."""

    def submit(name: str, *args: str, timeout: float = 240, **env: str) -> "subprocess.CompletedProcess[str]":
        return run((*CLIENT, "submit", f"jobs/{name}.py", *args), folder, timeout, **env)

    return submit
