"""An HTTP/1.1 proxy in front of one upstream that injects faults; without a fault it passes everything through."""

import collections
import contextlib
import http
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

TICK = 0.02  # seconds until a blocked thread notices a new fault or the end of the proxy
CHUNK = 1 << 18
BLANK = b"\r\n\r\n"


@dataclass
class Faults:
    """The faults to inject. Each can be set at any time."""

    cut_after_seconds: float | None = None  # sends RST this long after the connection was accepted
    cut_after_bytes: int | None = None  # sends FIN after this many bytes to the client
    silent_after_bytes: int | None = None  # after this many bytes, sends nothing but keeps the connection open
    false_end_bytes: int | None = None  # truncates longer GET response bodies to this size, with valid framing
    lose_replies: int = 0  # the number of next POSTs that reach the upstream but get no reply
    status: int | None = None  # the proxy replies with this status and does not forward the request
    match: str = ""  # a part of the affected paths; cut_after_seconds and lose_replies affect all paths


class FaultProxy:
    def __init__(self, upstream: tuple[str, int], faults: Faults | None = None, *, host: str = "127.0.0.1") -> None:
        self.upstream = upstream
        self.faults = faults or Faults()
        self.fired: collections.Counter[str] = collections.Counter()
        self.requests: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._timer = threading.Timer(0, self._listen)
        self._bind((host, 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://{host}:{self.port}"

    def __enter__(self) -> Self:
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._timer.ident:
            self._timer.join()
        self.closing.set()
        while self._threads:  # the first thread adds the others
            self._threads.pop(0).join()
        self._listener.close()

    def refuse(self, seconds: float) -> None:
        """Close all connections, and refuse new ones for this many seconds."""
        self.count("refused")
        address = self._listener.getsockname()
        self.__exit__()
        self._bind(address)  # bound but not listening: keeps the port and refuses connections
        self._timer = threading.Timer(seconds, self._listen)
        self._timer.daemon = True
        self._timer.start()

    def count(self, what: str) -> None:
        with self._lock:
            self.fired[what] += 1

    def loses_reply(self) -> bool:
        with self._lock:
            lost = self.faults.lose_replies > 0
            self.faults.lose_replies -= lost
        if lost:
            self.count("lose_replies")
        return lost

    def _bind(self, address: tuple[str, int]) -> None:
        self.closing = threading.Event()
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.settimeout(TICK)
        self._listener.bind(address)

    def _listen(self) -> None:
        self._listener.listen(128)
        self._start(threading.Thread(target=self._accept, daemon=True))

    def _start(self, thread: threading.Thread) -> None:
        self._threads = [old for old in self._threads if old.is_alive()] + [thread]
        thread.start()

    def _accept(self) -> None:
        while not self.closing.is_set():
            with contextlib.suppress(TimeoutError):
                sock, _ = self._listener.accept()
                self.count("connections")
                self._start(_Connection(self, sock))


class _Connection(threading.Thread):
    """A connection from a client. Each request gets its own connection to the upstream."""

    def __init__(self, proxy: FaultProxy, sock: socket.socket) -> None:
        super().__init__(daemon=True)
        self.proxy, self.closing = proxy, proxy.closing
        self.client = _Stream(self, sock)
        self.accepted = time.monotonic()
        self.matched = False  # whether the current request matches `Faults.match`
        self.until_close = False  # whether the current reply ends only when the connection closes
        self.sent = 0  # bytes sent to the client in replies to matching requests

    def run(self) -> None:
        with self.client.sock as sock:
            try:
                while self._exchange():
                    pass
                sock.shutdown(socket.SHUT_WR)
            except OSError:  # a fault, or one side is gone: close with RST
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except EOFError:  # a fault that closes with FIN
                pass

    def check(self) -> None:
        limit = self.proxy.faults.cut_after_seconds
        cut = limit is not None and time.monotonic() - self.accepted >= limit
        if cut:
            self.proxy.count("cut_after_seconds")
        if cut or self.closing.is_set():
            raise ConnectionError("cut")

    def _exchange(self) -> bool:
        """Forward one request and its reply. Returns whether another request can follow."""
        proxy, faults = self.proxy, self.proxy.faults
        request = self.client.until(BLANK)
        method, path, _ = request.decode("latin-1").split(" ", 2)
        proxy.requests.append((method, path))
        proxy.count("requests")
        self.matched, self.until_close = faults.match in path, False
        body = self._body(self.client, request, None) if _framed(request) else iter(())
        if self.matched and faults.status is not None:
            proxy.count("status")
            collections.deque(body, maxlen=0)
            self._reply(_answer(faults.status, method))
            return _keeps(request)
        with socket.create_connection(proxy.upstream) as sock:
            upstream = _Stream(self, sock)
            upstream.send(request)
            for piece in body:
                upstream.send(piece)
            while (head := upstream.until(BLANK)).startswith(b"HTTP/1.1 1"):  # for example 100 Continue
                self._reply(head)
            if method == "POST" and proxy.loses_reply():
                raise EOFError("the reply is lost")
            limit = faults.false_end_bytes if self.matched and method == "GET" else None
            if limit is not None and int(_field(head, b"content-length") or 0) > limit:
                proxy.count("false_end_bytes")
                head = _shorten(head, limit)
            bodiless = method == "HEAD" or head.split()[1] in (b"204", b"304")
            self.until_close = not bodiless and not _framed(head)
            self._reply(head)
            for piece in () if bodiless else self._body(upstream, head, limit):
                self._reply(piece)
        return _keeps(request) and _keeps(head) and not self.until_close

    def _body(self, source: "_Stream", head: bytes, limit: int | None) -> Iterator[bytes]:
        """Yield a body unchanged, including chunk headers. A body of unknown length is truncated at the limit."""
        left = sys.maxsize if limit is None else limit
        if length := _field(head, b"content-length"):
            yield from source.exactly(int(length))
        elif _framed(head):
            while size := int((mark := source.until(b"\r\n")).split(b";")[0], 16):
                if size > left:
                    self.proxy.count("false_end_bytes")
                    if left:
                        yield b"%x\r\n%s\r\n" % (left, b"".join(source.exactly(left)))
                    yield b"0" + BLANK
                    return
                left -= size
                yield mark
                yield from source.exactly(size + 2)
            while mark.strip():  # the last chunk and any trailers
                yield mark
                mark = source.until(b"\r\n")
            yield mark
        else:
            while piece := source.some(left):
                left -= len(piece)
                yield piece
            if not left and source.some():
                self.proxy.count("false_end_bytes")

    def _reply(self, data: bytes) -> None:
        limits = {name: getattr(self.proxy.faults, name) for name in ("silent_after_bytes", "cut_after_bytes")}
        hits = [(limit, name) for name, limit in limits.items() if self.matched and limit is not None]
        limit, fault = min(hits, default=(sys.maxsize, ""))
        hit = self.sent + len(data) >= limit
        if hit:
            self.proxy.count(fault)
            data = data[: max(0, limit - self.sent)]
        self.client.send(data)
        self.sent += len(data) if self.matched else 0
        if hit:
            while fault == "silent_after_bytes" and self.client.some():
                pass
            # If a body ends only when the connection closes, FIN would be its normal end.
            raise ConnectionError(fault) if self.until_close else EOFError(fault)


class _Stream:
    """A socket that blocks only for a TICK at a time, then checks whether the connection should be cut."""

    def __init__(self, connection: _Connection, sock: socket.socket) -> None:
        sock.settimeout(TICK)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection, self.sock, self.buffer = connection, sock, bytearray()

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self.connection.check()
            with contextlib.suppress(TimeoutError):
                view = view[self.sock.send(view) :]

    def some(self, limit: int = CHUNK) -> bytes:
        """Return the next bytes, at most `limit`; empty at the end."""
        if not self.buffer:
            return self._receive(min(limit, CHUNK))
        data = bytes(self.buffer[:limit])
        del self.buffer[:limit]
        return data

    def exactly(self, size: int) -> Iterator[bytes]:
        while size:
            piece = self.some(size)
            if not piece:
                raise ConnectionError("closed in the middle of a body")
            size -= len(piece)
            yield piece

    def until(self, mark: bytes) -> bytes:
        """Return everything up to and including the mark."""
        while (at := self.buffer.find(mark)) < 0:
            data = self._receive(CHUNK)
            if not data:
                raise ConnectionError("closed between or in the middle of messages")
            self.buffer += data
        return self.some(at + len(mark))

    def _receive(self, limit: int) -> bytes:
        while True:
            self.connection.check()
            with contextlib.suppress(TimeoutError):
                return self.sock.recv(limit)


def _field(head: bytes, name: bytes) -> bytes:
    found = re.search(rb"(?im)^%s:[ \t]*(.*?)[ \t]*\r?$" % name, head)
    return found[1].lower() if found else b""


def _framed(head: bytes) -> bool:
    """Whether the headers define where the body ends."""
    return b"chunked" in _field(head, b"transfer-encoding") or bool(_field(head, b"content-length"))


def _keeps(head: bytes) -> bool:
    return b"HTTP/1.0" not in head.split(b"\r\n", 1)[0] and b"close" not in _field(head, b"connection")


def _shorten(head: bytes, size: int) -> bytes:
    """Change the headers of a response so that its body has this size."""
    if part := re.search(rb"(?im)^content-range:[ \t]*bytes (\d+)-(\d+/\S+)", head):
        end = int(part[1]) + size
        head = head[: part.start(2)] + b"%d/%d" % (end - 1, end) + head[part.end(2) :]
    return re.sub(rb"(?im)^(content-length:[ \t]*)\d+", rb"\g<1>%d" % size, head)


def _answer(status: int, method: str) -> bytes:
    text = f"{status} from the proxy\n"
    head = f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\nContent-Type: text/plain\r\n"
    return f"{head}Content-Length: {len(text)}\r\n\r\n{text if method != 'HEAD' else ''}".encode()
