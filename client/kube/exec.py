"""A command in a pod: its streams are ours byte for byte, or its terminal is ours, and its exit code comes back."""

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from client.errors import ClientError, ContactLost, Detached, Unreachable, UsageError
from client.kube import stream
from client.kube.api import Object, node_type, why_not_ready
from client.kube.cluster import Cluster

# Of remotecommand: https://kubernetes.io/docs/reference/ (staging/src/k8s.io/apimachinery/pkg/util/remotecommand)
_STDIN, _STDOUT, _STDERR, _STATUS, _SIZE = range(5)
_V5 = "v5.channel.k8s.io"  # Kubernetes 1.30; what is older cannot tell a command that its input has ended
_SHELL = ["sh", "-c", "command -v bash >/dev/null && exec bash; exec sh"]
_CHUNK = 1 << 15
_UNSENT = 1 << 18  # bytes of stdin that may wait here
_PING_SECONDS = 10.0  # what stands between may end a connection that is idle
_SILENT_SECONDS = 60.0
_KILLED = (137, 143)


@dataclass(frozen=True)
class Place:
    """A container to run something in.

    Attributes:
        cluster: that it belongs to.
        pod: its pod, as it was when it was found.
        container: its name.
    """

    cluster: Cluster
    pod: Object
    container: str

    @property
    def name(self) -> str:
        """Of the pod."""
        return str(self.pod["metadata"]["name"])


def find(cluster: Cluster, worker: int | None) -> Place:
    """The Ray container of the head or of a worker.

    Args:
        cluster: that it belongs to.
        worker: the number of a worker by its name, from 0; None for the head.

    Raises:
        UsageError: there is no such worker.
        Unreachable: the pod does not run.
    """
    if worker is None:
        pod = cluster.head()
    else:
        workers = [p for p in cluster.pods() if node_type(p) == "worker"]
        workers.sort(key=lambda p: str(p["metadata"]["name"]))
        if worker >= len(workers):
            known = f"{len(workers)} workers: give --worker 0 to {len(workers) - 1}"
            known = {0: "no worker", 1: "one worker: give --worker 0"}.get(len(workers), known)
            raise UsageError(f"{cluster} has {known}")
        pod = workers[worker]
    if not pod:
        raise Unreachable(f"{cluster} has no head pod: see `doctor`")
    container = _ray_container(cluster.read(), pod)
    states = {c["name"]: c["state"] for c in pod.get("status", {}).get("containerStatuses", ())}
    if "running" not in states.get(container, {}):
        raise Unreachable(f"{why_not_ready(pod)}: try again when it runs, or see `doctor`")
    return Place(cluster, pod, container)


def _ray_container(cluster: Object, pod: Object) -> str:
    """The container that Ray runs in: the first of its group. In the pod another may have been put before it."""
    spec, labels = cluster["spec"], pod["metadata"]["labels"]
    groups = {g["groupName"]: g for g in spec.get("workerGroupSpecs") or ()}
    group = groups.get(labels.get("ray.io/group"), spec["headGroupSpec"])
    template = group["template"]["spec"] if node_type(pod) == "worker" else None
    return str((template or spec["headGroupSpec"]["template"]["spec"])["containers"][0]["name"])


def run(place: Place, command: Sequence[str], note: Callable[[str], object]) -> int:
    """Run a command and wait for its end.

    It gets a terminal where stdin, stdout and stderr are one; else the streams are separate and untouched.

    Args:
        place: where.
        command: what; nothing for a shell.
        note: takes what the user should know.

    Returns:
        Its exit code.

    Raises:
        NotAuthorised: the login may not do that.
        ClientError: the command could not be started.
        ContactLost: the connection or the pod ended first.
        Detached: Ctrl-C, where there is no terminal to pass it on to.
    """
    terminal = all(s is not None and s.isatty() for s in (sys.stdin, sys.stdout, sys.stderr))
    query = [("container", place.container), *(("command", word) for word in command or _SHELL)]
    query += [(name, "true") for name in (("stdin", "stdout", "tty") if terminal else ("stdin", "stdout", "stderr"))]
    path = f"{place.cluster.core}/pods/{place.name}/exec"
    with stream.connect(place.cluster.api.login, path, query, [_V5, "v4.channel.k8s.io"]) as connection:
        session = _Session(connection, note)
        try:
            if terminal:
                with _raw(), _resized() as resized:
                    status = session.run(resized)
            else:
                status = session.run(None)
        except KeyboardInterrupt as error:
            raise Detached(f"interrupted: the command may still run in pod {place.name}") from error
    code = _exit_code(status) if status else None
    if (code is None or code in _KILLED) and (gone := _gone(place)):
        raise ContactLost(f"{gone} while the command ran: run it again when the pod is back")
    if code is None:
        raise ContactLost(f"the connection to pod {place.name} was lost: the command may still run there")
    return code


