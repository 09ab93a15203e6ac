"""A two-way stream of the API server: a WebSocket, each message of which begins with the number of its channel.

websocket-client makes the connection, but does not read or write on it: its calls block, and it may send the answer to
a ping in the middle of another frame. The `kubernetes` package uses these calls; it also copies the whole buffer of a
channel for each message, needs certificates as files, and reports a lost connection as the end of the command. Here one
thread waits for everything with `poll`.
"""

import json
import os
import select
import ssl
import struct
import time
from typing import TYPE_CHECKING, Self
from urllib.parse import unquote, urlencode, urlsplit

import requests

from client.errors import ClientError, Unreachable, UsageError
from client.http import proxy_url, reason
from client.kube.api import status_error

if TYPE_CHECKING:
    import socket

    from client.kube.login import Login

CLOSE = 255  # the channel whose messages close another channel, from v5.channel.k8s.io on
_CONNECT_SECONDS = 10.0
_PING_SECONDS = 10.0  # proxies may end an idle connection
_SILENT_SECONDS = 60.0
_CHUNK = 1 << 18
_BINARY, _CLOSE, _PING, _PONG = 2, 8, 9, 10  # opcodes of RFC 6455
_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Stream:
    """One connection. Its calls do not block; its user polls `fileno` for `events`."""

    def __init__(self, connection: "socket.socket", protocol: str) -> None:
        """Take over a connection.

        Args:
            connection: a socket after the WebSocket handshake.
            protocol: the subprotocol that the server chose.
        """
        connection.setblocking(False)
        self.protocol = protocol
        self.closed = False
        self.last_received = self._last_ping = time.monotonic()
        self._socket = connection
        self._input, self._output, self._message = bytearray(), bytearray(), bytearray()
        self._sent = self._acknowledged = 0  # counts of messages

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.closed:
            self._queue(_CLOSE, struct.pack("!H", 1000))
            self.write()
        self._socket.close()

    def fileno(self) -> int:
        """The socket's descriptor, for `poll`."""
        return self._socket.fileno()

    @property
    def events(self) -> int:
        """What to poll for."""
        return select.POLLIN | (select.POLLOUT if self._output else 0)

    @property
    def unsent(self) -> int:
        """The number of bytes that are queued."""
        return len(self._output)

    @property
    def pending(self) -> bool:
        """Whether there is input that `poll` does not see: TLS has decrypted a whole record."""
        return isinstance(self._socket, ssl.SSLSocket) and self._socket.fileno() >= 0 and self._socket.pending() > 0

    @property
    def poll_seconds(self) -> float:
        """How long `poll` may wait: until the next ping."""
        return 0.0 if self.pending else max(0.0, self._last_ping + _PING_SECONDS - time.monotonic())

    def keep_alive(self, *, reads_at_once: bool = False) -> None:
        """Ping in time, and close a connection that is dead.

        Args:
            reads_at_once: the other side reads all that it is sent. A command that does not read its stdin keeps even
                pongs back.
        """
        now, unread = time.monotonic(), self._acknowledged < self._sent
        if now - self.last_received > _SILENT_SECONDS and (reads_at_once or not unread):
            self.closed = True
        elif now - self._last_ping >= _PING_SECONDS:
            self._last_ping = now
            self.ping()
            self.write()

    def send(self, channel: int, data: bytes) -> None:
        """Queue a message; `write` sends it."""
        self._sent += 1
        self._queue(_BINARY, bytes([channel]) + data)

    def ping(self) -> None:
        """Queue a ping, which the server answers when it has read the messages before it."""
        self._queue(_PING, str(self._sent).encode())

    def _queue(self, opcode: int, payload: bytes) -> None:
        size, key = len(payload), os.urandom(4)
        if size < 126:
            head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
        elif size < 1 << 16:
            head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
        mask = int.from_bytes((key * (size // 4 + 1))[:size])
        self._output += head + key + (int.from_bytes(payload) ^ mask).to_bytes(size)

    def write(self) -> None:
        """Send as much as the connection takes without blocking."""
        try:
            while self._output and not self.closed:
                with memoryview(self._output)[:_CHUNK] as part:
                    sent = self._socket.send(part)
                del self._output[:sent]
        except _WOULD_BLOCK:
            pass
        except OSError:
            self._output.clear()  # not closed yet: `read` returns what the server sent before, and finds the end

    def read(self) -> list[tuple[int, bytes]]:
        """The messages received so far, as channel and content. At the end of the connection `closed` is set."""
        try:
            limit = len(self._input) + _CHUNK
            while len(self._input) < limit:
                if not (data := self._socket.recv(_CHUNK)):
                    self.closed = True
                    break
                self.last_received = time.monotonic()
                self._input += data
        except _WOULD_BLOCK:
            pass
        except OSError:
            self.closed = True
        messages = []
        while frame := self._next_frame():
            opcode, is_final, payload = frame
            if opcode == _CLOSE:
                self.closed = True
            elif opcode == _PING:
                self._queue(_PONG, payload)
            elif opcode == _PONG:
                self._acknowledged = max(self._acknowledged, int(payload) if payload.isdigit() else 0)
            else:
                self._message += payload
                if is_final and self._message:
                    messages.append((self._message[0], bytes(self._message[1:])))
                if is_final:
                    self._message.clear()
        return messages

    def _next_frame(self) -> tuple[int, bool, bytes] | None:
        """Remove a frame from the input, if a whole one is there: its opcode, whether it is final, and its payload."""
        if len(self._input) < 2:
            return None
        size, start = self._input[1] & 0x7F, 2
        if size > 125:
            start = 4 if size == 126 else 10
            if len(self._input) < start:
                return None
            size = int.from_bytes(self._input[2:start])
        if len(self._input) < start + size:
            return None
        opcode, is_final = self._input[0] & 0x0F, bool(self._input[0] & 0x80)
        payload = bytes(self._input[start : start + size])
        del self._input[: start + size]
        return opcode, is_final, payload


def connect(login: "Login", path: str, query: list[tuple[str, str]], protocols: list[str]) -> Stream:
    """Connect to a path of the API server.

    Args:
        login: to the API server.
        path: of the subresource, such as a pod's `exec`.
        query: its parameters.
        protocols: the subprotocols that we speak, the best first.

    Raises:
        Forbidden: the login may not do that.
        NotAuthorised: the API server does not accept the login.
        NotFound: there is no such object.
        Unreachable: no answer, or no WebSocket.
        UsageError: the proxy on the way is not an HTTP proxy.
    """
    import websocket

    server = login.server
    address = f"{server.url}{path}?{urlencode(query)}"
    request = requests.Request("GET", address, auth=server.auth).prepare()
    header = [f"{name}: {request.headers[name]}" for name in ("Authorization",) if name in request.headers]
    proxy = urlsplit(proxy_url(server))
    if proxy.scheme not in ("", "http"):
        what = f"this command cannot use the {proxy.scheme}:// proxy to {server.url}"
        raise UsageError(what, "set an http:// proxy as the cluster's proxy-url in the kubeconfig")
    tls = {"context": server.tls, "server_hostname": server.server_name}
    connection = websocket.WebSocket(sslopt=tls, enable_multithread=False)
    try:
        connection.connect(
            "ws" + address.removeprefix("http"),
            header=header,
            subprotocols=protocols,
            suppress_origin=True,
            timeout=_CONNECT_SECONDS,
            redirect_limit=0,
            # Where it is told of no proxy, websocket-client takes the environment's, by other rules than `requests`.
            http_proxy_host=proxy.hostname or "none",
            http_proxy_port=proxy.port or 80,
            http_proxy_auth=(unquote(proxy.username), unquote(proxy.password or "")) if proxy.username else None,
            http_no_proxy=[""] if proxy.hostname else ["*"],
            proxy_type="http",
        )
    except websocket.WebSocketBadStatusException as error:
        raise _refused(server.url, error.status_code, error.resp_body or b"") from error
    except (OSError, ValueError, websocket.WebSocketException) as error:
        what = f"{server.url} does not open a WebSocket ({reason(error)})"
        raise Unreachable(what, "check the proxies on the way") from error
    assert connection.sock is not None
    return Stream(connection.sock, connection.subprotocol or "")


def _refused(url: str, status: int, body: bytes) -> ClientError:
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        message = body.decode(errors="replace").strip()[:200] or "no reason given"
    return status_error(url, status, message)
