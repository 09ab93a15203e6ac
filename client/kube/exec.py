"""Run a command in a pod, on our own terminal or with our own stdin, stdout and stderr, byte for byte."""

import errno
import json
import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from client.errors import ClientError, ContactLost, Detached, Unreachable, UsageError
from client.kube import stream
from client.kube.api import Object, is_deleted, node_type, why_not_ready
from client.kube.cluster import Cluster
from client.streams import write_all
from client.wait import Note

_STDIN, _STDOUT, _STDERR, _STATUS, _SIZE = range(5)  # channels, as in k8s.io/apimachinery/pkg/util/remotecommand
_V5 = "v5.channel.k8s.io"  # from Kubernetes 1.30 on; older versions cannot close a command's stdin
_SHELL = ["sh", "-c", "command -v bash >/dev/null && exec bash; exec sh"]
_CHUNK = 1 << 15
_UNSENT_LIMIT = 1 << 18  # bytes of stdin to buffer
_PING_SECONDS = 10.0  # proxies may end an idle connection
_SILENT_SECONDS = 60.0
_KILLED = (137, 143)  # exit codes after SIGKILL and SIGTERM, which a pod's end sends


@dataclass(frozen=True)
class Container:
    """A container of a cluster.

    Attributes:
        cluster: that it belongs to.
        pod: its pod, as it was when it was found.
        name: of the container.
    """

    cluster: Cluster
    pod: Object
    name: str

    @property
    def pod_name(self) -> str:
        """The name of its pod."""
        return str(self.pod["metadata"]["name"])


def find(cluster: Cluster, worker: int | None) -> Container:
    """The Ray container of the head or of a worker.

    Args:
        cluster: to search.
        worker: the index of a worker, from 0, in the order of their names; None for the head.

    Raises:
        UsageError: there is no such worker.
        Unreachable: the pod does not run.
    """
    if worker is None:
        pod = cluster.existing_head()
    else:
        workers = [p for p in cluster.pods() if node_type(p) == "worker"]
        workers.sort(key=lambda p: str(p["metadata"]["name"]))
        if worker >= len(workers):
            raise UsageError(f"{cluster} has no worker {worker}", f"it has {len(workers)}, numbered from 0")
        pod = workers[worker]
    name = _ray_container(cluster.read(), pod)
    states = {c["name"]: c["state"] for c in pod.get("status", {}).get("containerStatuses", ())}
    if "running" not in states.get(name, {}):
        raise Unreachable(why_not_ready(pod), "try again when it runs, or run `doctor`")
    return Container(cluster, pod, name)


def _ray_container(cluster: Object, pod: Object) -> str:
    """The name of the container that Ray runs in: the first in the RayCluster, but not always the first in the pod."""
    spec, labels = cluster["spec"], pod["metadata"]["labels"]
    groups = {g["groupName"]: g for g in spec.get("workerGroupSpecs") or () if node_type(pod) == "worker"}
    group = groups.get(labels.get("ray.io/group"), spec["headGroupSpec"])
    return str(group["template"]["spec"]["containers"][0]["name"])


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
    query = [("container", container.name), *(("command", word) for word in command or _SHELL)]
    query += [(name, "true") for name in (("stdin", "stdout", "tty") if terminal else ("stdin", "stdout", "stderr"))]
    path, pod = f"{container.cluster.core}/pods/{container.pod_name}/exec", f"pod {container.pod_name}"
    with stream.connect(container.cluster.api.login, path, query, [_V5, "v4.channel.k8s.io"]) as connection:
        session = _Session(connection, note)
        try:
            if terminal:
                with _raw_terminal(), _size_changes() as size_changes:
                    status = session.run(size_changes)
            else:
                status = session.run(None)
        except KeyboardInterrupt as error:
            raise Detached("interrupted", f"the command may still run in {pod}") from error
    code = _exit_code(status) if status else None
    if (code is None or code in _KILLED) and (ended := _why_ended(container)):
        raise ContactLost(f"{pod} {ended} while the command ran", "run it again when the pod is ready")
    if code is None:
        raise ContactLost(f"the connection to {pod} was lost", "the command may still run there")
    return code


