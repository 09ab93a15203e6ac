"""Chains and sweeps on a cluster of the chart, also when the client, the network or the head is lost."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.e2e._cluster import Cluster
from tests.e2e.conftest import CHART, helm, kubectl, until
from tests.e2e.test_client import VALUES, pod, proxied
from tests.e2e.test_faults import replace_head, user
from tests.e2e.test_recovery import store as store

# Appends its name to a file that all jobs of the head share, and waits until it may end.
MARKS = """
import os, sys, time
def mark(text):
    with open("/tmp/ray/marks", "a") as file:
        file.write(text + "\\n")
name = sys.argv[1]
mark(f"begins {name}")
print("begins", name, flush=True)
while len(sys.argv) > 2 and not os.path.exists(f"/tmp/ray/{sys.argv[2]}"):
    time.sleep(0.05)
mark(f"ends {name}")
print("ends", name)
"""
CHAIN = """
jobs:
  first: {script: marks.py, args: [first]}
  left: {script: marks.py, args: [left, "${GATE:-}"], after: first}
  right: {command: [python, marks.py, right], after: first}
  last: {script: marks.py, args: [last], after: [left, right]}
"""


@pytest.fixture(scope="module")
def cluster(store: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Install a cluster with headRecovery, and yield its namespace."""
    namespace, name = store
    recovery = {"enabled": True, "storageClassName": name}
    values = tmp_path_factory.mktemp("values") / "values.yaml"
    values.write_text(yaml.safe_dump({**VALUES, "submitter": {}, "headRecovery": recovery}))
    helm("install", "ray", CHART, "-n", namespace, "-f", f"{CHART}/values-local.yaml", "-f", str(values))
    Cluster(namespace).wait()
    yield namespace
    helm("uninstall", "ray", "-n", namespace, "--wait")


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """A chain of four jobs, with a name of its own."""
    (tmp_path / "marks.py").write_text(MARKS)
    file = tmp_path / f"c{time.monotonic_ns()}.yaml"
    file.write_text(CHAIN)
    return file


def on_head(namespace: str, command: str) -> str:
    return kubectl("exec", "-n", namespace, pod(namespace, "head")[0], "--", "sh", "-c", command, check=False).stdout


def marks(namespace: str) -> list[str]:
    return on_head(namespace, "cat /tmp/ray/marks").splitlines()


@pytest.fixture(autouse=True)
def _no_marks(cluster: str) -> None:
    on_head(cluster, "rm -f /tmp/ray/marks /tmp/ray/gate")


def command(*args: str | Path) -> list[str]:
    return [sys.executable, "-m", "client", *map(str, args)]


def run(namespace: str, *args: str | Path, **more: str) -> "subprocess.CompletedProcess[str]":
    env = user(namespace, **more)
    return subprocess.run(command(*args), env=env, capture_output=True, text=True, timeout=180, check=False)


def in_order(found: list[str]) -> None:
    """Assert that each job ran once, after those it waits for."""
    assert sorted(found) == sorted(
        f"{word} {name}" for word in ("begins", "ends") for name in "first left right last".split()
    )
    assert found[:2] == ["begins first", "ends first"] and found[-2:] == ["begins last", "ends last"]


def test_a_chain_runs_in_order_and_is_skipped_the_second_time(cluster: str, chain: Path) -> None:
    done = run(cluster, "run", chain)
    assert done.returncode == 0, done.stderr
    in_order(marks(cluster))
    for name in ("first", "left", "right", "last"):
        assert re.search(rf"^{name} +\| begins {name}$", done.stdout, re.MULTILINE)
    again = run(cluster, "run", "-o", "json", chain)
    assert {job["status"] for job in json.loads(again.stdout)["jobs"]} == {"SKIPPED"}
    assert len(marks(cluster)) == 8
    assert "begins left" in run(cluster, "logs", f"{chain.stem}/left").stdout


