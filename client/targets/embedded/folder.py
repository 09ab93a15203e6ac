"""The folders of embedded Ray heads: which heads are alive, and the remains of a killed one.

    $TMPDIR/rw-UID/warm/        the head that `up embedded` keeps, at most one
                   RANDOM/      a cold head: it lives as long as one client
                       lock     held by the head's keeper; a directory with a free lock is a leftover
                       token    mode 0600, named to Ray by RAY_AUTH_TOKEN_PATH so that no environment holds it
                       head.json, keeper.log, Ray's session_*

The names are short because a Unix socket's path, deep inside, may have no more than 107 bytes.
"""

import fcntl
import os
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from client.errors import ClientError

_FRESH_SECONDS = 30.0  # a directory younger than this may not have taken its lock yet
_LONGEST_TMPDIR = 16  # bytes that leave room for Ray's socket names


def base() -> Path:
    """The folder of all heads of this user; nobody else can read it or put anything there."""
    tmp = tempfile.gettempdir()
    found = Path(tmp if len(tmp) <= _LONGEST_TMPDIR else "/tmp") / f"rw-{os.getuid()}"
    with suppress(FileExistsError):
        found.mkdir(mode=0o700)
    status = found.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or not stat.S_ISDIR(status.st_mode):
        raise ClientError(f"{found} is not a private folder of yours: remove it, or set TMPDIR to another folder")
    return found


def lock(directory: Path, kind: int = fcntl.LOCK_EX) -> int | None:
    """Take a head's lock: a descriptor to close or hand on, or None where its keeper holds it."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def owners() -> list[tuple[int, str]]:
    """The clients of the cold heads: the process id of each, and the folder that its head was started in."""
    found = []
    for directory in base().iterdir():
        with suppress(OSError, ValueError, psutil.Error):
            keeper = psutil.Process(int((directory / "lock").read_text()))
            if directory.name != "warm" and str(directory) in keeper.cmdline():  # else the process id is a stranger's
                found.append((keeper.ppid(), keeper.cwd()))
    return found


def _disown(directory: Path, lock: int) -> None:
    """Forget a head that was killed, at once: another client that finds the lock held would look for the head."""
    os.ftruncate(lock, 0)  # its keeper's process id may be a stranger's by now
    (directory / "head.json").unlink(missing_ok=True)


def sweep(base: Path) -> None:
    """Remove what a head left whose keeper was killed together with it."""
    for directory in base.iterdir():
        with suppress(FileNotFoundError):
            if time.time() - directory.stat().st_mtime < _FRESH_SECONDS:
                continue
            if (descriptor := lock(directory)) is not None:
                _disown(directory, descriptor)
                shutil.rmtree(directory, ignore_errors=True)
                os.close(descriptor)


def empty(directory: Path, lock: int) -> None:
    """Remove what a killed head left in the folder that the next one uses."""
    _disown(directory, lock)
    for path in directory.iterdir():
        if path.name != "lock":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
