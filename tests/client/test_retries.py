"""Retries: what failed or was lost is submitted again, its attempts are linked, and two never run at once."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.batch import run as batch_run
from client.batch.batch import Options
from client.batch.start import ready
from client.batch.sweep import make_sweep
from client.job.request import Request
from client.job.stop import stop
from client.ray_api.jobs import RayJobs
from client.targets import resolve
from client.targets.target import Target
from tests.client.chains import Marks, Place, one, said
from tests.client.conftest import port
from tests.client.proxy import FaultProxy
from tests.client.server import Handler, forward, serving
from tests.client.test_embedded import read_to, started, until
from tests.client.test_lost_node import Gone, without_node
from tests.conftest import Cli


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    return Marks(tmp_path / "marks")


@pytest.fixture
def place(head: Target, run: Cli, remote: dict[str, str], tmp_path: Path) -> Place:
    found = Place(run, tmp_path / "project", remote, head)
    (found.folder / "file").write_text("")
    return found


def words(marks: Marks, then: str) -> list[str]:
    """A command that marks its start, and then runs a line of shell with the number of starts in $n."""
    return ["sh", "-c", f"echo start >> {marks.file}; n=$(grep -c start {marks.file}); {then}"]


def test_a_failed_job_is_submitted_again_and_its_attempts_are_linked(place: Place, marks: Marks) -> None:
    command = words(marks, "echo attempt $n; [ $n = 3 ] || exit 5")
    done = place.run("submit", "--id", "again", "--retries", "3", "--retry-on", "exit", "--", *command)
    assert done.returncode == 0, done.stderr
    assert len(marks.all) == 3
    assert [line for line in done.stdout.splitlines() if line.startswith(b"attempt ")] == [
        b"attempt 1", b"attempt 2", b"attempt 3",
    ]  # fmt: skip
    records = place.records("again")
    assert [(job.status, job.metadata["attempt"]) for job in records] == [
        ("FAILED", "1"),
        ("FAILED", "2"),
        ("SUCCEEDED", "3"),
    ]
    ids = [job.submission_id for job in records]
    for number, submission_id in enumerate(ids[:2], 1):
        again = f"submitting it again (retry {number} of 3)"
        assert one(said(done), again).startswith(f"job: {submission_id} failed; ")
    for earlier, later in zip(records, records[1:], strict=False):
        assert (later.submit_time or 0) > (earlier.end_time or 0)
    table = place.json("status", "again")
    assert (table["kind"], table["exit_code"], [job["attempts"] for job in table["jobs"]]) == ("job", 0, [ids])
    assert [job["submission_id"] for job in table["jobs"]] == ids[-1:]


def test_retries_end_and_the_exit_code_is_the_last_ones(place: Place, marks: Marks) -> None:
    command = words(marks, "exit $((n + 2))")
    done = place.run("submit", "--id", "ends", "--retries", "1", "--", *command)
    assert done.returncode == 4, done.stderr
    assert [job.driver_exit_code for job in place.records("ends")] == [3, 4]


def test_a_kind_of_failure_that_was_not_named_is_not_retried(place: Place, marks: Marks) -> None:
    command = words(marks, "exit 5")
    done = place.run("submit", "--id", "only-lost", "--retries", "3", "--retry-on", "lost", "--", *command)
    assert (done.returncode, len(marks.all)) == (5, 1), done.stderr


def test_a_stopped_job_is_not_retried(place: Place, marks: Marks) -> None:
    command = words(marks, "echo up; exec sleep 60")
    with started(
        "submit", "--id", "halted", "--retries", "3", "--", *command, cwd=place.folder, env=place.env
    ) as client:
        read_to(client.stdout, b"up\n")
        assert place.run("stop", "halted").returncode == 0
        _, errors = client.communicate(timeout=60)
        assert client.returncode == 143, errors
    assert len(marks.all) == len(place.records("halted")) == 1


def test_a_lost_node_is_a_loss_and_one_that_only_does_not_answer_is_none(
    place: Place, marks: Marks, head: Target, jobs: RayJobs
) -> None:
    gone = Gone("DEAD")
    command = words(marks, "echo up $n; [ $n = 2 ] || exec sleep 120")
    with without_node(head, gone) as url, FaultProxy(port(url)) as proxy:
        options = ["--address", proxy.url, "--id", "node-lost", "--retries", "2", "--retry-on", "lost"]
        with started("submit", *options, "--", *command, cwd=place.folder, env=place.env) as client:
            read_to(client.stdout, b"up 1\n")
            proxy.refuse(3)
            before = len(proxy.requests)
            until(lambda: len(proxy.requests) > before + 4, 30)
            assert [job.metadata["attempt"] for job in place.records("node-lost")] == ["1"], "the first may still run"
            gone.is_gone = True
            heard = read_to(client.stderr, b"was lost; submitting it again (retry 1 of 2)")
            gone.is_gone = False
            output, rest = client.communicate(timeout=90)
        assert client.returncode == 0, heard + rest
        assert proxy.fired["refused"]
    assert gone.asked["/api/v0/nodes"] and b"up 2\n" in output
    first, second = place.records("node-lost")
    assert [first.metadata["attempt"], second.metadata["attempt"]] == ["1", "2"]
    assert stop(head, jobs, first.submission_id, 40).status == "STOPPED"


class Forgetful:
    """A head that has restarted, and does not know the jobs of before."""

    def __init__(self) -> None:
        self.forgotten: set[str] = set()
        self.asked: Counter[str] = Counter()


@contextmanager
def forgetting(head: Target, state: Forgetful) -> Iterator[str]:
    def answer(asked: Handler, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        path = asked.path.partition("?")[0]
        name = path.removeprefix("/api/jobs/")
        if path.startswith("/api/jobs/") and name in state.forgotten:
            state.asked[name] += 1
            return 404, {"Content-Type": "text/plain"}, b"Job does not exist"
        status, headers, content = forward(head.http.server.url, asked, body)
        if path == "/api/jobs/" and asked.command == "GET":
            known = [job for job in json.loads(content) if job["submission_id"] not in state.forgotten]
            content = json.dumps(known).encode()
        return status, headers, content

    with serving(answer) as url:
        yield url


def test_a_head_that_has_restarted_and_forgotten_its_jobs_is_a_loss(
    place: Place, marks: Marks, head: Target, jobs: RayJobs
) -> None:
    state = Forgetful()
    command = words(marks, "echo up $n; [ $n = 2 ] || exec sleep 120")
    with forgetting(head, state) as url:
        options = ["--address", url, "--id", "forgotten", "--retries", "1"]
        with started("submit", *options, "--", *command, cwd=place.folder, env=place.env) as client:
            read_to(client.stdout, b"up 1\n")
            (first,) = place.records("forgotten")
            state.forgotten.add(first.submission_id)
            output, errors = client.communicate(timeout=90)
        assert client.returncode == 0, errors
        assert state.asked[first.submission_id] and b"up 2\n" in output
        assert f"{first.submission_id} was lost; submitting it again (retry 1 of 1)".encode() in errors
        assert len(place.records("forgotten")) == 2
    assert stop(head, jobs, first.submission_id, 40).status == "STOPPED"


def test_a_job_whose_driver_may_have_been_on_a_lost_worker_waits_for_its_end(
    head: Target, jobs: RayJobs, place: Place, marks: Marks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose head is gone ends by itself, after up to a minute; until then the job may still run."""
    assert batch_run._WORKER_SECONDS >= 60
    monkeypatch.setattr(batch_run, "_WORKER_SECONDS", 4.0)
    for name, value in place.env.items():
        monkeypatch.setenv(name, value)
    state, times = Forgetful(), list[tuple[float, str]]()
    command = words(marks, "[ $n = 2 ] || exec sleep 120")
    request = Request(
        command=command,
        working_dir=place.folder,
        arguments={"submission_id": "on-worker", "entrypoint_num_cpus": 0.1},
    )
    with forgetting(head, state) as url:
        batch = make_sweep(request, {}, retries=1)
        with ready(batch, resolve(url), Options()) as found:
            runner = found.runner()
            for _ in runner.run():
                (member,) = runner.members
                times.append((time.monotonic(), member.state))
                if marks.all and not state.forgotten:
                    state.forgotten.update(member.attempts)
        assert runner.exit_code == 0 and len(member.attempts) == 2
    lost = max(at for at, status in times if status == "WAITING")
    again = min(at for at, status in times if status == "PENDING" and at > lost)
    assert again - lost > 3.9
    assert stop(head, jobs, member.attempts[0], 40).status == "STOPPED"
