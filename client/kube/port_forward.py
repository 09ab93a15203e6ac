"""Local ports that lead to pods, for a login that may not use the API server's proxy.

Each connection has its own stream to the pod that exists at the time, so a lost connection or a new head affects no
other. `kubernetes.stream.portforward` is one connection for good, reads on while the other side is slow, and needs
certificates as files. Other users of this machine can connect to these ports, but they still need Ray's token.
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
_DATA, _ERROR = 0, 1  # channels
_CHUNK = 1 << 15
_BUFFER_LIMIT = 1 << 18  # bytes to buffer for either side
_IDLE_SECONDS = 600.0


class PortForwards:
    """The local ports of one cluster. They are open as long as the context is."""

    def __init__(self, cluster: Cluster) -> None:
        """Open no port yet.

        Args:
            cluster: whose pods the ports lead to.
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
            Forbidden: the login may not use port-forwards either.
        """
        if head := self._cluster.head():
            with suppress(Unreachable), self._connect(head, _dashboard_port(head)):
                pass

    def dashboard(self) -> str:
        """A URL of the dashboard. Each connection goes to the pod that is the head at that time."""

        def connect() -> stream.Stream:
            head = self._cluster.existing_head()
            return self._connect(head, _dashboard_port(head))

        return self._listen(connect)

    def agent(self, address: str) -> str | None:
        """A URL of a node agent; None if no pod of the cluster has its address."""
        if address not in self._agents:
            parts = urlsplit(address)
            pods = [p for p in self._cluster.pods() if p.get("status", {}).get("podIP") == parts.hostname]
            self._agents[address] = (
                self._listen(lambda: self._connect(pods[0], parts.port or AGENT)) if parts.hostname and pods else None
            )
        return self._agents[address]

    def _connect(self, pod: Object, port: int) -> stream.Stream:
        path = f"{self._cluster.core}/pods/{pod['metadata']['name']}/portforward"
        return stream.connect(self._cluster.api.login, path, [("ports", str(port))], [_PROTOCOL])

    def _listen(self, connect: Callable[[], stream.Stream]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        self._stack.callback(listener.close)
        self._stack.callback(lambda: listener.shutdown(socket.SHUT_RDWR))  # `close` alone does not end `accept`
        threading.Thread(target=_accept, args=(listener, connect), daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def _dashboard_port(head: Object) -> int:
    ports = [port for container in head["spec"]["containers"] for port in container.get("ports") or ()]
    return next((int(port["containerPort"]) for port in ports if port.get("name") == "dashboard"), DASHBOARD)


def _accept(listener: socket.socket, connect: Callable[[], stream.Stream]) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return  # closed
        threading.Thread(target=_serve, args=(client, connect), daemon=True).start()


def _serve(client: socket.socket, connect: Callable[[], stream.Stream]) -> None:
    """Forward one connection. If that fails, the connection is closed, and its client reports it."""
    with client, suppress(ClientError, OSError), connect() as pod:
        _copy(client, pod)


def _copy(client: socket.socket, pod: stream.Stream) -> None:
    """Copy bytes both ways until either side ends."""
    client.setblocking(False)
    unsent, opened_channels = bytearray(), set[int]()
    while unsent or not pod.closed:
        poll = select.poll()
        if not pod.closed:
            poll.register(pod, pod.events if len(unsent) < _BUFFER_LIMIT else pod.events & ~select.POLLIN)
        can_read = pod.unsent < _BUFFER_LIMIT and not pod.closed
        poll.register(client, (select.POLLIN if can_read else 0) | (select.POLLOUT if unsent else 0))
        ready = dict(poll.poll(0 if pod.pending and len(unsent) < _BUFFER_LIMIT else _IDLE_SECONDS * 1000))
        if not ready and not pod.pending:
            return
        if ready.get(client.fileno(), 0) & (select.POLLIN | select.POLLHUP | select.POLLERR) and not pod.closed:
            if not (data := client.recv(_CHUNK)):
                return
            pod.send(_DATA, data)
        pod.write()
        if len(unsent) < _BUFFER_LIMIT:
            for channel, data in pod.read():
                if channel not in opened_channels:
                    opened_channels.add(channel)  # the first message of each channel is the port's number
                elif channel == _ERROR:
                    return
                else:
                    unsent += data
        if unsent:
            with suppress(BlockingIOError):
                del unsent[: client.send(unsent)]
