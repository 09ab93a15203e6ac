"""jobs/ray_client.py, with a head that has a Ray Client server and requires a token."""

import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.conftest import ROOT
from tests.gallery.conftest import is_open

JOB = (sys.executable, str(ROOT / "jobs" / "ray_client.py"), "--address")
REFUSED = "Authentication required but no authorization header provided"


@dataclass
class Head:
    address: str
    token: Path
    folder: Path

    def log(self) -> str:
        """Return what the Ray Client server has logged."""
        (path,) = self.folder.glob("session_2*/logs/ray_client_server.err")
        return path.read_text()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


def secret(path: Path) -> Path:
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return path


@pytest.fixture(scope="module")
def head(environment: Path) -> Iterator[Head]:
    """A head, started as the pods of the chart do it with `api.rayClient`."""
    gcs, client, agent = free_ports(3)
    folder = environment / "ray-client"
    token = secret(environment / "token-of-the-head")
    ports = (f"--port={gcs}", f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}")
    options = ("--node-ip-address=127.0.0.1", "--num-cpus=2", "--include-dashboard=false", f"--temp-dir={folder}")
    command = (str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", *ports, *options)
    env = with_token(token) | {"GRPC_ENABLE_FORK_SUPPORT": "0"}
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 120
            while not is_open(client):
                assert process.poll() is None and time.monotonic() < end, "the head does not start"
                time.sleep(0.1)
            yield Head(f"ray://127.0.0.1:{client}", token, folder)
        finally:
            started = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
            for left in psutil.wait_procs(started, timeout=30)[1]:
                left.kill()


def with_token(path: Path) -> dict[str, str]:
    return {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


def test_its_tasks_run_in_the_cluster(head: Head) -> None:
    done = subprocess.run(
        (*JOB, head.address), env=with_token(head.token), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    total = int(np.random.default_rng(0).integers(1000, size=1_000_000).sum())
    assert re.search(rf"^8 tasks ran on \S+; this client is on {socket.gethostname()}$", done.stdout, re.MULTILINE)
    assert done.stdout.endswith(f"all well: the sum of 1,000,000 elements is {total:,}, here and in the cluster\n")
    assert head.token.read_text() not in done.stdout + done.stderr


def test_it_is_refused_without_the_token_and_with_another(head: Head, environment: Path) -> None:
    """Both at once: Ray Client tries again for half a minute."""
    before = head.log().count(REFUSED)
    other = secret(environment / "another-token")
    processes = [
        subprocess.Popen((*JOB, head.address), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for env in ({**os.environ, "RAY_AUTH_MODE": "disabled"}, with_token(other))
    ]
    try:
        for process in processes:
            stdout, stderr = process.communicate(timeout=120)
            assert (process.returncode, stdout) == (1, "")
            assert f"wrong: no connection to {head.address} (ray client connection timeout): check the" in stderr
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert head.log().count(REFUSED) > before
