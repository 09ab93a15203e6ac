"""client/job/follow.py: no byte of a log is lost or repeated, whatever happens to the connections."""

import shlex
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from client.errors import ContactLost, JobNotFound, Unreachable
from client.job.follow import follow, tail_offset, write_to_end
from client.job.stop import stop
from client.ray_api.jobs import RayJobs
from client.ray_api.record import TIMEOUT_SIGNAL, JobRecord, JobResult
from client.targets.target import Target
from jobs import progress
from tests.client.conftest import Rerouted, via_proxy
from tests.client.proxy import FaultProxy

ROOT = Path(__file__).parents[2]
Fault = Callable[[FaultProxy], None]


def _set(**faults: object) -> Fault:
    def apply(proxy: FaultProxy) -> None:
        for name, value in faults.items():
            setattr(proxy.faults, name, value)

    return apply


FAULTS: dict[str, Fault] = {
    "cut_after_seconds": _set(cut_after_seconds=2.0),
    "cut_after_bytes": _set(cut_after_bytes=300_000),
    "silent_after_bytes": _set(silent_after_bytes=2_000_000),
    "false_end_bytes": _set(false_end_bytes=20_000, match="/logs/"),
    "refused": lambda proxy: proxy.refuse(4),
}
JOBS = {
    "numbered": ["--lines", "100000", "--rate", "0"],
    "same": ["--lines", "100000", "--rate", "0", "--size", "22", "--same"],
    # Has a line of 5 MB and all byte values in the middle.
    "bytes": ["--lines", "100", "--rate", "0", "--long", "5000000", "--binary"],
    "bars": ["--lines", "2000", "--rate", "500", "--bars"],
}


@dataclass
class Followed:
    log: bytearray = field(default_factory=bytearray)
    result: JobResult | None = None
    fired: Counter[str] = field(default_factory=Counter)


def start(jobs: RayJobs, *entrypoints: str) -> list[JobRecord]:
    """Submit jobs, and wait until their drivers run."""
    names = [f"t{time.monotonic_ns()}" for _ in entrypoints]
    for name, entrypoint in zip(names, entrypoints, strict=True):
        jobs.submit_plain({"entrypoint": entrypoint, "submission_id": name})
    while any(jobs.get(name).status == "PENDING" for name in names):
        time.sleep(0.05)
    return [jobs.get(name) for name in names]


@pytest.fixture(scope="module")
def followed(
    head: Target, jobs: RayJobs, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str, str], Followed]:
    """Follow every job through every fault, all at the same time, both through the agent and the dashboard."""
    runs: dict[tuple[str, str, str], Followed] = {}
    threads = []
    go = tmp_path_factory.mktemp("followed") / "go"  # lets the jobs start only when they are followed
    # The log is written in five parts over five seconds, so that faults happen in the middle.
    throttle = (
        "import sys,time\nfor part in iter(lambda: sys.stdin.buffer.read(500000), b''):\n"
        " sys.stdout.buffer.write(part); sys.stdout.buffer.flush(); time.sleep(1)"
    )
    # Without the sleep, Ray could write its first line after the job's.
    wait = f"while [ ! -e {go} ]; do sleep 0.1; done; sleep 1"
    script = [sys.executable, str(ROOT / "jobs" / "progress.py")]
    scripts = [shlex.join([*script, *arguments]) for arguments in JOBS.values()]
    lines = [f"{wait}; {line} | {sys.executable} -c {shlex.quote(throttle)}" for line in scripts]
    with ExitStack() as stack:
        for name, job in zip(JOBS, start(jobs, *lines), strict=True):
            for way in ("agent", "dashboard"):
                for fault, apply in FAULTS.items():
                    if way == "dashboard" and fault in ("cut_after_bytes", "silent_after_bytes", "false_end_bytes"):
                        continue  # the dashboard has no Range requests, so a longer log never gets through
                    assert job.agent
                    through, *proxies = stack.enter_context(via_proxy(head, job.agent if way == "agent" else None))
                    run = runs[name, way, fault] = Followed(fired=Counter())
                    threads.append(threading.Thread(target=_follow, args=(through, proxies, apply, job, run)))
        for thread in threads:
            thread.start()
        go.touch()
        for thread in threads:
            thread.join()
    return runs


def _follow(target: Target, proxies: list[FaultProxy], apply: Fault, job: JobRecord, run: Followed) -> None:
    for proxy in proxies:
        apply(proxy)
    run.result = write_to_end(follow(target, RayJobs(target), job.submission_id), run.log.extend)
    for proxy in proxies:
        run.fired += proxy.fired


def _cases() -> Iterator[tuple[str, str, str]]:
    for name in JOBS:
        for fault in FAULTS:
            yield name, "agent", fault
        for fault in ("cut_after_seconds", "refused"):
            yield name, "dashboard", fault


@pytest.mark.parametrize(("name", "way", "fault"), list(_cases()))
def test_every_byte_comes_once_and_in_order(
    followed: dict[tuple[str, str, str], Followed], name: str, way: str, fault: str
) -> None:
    run = followed[name, way, fault]
    expected = b"".join(progress.output(progress.parse(JOBS[name])))
    before = bytes(run.log[: -len(expected)])
    assert before.count(b"Running entrypoint for job ") == 1 and len(before) < 2000  # Ray's own first lines
    assert bytes(run.log[-len(expected) :]) == expected
    assert run.result is not None and run.result.exit_code == 0
    too_small = name == "bars" and fault.endswith("_bytes")
    assert run.fired[fault] or too_small, "the fault did not happen"


