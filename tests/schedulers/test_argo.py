"""docs/schedulers.md, Argo Workflows: the step's script, run by bash with the values that Argo's controller puts in."""

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.targets import resolve
from tests.conftest import ROOT
from tests.gallery.conftest import CLIENT
from tests.schedulers.conftest import Jobs, example, free_port, until

WORKFLOW = yaml.safe_load(example("workflow.yaml"))
TEMPLATES: dict[str, dict[str, Any]] = {template["name"]: template for template in WORKFLOW["spec"]["templates"]}
SCRIPT = TEMPLATES["step"]["script"]


@pytest.fixture
def jobs(warm: None, tmp_path: Path) -> Jobs:
    return Jobs(tmp_path)


def start(jobs: Jobs, retries: int, **env: str) -> "subprocess.Popen[bytes]":
    """Start the step of train.py in a process group of its own, as Argo's executor does."""
    values = {"workflow.name": jobs.folder.name, "inputs.parameters.name": "train", "inputs.parameters.job": "train.py"}
    source = filled(SCRIPT["source"], {**values, "retries": f"{retries}"})
    command, variables = [*SCRIPT["command"], "-c", source], {**os.environ, **env}
    return subprocess.Popen(command, cwd=jobs.folder, env=variables, stderr=subprocess.PIPE, start_new_session=True)


def run(jobs: Jobs, retries: int, **env: str) -> tuple[int, str]:
    """Run the step. Returns its exit code and its stderr."""
    with start(jobs, retries, **env) as step:
        said = step.communicate(timeout=60)[1].decode()
    return step.returncode, said


def filled(text: str, values: Mapping[str, str]) -> str:
    return re.sub("{{(.*?)}}", lambda found: values[found[1]], text)


def test_each_retry_runs_one_attempt_more(jobs: Jobs) -> None:
    jobs.end_with(3)
    for retries in range(int(TEMPLATES["step"]["retryStrategy"]["limit"]) + 1):
        assert run(jobs, retries)[0] == 3
    assert jobs.ends(f"{jobs.folder.name}-train-") == [(attempt, "FAILED", 3) for attempt in (0, 1, 2)]
    jobs.end_with(0)
    assert run(jobs, 3)[0] == 0
    assert run(jobs, 4)[0] == 0
    assert jobs.effects() == [*["train begins", "train ends with 3"] * 3, "train begins", "train ends with 0"]


def test_a_pod_that_is_lost_does_not_run_the_job_twice(jobs: Jobs) -> None:
    with start(jobs, 0) as lost:
        until("the job does not run", lambda: jobs.effects() == ["train begins"])
        os.killpg(lost.pid, signal.SIGKILL)
    jobs.end_with(0)
    assert run(jobs, 1)[0] == 0
    assert jobs.ends(f"{jobs.folder.name}-train-") == [(0, "SUCCEEDED", 0)]
    assert jobs.effects() == ["train begins", "train ends with 0"]


def test_a_workflow_that_is_stopped_stops_its_job(jobs: Jobs) -> None:
    with start(jobs, 1) as step:
        until("the job does not run", lambda: jobs.effects() == ["train begins"])
        os.killpg(step.pid, signal.SIGTERM)
        assert step.wait(60) == 130
    # When the step has ended, and so its container, it can stop nothing any more.
    assert jobs.ends(f"{jobs.folder.name}-train-") == [(0, "STOPPED", 143)]


def test_no_attempt_is_made_while_another_may_run(jobs: Jobs) -> None:
    code, said = run(jobs, 2, RAY_WORKLOAD_ADDRESS=f"http://127.0.0.1:{free_port()}")
    assert (code, said.count("does not answer")) == (69, 1), said


def test_the_step_of_airflow_has_the_same_lines() -> None:
    of_airflow = {line.strip() for line in example("nightly.py").splitlines()}
    lines = [line.strip() for line in SCRIPT["source"].splitlines()]
    different = [line.split()[0] for line in lines if line not in of_airflow]
    assert different == ['id="{{workflow.name}}-{{inputs.parameters.name}}"', "for", "python"]


def test_the_workflow_runs_jobs_of_this_project_on_the_cluster_of_its_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    (variable,) = SCRIPT["env"]
    monkeypatch.setenv(variable["name"], variable["value"])
    assert resolve(None).scheme == "kubernetes"
    steps = [step for group in TEMPLATES[WORKFLOW["spec"]["entrypoint"]]["steps"] for step in group]
    given = [{one["name"]: one["value"] for one in step["arguments"]["parameters"]} for step in steps]
    assert [TEMPLATES[step["template"]] for step in steps] == [TEMPLATES["step"]] * len(given) and len(given) == 2
    for values in given:
        assert values.keys() == {one["name"] for one in TEMPLATES["step"]["inputs"]["parameters"]}
        command = [*CLIENT, "submit", "--dry-run", *shlex.split(values["job"])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0 and "jobs/" in done.stdout, done.stderr