def test_a_client_that_is_killed_goes_on(cluster: str, chain: Path) -> None:
    with subprocess.Popen(command("run", chain), env=user(cluster, GATE="gate"), stdout=subprocess.PIPE) as client:
        until("left begins", lambda: "begins left" in marks(cluster))
        client.kill()
    again = subprocess.Popen(
        command("run", chain), env=user(cluster, GATE="gate"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with again:
        assert again.stderr
        until("attached", lambda: "attached to job" in again.stderr.readline())  # type: ignore[union-attr]
        on_head(cluster, "touch /tmp/ray/gate")
        again.communicate(timeout=120)
    assert again.returncode == 0
    in_order(marks(cluster))


@pytest.mark.parametrize(("fault", "when"), [("cut_after_seconds", 0.5), ("refused", 5)])
def test_a_chain_runs_once_through_a_bad_api_server(
    cluster: str, chain: Path, tmp_path: Path, fault: str, when: float
) -> None:
    with proxied(tmp_path, "c") as (proxy, kubeconfig):
        env = user(cluster, GATE="gate", KUBECONFIG=str(kubeconfig))
        with subprocess.Popen(command("run", chain), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
            until("left begins", lambda: "begins left" in marks(cluster))
            if fault == "refused":
                proxy.refuse(when)
            else:
                setattr(proxy.faults, fault, when)
            until("the fault", lambda: proxy.fired[fault])
            on_head(cluster, "touch /tmp/ray/gate")
            out, err = client.communicate(timeout=120)
        assert client.returncode == 0, err
    in_order(marks(cluster))
    assert re.search(rb"^last +\| ends last$", out, re.MULTILINE)


def test_the_cluster_runs_a_detached_chain(cluster: str, chain: Path) -> None:
    done = run(cluster, "run", "--detach", chain, GATE="gate")
    assert (done.returncode, done.stdout) == (0, f"{chain.stem}\n"), done.stderr
    until("left begins", lambda: "begins left" in marks(cluster), namespace=cluster)
    on_head(cluster, "touch /tmp/ray/gate")
    followed = run(cluster, "logs", "-f", chain.stem)
    assert followed.returncode == 0, followed.stderr
    assert re.search(r"^last +\| ends last$", followed.stdout, re.MULTILINE)
    in_order(marks(cluster))
    assert {
        job["status"] for job in json.loads(run(cluster, "run", "-o", "json", chain, GATE="gate").stdout)["jobs"]
    } == {"SKIPPED"}


def test_a_head_that_is_lost_is_retried(cluster: str, chain: Path, tmp_path: Path) -> None:
    """The job that ran on the head is submitted again; what had succeeded is not."""
    chain.write_text(f"defaults: {{retries: 1, retry_on: [lost]}}\n{CHAIN}")
    err = tmp_path / "err"
    with err.open("wb") as stderr:
        client = subprocess.Popen(
            command("run", chain), env=user(cluster, GATE="gate"), stdout=subprocess.DEVNULL, stderr=stderr
        )
    try:
        until("right ends", lambda: {"begins left", "ends right"} <= {*marks(cluster)}, namespace=cluster)
        replace_head(cluster)
        until("it is submitted again", lambda: "submitting it again (retry 1 of 1)" in err.read_text(), 120, cluster)
        until("the second attempt begins", lambda: marks(cluster) == ["begins left"], 120, cluster)
        on_head(cluster, "touch /tmp/ray/gate")
        assert client.wait(120) == 0, err.read_text()
    finally:
        client.kill()
        client.wait()
    assert marks(cluster) == ["begins left", "ends left", "begins last", "ends last"]
    attempts = {
        job["job"]: len(job["attempts"])
        for job in json.loads(run(cluster, "status", "-o", "json", chain.stem).stdout)["jobs"]
    }
    assert attempts == {"first": 1, "left": 2, "right": 1, "last": 1}


def test_a_lost_job_runs_again_without_retries(cluster: str, chain: Path, tmp_path: Path) -> None:
    """Ray goes on to report it as running."""
    env = user(cluster, GATE="gate")
    with subprocess.Popen(command("run", chain), env=env, stdout=subprocess.PIPE) as client:
        until("left begins", lambda: {"begins left", "ends right"} <= {*marks(cluster)})
        client.kill()
    replace_head(cluster)
    files = tmp_path / "out", tmp_path / "err"
    with files[0].open("wb") as out, files[1].open("wb") as err:
        again = subprocess.Popen(command("run", "-o", "json", chain), env=env, stdout=out, stderr=err)
    try:
        until("left begins again", lambda: marks(cluster) == ["begins left"], 120, cluster)
        on_head(cluster, "touch /tmp/ray/gate")
        assert again.wait(120) == 0
    finally:
        again.kill()
        again.wait()
    states = {job["job"]: (job["status"], len(job["attempts"])) for job in json.loads(files[0].read_text())["jobs"]}
    assert states == {
        "first": ("SKIPPED", 1),
        "left": ("SUCCEEDED", 2),
        "right": ("SKIPPED", 1),
        "last": ("SUCCEEDED", 1),
    }


def test_a_sweep_has_one_upload_and_a_table(cluster: str, tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text("import sys; print('got', sys.argv[1:]); sys.exit(int(sys.argv[1] == '2'))")
    given: list[str | Path] = [
        "submit",
        "--id",
        "swept",
        "--num-cpus",
        "0.1",
        "--working-dir",
        tmp_path,
        "--matrix",
        "a=1-3",
        "--matrix",
        "b=x,y",
        "-o",
        "csv",
        "p.py",
        "{a}",
        "{b}",
    ]
    done = run(cluster, *given)
    assert done.returncode == 1, done.stderr
    header, *rows = (line.split(",") for line in done.stdout.replace('"', "").splitlines())
    assert header[:3] == ["job", "a", "b"] and len(rows) == 6
    assert [row[4] for row in rows] == ["SUCCEEDED", "SUCCEEDED", "FAILED", "FAILED", "SUCCEEDED", "SUCCEEDED"]
    again = run(cluster, *given)
    assert again.stderr.count("skipped, because") == 4
    shown = json.loads(run(cluster, "status", "-o", "json", "swept").stdout)
    assert (shown["exit_code"], shown["size"], [len(job["attempts"]) for job in shown["jobs"]].count(2)) == (1, 6, 2)
    assert shown["cpu_hours"] > sum(job["seconds"] for job in shown["jobs"]) * 0.1 / 3600 > 0
