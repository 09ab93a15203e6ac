"""jobs/train_torch.py: the model learns, and a run that was killed goes on from its last checkpoint."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil
import pytest
import torch

from tests.gallery.conftest import CLIENT, PLAIN, Job

EPOCHS = 12
pytestmark = pytest.mark.timeout(600)  # for a machine that is busy; quiet, a test takes a tenth of it
SNAPSHOT = "outputs/train_torch/checkpoint_manager_snapshot.json"


@contextmanager
def started(command: tuple[str, ...], folder: Path, **env: str) -> "Iterator[subprocess.Popen[str]]":
    process = subprocess.Popen(
        (*command, "jobs/train_torch.py", "--epochs", str(EPOCHS)),
        cwd=folder,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        yield process
        process.kill()


def pid_at(epoch: int, output: IO[str]) -> int:
    """Read up to an epoch's line. Returns the pid of the worker that wrote it."""
    for line in output:
        if found := re.search(rf"pid=(\d+)\).* epoch {epoch} of {EPOCHS}:", line):
            return int(found[1])
    raise AssertionError(f"the output ended before epoch {epoch}")


def losses(output: str) -> dict[int, float]:
    """Return the loss of each epoch; each may be there once only."""
    found = re.findall(rf"epoch (\d+) of {EPOCHS}: loss ([\d.]+)", output)
    assert len(dict(found)) == len(found), found
    return {int(epoch): float(loss) for epoch, loss in found}


def saved(folder: Path) -> tuple[int, list[float]]:
    """Return the last epoch that Ray has registered, and the losses in its checkpoint."""
    last = json.loads((folder / SNAPSHOT).read_text())["latest_checkpoint_result"]
    state = torch.load((folder / SNAPSHOT).parent / last["checkpoint_dir_name"] / "state.pt")
    return last["metrics"]["epoch"], state["losses"]


def resumed_from(output: str) -> int:
    (epoch,) = re.findall(r"resumed from epoch (\d+)$", output, re.MULTILINE)
    return int(epoch)


def has_learned(output: str, folder: Path) -> bool:
    """Whether the job says so, and the checkpoint that it leaves does, too."""
    (said,) = re.findall(r"^the loss fell from ([\d.]+) to ([\d.]+)$", output, re.M)
    (accuracy,) = re.findall(r"^all well: the model reads ([\d.]+)% of", output, re.M)
    epoch, kept = saved(folder)
    assert epoch == len(kept) == EPOCHS
    assert said == (f"{kept[0]:.3f}", f"{kept[-1]:.3f}")
    assert kept[-1] < kept[0] / 2
    return float(accuracy) >= 90


def test_a_run_that_was_killed_with_its_ray_resumes(folder: Path, job: Job) -> None:
    """Killed right after a checkpoint: Ray does not replace the file that lists them in one step."""
    with started((sys.executable,), folder, **PLAIN) as first:
        while not (folder / SNAPSHOT).exists() or not (folder / SNAPSHOT).read_text() or saved(folder)[0] < 3:
            assert first.poll() is None
            time.sleep(0.01)
        processes = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
        for process in processes:
            process.kill()
        psutil.wait_procs(processes[1:])
    assert first.returncode == -signal.SIGKILL
    before, _ = saved(folder)
    assert 3 <= before < EPOCHS
    second = job("train_torch", "--epochs", str(EPOCHS))
    assert second.returncode == 0, second.stderr
    assert resumed_from(second.stdout) == before
    assert list(losses(second.stdout)) == list(range(before + 1, EPOCHS + 1))
    assert has_learned(second.stdout, folder)


@pytest.mark.usefixtures("warm")
def test_a_run_that_loses_a_worker_resumes(folder: Path) -> None:
    with started((*CLIENT, "submit"), folder) as process:
        assert process.stdout
        pid = pid_at(3, process.stdout)
        os.kill(pid, signal.SIGKILL)
        output = process.stdout.read()
    assert process.returncode == 0, output
    before = resumed_from(output)
    assert 2 <= before < EPOCHS
    rest = output[output.index("resumed from") :]
    assert f"pid={pid})" not in rest
    assert list(losses(rest)) == list(range(before + 1, EPOCHS + 1))
    assert has_learned(output, folder)
