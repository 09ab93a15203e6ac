"""A bucket that Ray gets uploads from: of Google Cloud Storage (gs://) or S3 (s3://).

An object appears under its name only when all of it has arrived. The libraries find the login (environment,
configuration files, the cloud's own identity). Messages show only the codes and class names of their errors: the texts
may contain the address of an upload, which is as good as a login.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from client.errors import ClientError, NotAuthorised, Unreachable, UsageError

_LIBRARIES = {"gs": "gcsfs", "s3": "s3fs"}
_OPTIONS: dict[str, dict[str, Any]] = {  # else a store that does not answer is waited for without end
    "gs": {"requests_timeout": 60},
    "s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 3}}},
}
_CHUNK = 1 << 20
_PART = 16 << 20  # bytes of a request; above it, an upload has several

logging.getLogger("gcsfs").addHandler(logging.NullHandler())  # it would print what it raises, with a traceback


def _library(scheme: str) -> Any:
    if scheme == "s3":
        from s3fs import S3FileSystem

        return S3FileSystem
    # Not the default class of gcsfs: in a zonal bucket, that one shows an object while it is written.
    from gcsfs.core import GCSFileSystem

    return GCSFileSystem


class Bucket:
    """A bucket, or a folder in one."""

    def __init__(self, url: str) -> None:
        """Make no request yet.

        Args:
            url: gs://BUCKET[/PREFIX] or s3://BUCKET[/PREFIX].

        Raises:
            UsageError: the library for it is not installed.
        """
        self._scheme, _, path = url.partition("://")
        self._name = f"{self._scheme}://{path.partition('/')[0]}"
        try:
            store = _library(self._scheme)
        except ImportError:
            hint = f"pip install 'ray-workload[{self._scheme}]'"
            raise UsageError(f"an upload to {self._name} needs {_LIBRARIES[self._scheme]}", hint) from None
        try:
            self._store = store(skip_instance_cache=True, **_OPTIONS[self._scheme])
        except Exception as error:
            raise self._error(error) from None

    def has_package(self, uri: str) -> bool:
        """Whether an object exists, as far as we may see: without the right to list, S3 answers 403 if it does not."""
        try:
            return bool(self._store.exists(uri))
        except Exception as error:
            if isinstance(failed := self._error(error), NotAuthorised):
                return False
            raise failed from None

    def upload(self, uri: str, path: Path, size: int, sent: Callable[[int], object]) -> None:
        """Send a package; `sent` takes the bytes of each step.

        Raises:
            NotAuthorised: we may not write there.
            Unreachable: the store does not answer.
            ClientError: it refuses.
        """
        with open(path, "rb") as source:
            try:
                self._copy(uri, source.read, sent)
            except Exception as error:
                raise self._error(error) from None

    def _copy(self, uri: str, read: Callable[[int], bytes], sent: Callable[[int], object]) -> None:
        object_ = self._store.open(uri, "wb", block_size=_PART)
        try:
            while chunk := read(_CHUNK):
                object_.write(chunk)
                sent(len(chunk))
            object_.close()
        except BaseException:  # Ctrl-C, too
            object_.closed = True  # else it would be closed when it is collected, and appear as far as it was sent
            with suppress(Exception):
                object_.discard()
            raise

    def _error(self, error: Exception) -> ClientError:
        """Turn an error of the store's library into one of the client."""
        answer = getattr(error.__cause__ or error, "response", None)  # botocore's
        code = str((answer or {}).get("Error", {}).get("Code", "") or getattr(error, "code", None) or "")
        kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
        shown = code or ("403" if str(error).startswith("Forbidden") else type(error).__name__)
        if isinstance(error, FileNotFoundError):
            return UsageError(f"there is no bucket {self._name}", "create it, or use another --upload-to")
        if isinstance(error, PermissionError) or shown in ("401", "403") or "Credential" in kinds or "Auth" in kinds:
            what = f"{self._name} does not accept this upload ({shown})"
            return NotAuthorised(what, "log in to the cloud, and ask for the right to read and write objects there")
        if code and not code.startswith("5") and code not in ("InternalError", "ServiceUnavailable", "SlowDown"):
            return ClientError(f"{self._name} refuses the upload ({shown})", "check --upload-to")
        return Unreachable(f"{self._name} does not answer ({shown})", "check the network, and try again")
