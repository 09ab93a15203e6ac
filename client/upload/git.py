"""What git knows about a folder."""

import os
import subprocess
from pathlib import Path

from client.errors import UsageError
from client.upload.problems import printable

# A git hook sets these; they would make git answer for another repository.
_REPOSITORY_VARIABLES = frozenset(
    ("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE")
)


def run_git(folder: Path, *arguments: str, timeout: float | None = None) -> subprocess.CompletedProcess[bytes] | None:
    """Run git in a folder, with its messages in English.

    Args:
        folder: the folder that git runs in.
        *arguments: the arguments of git.
        timeout: the number of seconds after which git is killed.

    Returns:
        The finished process, whatever its exit code; None if git is not installed or was killed.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _REPOSITORY_VARIABLES}
    environment["LC_ALL"] = "C"
    try:
        return subprocess.run(["git", *arguments], cwd=folder, env=environment, capture_output=True, timeout=timeout)
    except (OSError, subprocess.TimeoutExpired):
        return None


def names_by_directory(folder: Path, prefix: str) -> dict[str, set[str]] | None:
    """The files and directories that git tracks or would track.

    Args:
        folder: the folder to list.
        prefix: the path of the folder in the upload, "" or "a/b/".

    Returns:
        For the path of each directory, the names in it; None if git does not apply to the folder.

    Raises:
        UsageError: the repository cannot be read.
    """
    listed = _output(folder, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed in (None, b"./\0") or (not listed and _output(folder, "check-ignore", ".")):
        return None  # no repository, a submodule that is not checked out, or a folder that is itself ignored
    names: dict[str, set[str]] = {prefix: set()}
    for path in os.fsdecode(listed or b"").split("\0")[:-1]:
        path = prefix + path.rstrip("/")
        while path and path + "/" != prefix:
            parent, _, name = path.rpartition("/")
            names.setdefault(parent and parent + "/", set()).add(name)
            path = parent
    return names


def _output(folder: Path, *arguments: str) -> bytes | None:
    done = run_git(folder, *arguments)
    if done is None:
        return None
    message = " ".join(os.fsdecode(done.stderr).split())
    if "not a git repository" in message or "must be run in a work tree" in message:
        return None
    if done.returncode > 1 or "could not open directory" in message:
        raise UsageError(
            f"git cannot list {printable(str(folder))}: {printable(message)}",
            "repair the repository, or add what cannot be read to .gitignore",
        )
    return done.stdout
