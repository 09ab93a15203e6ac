"""Writes to stdout and stderr whose failures are reported."""

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager

from client.errors import OutputLost


@contextmanager
def reported() -> Iterator[None]:
    """Turn a failed write into OutputLost; a reader that left stays a BrokenPipeError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputLost(
            f"the output cannot be written ({error.strerror})", "free space, or write elsewhere"
        ) from error


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes, also to a descriptor that another process has set to not block.

    Raises:
        OutputLost: they cannot be written.
        BrokenPipeError: nobody reads them any more.
    """
    rest = memoryview(data)
    with reported():
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BlockingIOError:
                poll = select.poll()
                poll.register(descriptor, select.POLLOUT)
                poll.poll()