@pytest.fixture(scope="module")
def finished(head: Target, jobs: RayJobs) -> JobRecord:
    (job,) = start(jobs, "echo first && seq 1 5000 && exit 3")
    return write_to_end(follow(head, jobs, job.submission_id), lambda _: None).job


def test_a_log_that_cannot_be_had_whole_is_no_success(
    head: Target, finished: JobRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.job.follow._LOST_SECONDS_HERE", 2.0)
    notes: list[str] = []
    with (
        via_proxy(head, None) as (through, dashboard, _),
        pytest.raises(ContactLost, match="is incomplete after 9000 bytes"),
    ):
        dashboard.faults.false_end_bytes, dashboard.faults.match = 9000, "/api/v0/logs"
        list(follow(through, RayJobs(through), finished.submission_id, notes.append))
    assert dashboard.fired["false_end_bytes"] > 1
    assert len(notes) == 1


def test_a_head_that_forgot_the_job_is_told(head: Target, jobs: RayJobs) -> None:
    (job,) = start(jobs, "sleep 60")
    with via_proxy(head, job.agent) as (through, dashboard, _):

        def forget(line: bytes) -> None:
            dashboard.faults.status, dashboard.faults.match = 404, "/api/jobs/"

        with pytest.raises(ContactLost, match="was lost when the Ray head restarted: submit it again"):
            write_to_end(follow(through, RayJobs(through), job.submission_id), forget)
        assert dashboard.fired["status"]
    assert stop(head, jobs, job.submission_id, 30).status == "STOPPED"


def test_a_dashboard_that_fails_for_a_while_is_asked_again(head: Target, jobs: RayJobs) -> None:
    (job,) = start(jobs, "sleep 2; echo done")
    log, notes = bytearray(), list[str]()

    def note(line: str) -> None:
        notes.append(line)
        dashboard.faults.status = None

    with via_proxy(head, job.agent) as (through, dashboard, _):
        dashboard.faults.status, dashboard.faults.match = 500, "/api/jobs/"
        ended = write_to_end(follow(through, RayJobs(through), job.submission_id, note), log.extend)
        assert dashboard.fired["status"]
    assert (ended.exit_code, log.endswith(b"\ndone\n")) == (0, True)
    assert len(notes) == 1 and notes[0].startswith("connection lost, retrying (the cluster answered 500")


def test_an_agent_that_is_not_found_at_once(head: Target, jobs: RayJobs) -> None:
    """The API server may fail at any request, including the one for the agent's pod."""
    (job,) = start(jobs, "sleep 1; echo done")
    log, notes, asked = bytearray(), list[str](), list[str]()

    def agent(address: str) -> str | None:
        asked.append(address)
        if 1 < len(asked) <= 6:
            raise Unreachable("no answer")
        return head.agent(address)

    through = Rerouted(head, agent=agent)
    ended = write_to_end(follow(through, RayJobs(through), job.submission_id, notes.append), log.extend)
    assert (ended.exit_code, log.endswith(b"\ndone\n"), len(asked) > 6) == (0, True, True)
    assert notes == ["connection lost, retrying (no answer)"]


def test_a_job_that_is_not_there(head: Target, jobs: RayJobs) -> None:
    with pytest.raises(JobNotFound, match="there is no job nobody at embedded: `list` shows all jobs"):
        next(follow(head, jobs, "nobody"))


@pytest.mark.parametrize("way", ["agent", "dashboard"])
@pytest.mark.parametrize("lines", [0, 1, 10, 4999, 100_000])
def test_the_last_lines(head: Target, finished: JobRecord, lines: int, way: str) -> None:
    assert finished.agent
    with via_proxy(head, finished.agent if way == "agent" else None) as (through, *_):
        jobs = RayJobs(through)
        whole = b"".join(jobs.logs.read(finished, 0)).splitlines(keepends=True)
        begin = tail_offset(jobs, finished, lines)
        last = b"".join(jobs.logs.read(finished, begin)).splitlines(keepends=True)
    assert last == (whole[-lines:] if lines else [])


@pytest.mark.parametrize(
    ("status", "code", "timeout", "expected"),
    [
        ("SUCCEEDED", 0, None, 0),
        ("FAILED", 7, None, 7),
        ("FAILED", -9, None, 137),
        ("FAILED", None, None, 1),
        ("STOPPED", None, None, 143),
        ("FAILED", -TIMEOUT_SIGNAL, "5", 124),
        ("FAILED", -TIMEOUT_SIGNAL, None, 128 + TIMEOUT_SIGNAL),
        ("FAILED", 124, "5", 124),
        ("FAILED", 137, "5", 137),
        ("FAILED", 137, "50", 137),
    ],
)
def test_exit_codes(status: str, code: int | None, timeout: str | None, expected: int) -> None:
    metadata = {"timeout": timeout} if timeout else {}
    job = JobRecord("x", status, driver_exit_code=code, metadata=metadata, submit_time=1000, end_time=7000)
    assert JobResult(job).exit_code == expected
    assert JobResult(job).timed_out == (code == -TIMEOUT_SIGNAL and timeout is not None)
