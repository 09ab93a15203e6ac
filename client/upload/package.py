"""A working directory as one zip, named after what is in it."""

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from client.errors import UsageError
from client.upload.ignore import Entry, Listing, shown, unusable

LIMIT = 100 * 1024**2  # bytes of zip; Ray's DASHBOARD_CLIENT_MAX_SIZE, which the dashboard answers with a 413
_CHUNK = 1024**2
_COMPRESSED = frozenset(
    ".7z .bz2 .gif .gz .jar .jpeg .jpg .lz4 .mp3 .mp4 .npz .parquet .png .tgz .webp .whl .xz .zip .zst".split()
)


@dataclass
class Package:
    """A packed zip; as a context manager it deletes its file."""

    uri: str
    path: Path
    size: int

    def __enter__(self) -> "Package":
        return self

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)


def pack(listing: Listing, progress: Callable[[int], object] = lambda count: None) -> Package:
    """Packs a listing into a zip named after what is in it; `progress` gets the bytes read since its last call."""
    from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

    digest = hashlib.sha256()
    handle, name = tempfile.mkstemp(prefix="ray_pkg_", suffix=".zip")
    try:
        with open(handle, "wb") as file, ZipFile(file, "w", ZIP_DEFLATED, compresslevel=1) as archive:
            for entry in listing.entries:
                # A name gives the entry the level above, a ZipInfo stores it; the date is 1980-01-01 either way.
                name_or_info = ZipInfo(entry.path) if entry.source.suffix.lower() in _COMPRESSED else entry.path
                with _open(entry) as source, archive.open(name_or_info, "w", force_zip64=entry.size > 2**30) as sink:
                    mode = os.fstat(source.fileno()).st_mode
                    digest.update(f"{entry.path}\0{mode & 0o777:o} {entry.size}\0".encode())
                    for chunk in _chunks(entry, source):
                        digest.update(chunk)
                        sink.write(chunk)
                        progress(len(chunk))
                        _check_limit(file.tell(), listing)
                archive.getinfo(entry.path).external_attr = (stat.S_IFREG | mode & 0o777) << 16
        size = os.stat(name).st_size
        _check_limit(size, listing)
    except BaseException as error:
        os.unlink(name)
        if isinstance(error, OSError):
            raise UsageError(f"cannot write the zip {name}: {error.strerror}; free space or set TMPDIR") from error
        raise
    return Package(f"gcs://_ray_pkg_{digest.hexdigest()[:32]}.zip", Path(name), size)


def _open(entry: Entry) -> FileIO:
    try:
        return open(entry.source, "rb", buffering=0)
    except OSError as error:
        raise unusable(entry.path, error) from None


def _chunks(entry: Entry, source: FileIO) -> Iterator[bytes]:
    left = entry.size
    try:
        while chunk := source.read(min(_CHUNK, left + 1)):  # one more than there should be, to see it grow
            left -= len(chunk)
            if left < 0:
                break
            yield chunk
    except OSError as error:
        raise unusable(entry.path, error) from None
    if left:
        raise UsageError(f"{shown(entry.path)} changed while it was packed; submit again once nothing writes to it")


def _check_limit(size: int, listing: Listing) -> None:
    if size > LIMIT:
        largest = ", ".join(f"{shown(entry.path)} ({_mib(entry.size)})" for entry in listing.largest())
        raise UsageError(
            f"the upload of {shown(str(listing.root))} ({_mib(listing.size)} in {len(listing.entries)} files) makes a "
            f"zip of more than the {LIMIT // 1024**2} MiB that Ray accepts; list big files in .rayignore, or read data "
            f"from a bucket; the largest: {largest}"
        )


def _mib(size: int) -> str:
    return f"{size / 1024**2:.1f} MiB"
