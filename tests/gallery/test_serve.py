"""jobs/serve_app.py: its answers, its two replicas, and that nothing of it remains."""

import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import requests

from tests.gallery.conftest import CLIENT, Job, is_open

PRIME = 10**12 + 39
OUTPUT = r"one replica answers at (\S+): (\w+)\nwith 16 requests at once, two do: (\w+), (\w+)\n"


@pytest.fixture
def port() -> int:
    """A free port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_it_gets_a_second_replica_and_is_removed(submit: Job, port: int) -> None:
    done = submit("serve_app", "--port", str(port))
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(OUTPUT, done.stdout)
    assert found, done.stdout
    url, first, *two = found.groups()
    assert url == f"http://127.0.0.1:{port}/primes"
    assert first in two and two[0] < two[1]
    assert "\nall well: each answer was right, and nothing answers after the removal\n" in done.stdout
    assert not is_open(port)


def test_with_keep_it_serves_until_it_is_stopped(folder: Path, warm: None, port: int) -> None:
    """Another program uses it. `submit` is stopped with Ctrl-C, twice, and the job with it."""
    command = (*CLIENT, "submit", "--on-interrupt", "stop", "jobs/serve_app.py", "--port", str(port), "--keep")
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            lines = iter(process.stdout.readline, "")
            assert any(line == "serving until the job is stopped\n" for line in lines)
            url = f"http://127.0.0.1:{port}/primes"
            answers = [requests.get(url, params={"n": n}, timeout=30).json() for n in (97, 91, PRIME)]
            assert [answer["prime"] for answer in answers] == [True, False, True]
            process.send_signal(signal.SIGINT)
            process.wait(60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert not is_open(port)


def test_a_plain_script_leaves_no_port_open(job: Job, port: int) -> None:
    done = job("serve_app", "--port", str(port))
    assert done.returncode == 0 and re.search(OUTPUT, done.stdout), done.stdout + done.stderr
    assert not is_open(port)
