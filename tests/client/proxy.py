"""A misbehaving HTTP/1.1 proxy in front of one upstream: a plain pass-through until a fault is asked for."""

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

TICK = 0.02  # how soon a blocked thread notices a fault that was set, or that it should end
CHUNK = 1 << 18
BLANK = b"\r\n\r\n"


@dataclass
class Faults:
    """Set any of them, at any time."""

    cut_after_seconds: float | None = None  # RST, that long after the connection was accepted
    cut_after_bytes: int | None = None  # FIN, after that many bytes to the client
    silent_after_bytes: int | None = None  # from then on nothing is sent, but the connection stays open
    false_end_bytes: int | None = None  # a longer GET response body ends validly after exactly that many bytes
    lose_replies: int = 0  # so many next POSTs reach the upstream, but their replies are lost
    status: int | None = None  # the proxy answers with this and does not ask the upstream
    match: str = ""  # only paths with this in them; cut_after_seconds and lose_replies hit any


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
        while self._threads:  # the first is the one that adds others
            self._threads.pop(0).join()
        self._listener.close()

    def refuse(self, seconds: float) -> None:
        """End all connections and refuse new ones for that long."""
        self.count("refused")
        address = self._listener.getsockname()
        self.__exit__()
        self._bind(address)  # without listening: it only keeps the port
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
    """One client's connection. Each request gets an upstream connection of its own."""

    def __init__(self, proxy: FaultProxy, sock: socket.socket) -> None:
        super().__init__(daemon=True)
        self.proxy, self.closing = proxy, proxy.closing
        self.client = _Stream(self, sock)
        self.accepted = time.monotonic()
        self.matched = False  # the request at hand, by `Faults.match`
        self.until_close = False  # the reply at hand ends only with the connection
        self.sent = 0  # to the client, in replies to matched requests

    def run(self) -> None:
        with self.client.sock as sock:
            try:
                while self._exchange():
                    pass
                sock.shutdown(socket.SHUT_WR)
            except OSError:  # a fault, or one side is gone: the close becomes a RST
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except EOFError:  # a fault that ends with a FIN
                pass

    def check(self) -> None:
        limit = self.proxy.faults.cut_after_seconds
        cut = limit is not None and time.monotonic() - self.accepted >= limit
        if cut:
            self.proxy.count("cut_after_seconds")
        if cut or self.closing.is_set():
            raise ConnectionError("cut")

    def _exchange(self) -> bool:
        """Carry one request and its reply; say whether another may follow."""
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
            while (head := upstream.until(BLANK)).startswith(b"HTTP/1.1 1"):  # such as 100 Continue
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
        """Yield a body as it came, chunk marks and all; one of unknown length ends validly at the limit."""
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
            while mark.strip():  # the last chunk, then perhaps trailers
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
            # A FIN would pass for a proper end of a body that only the close ends.
            raise ConnectionError(fault) if self.until_close else EOFError(fault)


class _Stream:
    """A socket that is read and written in short waits, between which its connection may be told to end."""

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
        """Whatever comes next, at most so much; nothing at the end."""
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
        """Everything up to the mark, and the mark."""
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
    """Whether the end of the body can be told without the end of the connection."""
    return b"chunked" in _field(head, b"transfer-encoding") or bool(_field(head, b"content-length"))


def _keeps(head: bytes) -> bool:
    return b"HTTP/1.0" not in head.split(b"\r\n", 1)[0] and b"close" not in _field(head, b"connection")


def _shorten(head: bytes, size: int) -> bytes:
    """Make the head say that what was asked for ends after so many bytes."""
    if part := re.search(rb"(?im)^content-range:[ \t]*bytes (\d+)-(\d+/\S+)", head):
        end = int(part[1]) + size
        head = head[: part.start(2)] + b"%d/%d" % (end - 1, end) + head[part.end(2) :]
    return re.sub(rb"(?im)^(content-length:[ \t]*)\d+", rb"\g<1>%d" % size, head)


def _answer(status: int, method: str) -> bytes:
    text = f"{status} from the proxy\n"
    head = f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\nContent-Type: text/plain\r\n"
    return f"{head}Content-Length: {len(text)}\r\n\r\n{text if method != 'HEAD' else ''}".encode()