class _Session:
    """The bytes between our streams and a connection."""

    def __init__(self, connection: stream.Stream, note: Callable[[str], object]) -> None:
        self._connection, self._note = connection, note
        self._stdin = sys.stdin is not None
        self._pinged = time.monotonic()

    def run(self, resized: int | None) -> bytes:
        """Pass bytes on until the server ends the connection; `resized` is readable when the terminal's size changed.

        Returns:
            The status that it gave, if it did.
        """
        connection, status = self._connection, b""
        if resized is not None:
            self._send_size()
        if not self._stdin:
            self._end_stdin()
        while not connection.closed:
            for descriptor in self._wait(resized):
                if descriptor == resized:
                    os.read(descriptor, 64)
                    self._send_size()
                elif descriptor == _STDIN:
                    self._read_stdin()
            connection.write()
            for channel, data in connection.read():
                if channel in (_STDOUT, _STDERR):
                    _write(channel, data)
                elif channel == _STATUS:
                    status += data
            self._keep_alive(resized is not None)
        return status

    def _wait(self, resized: int | None) -> list[int]:
        poll = select.poll()
        poll.register(self._connection, self._connection.events)
        if self._stdin and self._connection.unsent < _UNSENT:
            poll.register(_STDIN, select.POLLIN)
        if resized is not None:
            poll.register(resized, select.POLLIN)
        seconds = 0.0 if self._connection.waiting else max(0.0, self._pinged + _PING_SECONDS - time.monotonic())
        return [descriptor for descriptor, _ in poll.poll(seconds * 1000)]

    def _keep_alive(self, terminal: bool) -> None:
        """Ping, and end a connection that is dead. A command that does not read its input holds up pongs, too."""
        now = time.monotonic()
        if now - self._connection.heard > _SILENT_SECONDS and (terminal or not self._connection.unanswered):
            self._connection.closed = True
        elif now - self._pinged >= _PING_SECONDS:
            self._pinged = now
            self._connection.ping()
            self._connection.write()

    def _read_stdin(self) -> None:
        try:
            data = os.read(_STDIN, _CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:  # the terminal is gone
                raise ClientError(f"stdin cannot be read: {error.strerror}") from error
            data = b""
        if data:
            self._connection.send(_STDIN, data)
        else:
            self._stdin = False
            self._end_stdin()

    def _end_stdin(self) -> None:
        if self._connection.protocol == _V5:
            self._connection.send(stream.CLOSE, bytes([_STDIN]))
        else:
            self._note(
                "this Kubernetes cannot tell the command that its input has ended (1.30 can): Ctrl-C ends it here"
            )

    def _send_size(self) -> None:
        size = shutil.get_terminal_size() if "COLUMNS" in os.environ else os.get_terminal_size(_STDOUT)
        self._connection.send(_SIZE, json.dumps({"Width": size.columns, "Height": size.lines}).encode())


def _write(descriptor: int, data: bytes) -> None:
    """Write all, to a descriptor that another process may have set not to block."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            poll.poll()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise ClientError(f"the command's output cannot be written here: {error.strerror}") from error


@contextmanager
def _raw() -> Iterator[None]:
    """The terminal passes on every key, and is afterwards as it was, whatever happens that can be caught."""

    def ended(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = termios.tcgetattr(_STDIN)
    handlers = {number: signal.signal(number, ended) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setraw(_STDIN)
        yield
    finally:
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(_STDIN, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _resized() -> Iterator[int]:
    """A descriptor that can be read when the terminal's size has changed."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def told(*_: object) -> None:
        with suppress(BlockingIOError):
            os.write(write, b"x")

    handler = signal.signal(signal.SIGWINCH, told)
    try:
        yield read
    finally:
        signal.signal(signal.SIGWINCH, handler)
        os.close(read)
        os.close(write)


def _exit_code(status: bytes) -> int:
    """The command's own exit code, from the Status that the server ends with."""
    try:
        said = json.loads(status)
        if said["status"] == "Success":
            return 0
        causes = (said.get("details") or {}).get("causes") or ()
        codes = [int(cause["message"]) for cause in causes if cause.get("reason") == "ExitCode"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ClientError(f"the command ended, and the API server does not say how: {status[:200]!r}") from error
    if codes:
        return codes[0]
    message = " ".join(str(said.get("message", "no reason given")).split())
    raise ClientError(f"the command was not run: {message}")


def _gone(place: Place) -> str:
    """What became of a container that does not run any more."""
    with suppress(ClientError):
        pod = place.cluster.api.get(f"{place.cluster.core}/pods/{place.name}")
        if not pod or "deletionTimestamp" in pod["metadata"]:
            return f"pod {place.name} was deleted"
        before, now = (
            {c["name"]: c.get("containerID") for c in seen["status"].get("containerStatuses", ())}
            for seen in (place.pod, pod)
        )
        if before.get(place.container) != now.get(place.container) or pod["status"].get("phase") != "Running":
            return f"pod {place.name} ended or was started again"
    return ""
