"""Starting an embedded Ray head: its ports, its token, its processes, and when it takes jobs."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import IO

from client.errors import Unreachable
from client.targets.embedded import keeper
from client.targets.target import OUTPUTS, STOP_SECONDS

_HEAD = str(Path(__file__).with_name("head.py"))
START_SECONDS = 60.0
_PORTS = range(20000, 30000)

# An address or a token meant for another Ray would lead the head's own processes there.
_NOT_INHERITED = ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_REDIS_ADDRESS", "RAY_JOB_HEADERS")


@dataclass(frozen=True)
class Head:
    """What head.json holds."""

    dashboard_port: int
    agent_port: int
    python: str
    folder: tuple[int, int]


def identity(folder: Path) -> tuple[int, int]:
    """Device and inode, which differ for a folder that was created later under the same name."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def _free_ports(count: int) -> list[int]:
    """Ports that are free now, below the range from which the system gives out ports.

    If another process takes one first, the head does not start, and says so.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = secrets.choice(_PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports = [*dict.fromkeys([*ports, port])]
    return ports


def start(directory: Path, lock: int, folder: Path, *, stdin: int) -> "tuple[subprocess.Popen[bytes], IO[bytes]]":
    """Start a head in a folder under a keeper that inherits the lock. Returns the keeper and what both print."""
    token = os.open(directory / "token", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(token, secrets.token_hex(32).encode())
    os.close(token)
    gcs, dashboard, agent, *metrics = _free_ports(5)
    head = [sys.executable, "-P", _HEAD, str(directory), *map(str, (gcs, dashboard, agent))]
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    defaults = {"RAY_JOB_STOP_WAIT_TIME_S": STOP_SECONDS, OUTPUTS: f"{folder}/outputs"}
    environment = {**defaults, **inherited} | {
        "PWD": str(folder),
        "RAY_ADDRESS": f"127.0.0.1:{gcs}",  # for what runs in a worker and would search the machine for a Ray
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(directory / "token"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "AUTOSCALER_METRIC_PORT": str(metrics[0]),
        "DASHBOARD_METRIC_PORT": str(metrics[1]),
        # A driver's exit would wait for its last task events, which nobody reads here.
        "RAY_task_events_shutdown_flush_timeout_ms": "0",
    }
    partial = directory / "head.part"
    partial.write_text(json.dumps(asdict(Head(dashboard, agent, sys.executable, identity(folder)))))
    partial.rename(directory / "head.json")
    log = open(directory / "keeper.log", "w+b")
    process = subprocess.Popen(
        [sys.executable, "-P", keeper.__file__, str(directory), environment[OUTPUTS], *head],
        stdin=stdin,
        stdout=log,
        stderr=log,
        env=environment,
        cwd=folder,
        start_new_session=True,
        pass_fds=[lock],
    )
    os.close(lock)
    return process, log


def read_head(directory: Path) -> Head:
    """Read the head.json of a head's folder."""
    return Head(**json.loads((directory / "head.json").read_text()))


def takes_jobs(head: Head) -> bool:
    """True once the head's raylet and its job agent are up: a job sent earlier waits half a second more."""
    connection = HTTPConnection("127.0.0.1", head.agent_port, timeout=5)
    try:
        connection.request("GET", "/api/local_raylet_healthz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def wait_ready(directory: Path, process: "subprocess.Popen[bytes]", log: IO[bytes]) -> None:
    """Wait until the head takes jobs.

    Raises:
        Unreachable: it ended first, or is not ready within a minute.
    """
    head, deadline = read_head(directory), time.monotonic() + START_SECONDS
    while not takes_jobs(head):
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            last = log.read().decode(errors="replace").strip().rpartition("\n")[2] or "it printed nothing"
            raise Unreachable(f"the embedded Ray did not start: {last}", "check memory, disk space and free ports")
        time.sleep(0.02)
