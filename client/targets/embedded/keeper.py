"""The process that keeps an embedded Ray head, and ends it with all that it started.

Run by path, with its directory and then the command of the head as arguments:

    python -P keeper.py DIRECTORY COMMAND...

It ends when its standard input does, where that is a pipe (the client ended, however it did), on SIGTERM, or when the
head ends by itself. Its process id is in DIRECTORY/lock, which it inherits locked. Ray's own shutdown asks each
process in turn and waits a second for those that do not listen; nothing here outlives the head, so every descendant is
killed at once and the directory removed.
"""

import ctypes
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

_POLL_SECONDS = 1.0
_TRIES = 5
_IGNORED = "# made by ray-workload\n*\n"
_PR_SET_CHILD_SUBREAPER = 36


def _adopt_orphans() -> None:
    """Make every orphan below us our child, so that a driver's daemon is found too (Linux, prctl(2))."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap() -> None:
    """Collect dead children, the head among them."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _end_descendants() -> None:
    """Kill until none is left: a process may fork between the look and the kill."""
    me = psutil.Process()
    while alive := [process for process in me.children(recursive=True) if _alive(process)]:
        for process in alive:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(alive, timeout=1)
        _reap()


def _client_left() -> bool:
    """Wait a moment; true once nobody holds the other end of our standard input."""
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        return bool(select.select([0], [], [], _POLL_SECONDS)[0])
    time.sleep(_POLL_SECONDS)
    return False


def make_outputs(folder: Path) -> None:
    """Make a folder for results, which git and uploads leave out."""
    with suppress(FileExistsError):
        folder.mkdir()
        (folder / ".gitignore").write_text(_IGNORED)


def _hold(outputs: Path) -> None:
    """Make the folder for results, and keep other heads from removing it."""
    holder = outputs / f".{os.getpid()}"
    with suppress(OSError):  # a folder that cannot be written
        outputs.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(_TRIES):
            make_outputs(outputs)
            with suppress(FileNotFoundError):  # another head has just removed it
                holder.touch()
                break


def _release(outputs: Path) -> None:
    """Remove the folder if it was made here, is empty, and no other head holds it."""
    with suppress(OSError):
        (outputs / f".{os.getpid()}").unlink()
        if os.listdir(outputs) == [".gitignore"] and (outputs / ".gitignore").read_text() == _IGNORED:
            (outputs / ".gitignore").unlink()
            outputs.rmdir()


def main(directory: Path, outputs: Path, command: list[str]) -> None:
    """Run the head until it is time to end it.

    Args:
        directory: what to remove afterwards.
        outputs: the folder where jobs leave their results.
        command: the head, as a command that stays in the foreground.
    """

    def leave(*_: object) -> None:
        raise SystemExit

    signal.signal(signal.SIGTERM, leave)
    (directory / "lock").write_text(str(os.getpid()))
    _adopt_orphans()
    try:
        _hold(outputs)
        started = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # if collected, it would reap a head that ended
        head = psutil.Process(started.pid)
        while _alive(head):
            _reap()
            if _client_left():
                break
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _end_descendants()
        _release(outputs)
        # Renamed first: the name is free for a new head before the last file is gone.
        ended = directory.rename(f"{directory}.{os.getpid()}")
        shutil.rmtree(ended, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
