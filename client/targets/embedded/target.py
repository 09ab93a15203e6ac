"""The target `embedded`: a Ray head of the client's own, on this machine, in a folder of its own (see `folder`)."""

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from client.errors import ClientError, TimedOut
from client.http import Http, Server
from client.ray_api.http import token_refusal
from client.targets.embedded import folder as head_folder
from client.targets.embedded.start import START_SECONDS, identity, read_head, start, takes_jobs, wait_ready
from client.targets.target import NodeGroup, Runtime, Target, same_host_agent
from client.wait import Note, silent

_END_SECONDS = 30.0
_VMSTAT = Path("/proc/vmstat")
_OUT_OF_MEMORY = "this machine ran out of memory, and the kernel killed a process: use less memory"


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Turn a full or unwritable disk into an error of ours."""
    try:
        yield
    except OSError as error:
        raise ClientError(f"cannot start Ray here ({error.strerror})", "set TMPDIR to another folder") from error


def _killed_by_kernel() -> int:
    """How many processes the kernel has killed because memory ran out, here or in a container; 0 if not known."""
    with suppress(OSError):
        return sum(int(line.split()[1]) for line in _VMSTAT.read_text().splitlines() if line.startswith("oom_kill "))
    return 0


class EmbeddedTarget(Target):
    """A head in a folder of this machine."""

    address = "embedded"

    def __init__(self, directory: Path, started: "tuple[subprocess.Popen[bytes], IO[bytes]] | None" = None) -> None:
        """Read the head's ports and token; one that was `started` with this process ends with it."""
        self._directory, self._started, self._head = directory, started, read_head(directory)
        self._url = f"http://127.0.0.1:{self._head.dashboard_port}"
        self.runtime, self.ends_with_us = Runtime(self._head.python, in_place=True, secrets={}), started is not None
        self._killed_before = _killed_by_kernel()
        headers = {"Authorization": f"Bearer {(directory / 'token').read_text()}"}
        self.http = Http(Server(self._url, headers), token_refusal(sent=True, hint="run `down embedded`"))

    def agent(self, address: str) -> str | None:
        """The agent's own address."""
        return same_host_agent(self._url, address)

    def wait_ready(self, note: Note, seconds: float) -> None:
        """Wait for a head that was just started, a minute at most, and say so once."""
        if self._started:
            note("starting Ray")
            wait_ready(self._directory, *self._started)
            self._started = None

    def log_file(self, submission_id: str) -> Path:
        """The driver's log, in Ray's folder of the session."""
        return self._directory / "session_latest" / "logs" / f"job-driver-{submission_id}.log"

    def groups(self) -> Sequence[NodeGroup]:
        """None: there is only this node."""
        return ()

    def out_of_memory(self, since: float, said: str) -> str:
        """Whether the kernel killed a process of this machine since the target was made."""
        return _OUT_OF_MEMORY if _killed_by_kernel() > self._killed_before else ""

    def runs_in(self, folder: Path) -> bool:
        """Whether the head was started in the folder."""
        return list(identity(folder)) == list(self._head.folder)


def _wait_end(process: "subprocess.Popen[bytes]") -> None:
    """Give the keeper time to end all processes; after that, it continues alone."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)


@_disk_errors()
def _start_anew(folder: Path) -> "tuple[Path, subprocess.Popen[bytes], IO[bytes]]":
    base = head_folder.base()
    head_folder.sweep(base)
    directory = Path(tempfile.mkdtemp(prefix="", dir=base))
    try:
        lock = head_folder.lock(directory)
        assert lock is not None, "nobody else knows this directory"
        return directory, *start(directory, lock, folder, stdin=subprocess.PIPE)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


@contextmanager
def cold(folder: Path) -> Iterator[Target]:
    """Start a head and yield it at once. It ends with the context, and in any case with this process.

    Args:
        folder: what its processes run in.
    """
    directory, process, log = _start_anew(folder)
    try:
        yield EmbeddedTarget(directory, (process, log))
    finally:
        log.close()
        assert process.stdin is not None
        process.stdin.close()
        _wait_end(process)


def warm() -> Target | None:
    """The head that `up embedded` keeps, or None."""
    with suppress(OSError):
        directory = head_folder.base() / "warm"
        if (lock := head_folder.lock(directory, fcntl.LOCK_SH)) is None:
            return EmbeddedTarget(directory)
        os.close(lock)
    return None


@_disk_errors()
def up(note: Note = silent) -> bool:
    """Start the warm head, or wait for the one that is there.

    Args:
        note: takes a line before the start.

    Returns:
        True where it was started by this call.

    Raises:
        Unreachable: it did not start.
        TimedOut: another process' start did not finish within a minute.
    """
    base = head_folder.base()
    head_folder.sweep(base)
    directory, deadline = base / "warm", time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        directory.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileNotFoundError):  # the previous head is being removed
            if (lock := head_folder.lock(directory)) is not None:
                head_folder.empty(directory, lock)
                note("starting Ray")
                process, log = start(directory, lock, Path.cwd(), stdin=subprocess.DEVNULL)
                try:
                    wait_ready(directory, process, log)
                except BaseException:
                    process.terminate()
                    _wait_end(process)
                    raise
                finally:
                    log.close()
                return True
            if takes_jobs(read_head(directory)):
                return False
        time.sleep(0.05)
    raise TimedOut(f"the head in {directory} is still starting", "run `down embedded`, then `up embedded`")


def down() -> bool:
    """End the warm head with everything it started, and nothing else.

    Returns:
        False where there is none.

    Raises:
        TimedOut: it did not end.
    """
    if warm() is None:
        return False
    directory, deadline = head_folder.base() / "warm", time.monotonic() + _END_SECONDS
    asked = False
    while time.monotonic() < deadline:
        if warm() is None:
            return True
        # The lock is held, so the process id in it, once it is written, is the keeper's.
        with suppress(FileNotFoundError, ProcessLookupError, ValueError):
            keeper_pid = int((directory / "lock").read_text())
            if not asked:
                os.kill(keeper_pid, signal.SIGTERM)
                asked = True
        time.sleep(0.02)
    raise TimedOut(f"the head in {directory} did not end in {_END_SECONDS:.0f} s", "run `down embedded` again")
