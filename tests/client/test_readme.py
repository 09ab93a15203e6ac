"""Runs the examples in README.md."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.cli.main import cli
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def on_path() -> dict[str, str]:
    """Return an environment with .venv/bin first on PATH."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def run_in_bash(block: str) -> None:
    done = subprocess.run(["bash", "-e", "-c", block], cwd=ROOT, env=on_path(), capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr


def test_the_first_command_runs_on_a_ray_of_its_own() -> None:
    run_in_bash(blocks("sh")[0])


@pytest.fixture(scope="module")
def warm() -> Iterator[None]:
    run_in_bash("ray-workload up embedded")
    yield
    run_in_bash("ray-workload down embedded")


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("block", blocks("sh")[1:])
def test_every_command_runs(block: str) -> None:
    run_in_bash(block)


@pytest.mark.parametrize("block", blocks("python"))
def test_the_python_example_runs(block: str) -> None:
    done = subprocess.run([sys.executable, "-c", block], cwd=ROOT, env=on_path(), capture_output=True, timeout=120)
    assert done.stdout == b"SUCCEEDED 0\n", done.stderr


@pytest.mark.parametrize("block", blocks("yaml"))
def test_the_job_file_is_valid(block: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(block)
    command = [sys.executable, "-m", "client", "submit", "--dry-run", "-f", "job.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert b"python train.py --epochs 3" in done.stdout


def test_every_command_has_help_and_is_named() -> None:
    for name, command in cli.commands.items():
        assert command.help and command.help.endswith("."), name
        assert f"**`{name}" in README
    assert len(blocks("sh")) >= 3 and len(blocks("python")) == len(blocks("yaml")) == 1
