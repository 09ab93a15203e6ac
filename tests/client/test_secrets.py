"""Tokens appear in no command line, no output, no environment of a job, and no file that others can read."""

import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from client.targets.target import Target
from tests.conftest import Cli

FOREIGN = "planted-4f1d0c2b7a9e"
DRIVER = """
import pathlib, time
import ray
ray.init()
ray.get(ray.remote(lambda: 1).remote())
pathlib.Path("up").touch()
while not pathlib.Path("go").exists():
    time.sleep(0.05)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rwt", dir="/tmp") as folder:
        yield Path(folder)


def held(what: str) -> dict[int, bytes]:
    """Return `cmdline` or `environ` of every process."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found[int(process.name)] = (process / what).read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def with_a_secret(contents: dict[int, bytes], secrets: set[bytes]) -> set[int]:
    return {process for process, content in contents.items() if any(secret in content for secret in secrets)}


class Watch:
    """Collects the command lines of all processes while it is open."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(0.02):
            self.seen.update(held("cmdline").values())


def readable_with(folder: Path, secrets: set[bytes]) -> list[Path]:
    """Return the files that contain a secret and that users other than their owner can open."""
    found = []
    for directory, _, names in os.walk(folder):
        for path in (Path(directory, name) for name in names):
            try:
                mode = path.lstat().st_mode
                if stat.S_ISREG(mode) and mode & 0o077 and any(secret in path.read_bytes() for secret in secrets):
                    found.append(path)
            except FileNotFoundError:
                continue
    return found


def test_a_cold_head_shows_its_token_to_nobody(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(DRIVER)
    environment = {**os.environ, "HOME": str(folder), "TMPDIR": str(folder), "RAY_AUTH_TOKEN": FOREIGN}
    command = [sys.executable, "-m", "client", "--debug", "submit", "-o", "json", "driver.py"]
    pipe = subprocess.PIPE
    with Watch() as watch, subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe) as client:
        try:
            while not (tmp_path / "up").exists():
                assert client.poll() is None, client.communicate()
                time.sleep(0.05)
            (token,) = folder.glob(f"rw-{os.getuid()}/*/token")
            assert stat.S_IMODE(token.stat().st_mode) == 0o600
            secrets = {token.read_bytes(), FOREIGN.encode()}
            children = {child.pid for child in psutil.Process(client.pid).children(recursive=True)}
            environments = held("environ")
            lines = [line for process, line in held("cmdline").items() if process in children]
            readable = readable_with(folder, secrets)
        finally:
            (tmp_path / "go").touch()
        out, err = client.communicate(timeout=60)
    assert client.returncode == 0
    assert any(line.endswith(b"\0driver.py\0") for line in lines), "the driver was not checked"
    assert any(b"gcs_server" in line for line in lines), "the head was not checked"
    assert with_a_secret(environments, secrets) == {client.pid}, "a process has a token that it was not given"
    assert readable == []
    assert [line for line in watch.seen if any(secret in line for secret in secrets)] == []
    assert [secret for secret in secrets if secret in out + err] == []
    assert not (folder / ".ray").exists()


def test_a_remote_token_is_in_no_output(run: Cli, head: Target, remote: dict[str, str], folder: Path) -> None:
    token = Path(remote["RAY_AUTH_TOKEN_PATH"]).read_bytes()
    environment = {"RAY_WORKLOAD_ADDRESS": head.http.server.url, "RAY_AUTH_TOKEN": token.decode(), "HOME": str(folder)}
    with Watch() as watch:
        for command in (["status"], ["list"], ["status", "nope"], ["submit", "nope.py"]):
            done = run("--debug", *command, "-o", "json", env=environment)
            wrong = run("--debug", *command, "-o", "json", env={**environment, "RAY_AUTH_TOKEN": FOREIGN})
            for secret in (token, FOREIGN.encode()):
                assert secret not in done.stdout + done.stderr + wrong.stdout + wrong.stderr
    assert [line for line in watch.seen if token in line or FOREIGN.encode() in line] == []
    assert list(folder.iterdir()) == []
