"""`run` with faults: clients that are killed, connections that are cut, an API that is away. No job runs twice."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from client.targets.target import Target
from tests.client.chains import Marks, Place, most_at_once, of_job, said, warm
from tests.client.conftest import port
from tests.client.proxy import FaultProxy
from tests.client.test_embedded import read_to, started, until
from tests.conftest import Cli

JOBS = 30


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    return Marks(tmp_path / "marks")


@pytest.fixture
def place(head: Target, run: Cli, remote: dict[str, str], tmp_path: Path) -> Place:
    return Place(run, tmp_path / "project", remote, head)


@pytest.fixture
def warm_place(head: Target, run: Cli, tmp_path: Path) -> Iterator[Place]:
    link = warm(head)
    yield Place(run, tmp_path / "project", {}, head)
    link.unlink()


def chain(place: Place, marks: Marks, name: str, jobs: int) -> str:
    """A chain in which each job comes after one of those before it."""
    order = random.Random(jobs)
    found = {}
    for number in range(jobs):
        found[f"j{number}"] = marks.job(f"j{number}", f"echo log of {number}")
        if number > 2:
            found[f"j{number}"]["after"] = f"j{order.randrange(number)}"
    return place.write(name, found)


def assert_each_once(place: Place, marks: Marks, name: str, jobs: int) -> None:
    assert Counter(marks.all) == Counter(f"{what} j{number}" for number in range(jobs) for what in ("start", "end"))
    records = place.records(name)
    assert Counter(job.metadata["step"] for job in records) == Counter(f"j{number}" for number in range(jobs))
    assert {job.status for job in records} == {"SUCCEEDED"}


def _there_are(marks: Marks, count: int) -> bool:
    return len(marks.all) >= count


@pytest.mark.parametrize("seed", [6, *(pytest.param(20 + seed, marks=pytest.mark.soak) for seed in range(3))])
def test_a_client_that_is_killed_again_and_again(place: Place, marks: Marks, seed: int) -> None:
    """The kills come at random moments: after so many marks of the jobs, and a random part of a second."""
    name, points = f"killed-{seed}", random.Random(seed)
    file = chain(place, marks, name, JOBS)
    kills = 6 if seed < 20 else 20
    at = sorted(points.sample(range(2 * JOBS - 4), kills))
    for marks_before in at:
        with started("run", file, "--max-parallel", "6", cwd=place.folder, env=place.env) as client:
            until(partial(_there_are, marks, marks_before), 200)
            try:
                client.wait(points.random() / 2)
            except subprocess.TimeoutExpired:
                client.kill()
            assert client.wait() == -signal.SIGKILL, "the chain had ended before the kill"
            client.communicate()
    last = place.run("run", file, "--max-parallel", "6")
    assert last.returncode == 0, last.stderr
    assert_each_once(place, marks, name, JOBS)
    assert most_at_once(place.records(name)) <= 6 + 1, "more than the limit, beside a job whose client was killed"
    with FaultProxy(port(place.env["RAY_WORKLOAD_ADDRESS"])) as proxy:
        again = place.run("run", file, "--address", proxy.url)
        assert said(again)[-1] == f"{name}: {JOBS} jobs, {JOBS} skipped"
        assert len(proxy.requests) < 10, "each job was asked about"


def test_connections_that_are_cut_all_the_time_and_lost_replies(place: Place, marks: Marks, head: Target) -> None:
    file = chain(place, marks, "cut", 6)
    with FaultProxy(port(head.http.server.url)) as proxy:
        proxy.faults.cut_after_seconds, proxy.faults.lose_replies = 0.3, 2
        done = place.run("run", file, "--address", proxy.url)
        assert done.returncode == 0, done.stderr
        assert proxy.fired["cut_after_seconds"] > 2 and proxy.fired["lose_replies"] == 2
    assert_each_once(place, marks, "cut", 6)
    for number in range(6):
        assert of_job(done.stdout, f"j{number}") == b"log of %d\n" % number


def test_an_api_that_is_away_for_five_seconds(place: Place, marks: Marks, head: Target) -> None:
    gate = f"echo up; {marks.wait_for('gate')}"
    file = place.write(
        "away", {"first": marks.job("first", gate), "second": {**marks.job("second", "echo two"), "after": "first"}}
    )
    with FaultProxy(port(head.http.server.url)) as proxy:
        with started("run", file, "--address", proxy.url, cwd=place.folder, env=place.env) as client:
            output = read_to(client.stdout, b"| up\n")
            proxy.refuse(5)
            marks.open("gate")  # it ends while nobody can be asked
            until(lambda: "end first" in marks.all, 30)
            rest, errors = client.communicate(timeout=90)
        assert client.returncode == 0, errors
        assert proxy.fired["refused"]
    assert marks.all == ["start first", "end first", "start second", "end second"]
    assert of_job(output + rest, "first") == b"up\n" and of_job(output + rest, "second") == b"two\n"


def test_a_submit_that_does_not_arrive_is_repeated(place: Place, marks: Marks, head: Target) -> None:
    gate = f"echo up; {marks.wait_for('gate')}"
    file = place.write(
        "unsent", {"first": marks.job("first", gate), "second": {**marks.job("second"), "after": "first"}}
    )
    with FaultProxy(port(head.http.server.url)) as proxy:
        with started("run", file, "--address", proxy.url, cwd=place.folder, env=place.env) as client:
            read_to(client.stdout, b"| up\n")
            proxy.faults.lose_replies = 3
            marks.open("gate")
            _, errors = client.communicate(timeout=90)
        assert client.returncode == 0, errors
        assert proxy.faults.lose_replies < 3 and proxy.fired["lose_replies"]
    assert marks.all == ["start first", "end first", "start second", "end second"]


def test_a_detached_chain_goes_on_without_its_client(warm_place: Place, marks: Marks) -> None:
    place = warm_place
    (place.folder / "job.py").write_text("print('of a script')\n")
    file = place.write(
        "detached",
        {
            "first": marks.job("first", f"echo up; {marks.wait_for('gate')}"),
            "script": {"script": "job.py", "after": "first"},
            "last": {**marks.job("last", "exit 5"), "after": "script"},
        },
    )
    done = place.run("run", file, "--detach")
    assert (done.returncode, done.stdout) == (0, b"detached\n"), done.stderr
    until(lambda: marks.all == ["start first"], 60)
    again = place.run("run", file, "--detach")
    assert again.returncode == 0, again.stderr
    command = [sys.executable, "-m", "client", "logs", "-f", "detached"]
    with subprocess.Popen(
        command, cwd=place.folder, env={**os.environ, **place.env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as logs:
        marks.open("gate")
        output, errors = logs.communicate(timeout=90)
    assert logs.returncode == 5, errors
    assert of_job(output, "script") == b"of a script\n"
    assert marks.all == ["start first", "end first", "start last"]
    table = place.json("status", "detached")
    assert {job["job"]: job["exit_code"] for job in table["jobs"]} == {"first": 0, "script": 0, "last": 5}
    runners = [job for job in place.records("detached") if "step" not in job.metadata]
    assert len(runners) == 1, "a second detach has started a second runner"
    until(lambda: place.jobs.get(runners[0].submission_id).finished, 30)
    assert said(place.run("run", file, "--dry-run"))[-1:] and place.decisions(file) == {
        "first": "skip",
        "script": "skip",
        "last": "run",
    }


def test_a_detached_chain_is_stopped_with_its_runner(warm_place: Place, marks: Marks) -> None:
    place = warm_place
    file = place.write(
        "halt",
        {"first": marks.job("first", marks.wait_for("never")), "last": {**marks.job("last"), "after": "first"}},
    )
    assert place.run("run", file, "--detach").returncode == 0
    until(lambda: marks.all == ["start first"], 60)
    stopped = place.run("stop", "halt")
    assert (stopped.returncode, said(stopped)[-1]) == (0, "no job of halt runs any more")
    assert all(job.finished for job in place.records("halt")) and marks.all == ["start first"]
    time.sleep(1)  # longer than a runner waits between two jobs
    assert len(place.records("halt")) == 2, "the runner, and the job that it had started"


def test_an_interrupt_while_a_job_is_sent_is_no_failure_of_the_job(place: Place, marks: Marks, head: Target) -> None:
    """The proxy answers nothing, so the interrupt comes while the client submits again and again."""
    file = place.write("sending", {"one": marks.job("one"), "two": marks.job("two")})
    (place.folder / "file").write_text("")
    with FaultProxy(port(head.http.server.url)) as proxy:
        proxy.faults.lose_replies = 1000
        with started("run", file, "--address", proxy.url, cwd=place.folder, env=place.env) as client:
            until(lambda: proxy.fired["lose_replies"] > 1, 60)
            client.send_signal(signal.SIGINT)
            _, errors = client.communicate(timeout=60)
    assert client.returncode == 130, errors
    assert b"detached from sending" in errors and b"failed" not in errors
    place.run("stop", "sending")
