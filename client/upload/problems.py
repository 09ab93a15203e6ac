"""What can be wrong with a file that is to be uploaded."""

import errno
import ntpath
import os
from pathlib import Path

from client.errors import UsageError


def printable(path: str) -> str:
    """A path as it can be shown in a message of one line."""
    return path if path.isprintable() else repr(path)


def check_uploadable(path: str, source: Path) -> None:
    """Check that a file can be read here and unpacked by Ray.

    Raises:
        UsageError: it cannot.
    """
    if not os.access(source, os.R_OK):
        raise file_error(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    if "\\" in path or ntpath.splitdrive(path)[0] or path.encode(errors="replace").decode() != path:
        raise UsageError(f"Ray cannot unpack a file named {printable(path)}", "rename it or add it to .rayignore")


def file_error(path: str, error: OSError) -> UsageError:
    """The error for a file or directory that cannot be uploaded."""
    reason = {errno.ELOOP: "is a link loop", errno.ENOENT: "is a broken link or was deleted"}.get(error.errno or 0)
    reason = reason or f"cannot be read ({error.strerror})"
    return UsageError(f"{printable(path)} {reason}", "correct it or add it to .rayignore")
