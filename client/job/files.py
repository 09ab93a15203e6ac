"""The files that a job left on the pods of its cluster.

Two pods may have different files of the same name. The driver's pod comes first; what differs from it gets a path that
begins with the name of its pod.
"""

import json
import os
import posixpath
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

from client.errors import ClientError, UsageError
from client.job import sender
from client.ray_api.record import JobRecord
from client.targets.target import Pod, Target
from client.upload.patterns import Pattern, parse
from client.upload.problems import printable

# The raylet's command line names Ray's folder, and the Python of Ray, which may not be on PATH.
_START = """c=$(cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n')
p=$(echo "$c" | sed -n 's/^--python_worker_command=\\([^ ]*\\) .*/\\1/p' | head -n 1)
d=$(echo "$c" | sed -n 's/^--temp_dir=//p' | head -n 1)
exec "${p:-python3}" -c 'import sys; exec(sys.stdin.buffer.read(int(sys.argv[1])))' "$1" "${d:-/tmp/ray}"
"""


@dataclass(frozen=True)
class File:
    """A file or a link that a job left.

    Attributes:
        pod: where it is.
        source: its path there.
        path: its path below a local folder.
        size: in bytes.
        mtime: when it was written, as Unix time in nanoseconds.
        link: where a link leads, from its own folder; None for a file.
    """

    pod: Pod
    source: str
    path: str
    size: int
    mtime: int
    link: str | None = None


@dataclass
class Found:
    """What a job left.

    Attributes:
        files: those that were asked for.
        outside: links that lead out of the job's folder.
        others: how many more there are.
    """

    files: list[File] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    others: int = 0


def ask(pod: Pod, request: dict[str, Any]) -> Iterator[bytes]:
    """Yield what `sender` answers in a pod."""
    program = Path(sender.__file__).read_bytes()
    return pod.output(["sh", "-c", _START, "sh", str(len(program))], program + json.dumps(request).encode() + b"\n")


def find_files(target: Target, job: JobRecord, patterns: Sequence[str] = ()) -> Found:
    """List the files that a job left on pods that run now.

    Args:
        target: where it ran.
        job: which.
        patterns: files, folders, and patterns as in .rayignore; empty for all.

    Raises:
        ClientError: there is no file, or none that a pattern matches.
        UsageError: the target has no pods.
    """
    if (pods := target.pods()) is None:
        what = f"the files of a job can only be fetched from a RayCluster, and the address is {target}"
        raise UsageError(what, "give --address kubernetes://CONTEXT/NAMESPACE/CLUSTER")
    selectors = {pattern: parse(posixpath.normpath(pattern)) for pattern in patterns}
    found, names, unused = Found(), _Names(), set(patterns)
    request = {"id": job.submission_id, "outputs": job.metadata.get("outputs", "")}
    for pod in sorted(pods, key=lambda pod: f"//{pod.ip}:" not in (job.agent or "")):
        for line in b"".join(ask(pod, request)).splitlines():
            read = json.loads(line)
            path, outside = _safe(read.pop("path")), read.pop("outside", None)
            matching = [name for name, pattern in selectors.items() if pattern and _matches(pattern, path)]
            unused.difference_update(matching)
            if patterns and not matching:
                found.others += 1
            elif outside or not _stays_inside(path, read.get("link")):
                found.outside.append(f"{path} -> {outside or read['link']}")
            elif file := names.add(File(pod, path=path, **read)):
                found.files.append(file)
    if not (found.files or found.outside or found.others):
        raise ClientError(f"job {job.submission_id} left no file on a pod that runs now")
    if unused:
        what = f"no file of job {job.submission_id} matches {shlex.join(sorted(unused))}"
        raise ClientError(what, f"`fetch {job.submission_id}` gets all that the job left")
    return found


class _Names:
    """Gives each file a path of its own."""

    def __init__(self) -> None:
        self._files: dict[str, File] = {}
        self._folders: set[str] = set()

    def add(self, file: File) -> File | None:
        """The file with a path that is free; None if the same file has it: pods may share a volume."""
        for number in count():
            prefix = f"{file.pod.pod_name}{f'-{number}' if number > 1 else ''}/" if number else ""
            path = prefix + file.path
            known, folders = self._files.get(path), {str(parent) for parent in PurePosixPath(path).parents}
            if known and _is_same(known, file):
                return None
            if not known and path not in self._folders and folders.isdisjoint(self._files):
                self._folders |= folders
                self._files[path] = replace(file, path=path)
                return self._files[path]
        raise AssertionError("a number is always free")


def _is_same(one: File, other: File) -> bool:
    if one.link or other.link:
        return one.link == other.link
    return (one.size, one.mtime) == (other.size, other.mtime)


def _safe(path: str) -> str:
    """A path that stays below the folder that it is joined to."""
    if "\0" in path or not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise ClientError(f"a pod names a file {printable(path)}, which is not below the job's folder")
    return path


def _stays_inside(path: str, link: str | None) -> bool:
    if link is None:
        return True
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    return not posixpath.isabs(target) and target.partition("/")[0] not in ("..", ".")


def _matches(pattern: Pattern, path: str) -> bool:
    """Whether a pattern matches a path, or a folder above it."""
    folders = [str(folder) for folder in PurePosixPath(path).parents][:-1]
    return pattern.matches(path, os.path.basename(path), False) or any(
        pattern.matches(folder, os.path.basename(folder), True) for folder in folders
    )
