"""A job's --timeout: reported only if it ended the driver, whatever the driver's exit code and waiting time are."""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from client.job import submission
from client.job.request import Request
from client.ray_api.jobs import RayJobs
from client.ray_api.record import TIMEOUT_SIGNAL
from client.targets.target import Runtime
from tests.client.test_embedded import read_to, started, until
from tests.conftest import Cli

NOWHERE = {"RAY_WORKLOAD_ADDRESS": "http://127.0.0.1:9"}
ASKED = """
import signal, sys, time
def asked(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("asked to end", flush=True)
    sys.exit(9)
signal.signal(signal.SIGTERM, asked)
print("up", flush=True)
time.sleep(120)
"""


@pytest.fixture(autouse=True)
def _something_to_upload(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(ASKED)


def exit_code(driver: str, seconds: float, cwd: Path) -> int:
    """Return the exit code of a job's command line, run by a shell as Ray does; negative for a signal."""
    line = submission.command_line(Request(command=["sh", "-c", driver], timeout=seconds, working_dir=cwd), Runtime())
    return subprocess.run(line, shell=True, cwd=cwd, timeout=30, check=False).returncode


@pytest.mark.parametrize(
    ("driver", "code"),
    [("true", 0), ("exit 7", 7), ("exit 124", 124), ("exit 137", 137), ("kill -9 $$", 137), ("kill -15 $$", 143)],
)
def test_the_drivers_own_exit_code_is_kept(driver: str, code: int, tmp_path: Path) -> None:
    assert exit_code(driver, 60, tmp_path) == code


def test_a_driver_that_runs_too_long_is_ended_by_a_signal_of_its_own(tmp_path: Path) -> None:
    assert exit_code("sleep 60", 0.5, tmp_path) == -TIMEOUT_SIGNAL
    assert exit_code("trap 'exit 0' TERM; while :; do sleep 0.1; done", 0.5, tmp_path) == -TIMEOUT_SIGNAL


def test_a_driver_that_ignores_its_timeout_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(submission, "STOP_SECONDS", "1")
    began = time.monotonic()
    assert exit_code("trap '' TERM; while :; do sleep 0.1; done", 0.5, tmp_path) == -TIMEOUT_SIGNAL
    assert 1.4 < time.monotonic() - began < 10


@pytest.mark.soak
def test_a_driver_that_ignores_its_timeout_exits_124(run: Cli, remote: dict[str, str]) -> None:
    done = run("submit", "--timeout", "1", "--", "sh", "-c", "trap '' TERM; while :; do sleep 0.1; done", env=remote)
    assert done.returncode == 124
    assert re.search(rb" ran longer than its timeout of 1 s after 3[0-9.]+ s\n", done.stderr)


def test_a_driver_that_waited_and_ends_with_a_timeouts_code_is_no_timeout(
    jobs: RayJobs, run: Cli, remote: dict[str, str], tmp_path: Path
) -> None:
    cpus, go = f"{jobs.resources()['CPU']:g}", tmp_path / "go"
    holder = ["--", "sh", "-c", f"until [ -e {go} ]; do sleep 0.1; done"]
    assert run("submit", "--detach", "--num-cpus", cpus, *holder, env=remote).returncode == 0
    codes = {"waited-137": 137, "waited-124": 124}
    for name, code in codes.items():
        options = ["--detach", "--id", name, "--timeout", "3", "--num-cpus", cpus]
        assert run("submit", *options, "--", "sh", "-c", f"exit {code}", env=remote).returncode == 0
    until(lambda: all((jobs.get(name).waited_seconds or 0) > 5.5 for name in codes), 30)
    assert {jobs.get(name).status for name in codes} == {"PENDING"}
    go.touch()
    for name, code in codes.items():
        followed = run("logs", "--follow", name, env=remote)
        assert followed.returncode == code
        last = followed.stderr.decode().splitlines()[-2]
        told = re.fullmatch(
            rf"ray-workload: job {name} failed with exit code {code} after ([\d.]+) s "
            r"\(it waited ([\d.]+) s to start\)",
            last,
        )
        assert told and float(told[1]) < 3 and float(told[2]) > 5, last
        shown = json.loads(run("status", "-o", "json", name, env=remote).stdout)
        assert shown["exit_code"] == shown["driver_exit_code"] == code
        assert shown["start_time"] - shown["submit_time"] > 5000
        assert shown["end_time"] - shown["start_time"] < 3000
        rows = run("list", "--limit", "1000", env=remote).stdout.decode().splitlines()
        (row,) = (row.split("\t") for row in rows if row.startswith(f"{name}\t"))
        assert int(row[4]) >= 5 and int(row[5]) < 3, "the waiting time and the run time"


def test_a_stop_of_a_job_with_a_timeout_is_a_stop(run: Cli, remote: dict[str, str], tmp_path: Path) -> None:
    with started("submit", "--id", "limited", "--timeout", "60", "script.py", cwd=tmp_path, env=remote) as client:
        read_to(client.stdout, b"up\n")
        began = time.monotonic()
        stop = run("stop", "-o", "json", "limited", env=remote)
        assert time.monotonic() - began < 10
        output, errors = client.communicate(timeout=30)
        assert client.returncode == 143, errors
    assert (stop.returncode, json.loads(stop.stdout)["status"]) == (0, "STOPPED")
    assert b"asked to end\n" in output, "the driver did not handle the signal"
    assert b"job limited was stopped after " in errors


@pytest.mark.parametrize("limit", [(), ("--timeout", "60")], ids=["unlimited", "limited"])
def test_a_command_may_begin_with_variables(limit: tuple[str, ...], run: Cli, remote: dict[str, str]) -> None:
    code = "import os; print(os.environ['GREETING'], os.environ['WHOM'])"
    command = ["GREETING=good day,", "WHOM=it's $HOME", "python", "-c", code]
    done = run("submit", *limit, "--", *command, env=remote)
    assert done.returncode == 0, done.stderr
    assert b"\ngood day, it's $HOME\n" in done.stdout


@pytest.mark.parametrize(
    ("given", "seconds"), [("2s", "2"), ("90", "90"), ("0.5", "0.5"), ("1m", "60"), ("1.5h", "5400")]
)
def test_a_timeout_is_a_duration(given: str, seconds: str, run: Cli) -> None:
    done = run("submit", "--dry-run", "--timeout", given, "--", "true", env=NOWHERE)
    assert done.returncode == 0, done.stderr
    assert f" timeout -k 30 {seconds} true".encode() in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        ["submit", "--wait-cluster", "{}", "--", "true"],
        ["stop", "--grace", "{}", "x"],
        ["up", "local", "--timeout", "{}", "--context", "none"],
    ],
    ids=lambda command: command[0],
)
def test_every_duration_takes_a_unit(command: list[str], run: Cli) -> None:
    for given in ("2s", "1m", "0.1h", "90"):
        done = run(*(word.format(given) for word in command), env=NOWHERE)
        assert b"is not a duration" not in done.stderr
        assert done.returncode != 0 and not done.stderr.startswith(b"Usage:"), "the duration was accepted"
    done = run(*(word.format("2 days") for word in command), env=NOWHERE)
    assert done.returncode == 2
    assert b"'2 days' is not a duration like 90s, 15m or 2h" in done.stderr
