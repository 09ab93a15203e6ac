"""Ports of 127.0.0.1 that lead to pods: the way in for a login that may not use the API server's proxy.

Each connection has a stream of its own, to the pod that is there when it is made: what breaks, or a head that is
replaced, costs that connection alone. `kubernetes.stream.portforward` has one connection for as long as it lives, does
not stop reading while the other side is slow, and wants certificates as files. Who else can reach these ports on this
machine needs Ray's token still.
"""

import select
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Self
from urllib.parse import urlsplit

from client.errors import ClientError, Unreachable
from client.kube import stream
from client.kube.api import Object
from client.kube.cluster import AGENT, DASHBOARD, Cluster

_PROTOCOL = "v4.channel.k8s.io"
_DATA, _ERROR = 0, 1
_CHUNK = 1 << 15
_HELD = 1 << 18  # bytes that may wait for either side
_IDLE_SECONDS = 600.0


class PortForwards:
    """The local ports of one cluster. They are open as long as the context is."""

    def __init__(self, cluster: Cluster) -> None:
        """Open none yet.

        Args:
            cluster: that the pods belong to.
        """
        self._cluster = cluster
        self._stack = ExitStack()
        self._agents: dict[str, str | None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def check(self) -> None:
        """Connect once.

        Raises:
            Forbidden: the login may not do that either.
        """
        if head := self._cluster.head():
            with suppress(Unreachable), self._open(head, _port(head)):
                pass

    def dashboard(self) -> str:
        """A URL that leads to the dashboard of the head, whichever that is at the time."""

        def reach() -> stream.Stream:
            if not (head := self._cluster.head()):
                raise Unreachable(f"{self._cluster} has no head pod")
            return self._open(head, _port(head))

        return self._listen(reach)

    def agent(self, address: str) -> str | None:
        """A URL that leads to a node agent, where its pod is there."""
        if address not in self._agents:
            parts = urlsplit(address)
            pods = [p for p in self._cluster.pods() if p.get("status", {}).get("podIP") == parts.hostname]
            self._agents[address] = (
                self._listen(lambda: self._open(pods[0], parts.port or AGENT)) if parts.hostname and pods else None
            )
        return self._agents[address]

    def _open(self, pod: Object, port: int) -> stream.Stream:
        path = f"{self._cluster.core}/pods/{pod['metadata']['name']}/portforward"
        return stream.connect(self._cluster.api.login, path, [("ports", str(port))], [_PROTOCOL])

    def _listen(self, reach: Callable[[], stream.Stream]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        self._stack.callback(listener.close)
        # Closing alone does not wake up whoever waits for a connection.
        self._stack.callback(lambda: listener.shutdown(socket.SHUT_RDWR))
        threading.Thread(target=_accept, args=(listener, reach), daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def _port(head: Object) -> int:
    """What the dashboard listens on."""
    ports = [port for container in head["spec"]["containers"] for port in container.get("ports") or ()]
    return next((int(port["containerPort"]) for port in ports if port.get("name") == "dashboard"), DASHBOARD)


def _accept(listener: socket.socket, reach: Callable[[], stream.Stream]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # closed
        threading.Thread(target=_serve, args=(connection, reach), daemon=True).start()


def _serve(connection: socket.socket, reach: Callable[[], stream.Stream]) -> None:
    """Forward one connection; where that cannot be done it is closed, and whoever made it says so."""
    with connection, suppress(ClientError, OSError), reach() as there:
        _copy(connection, there)


def _copy(here: socket.socket, there: stream.Stream) -> None:
    """Pass bytes on, both ways, until either side ends."""
    here.setblocking(False)
    held, begun = bytearray(), set[int]()
    while held or not there.closed:
        poll = select.poll()
        if not there.closed:
            poll.register(there, there.events if len(held) < _HELD else there.events & ~select.POLLIN)
        poll.register(
            here,
            (select.POLLIN if there.unsent < _HELD and not there.closed else 0) | (select.POLLOUT if held else 0),
        )
        ready = dict(poll.poll(0 if there.waiting and len(held) < _HELD else _IDLE_SECONDS * 1000))
        if not ready and not there.waiting:
            return
        if ready.get(here.fileno(), 0) & (select.POLLIN | select.POLLHUP | select.POLLERR) and not there.closed:
            if not (data := here.recv(_CHUNK)):
                return
            there.send(_DATA, data)
        there.write()
        if len(held) < _HELD:
            for channel, data in there.read():
                if channel not in begun:
                    begun.add(channel)  # the first message of each channel is the port's number
                elif channel == _ERROR:
                    return
                else:
                    held += data
        if held:
            with suppress(BlockingIOError):
                del held[: here.send(held)]
