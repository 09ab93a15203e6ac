"""Fetching files from the pods of a cluster: each whole and checked by its hash, and only below one local folder.

After a connection breaks, the next one continues at the byte that was reached.
"""

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path, PurePosixPath
from tempfile import NamedTemporaryFile
from typing import IO, Any, Self

from client.errors import ClientError, ContactLost, NotFound, Unreachable, UsageError
from client.job.files import File, answer_line, ask, find_files
from client.ray_api.record import JobRecord
from client.streams import reported
from client.targets.embedded.keeper import make_outputs
from client.targets.target import Target
from client.upload.problems import printable
from client.wait import Note, Progress, silent

_TRIES = 6  # without a new byte
_RESTARTS = 2
_LINE = 1 << 16  # bytes, at most
_OUTPUTS = Path("outputs")


def counted(files: int) -> str:
    """A number of files, in words."""
    return f"{files} file{'' if files == 1 else 's'}"


def default_folder(submission_id: str) -> Path:
    """The default folder for the fetched files of a job."""
    return _OUTPUTS / submission_id


def fetch(
    target: Target,
    job: JobRecord,
    patterns: Sequence[str],
    to: str | Path | None,
    *,
    note: Note = silent,
    progress: Progress = lambda title, size: nullcontext(lambda _: None),
) -> Iterator[Path]:
    """Fetch the files that a job left, and yield the path of each once it is whole.

    Args:
        target: where it ran.
        job: which.
        patterns: as `find_files` takes them.
        to: a folder, in which nothing is replaced; None for `default_folder`.
        note: takes a line for the user.
        progress: as in `send`.

    Raises:
        ClientError: as `find_files` and `fetch_files` do.
    """
    if not job.finished:
        note(f"job {job.submission_id} has not ended: its files may be incomplete")
    found = find_files(target, job, patterns, note)
    for link in found.outside:
        note(f"not fetched because the link leads out of the job's folder: {link}")
    if "://" in (where := job.metadata.get("outputs", "")):
        note(f"files that the job wrote to {where} are not fetched")
    folder = Path(to) if to else default_folder(job.submission_id)
    yield from fetch_files(found.files, folder, found.failed, replace=not to, note=note, progress=progress)


