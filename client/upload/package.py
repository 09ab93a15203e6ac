"""The packages of an upload: the working directory and the local py_modules, each named after its content."""

import hashlib
import math
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from client.errors import UsageError
from client.upload.ignore import Entry, Listing, file_listing, listing
from client.upload.problems import file_error, printable

LIMIT = 100 * 1024**2  # bytes of a package; Ray's DASHBOARD_CLIENT_MAX_SIZE, above which the dashboard answers 413
_CHUNK = 1024**2
_LARGE = 32 * 1024**2  # bytes of a file that takes too long to read before each run
_TOP = "files/"  # of a zip in a bucket: Ray strips the top folder of those, and of those only
_NAMED = 5  # of the files that changed
_COMPRESSED = frozenset(
    ".7z .bz2 .gif .gz .jar .jpeg .jpg .lz4 .mp3 .mp4 .npz .parquet .png .tgz .webp .whl .xz .zip .zst".split()
)
_WHEEL = re.compile(r"([\w.!+]+-[\w.!+]+)(-\d[\w.]*)?((?:-[\w.]+){3}\.whl)", re.ASCII)

_Progress = Callable[[int], object]


@dataclass(frozen=True)
class Package:
    """One file for Ray to unpack.

    Attributes:
        uri: the name under which Ray stores it. It depends on the content alone.
        path: the local file.
        size: the bytes of the file.
    """

    uri: str
    path: Path
    size: int


@dataclass
class Packed:
    """The packages of an upload. As a context manager, it deletes their files.

    Attributes:
        working_dir: the URI of the working directory; None if it is not uploaded.
        py_modules: a URI for each of the py_modules, in their order.
        packages: what the server must have before the job starts.
    """

    working_dir: str | None
    py_modules: list[str]
    packages: tuple[Package, ...]
    _folder: "TemporaryDirectory[str] | None"

    @property
    def size(self) -> int:
        """Bytes of all packages."""
        return sum(package.size for package in self.packages)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder:
            self._folder.cleanup()


