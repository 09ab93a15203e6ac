"""Jobs that wait for resources: a job that can never run is refused, a pending job can be stopped."""

import json
import time
from pathlib import Path

import pytest

from client.errors import UsageError
from client.job.resources import check_resources
from client.ray_api.jobs import RayJobs
from client.targets.target import Target
from tests.client.test_embedded import until
from tests.conftest import Cli


@pytest.fixture(autouse=True)
def _something_to_upload(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("")


@pytest.mark.parametrize("wanted", [{"CPU": 1000.0}, {"GPU": 1000.0}, {"memory": 1e18}, {"unobtainium": 1.0}])
def test_what_a_ray_on_this_machine_cannot_give_is_refused(
    wanted: dict[str, float], head: Target, jobs: RayJobs
) -> None:
    with pytest.raises(UsageError, match="no node of the cluster has the .* that the driver asks for") as raised:
        check_resources(wanted, head, jobs, print, 60)
    assert f" {next(iter(wanted))} that" in str(raised.value)


def test_what_a_ray_on_this_machine_has_is_accepted(head: Target, jobs: RayJobs) -> None:
    (node,) = jobs.nodes()
    notes: list[str] = []
    check_resources({"CPU": node["CPU"], "memory": node["memory"]}, head, jobs, notes.append, 60)
    assert notes == []


def test_an_impossible_job_is_refused_before_it_is_sent(run: Cli) -> None:
    done = run("submit", "--num-cpus", "1000", "--", "true")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"no node of the cluster has the 1000 CPU that the driver asks for (a live node has " in done.stderr
    assert b"submitted" not in done.stderr


def test_an_impossible_job_of_a_url_waits_and_can_be_stopped(run: Cli, remote: dict[str, str]) -> None:
    """An autoscaler, which the client cannot see, may add a node."""
    submitted = run("submit", "--detach", "--num-cpus", "1000", "--id", "big", "--", "true", env=remote)
    assert (submitted.returncode, submitted.stdout) == (0, b"big\n")
    assert b"the 1000 CPU that the driver asks for (a live node has " in submitted.stderr
    assert b"), so the job waits until one has\n" in submitted.stderr
    stop = run("stop", "-o", "json", "big", env=remote)
    assert stop.returncode == 0, stop.stderr
    assert json.loads(stop.stdout)["status"] == "STOPPED"


def test_a_pending_job_is_stopped_and_never_runs(
    jobs: RayJobs, run: Cli, remote: dict[str, str], tmp_path: Path
) -> None:
    cpus, go, ran = f"{jobs.resources()['CPU']:g}", tmp_path / "go", tmp_path / "ran"
    holder = ["--", "sh", "-c", f"until [ -e {go} ]; do sleep 0.1; done"]
    assert run("submit", "--detach", "--id", "holder", "--num-cpus", cpus, *holder, env=remote).returncode == 0
    until(lambda: jobs.get("holder").status == "RUNNING", 30)
    waits = ["submit", "--detach", "--id", "waits", "--num-cpus", cpus, "--", "touch", str(ran)]
    assert run(*waits, env=remote).returncode == 0
    assert jobs.get("waits").status == "PENDING"

    before, began = {job.submission_id for job in jobs.list()}, time.monotonic()
    stop = run("stop", "-o", "json", "waits", env=remote)
    assert time.monotonic() - began < 30
    assert stop.returncode == 0, stop.stderr
    shown = json.loads(stop.stdout)
    assert (shown["status"], shown["exit_code"], shown["start_time"]) == ("STOPPED", 143, None)
    assert {job.submission_id for job in jobs.list()} == before, "the job that stopped it is listed"

    go.touch()
    # The next job that needs all CPUs gets them; if the stopped job were still pending, it would run first.
    after = run("submit", "--num-cpus", cpus, "--", "true", env=remote)
    assert after.returncode == 0, after.stderr
    assert jobs.get("waits").status == "STOPPED"
    assert not ran.exists()
    followed = run("logs", "--follow", "waits", env=remote)
    assert (followed.returncode, followed.stdout) == (143, b"")
    assert b"the job never started" in followed.stderr