class _Session:
    """Copies bytes between our standard streams and a connection."""

    def __init__(self, connection: stream.Stream, note: Note) -> None:
        self._connection, self._note = connection, note
        self._stdin_open = sys.stdin is not None
        self._last_ping = time.monotonic()

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
                elif descriptor == _STDIN:
                    self._read_stdin()
            connection.write()
            for channel, data in connection.read():
                if channel in (_STDOUT, _STDERR):
                    write_all(channel, data)
                elif channel == _STATUS:
                    status += data
            self._keep_alive(terminal=size_changes is not None)
        return status

    def _poll(self, size_changes: int | None) -> list[int]:
        poll = select.poll()
        poll.register(self._connection, self._connection.events)
        if self._stdin_open and self._connection.unsent < _UNSENT_LIMIT:
            poll.register(_STDIN, select.POLLIN)
        if size_changes is not None:
            poll.register(size_changes, select.POLLIN)
        seconds = 0.0 if self._connection.pending else max(0.0, self._last_ping + _PING_SECONDS - time.monotonic())
        return [descriptor for descriptor, _ in poll.poll(seconds * 1000)]

    def _keep_alive(self, *, terminal: bool) -> None:
        """Ping, and close a dead connection. While a command does not read its stdin, no pong arrives either."""
        now, connection = time.monotonic(), self._connection
        if now - connection.last_received > _SILENT_SECONDS and (terminal or not connection.unacknowledged):
            connection.closed = True
        elif now - self._last_ping >= _PING_SECONDS:
            self._last_ping = now
            connection.ping()
            connection.write()

    def _read_stdin(self) -> None:
        try:
            data = os.read(_STDIN, _CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:  # the terminal was closed
                raise ClientError(f"stdin cannot be read ({error.strerror})", "check where it comes from") from error
            data = b""
        if data:
            self._connection.send(_STDIN, data)
        else:
            self._stdin_open = False
            self._close_stdin()

    def _close_stdin(self) -> None:
        if self._connection.protocol == _V5:
            self._connection.send(stream.CLOSE, bytes([_STDIN]))
        else:
            self._note(
                "before version 1.30, Kubernetes cannot close the stdin of a command: press Ctrl-C to stop waiting"
            )

    def _send_size(self) -> None:
        size = shutil.get_terminal_size() if "COLUMNS" in os.environ else os.get_terminal_size(_STDOUT)
        self._connection.send(_SIZE, json.dumps({"Width": size.columns, "Height": size.lines}).encode())


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Pass every key to the command, and restore the terminal afterwards, after SIGTERM and SIGHUP, too."""

    def exit_by_signal(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = termios.tcgetattr(_STDIN)
    handlers = {number: signal.signal(number, exit_by_signal) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setraw(_STDIN)
        yield
    finally:
        with suppress(termios.error):  # the terminal was closed
            termios.tcsetattr(_STDIN, termios.TCSADRAIN, before)
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


def _exit_code(status: bytes) -> int:
    """The command's own exit code, from the Status that the server sends last."""
    try:
        result = json.loads(status)
        if result["status"] == "Success":
            return 0
        causes = (result.get("details") or {}).get("causes") or ()
        codes = [int(cause["message"]) for cause in causes if cause.get("reason") == "ExitCode"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"the API server sent {status[:200]!r} instead of the command's exit code"
        raise ClientError(what, "the command may have run") from error
    if codes:
        return codes[0]
    message = " ".join(str(result.get("message", "no reason given")).split())
    raise ClientError(f"the command could not be started ({message})", "check its name and whether the image has it")


def _why_ended(container: Container) -> str:
    """What happened to the pod, if it or the container no longer runs."""
    with suppress(ClientError):
        pod = container.cluster.api.get(f"{container.cluster.core}/pods/{container.pod_name}")
        if not pod or is_deleted(pod):
            return "was deleted"
        before, now = (
            {c["name"]: c.get("containerID") for c in state["status"].get("containerStatuses", ())}
            for state in (container.pod, pod)
        )
        if before.get(container.name) != now.get(container.name) or pod["status"].get("phase") != "Running":
            return "ended or was restarted"
    return ""
