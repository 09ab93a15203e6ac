"""Run a command in a pod, on our own terminal or with our own stdin, stdout and stderr, byte for byte."""

import errno
import json
import os
import select
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from client.errors import ClientError, Detached
from client.kube import stream
from client.kube.container import CHUNK, SIZE, STATUS, STDERR, STDIN, STDOUT, V5, Container
from client.streams import write_all
from client.wait import Note

_SHELL = ["sh", "-c", "command -v bash >/dev/null && exec bash; exec sh"]
_UNSENT_LIMIT = 1 << 18  # bytes of stdin to buffer


def run(container: Container, command: Sequence[str], note: Note) -> int:
    """Run a command, wait for its end, and return its exit code.

    It gets a terminal if stdin, stdout and stderr are all terminals; else the three streams are separate and unchanged.

    Args:
        container: to run it in.
        command: with its arguments; empty for a shell.
        note: takes what the user should know.

    Raises:
        NotAuthorised: the login may not do that.
        ClientError: the command could not be started.
        ContactLost: the connection or the pod ended first.
        OutputLost: the command's output cannot be written.
        Detached: Ctrl-C, without a terminal that would pass it on to the command.
    """
    terminal = all(s is not None and s.isatty() for s in (sys.stdin, sys.stdout, sys.stderr))
    with container.connect(command or _SHELL, "stdin", "stdout", "tty" if terminal else "stderr") as connection:
        session = _Session(connection, note)
        try:
            if terminal:
                with _raw_terminal(), _size_changes() as size_changes:
                    status = session.run(size_changes)
            else:
                status = session.run(None)
        except KeyboardInterrupt as error:
            raise Detached("interrupted", f"the command may still be running in pod {container.pod_name}") from error
    return container.exit_code(status)


class _Session:
    """Copies bytes between our standard streams and a connection."""

    def __init__(self, connection: stream.Stream, note: Note) -> None:
        self._connection, self._note = connection, note
        self._stdin_open = sys.stdin is not None

    def run(self, size_changes: int | None) -> bytes:
        """Copy until the server ends the connection.

        Args:
            size_changes: a descriptor that is readable after the terminal's size has changed; None without a terminal.

        Returns:
            The server's status; empty if the connection was lost.
        """
        connection, status = self._connection, b""
        if size_changes is not None:
            self._send_size()
        if not self._stdin_open:
            self._close_stdin()
        while not connection.closed:
            for descriptor in self._poll(size_changes):
                if descriptor == size_changes:
                    os.read(descriptor, 64)
                    self._send_size()
                elif descriptor == STDIN:
                    self._read_stdin()
            connection.write()
            for channel, data in connection.read():
                if channel in (STDOUT, STDERR):
                    write_all(channel, data)
                elif channel == STATUS:
                    status += data
            connection.keep_alive(reads_at_once=size_changes is not None)
        return status

    def _poll(self, size_changes: int | None) -> list[int]:
        poll = select.poll()
        poll.register(self._connection, self._connection.events)
        if self._stdin_open and self._connection.unsent < _UNSENT_LIMIT:
            poll.register(STDIN, select.POLLIN)
        if size_changes is not None:
            poll.register(size_changes, select.POLLIN)
        return [descriptor for descriptor, _ in poll.poll(self._connection.poll_seconds * 1000)]

    def _read_stdin(self) -> None:
        try:
            data = os.read(STDIN, CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:  # the terminal was closed
                raise ClientError(f"stdin cannot be read ({error.strerror})", "check where it comes from") from error
            data = b""
        if data:
            self._connection.send(STDIN, data)
        else:
            self._stdin_open = False
            self._close_stdin()

    def _close_stdin(self) -> None:
        if self._connection.protocol == V5:
            self._connection.send(stream.CLOSE, bytes([STDIN]))
        else:
            self._note(
                "before version 1.30, Kubernetes cannot close the stdin of a command: press Ctrl-C to stop waiting"
            )

    def _send_size(self) -> None:
        size = shutil.get_terminal_size() if "COLUMNS" in os.environ else os.get_terminal_size(STDOUT)
        self._connection.send(SIZE, json.dumps({"Width": size.columns, "Height": size.lines}).encode())


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Pass every key to the command, and restore the terminal afterwards, after SIGTERM and SIGHUP, too."""

    def exit_by_signal(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = termios.tcgetattr(STDIN)
    handlers = {number: signal.signal(number, exit_by_signal) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setraw(STDIN)
        yield
    finally:
        with suppress(termios.error):  # the terminal was closed
            termios.tcsetattr(STDIN, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _size_changes() -> Iterator[int]:
    """A descriptor that is readable after the terminal's size has changed."""
    read, write = os.pipe()
    os.set_blocking(write, False)

    def notify(*_: object) -> None:
        with suppress(BlockingIOError):
            os.write(write, b"x")

    handler = signal.signal(signal.SIGWINCH, notify)
    try:
        yield read
    finally:
        signal.signal(signal.SIGWINCH, handler)
        os.close(read)
        os.close(write)
