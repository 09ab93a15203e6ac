"""Ctrl-C and SIGTERM: what happens to the job and to the client."""

import fcntl
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.errors import ContactLost
from client.job import follow
from client.job.stop import stop
from client.ray_api.jobs import RayJobs
from client.targets.target import Target
from tests.client.conftest import port, via_proxy
from tests.client.proxy import FaultProxy
from tests.client.test_embedded import read_to, started, until

Client = "subprocess.Popen[bytes]"
UP = ["--", "sh", "-c", "echo up; exec sleep 120"]


@pytest.fixture
def job_id(head: Target, jobs: RayJobs, request: pytest.FixtureRequest) -> Iterator[str]:
    """Yield an ID for a job, which is stopped after the test."""
    name = f"i{time.monotonic_ns()}"
    yield name
    if any(job.submission_id == name for job in jobs.list()):
        stop(head, jobs, name, 40)


@pytest.fixture(autouse=True)
def _something_to_upload(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("")


def test_interrupts_of_logs_leave_the_job(
    head: Target, jobs: RayJobs, job_id: str, remote: dict[str, str], tmp_path: Path
) -> None:
    with started("submit", "--id", job_id, *UP, cwd=tmp_path, env=remote) as client:
        read_to(client.stdout, b"up\n")
    with FaultProxy(port(head.http.server.url)) as proxy:
        follow = ["logs", "--address", proxy.url, "--follow", job_id]
        with started(*follow, cwd=tmp_path, env=remote) as client:
            read_to(client.stdout, b"up\n")
            client.send_signal(signal.SIGINT)
            _, errors = client.communicate(timeout=30)
            assert client.returncode == 130, errors
        assert f"left job {job_id}: the job goes on; follow it with ".encode() in errors
        with started(*follow, cwd=tmp_path, env=remote) as client:
            read_to(client.stdout, b"up\n")
            client.send_signal(signal.SIGINT)
            time.sleep(0.2)  # like a user who presses Ctrl-C twice
            client.send_signal(signal.SIGINT)
            _, errors = client.communicate(timeout=30)
            assert client.returncode in (130, -signal.SIGINT), errors
        assert b"Traceback" not in errors
        assert {method for method, _ in proxy.requests} == {"GET"}, "logs sent a request that can change a job"
    assert jobs.get(job_id).status == "RUNNING"


def waiting_bytes(client: "subprocess.Popen[bytes]") -> int:
    assert client.stdout
    return int.from_bytes(fcntl.ioctl(client.stdout, termios.FIONREAD, bytes(4)), "little")


@pytest.mark.parametrize(
    ("on_interrupt", "presses", "code", "words", "status"),
    [
        ("detach", 1, 130, b"which goes on", "RUNNING"),
        ("stop", 2, 75, b"may still be running", None),
    ],
    ids=["detach", "stop"],
)
def test_an_interrupt_gets_through_while_nobody_reads_the_output(
    on_interrupt: str,
    presses: int,
    code: int,
    words: bytes,
    status: str | None,
    jobs: RayJobs,
    job_id: str,
    remote: dict[str, str],
    tmp_path: Path,
) -> None:
    chatty = ["--", "sh", "-c", "seq 1 300000; exec sleep 120"]
    options = ["--id", job_id, "--on-interrupt", on_interrupt]
    with started("submit", *options, *chatty, cwd=tmp_path, env=remote) as client:
        assert client.stdout
        full = fcntl.fcntl(client.stdout, 1032) - 8192  # F_GETPIPE_SZ; a page may stay half empty
        until(lambda: waiting_bytes(client) > full, 60)
        client.send_signal(signal.SIGINT)
        if presses == 2:
            read_to(client.stderr, b"stopping the job")
            client.send_signal(signal.SIGINT)
        assert client.wait(20) == code
        assert words in (client.stderr.read() if client.stderr else b"")
        assert waiting_bytes(client) > full, "the output was read"
    if status:
        assert jobs.get(job_id).status == status


def test_sigterm_while_packing_leaves_no_file(tmp_path: Path) -> None:
    temporary, work = tmp_path / "tmp", tmp_path / "work"
    temporary.mkdir()
    work.mkdir()
    with open(work / "big", "wb") as file:
        file.truncate(8 << 30)  # sparse: uses no disk space, but takes many seconds to pack
    environment = {"RAY_WORKLOAD_ADDRESS": "http://127.0.0.1:9", "TMPDIR": str(temporary)}
    with started("submit", "--", "true", cwd=work, env=environment) as client:
        until(lambda: any(path.is_file() for path in temporary.rglob("*")), 30)
        assert client.poll() is None
        client.send_signal(signal.SIGTERM)
        _, errors = client.communicate(timeout=30)
        assert client.returncode == 130, errors
    assert list(temporary.rglob("*")) == []
    assert b"interrupted before the job was sent" in errors and b"Traceback" not in errors


@pytest.mark.parametrize(
    ("options", "words", "status"),
    [
        ((), b"which goes on", "RUNNING"),
        (("--on-interrupt", "detach"), b"which goes on", "RUNNING"),
        (("--on-interrupt", "stop"), b"was stopped", "STOPPED"),
    ],
    ids=["default", "detach", "stop"],
)
def test_sigterm_while_following_does_what_on_interrupt_says(
    options: tuple[str, ...],
    words: bytes,
    status: str,
    jobs: RayJobs,
    job_id: str,
    remote: dict[str, str],
    tmp_path: Path,
) -> None:
    with started("submit", "--id", job_id, *options, *UP, cwd=tmp_path, env=remote) as client:
        read_to(client.stdout, b"up\n")
        client.send_signal(signal.SIGTERM)
        _, errors = client.communicate(timeout=30)
        assert client.returncode == 130, errors
    assert f"job {job_id}".encode() in errors.splitlines()[-1] and words in errors.splitlines()[-1]
    assert jobs.get(job_id).status == status


@pytest.mark.parametrize("on_interrupt", ["detach", "stop"])
def test_leaving_while_the_network_is_down_says_that_the_job_may_still_run(
    on_interrupt: str, head: Target, jobs: RayJobs, job_id: str, remote: dict[str, str], tmp_path: Path
) -> None:
    with FaultProxy(port(head.http.server.url)) as proxy:
        options = ["--id", job_id, "--on-interrupt", on_interrupt, "--address", proxy.url]
        with started("submit", *options, *UP, cwd=tmp_path, env=remote) as client:
            read_to(client.stdout, b"up\n")
            proxy.refuse(3600)
            client.send_signal(signal.SIGINT)
            if on_interrupt == "detach":
                read_to(client.stderr, b"press Ctrl-C again")
                client.send_signal(signal.SIGINT)
            read_to(client.stderr, b"stopping the job")
            time.sleep(0.5)  # for the client to attempt the stop
            client.send_signal(signal.SIGINT)
            _, errors = client.communicate(timeout=30)
            assert client.returncode == 75, errors
        assert proxy.fired["refused"]
    assert f"job {job_id}".encode() in errors and b"may still be running" in errors and b"Traceback" not in errors
    assert jobs.get(job_id).status == "RUNNING"


def test_a_stop_that_does_not_arrive_says_that_the_job_may_still_run(
    head: Target, jobs: RayJobs, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "_LOST_SECONDS_HERE", 1.0)
    jobs.submit_plain({"entrypoint": "echo up; exec sleep 120", "submission_id": job_id})
    until(lambda: jobs.get(job_id).status == "RUNNING", 30)
    with via_proxy(head, jobs.get(job_id).agent) as (through, dashboard, _):

        def cut(line: bytes) -> None:
            dashboard.faults.status, dashboard.faults.match = 503, "/api/jobs/"

        with pytest.raises(ContactLost, match=f"connection lost for . s, job {job_id} may still be running"):
            follow.write_to_end(follow.follow(through, RayJobs(through), job_id, stop=True), cut)
        assert dashboard.fired["status"]