def fetch_files(
    files: Sequence[File],
    folder: Path,
    failed: Sequence[ClientError] = (),
    *,
    replace: bool = False,
    note: Note = silent,
    progress: Progress = lambda title, size: nullcontext(lambda _: None),
) -> Iterator[Path]:
    """Fetch files into a folder, and yield the path of each once it is whole.

    Args:
        files: as `find_files` lists them; those that were fetched before, and are the same, are left as they are.
        folder: where to.
        failed: what went wrong before, which is raised at the end.
        replace: replace older files that are there; else a file that differs is an error, before anything is fetched.
        note: takes a line about the connection.
        progress: as in `send`.

    Raises:
        UsageError: a file is there and differs, or the folder cannot be written.
        OutputLost: the disk is full.
        ContactLost: a pod is gone, or cannot be reached; the files of other pods are there.
        ClientError: a file cannot be read in its pod; the others are there.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise UsageError(f"{printable(str(folder))} is not a folder", "use another one (--to)")
    missing = [file for file in files if not _is_there(file, folder, replace)]
    if there := len(files) - len(missing):
        note(f"{counted(there)} already in {folder}")
    if folder.is_relative_to(_OUTPUTS):
        with suppress(OSError):  # which is said below
            make_outputs(_OUTPUTS)
    failed = list(failed)
    with progress("fetching", sum(file.size for file in missing)) as done, reported():
        for pod in dict.fromkeys(file.pod for file in missing):
            try:
                yield from _fetch(
                    [file for file in missing if file.pod is pod], folder, note, done, failed, replace=replace
                )
            except ClientError as error:
                failed.append(error)
    if failed:
        hint = failed[0].hint if len(failed) == 1 else ""
        raise type(failed[0])(
            "; ".join(error.what for error in failed), hint or "run `fetch` again to get the missing files"
        )


def _is_there(file: File, folder: Path, replace: bool) -> bool:
    """Whether a file is there already.

    Raises:
        UsageError: something else is in its place.
    """
    path = folder / file.path
    for parent in [*PurePosixPath(file.path).parents][:-1]:
        if (folder / parent).is_symlink():
            raise UsageError(f"{printable(str(folder / parent))} is a link", "use another folder (--to)")
    if not os.path.lexists(path):
        return False
    info = path.lstat()
    if path.is_symlink():
        same = os.readlink(path) == file.link
    else:
        same = file.link is None and (info.st_size, info.st_mtime_ns) == (file.size, file.mtime)
    if not same and (not replace or path.is_dir() or info.st_mtime_ns > file.mtime):  # edited since it was fetched
        raise _exists(path)
    return same


def _exists(path: Path) -> UsageError:
    return UsageError(f"{printable(str(path))} exists and differs", "use another folder (--to), or remove it")


def _fetch(
    files: Sequence[File],
    folder: Path,
    note: Note,
    done: Callable[[int], object],
    failed: list[ClientError],
    *,
    replace: bool,
) -> Iterator[Path]:
    """Fetch the files of one pod; what cannot be read there is added to `failed`."""
    waiting, tries = deque(files), 0
    with _Part() as part:
        while waiting:
            request = [(file.source, part.size if file is waiting[0] else 0) for file in waiting if file.link is None]
            try:
                answer = _Answer(ask(waiting[0].pod, {"send": request}) if request else iter(()))
                while waiting:
                    file, path = waiting[0], folder / waiting[0].path
                    path.parent.mkdir(parents=True, exist_ok=True)
                    header = answer_line(answer.line()) if file.link is None else {}
                    if "error" in header:
                        failed.append(ClientError(f"{printable(file.source)} cannot be read ({header['error']})"))
                        part.empty()
                    elif not replace and os.path.lexists(path):
                        raise _exists(path)  # it was not there when we began
                    elif file.link is not None:
                        path.unlink(missing_ok=True)
                        path.symlink_to(file.link)
                        yield path
                    else:
                        for size in part.receive(answer, path, header):
                            done(size)
                            tries = 0
                        if part.digest == answer.line():
                            part.keep(path, header)
                            yield path
                        elif part.restart():
                            raise ContactLost(f"{printable(file.path)} changed while it was fetched")
                        else:
                            what = f"{printable(file.path)} changes while it is fetched"
                            failed.append(ClientError(what, "fetch it when the job has ended"))
                    waiting.popleft()
            except NotFound:
                raise
            except (ContactLost, Unreachable) as error:
                tries += 1
                if tries > _TRIES:
                    raise
                if tries == 1:
                    note(f"connection lost, retrying ({error.what})")
                time.sleep(0.1 * 2**tries)


class _Answer:
    """What `sender` sends: lines and blocks, which come in chunks of any size."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def _more(self) -> None:
        chunk = next(self._chunks, None)
        if chunk is None:
            raise ContactLost("a pod sent fewer bytes than it announced")
        self._rest += chunk

    def line(self) -> bytes:
        """The next line, without its end."""
        while b"\n" not in self._rest:
            if len(self._rest) > _LINE:
                raise ClientError(f"the response of a pod cannot be read: {self._rest[:80]!r}")
            self._more()
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def blocks(self, size: int) -> Iterator[bytes]:
        """The next bytes."""
        while size > 0:
            if not self._rest:
                self._more()
            block, self._rest = self._rest[:size], self._rest[size:]
            size -= len(block)
            yield block


class _Part:
    """The file that is being fetched. It gets its name once it is whole; what is left at the end is removed."""

    def __init__(self) -> None:
        self.size = 0
        self._file: IO[bytes] | None = None
        self._digest, self._restarts = hashlib.sha256(), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()
            os.unlink(self._file.name)

    @property
    def digest(self) -> bytes:
        """The hash of the bytes received, as `sender` reports it."""
        return self._digest.hexdigest().encode()

    def receive(self, answer: _Answer, path: Path, header: dict[str, Any]) -> Iterator[int]:
        """Receive the rest of a file, whose first part may be here already, and yield the size of each step."""
        if not self._file:
            self._file = NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".part", delete=False)
        for block in answer.blocks(header["size"] - self.size):
            self._file.write(block)
            self._digest.update(block)
            self.size += len(block)
            yield len(block)

    def keep(self, path: Path, header: dict[str, Any]) -> None:
        """Give the file its name."""
        assert self._file
        self._file.close()
        os.chmod(self._file.name, header["mode"] & 0o777 | 0o600)
        os.utime(self._file.name, ns=(header["mtime"], header["mtime"]))
        os.replace(self._file.name, path)
        self._file, self._restarts = None, 0
        self.empty()

    def restart(self) -> bool:
        """Start again with a file that has changed; False if that was tried before."""
        self.empty()
        self._restarts = (self._restarts + 1) % (_RESTARTS + 1)
        return self._restarts > 0

    def empty(self) -> None:
        """Drop what was received."""
        self.size, self._digest = 0, hashlib.sha256()
        if self._file:
            self._file.seek(0)
            self._file.truncate()
