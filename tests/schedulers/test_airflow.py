"""docs/schedulers.md, Airflow: its scheduler, its API server, a database and real task processes."""

import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.schedulers.conftest import Jobs, example, free_port, kill, until

TASK_LOG = "logs/dag_id=nightly/run_id={run}/task_id=train/attempt={attempt}.log"


class Airflow:
    """Airflow with the DAG of the guide, and what is done to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs = Jobs(folder / "dags/nightly")
        (folder / "dags/nightly.py").write_text(example("nightly.py"))
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        settings = {
            "api__host": "127.0.0.1",
            "api__port": f"{port}",
            "api_auth__jwt_secret": secrets.token_hex(64),
            "core__dags_are_paused_at_creation": "False",
            "core__dags_folder": str(folder / "dags"),
            "core__default_task_retry_delay": "1",
            "core__execution_api_server_url": f"{self.url}/execution/",
            "core__load_examples": "False",
            "core__parallelism": "2",
            "core__simple_auth_manager_all_admins": "True",
            "scheduler__orphaned_tasks_check_interval": "1",
            "scheduler__scheduler_health_check_threshold": "5",
            "scheduler__scheduler_heartbeat_sec": "1",
            "scheduler__task_instance_heartbeat_sec": "1",
            "scheduler__use_job_schedule": "False",  # the tests may run at two o'clock
            "usage_data_collection__enabled": "False",
        }
        self.env = {f"AIRFLOW__{name.upper()}": value for name, value in settings.items()}
        self.env |= {**os.environ, "AIRFLOW_HOME": str(folder)}
        self.login: dict[str, str] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.log").open("ab") as log:
            self.processes[command[0]] = subprocess.Popen(
                ["airflow", *command], cwd=self.folder, env=self.env, stdout=log, stderr=subprocess.STDOUT
            )

    def start_scheduler(self) -> None:
        self.start("scheduler", "--skip-serve-logs")

    def call(self, method: str, path: str, body: object = None) -> Any:
        url = f"{self.url}/api/v2/dags/nightly{path}"
        answer = requests.request(method, url, json=body, headers=self.login, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def up(self) -> None:
        subprocess.run(
            ["airflow", "db", "migrate"], cwd=self.folder, env=self.env, check=True, capture_output=True, timeout=120
        )
        self.start("api-server")
        self.start_scheduler()
        self.start("dag-processor")
        until("the API server does not answer", self.is_up, 120)
        token = requests.get(f"{self.url}/auth/token", timeout=30).json()["access_token"]
        self.login = {"Authorization": f"Bearer {token}"}
        until("the DAG is not known", self.knows_dag, 120)

    def is_up(self) -> bool:
        try:
            return requests.get(f"{self.url}/api/v2/version", timeout=5).ok
        except requests.ConnectionError:
            return False

    def knows_dag(self) -> bool:
        return requests.get(f"{self.url}/api/v2/dags/nightly", headers=self.login, timeout=30).ok

    def trigger(self, run: str) -> None:
        self.jobs.reset()
        self.call("POST", "/dagRuns", {"dag_run_id": run, "logical_date": None})

    def tasks(self, run: str) -> dict[str, tuple[str, int]]:
        """The state of each task, and the number of its try."""
        tasks = self.call("GET", f"/dagRuns/{run}/taskInstances")["task_instances"]
        return {task["task_id"]: (task["state"], task["try_number"]) for task in tasks}

    def clear(self, run: str) -> None:
        body = {"dag_run_id": run, "task_ids": ["train"], "dry_run": False, "only_failed": False}
        self.call("POST", "/clearTaskInstances", body)

    def mark_as_failed(self, run: str) -> None:
        self.call("PATCH", f"/dagRuns/{run}/taskInstances/train", {"new_state": "failed"})

    def wait(self, run: str, state: str) -> None:
        until(f"run {run} is not {state}", lambda: self.call("GET", f"/dagRuns/{run}")["state"] == state, 90)

    def log(self, run: str, attempt: int) -> str:
        file = self.folder / TASK_LOG.format(run=run, attempt=attempt)
        return file.read_text() if file.exists() else ""


@pytest.fixture(scope="module")
def airflow(warm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Airflow]:
    airflow = Airflow(tmp_path_factory.mktemp("airflow"))
    try:
        airflow.up()
        yield airflow
    finally:
        for process in airflow.processes.values():
            kill(process)


def test_a_worker_that_is_lost_does_not_run_the_job_twice(airflow: Airflow) -> None:
    airflow.trigger("lost")
    until("the job does not run", lambda: "train begins" in airflow.jobs.effects())
    killed = kill(airflow.processes["scheduler"])
    assert any("submit --id nightly-train-lost-1 " in line for line in killed)
    assert airflow.jobs.ends("nightly-train-lost") == [(1, "RUNNING", None)]

    airflow.start_scheduler()
    until("no second try", lambda: "job nightly-train-lost-1 exists: attached to it" in airflow.log("lost", 2))
    airflow.jobs.end_with(0)
    airflow.wait("lost", "success")
    assert airflow.tasks("lost") == {"prepare": ("success", 1), "train": ("success", 2)}
    assert airflow.jobs.effects() == ["prepare", "train begins", "train ends with 0"]


def test_a_job_that_fails_is_tried_again_and_fails_the_task(airflow: Airflow) -> None:
    airflow.trigger("wrong")
    airflow.jobs.end_with(99)  # Airflow would skip a task with this exit code
    airflow.wait("wrong", "failed")
    assert airflow.tasks("wrong") == {"prepare": ("success", 1), "train": ("failed", 3)}
    assert airflow.jobs.ends("nightly-train-wrong") == [(attempt, "FAILED", 99) for attempt in (1, 2, 3)]
    assert airflow.jobs.effects() == ["prepare", *["train begins", "train ends with 99"] * 3]

    airflow.jobs.end_with(0)
    airflow.clear("wrong")
    airflow.wait("wrong", "success")
    assert airflow.jobs.ends("nightly-train-wrong")[3:] == [(4, "SUCCEEDED", 0)]
    assert airflow.jobs.effects()[7:] == ["train begins", "train ends with 0"]


def test_a_cleared_task_stops_its_job_before_it_runs_again(airflow: Airflow) -> None:
    airflow.trigger("cleared")
    until("the job does not run", lambda: "train begins" in airflow.jobs.effects())
    airflow.clear("cleared")
    until("no second job", lambda: airflow.jobs.effects().count("train begins") == 2)
    assert airflow.jobs.ends("nightly-train-cleared") == [(1, "STOPPED", 143), (2, "RUNNING", None)]
    airflow.jobs.end_with(0)
    airflow.wait("cleared", "success")
    assert airflow.jobs.effects() == ["prepare", "train begins", "train begins", "train ends with 0"]


def test_a_task_that_is_marked_as_failed_stops_its_job(airflow: Airflow) -> None:
    airflow.trigger("marked")
    until("the job does not run", lambda: "train begins" in airflow.jobs.effects())
    airflow.mark_as_failed("marked")
    until("the job runs", lambda: airflow.jobs.ends("nightly-train-marked") == [(1, "STOPPED", 143)])
    airflow.wait("marked", "failed")
    assert airflow.jobs.effects() == ["prepare", "train begins"]
