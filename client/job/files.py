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
from urllib.parse import urlsplit

from client.errors import ClientError, ContactLost, NotAuthorised, NotFound, Unreachable, UsageError
from client.job import sender
from client.ray_api.record import JobRecord
from client.targets.target import Pod, Target
from client.upload.patterns import Pattern, parse
from client.upload.problems import printable
from client.wait import Note, silent

# The raylet's command line names Ray's folder, and the Python of Ray, which may not be on PATH.
_START = """f=$(grep -ls 'raylet_socket_nam[e]=' /proc/[0-9]*/cmdline | head -n 1)
p=$(tr '\\0' '\\n' <"${f:-/dev/null}" | sed -n 's/^--python_worker_command=\\([^ ]*\\) .*/\\1/p')
d=$(tr '\\0' '\\n' <"${f:-/dev/null}" | sed -n 's/^--temp_dir=//p')
exec "${p:-python3}" -I -S -c 'import sys; exec(sys.stdin.buffer.read(int(sys.argv[1])))' "$1" "${d:-/tmp/ray}"
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
        identity: its inode and its last change, which a volume shows to all pods alike.
        link: where a link leads, from its own folder; None for a file.
    """

    pod: Pod
    source: str
    path: str
    size: int
    mtime: int
    identity: tuple[int, int]
    link: str | None = None


@dataclass
class Found:
    """What a job left.

    Attributes:
        files: those that were asked for.
        outside: links that lead out of the job's folder.
        failed: what went wrong, as for a folder that cannot be read or a pod that is gone.
    """

    files: list[File] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    failed: list[ClientError] = field(default_factory=list)


def ask(pod: Pod, request: dict[str, Any]) -> Iterator[bytes]:
    """Yield what `sender` answers in a pod."""
    program = Path(sender.__file__).read_bytes()
    return pod.output(["sh", "-c", _START, "sh", str(len(program))], program + json.dumps(request).encode() + b"\n")


def selectors(patterns: Sequence[str]) -> dict[str, Pattern | None]:
    """Parse the patterns that select files, by their texts; None stands for all files.

    Args:
        patterns: files, folders, and patterns as in .gitignore; empty for all.

    Raises:
        UsageError: one cannot be used.
    """
    found: dict[str, Pattern | None] = {}
    for text in patterns or ["."]:
        name = text.removeprefix("./")
        try:
            found[text] = None if name in (".", "") else parse(name)
        except ValueError as error:
            raise UsageError(f"{printable(text)} is not a pattern ({error})", "write it as in .gitignore") from error
        if name.startswith(("/", "!")) or ".." in name.split("/"):
            raise UsageError(f"{printable(text)} is not a path inside the job's folder", "use one like 'results/**'")
    return found


def find_files(target: Target, job: JobRecord, patterns: Sequence[str] = (), note: Note = silent) -> Found:
    """List the files that a job left on pods that run now.

    Args:
        target: where it ran.
        job: which.
        patterns: as `selectors` takes them.
        note: takes a line about the connection.

    Raises:
        ClientError: there is no file, or none that a pattern matches.
        NotAuthorised: the login may not run commands in pods.
        UsageError: the target has no pods.
    """
    if (pods := target.pods()) is None:
        what = f"the files of a job can only be fetched from a RayCluster, and the address is {target}"
        raise UsageError(what, "use --address kubernetes://CONTEXT/NAMESPACE/CLUSTER")
    wanted, found, names = selectors(patterns), Found(), _Names()
    unused, notes = set(wanted), set[str]()
    request = {"id": job.submission_id, "outputs": job.metadata.get("outputs", "")}
    driver = urlsplit(job.agent or "").hostname
    for pod in sorted(pods, key=lambda pod: pod.ip != driver):
        try:
            lines = _list(pod, request, note)
        except NotAuthorised:
            raise
        except ClientError as error:
            found.failed.append(error)
            continue
        for read in map(answer_line, lines):
            if "error" in read:
                found.failed.append(ClientError(f"{printable(read['error'])} in pod {pod.pod_name}"))
                continue
            if "shared" in read:
                notes.add("the job's upload was too large to copy: only files in RAY_WORKLOAD_OUTPUTS can be fetched")
                continue
            path, outside = _safe(read.pop("path")), read.pop("outside", None)
            matching = [text for text, pattern in wanted.items() if not pattern or _matches(pattern, path)]
            unused.difference_update(matching)
            if not matching:
                continue
            if outside or not _stays_inside(path, read.get("link")):
                found.outside.append(printable(f"{path} -> {outside or read['link']}"))
            elif file := names.add(File(pod, path=path, **{**read, "identity": tuple(read["identity"])})):
                found.files.append(file)
    for line in notes:
        note(line)
    if unused and not found.failed:
        if not patterns:
            what = f"no running pod has files of job {job.submission_id}"
            raise ClientError(what, "set `outputs` in the chart's values to keep results after a pod has ended")
        what = f"no file of job {job.submission_id} matches {shlex.join(map(printable, sorted(unused)))}"
        raise ClientError(what, f"`fetch {job.submission_id}` gets all files of the job")
    return found


def _list(pod: Pod, request: dict[str, Any], note: Note) -> list[bytes]:
    """List the files of a job in a pod, again if the connection breaks."""
    for last in (False, False, True):
        try:
            return b"".join(ask(pod, request)).splitlines()
        except NotFound:
            raise
        except (ContactLost, Unreachable) as error:
            if last:
                raise
            note(f"connection lost, retrying ({error.what})")
    raise AssertionError


def answer_line(line: bytes) -> dict[str, Any]:
    """A line of JSON from `sender`.

    Raises:
        ClientError: it is something else.
    """
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError) as error:
        raise ClientError(f"a pod answers {line[:80]!r} instead of a list of files") from error


class _Names:
    """Gives each file a path of its own."""

    def __init__(self) -> None:
        self._files: dict[str, File] = {}
        self._folders: set[str] = set()

    def add(self, file: File) -> File | None:
        """The file with a free path; None if the same file has it already, because pods can share a volume."""
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
    return (one.size, one.mtime, one.identity) == (other.size, other.mtime, other.identity)


def _safe(path: str) -> str:
    """A path that stays below the folder that it is joined to."""
    if "\0" in path or not {"", ".", ".."}.isdisjoint(path.split("/")):
        raise ClientError(f"a pod names a file {printable(path)}, which is not below the job's folder")
    return path


def _stays_inside(path: str, link: str | None) -> bool:
    if link is None:
        return True
    if link != posixpath.normpath(link):  # a `..` after a link's name could lead anywhere
        return False
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    return not posixpath.isabs(target) and target.partition("/")[0] not in ("..", ".")


def _matches(pattern: Pattern, path: str) -> bool:
    """Whether a pattern matches a path, or a folder above it."""
    folders = [str(folder) for folder in PurePosixPath(path).parents][:-1]
    return pattern.matches(path, os.path.basename(path), False) or any(
        pattern.matches(folder, os.path.basename(folder), True) for folder in folders
    )