@dataclass(frozen=True)
class Upload:
    """The upload of a job, listed before it is packed.

    Attributes:
        working_dir: the files of the working directory; None if it is not uploaded.
        py_modules: for each of the py_modules its files, or its URI if it has one already.
    """

    working_dir: Listing | None
    py_modules: tuple[Listing | str, ...]

    @property
    def listings(self) -> tuple[Listing, ...]:
        """The listing of each package."""
        return tuple(part for part in (self.working_dir, *self.py_modules) if isinstance(part, Listing))

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All files."""
        return tuple(entry for listed in self.listings for entry in listed.entries)

    @property
    def withheld(self) -> tuple[str, ...]:
        """The paths of all secrets that were left out."""
        return tuple(path for listed in self.listings for path in listed.withheld)

    @property
    def size(self) -> int:
        """Bytes of all files, before compression."""
        return sum(listed.size for listed in self.listings)

    def changed_since(self, milliseconds: int) -> str:
        """The names of the files in the working directory that were written after a time, the newest first."""
        entries = self.working_dir.entries if self.working_dir else ()
        newest = sorted(entries, key=lambda entry: -entry.modified)
        paths = [printable(entry.path) for entry in newest if entry.modified * 1000 > milliseconds]
        more = [f"{len(paths) - _NAMED} more"] if len(paths) > _NAMED else []
        return ", ".join([*paths[:_NAMED], *more])

    def packed(self, progress: _Progress = lambda count: None, bucket: str | None = None) -> Packed:
        """Pack the files.

        Args:
            progress: called with the number of bytes read since its last call.
            bucket: the URL of the folder that Ray will get the packages from; None for Ray's own store.

        Returns:
            The packages, to be used as a context manager.

        Raises:
            UsageError: a file has changed or cannot be read, or a package is too large or cannot be written.
        """
        folder = None
        try:
            packages: list[Package] = []
            for listed in self.listings:
                folder = folder or TemporaryDirectory(prefix="ray_pkg_")
                packages.append(_pack(listed, Path(folder.name, str(len(packages))), progress, bucket))
        except BaseException as error:
            if folder:
                folder.cleanup()
            if isinstance(error, OSError):
                target = f" to {folder.name}" if folder else ""
                raise UsageError(
                    f"cannot write the packed files{target}: {error.strerror}", "free space or set TMPDIR"
                ) from error
            raise
        uris = iter([package.uri for package in packages])
        return Packed(
            next(uris) if self.working_dir else None,
            [module if isinstance(module, str) else next(uris) for module in self.py_modules],
            tuple(packages),
            folder,
        )


def plan_upload(working_dir: Path | None, py_modules: Sequence[str], excludes: Sequence[str]) -> Upload:
    """List what has to be uploaded for a job.

    Args:
        working_dir: a local folder; None if it is not uploaded.
        py_modules: as in Ray's runtime_env: folders, .py files, .whl files, or URIs.
        excludes: gitignore patterns, relative to the working directory and to each folder of the py_modules.

    Raises:
        UsageError: something cannot be uploaded.
    """
    return Upload(
        listing(working_dir, excludes) if working_dir else None,
        tuple(module if "://" in module else _module_listing(module, excludes) for module in py_modules),
    )


def _module_listing(module: str, excludes: Sequence[str]) -> Listing:
    path = Path(os.path.abspath(module))
    if path.is_dir() and path.name:
        return listing(path, excludes, f"{path.name}/")  # Ray puts the folder that holds the module on PYTHONPATH
    if path.is_file() and (path.suffix == ".py" or _WHEEL.fullmatch(path.name)):
        return file_listing(path)
    raise UsageError(
        f"{printable(module)} in py_modules is not a folder, a .py file or a wheel",
        "correct the runtime_env",
    )


def _pack(listed: Listing, path: Path, progress: _Progress, bucket: str | None) -> Package:
    """Write the package of a listing: a copy of a wheel, which Ray installs, or a zip, which it unpacks."""
    wheel = _WHEEL.fullmatch(listed.root.name) if listed.entries[0].source == listed.root else None
    limit = math.inf if bucket else LIMIT
    digest = _copy(listed, path, progress, limit) if wheel else _zip(listed, path, progress, limit, _TOP * bool(bucket))
    name = f"_ray_pkg_{digest[:32]}.zip"
    if wheel:
        # Ray identifies a wheel by its name alone. With the build tag, a wheel of the same version can be built again.
        project, build, platform = wheel.groups()
        name = f"{project}{build or '-0'}_{digest[:16]}{platform}"
    size = path.stat().st_size
    _check_limit(size, limit, listed)
    return Package(f"{bucket}/{name}" if bucket else f"gcs://{name}", path, size)


def content_hash(listed: Listing) -> str:
    """A hash of the files of a listing, for a job that runs in its folder; of large ones, only of size and time."""
    digest = hashlib.sha256()
    for entry in listed.entries:
        digest.update(f"{entry.path}\0{entry.size}\0".encode())
        if entry.size > _LARGE:
            digest.update(f"{entry.modified}\0".encode())
            continue
        with _open(entry) as source:
            for chunk in _chunks(entry, source):
                digest.update(chunk)
    return digest.hexdigest()


def _copy(listed: Listing, path: Path, progress: _Progress, limit: float) -> str:
    digest = hashlib.sha256()
    with open(path, "wb") as sink, _open(listed.entries[0]) as source:
        for chunk in _chunks(listed.entries[0], source):
            digest.update(chunk)
            sink.write(chunk)
            progress(len(chunk))
            _check_limit(sink.tell(), limit, listed)
    return digest.hexdigest()


def _zip(listed: Listing, path: Path, progress: _Progress, limit: float, top: str) -> str:
    from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

    digest = hashlib.sha256()
    with open(path, "wb") as file, ZipFile(file, "w", ZIP_DEFLATED, compresslevel=1) as archive:
        for entry in listed.entries:
            # A name takes the compression of the archive, a ZipInfo is stored. The date is 1980-01-01 in both cases.
            name = top + entry.path
            name_or_info = ZipInfo(name) if entry.source.suffix.lower() in _COMPRESSED else name
            with _open(entry) as source, archive.open(name_or_info, "w", force_zip64=entry.size > 2**30) as sink:
                mode = os.fstat(source.fileno()).st_mode
                digest.update(f"{entry.path}\0{mode & 0o777:o} {entry.size}\0".encode())
                for chunk in _chunks(entry, source):
                    digest.update(chunk)
                    sink.write(chunk)
                    progress(len(chunk))
                    _check_limit(file.tell(), limit, listed)
            archive.getinfo(name).external_attr = (stat.S_IFREG | mode & 0o777) << 16
    return digest.hexdigest()


def _open(entry: Entry) -> FileIO:
    try:
        file = open(entry.source, "rb", buffering=0)
    except OSError as error:
        raise file_error(entry.path, error) from None
    info = os.fstat(file.fileno())
    if (info.st_dev, info.st_ino) != entry.file_id:
        file.close()
        raise _changed(entry, "was replaced")
    return file


def _chunks(entry: Entry, source: FileIO) -> Iterator[bytes]:
    """The file as it was when it was listed: what was appended since then is left out."""
    left = entry.size
    while left:
        try:
            chunk = source.read(min(_CHUNK, left))
        except OSError as error:
            raise file_error(entry.path, error) from None
        if not chunk:
            raise _changed(entry, "became shorter")
        left -= len(chunk)
        yield chunk


def _changed(entry: Entry, change: str) -> UsageError:
    return UsageError(
        f"{printable(entry.path)} {change} while it was packed",
        "submit again when nothing writes to it, or add it to .rayignore",
    )


def _check_limit(size: int, limit: float, listed: Listing) -> None:
    if size > limit:
        largest = ", ".join(f"{printable(entry.path)} ({_mib(entry.size)})" for entry in listed.largest())
        raise UsageError(
            f"{printable(str(listed.root))} ({_mib(listed.size)} in {len(listed.entries)} files) packs to more "
            f"than the {LIMIT // 1024**2} MiB that Ray accepts; the largest files are {largest}",
            "list large files in .rayignore, or upload to a bucket (--upload-to)",
        )


def _mib(size: int) -> str:
    return f"{size / 1024**2:.1f} MiB"
