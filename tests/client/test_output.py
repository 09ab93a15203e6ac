"""client/output.py: the bytes of a log, and Ctrl-C among them."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from client.cli.output import Sink


class Interrupted:
    """A stream in whose writing Ctrl-C comes."""

    def __init__(self) -> None:
        self.buffer, self.written = self, b""

    def write(self, data: bytes) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)  # for the other thread to take it, where it can
        self.written += data

    def flush(self) -> None:
        pass


@pytest.fixture
def another_thread() -> Iterator[None]:
    """It may be given the signal."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    yield
    end.set()
    thread.join()


@pytest.mark.usefixtures("another_thread")
@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN], ids=["heard", "ignored"])
def test_what_is_written_counts_though_ctrl_c_comes_meanwhile(handler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Interrupted()
    monkeypatch.setattr("sys.stdout", stream)
    sink, before = Sink(to_stderr=False), signal.signal(signal.SIGINT, handler)
    try:
        sink.write(b"log")
        heard = False
    except KeyboardInterrupt:
        heard = True
    finally:
        assert signal.signal(signal.SIGINT, before) is handler
    assert (stream.written, sink.offset, heard) == (b"log", 3, handler is signal.default_int_handler)
