"""client/cli/output.py: writing the bytes of a log, interrupted by Ctrl-C."""

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, TextIO

import pytest

from client.cli.output import Sink
from tests.client.test_embedded import until


@pytest.fixture
def full_pipe() -> Iterator[tuple[TextIO, int, int]]:
    """Yield a full pipe that nobody reads: its write end as stdout, its read end, and the number of bytes in it."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    filled = os.write(writer, b"x" * (1 << 20))
    os.set_blocking(writer, True)
    with os.fdopen(reader, "rb"), os.fdopen(writer, "w") as stdout:
        yield stdout, reader, filled


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN], ids=["heard", "ignored"])
def test_what_is_written_counts_though_ctrl_c_comes_meanwhile(
    handler: Any, full_pipe: tuple[TextIO, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stdout, reader, filled = full_pipe
    monkeypatch.setattr("sys.stdout", stdout)
    sink, before = Sink(to_stderr=False), signal.signal(signal.SIGINT, handler)
    read = b""

    def interrupt() -> None:
        nonlocal read
        until(lambda: sink.offset == 3, 10)  # the sink has accepted the log's bytes but cannot write them
        os.kill(os.getpid(), signal.SIGINT)
        if handler is signal.SIG_IGN:
            read += os.read(reader, filled)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        sink.write(b"log")
        heard = False
    except KeyboardInterrupt:
        heard = True
    finally:
        assert signal.signal(signal.SIGINT, before) is handler
    thread.join()
    assert (sink.offset, heard) == (3, handler is signal.default_int_handler)
    while len(read) < filled + 3:
        read += os.read(reader, filled)
    sink.flush()
    assert (read[filled:], sink.offset) == (b"log", 3)
