"""A two-way stream of the API server: a WebSocket, each message of which begins with the number of its channel.

websocket-client connects. It does not read and write here: its calls block, and its answer to a ping may go out inside
a frame half sent. The `kubernetes` package builds on them; it also grows each channel by `+=`, wants certificates
as files, and does not tell a command's end from a lost connection. Here one thread waits for everything with `poll`.
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
from client.http import reason
from client.kube.api import status_error

if TYPE_CHECKING:
    import socket

    from client.kube.login import Login

CLOSE = 255  # the channel that says that another one ends, from v5.channel.k8s.io on
_TIMEOUT = 10.0  # seconds to connect
_READ = 1 << 18
_CONTINUED, _TEXT, _BINARY, _BYE, _PING, _PONG = 0, 1, 2, 8, 9, 10
_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Stream:
    """One connection. It does not block; whoever has it waits for `fileno` with `events`."""

    def __init__(self, connection: "socket.socket", protocol: str) -> None:
        """Take over a connection.

        Args:
            connection: on which the WebSocket has been agreed.
            protocol: the subprotocol that the server chose.
        """
        connection.setblocking(False)
        self.protocol = protocol
        self.closed = False
        self.heard = time.monotonic()  # when the server last said anything
        self._socket = connection
        self._in, self._out, self._parts = bytearray(), bytearray(), bytearray()
        self._sent = self._answered = 0  # messages of ours, and those known to be taken

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.closed:
            self._frame(_BYE, struct.pack("!H", 1000))
            self.write()
        self._socket.close()

    def fileno(self) -> int:
        """For `poll`."""
        return self._socket.fileno()

    @property
    def events(self) -> int:
        """What to wait for."""
        return select.POLLIN | (select.POLLOUT if self._out else 0)

    @property
    def unsent(self) -> int:
        """Bytes that wait for the server to take them."""
        return len(self._out)

    @property
    def waiting(self) -> bool:
        """Whether there is more to read that `poll` does not see: TLS hands out whole records."""
        return isinstance(self._socket, ssl.SSLSocket) and self._socket.fileno() >= 0 and self._socket.pending() > 0

    @property
    def unanswered(self) -> bool:
        """Whether the server has not yet taken all that was sent: a pong comes after it only."""
        return self._answered < self._sent

    def send(self, channel: int, data: bytes) -> None:
        """Queue a message; `write` sends it."""
        self._sent += 1
        self._frame(_BINARY, bytes([channel]) + data)

    def ping(self) -> None:
        """Queue a ping, which the server answers when it has taken what was sent before."""
        self._frame(_PING, str(self._sent).encode())

    def _frame(self, opcode: int, payload: bytes) -> None:
        size, key = len(payload), os.urandom(4)
        if size < 126:
            head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
        elif size < 1 << 16:
            head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
        mask = int.from_bytes((key * (size // 4 + 1))[:size])
        self._out += head + key + (int.from_bytes(payload) ^ mask).to_bytes(size)

    def write(self) -> None:
        """Send what the connection takes now."""
        try:
            while self._out and not self.closed:
                with memoryview(self._out)[:_READ] as part:
                    sent = self._socket.send(part)
                del self._out[:sent]
        except _LATER:
            pass
        except OSError:
            self._out.clear()  # what the server sent before is there to be read, and `read` finds the end

    def read(self) -> list[tuple[int, bytes]]:
        """The messages that are there, as channel and content; `closed` is set at the end."""
        try:
            most = len(self._in) + _READ
            while len(self._in) < most:
                if not (data := self._socket.recv(_READ)):
                    self.closed = True
                    break
                self.heard = time.monotonic()
                self._in += data
        except _LATER:
            pass
        except OSError:
            self.closed = True
        messages = []
        while frame := self._next():
            opcode, last, payload = frame
            if opcode == _BYE:
                self.closed = True
            elif opcode == _PING:
                self._frame(_PONG, payload)
            elif opcode == _PONG:
                self._answered = max(self._answered, int(payload) if payload.isdigit() else 0)
            else:
                self._parts += payload
                if last and self._parts:
                    messages.append((self._parts[0], bytes(self._parts[1:])))
                if last:
                    self._parts.clear()
        return messages

    def _next(self) -> tuple[int, bool, bytes] | None:
        """Take a whole frame off what was read."""
        if len(self._in) < 2:
            return None
        size, start = self._in[1] & 0x7F, 2
        if size > 125:
            start = 4 if size == 126 else 10
            if len(self._in) < start:
                return None
            size = int.from_bytes(self._in[2:start])
        if len(self._in) < start + size:
            return None
        opcode, last = self._in[0] & 0x0F, bool(self._in[0] & 0x80)
        payload = bytes(self._in[start : start + size])
        del self._in[: start + size]
        return opcode, last, payload


def connect(login: "Login", path: str, query: list[tuple[str, str]], protocols: list[str]) -> Stream:
    """Connect to a path of the API server.

    Args:
        login: to it.
        path: of the resource.
        query: its parameters.
        protocols: the subprotocols that we speak, the best first.

    Raises:
        Forbidden: the login may not do that.
        NotAuthorised: the login is not taken.
        NotFound: there is no such object.
        Unreachable: no answer, or no stream.
    """
    import websocket

    server = login.server
    address = f"{server.url}{path}?{urlencode(query)}"
    request = requests.Request("GET", address, auth=server.auth).prepare()
    header = [f"{name}: {request.headers[name]}" for name in ("Authorization",) if name in request.headers]
    proxy = urlsplit(server.proxy or "")
    if proxy.scheme not in ("", "http"):
        raise UsageError(f"the kubeconfig's proxy-url is {proxy.scheme}://", "this command needs an http:// proxy")
    tls = {"context": server.tls, "server_hostname": server.server_name}
    connection = websocket.WebSocket(sslopt=tls, enable_multithread=False)
    try:
        connection.connect(
            "ws" + address.removeprefix("http"),
            header=header,
            subprotocols=protocols,
            suppress_origin=True,
            timeout=_TIMEOUT,
            redirect_limit=0,
            http_proxy_host=proxy.hostname,
            http_proxy_port=proxy.port or 80,
            http_proxy_auth=(unquote(proxy.username), unquote(proxy.password or "")) if proxy.username else None,
            http_no_proxy=[""] if proxy.hostname else None,  # the environment's exceptions are from its own proxy
            proxy_type="http",
        )
    except websocket.WebSocketBadStatusException as error:
        raise _refused(server.url, error.status_code, error.resp_body or b"") from error
    except (OSError, ValueError, websocket.WebSocketException) as error:
        raise Unreachable(f"{server.url} gives no stream: {reason(error)}", "check the proxies on the way") from error
    assert connection.sock is not None
    return Stream(connection.sock, connection.subprotocol or "")


def _refused(url: str, status: int, body: bytes) -> ClientError:
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        message = body.decode(errors="replace").strip()[:200] or "no reason given"
    return status_error(url, status, message)
