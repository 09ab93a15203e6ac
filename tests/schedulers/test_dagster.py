"""docs/schedulers.md, Dagster: its command line, its multiprocess executor and its instance in a folder."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.schedulers.conftest import PAGE, Jobs, example, kill, until

(RUN,) = [shlex.split(block.text) for block in PAGE if block.comment == "run: schedulers" and block.language == "sh"]
RUN_AGAIN = [sys.executable, "again.py"]
# What Dagster's page does on "Re-execute from failure". Its run monitoring would find out that the process is gone.
AGAIN = """
import sys

import dagster as dg
from pipeline import defs


def nightly():
    return defs.resolve_job_def("nightly")


if __name__ == "__main__":
    with dg.DagsterInstance.get() as instance:
        run = instance.get_run_records(limit=1)[0].dagster_run
        if not run.is_finished:
            instance.report_run_failed(run, "its process is gone")
        again = dg.ReexecutionOptions.from_failure(run.run_id, instance)
        with dg.execute_job(dg.reconstructable(nightly), instance, reexecution_options=again) as result:
            sys.exit(not result.success)
"""


class Dagster:
    """The folder of the example, where its runs are kept, too."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.jobs = folder, Jobs(folder)
        (folder / "pipeline.py").write_text(example("pipeline.py"))
        (folder / "again.py").write_text(AGAIN)
        (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")

    @contextmanager
    def running(self, command: list[str]) -> "Iterator[subprocess.Popen[bytes]]":
        env = {**os.environ, "DAGSTER_HOME": str(self.folder)}
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=self.folder, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            if process.poll() is None:
                kill(process)

    def run(self, command: list[str]) -> int:
        with self.running(command) as process:
            return process.wait(120)

    def log(self) -> str:
        return (self.folder / "log").read_text()


@pytest.fixture
def dagster(warm: None, tmp_path: Path) -> Dagster:
    return Dagster(tmp_path)


def test_a_run_that_is_lost_does_not_run_the_job_twice(dagster: Dagster) -> None:
    with dagster.running(RUN) as process:
        until("the job does not run", lambda: "train begins" in dagster.jobs.effects())
        killed = kill(process)
    assert len(killed) > 1 and "RUN_FAILURE" not in dagster.log()
    assert dagster.jobs.ends("model-") == [(1, "RUNNING", None)]

    with dagster.running(RUN_AGAIN) as process:
        until("no step", lambda: " - model - STEP_START - " in dagster.log())
        dagster.jobs.end_with(0)
        assert process.wait(60) == 0, dagster.log()
    assert " - rows - STEP_START - " not in dagster.log()
    assert dagster.jobs.ends("model-") == [(1, "SUCCEEDED", 0)]
    assert dagster.jobs.effects() == ["prepare", "train begins", "train ends with 0"]


def test_a_step_that_is_lost_does_not_run_the_job_twice(dagster: Dagster) -> None:
    with dagster.running(RUN) as process:
        until("the job does not run", lambda: "train begins" in dagster.jobs.effects())
        (step,) = re.findall(r" - (\d+) - model - STEP_START - ", dagster.log())
        os.kill(int(step), signal.SIGKILL)
        until("no second try", lambda: " - model - STEP_RESTARTED - " in dagster.log())
        dagster.jobs.end_with(0)
        assert process.wait(60) == 0, dagster.log()
    assert dagster.jobs.ends("model-") == [(1, "SUCCEEDED", 0)]
    assert dagster.jobs.effects() == ["prepare", "train begins", "train ends with 0"]


def test_a_job_that_fails_is_tried_again_and_fails_the_run(dagster: Dagster) -> None:
    dagster.jobs.end_with(3)
    assert dagster.run(RUN) == 1
    assert dagster.jobs.ends("model-") == [(attempt, "FAILED", 3) for attempt in (1, 2, 3)]
    assert dagster.jobs.effects() == ["prepare", *["train begins", "train ends with 3"] * 3]
    assert re.search(r"Failure: job model-\S+-3 failed with exit code 3\n", dagster.log())

    dagster.jobs.end_with(0)
    assert dagster.run(RUN_AGAIN) == 0, dagster.log()
    assert dagster.jobs.ends("model-")[3:] == [(4, "SUCCEEDED", 0)]
    assert dagster.jobs.effects()[7:] == ["train begins", "train ends with 0"]


def test_a_run_that_is_terminated_stops_its_job(dagster: Dagster) -> None:
    with dagster.running(RUN) as process:
        until("the job does not run", lambda: "train begins" in dagster.jobs.effects())
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 1
    assert dagster.jobs.ends("model-") == [(1, "STOPPED", 143)]

    dagster.jobs.end_with(0)
    assert dagster.run(RUN_AGAIN) == 0, dagster.log()
    assert dagster.jobs.ends("model-")[1:] == [(2, "SUCCEEDED", 0)]
    assert dagster.jobs.effects() == ["prepare", "train begins", "train begins", "train ends with 0"]
