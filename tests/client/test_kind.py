"""ci/kind without a cluster: what it says when a tool is missing."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT


def ci_kind(*args: str, tools: Path) -> tuple[int, str]:
    """Run ci/kind with only the tools of a folder on PATH; return its exit code and what it says."""
    command = ["/bin/bash", "ci/kind", *args]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": str(tools)}, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    os.symlink("/usr/bin/dirname", tmp_path / "dirname")
    return tmp_path


@pytest.mark.parametrize("command", ["up", "create"])
def test_kind_is_needed_before_anything_else(command: str, tools: Path) -> None:
    hint = "ci/kind: kind is not on PATH: install it from https://kind.sigs.k8s.io\n"
    assert ci_kind(command, tools=tools) == (1, hint)


def test_an_unknown_command_is_refused(tools: Path) -> None:
    hint = "ci/kind: unknown command: go; run `ci/kind` to see the usage\n"
    assert ci_kind("go", tools=tools) == (2, hint)
