import hashlib
import http.client
import http.server
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from tests.client.proxy import FaultProxy, Faults

DATA = random.Random(0).randbytes(5_000_000)
CHUNK = 70_000


class Upstream(http.server.ThreadingHTTPServer):
    daemon_threads = False  # so that closing it waits for them
    posts = 0

    def handle_error(self, *_: object) -> None:
        """Ignore errors: the proxy cuts connections on purpose."""


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the data: /data with a length and ranges, /chunked in chunks, /close until the connection closes."""

    protocol_version = "HTTP/1.1"
    server: Upstream

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if self.path == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
        elif self.path != "/close":
            self.send_header("Content-Length", str(len(body)))
        self.close_connection |= self.path == "/close"
        self.end_headers()
        if self.command != "HEAD":
            for start in range(0, len(body), CHUNK):
                piece = body[start : start + CHUNK]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if self.path == "/chunked" else piece)
            self.wfile.write(b"0\r\nX-Trailer: yes\r\n\r\n" if self.path == "/chunked" else b"")

    def do_GET(self) -> None:
        if not (asked := re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")):
            return self.answer(200, DATA)
        start = int(asked[1])
        if start >= len(DATA):
            return self.answer(416, b"", Content_Range=f"bytes */{len(DATA)}")
        return self.answer(206, DATA[start:], Content_Range=f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        digest = hashlib.sha256()
        if self.headers["Transfer-Encoding"] == "chunked":
            while size := int(self.rfile.readline(), 16):
                digest.update(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
        else:
            digest.update(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(200, digest.hexdigest().encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts += 1
        self.answer(200, b"posted")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(upstream: Upstream) -> Iterator[FaultProxy]:
    before = threading.active_count()
    with FaultProxy(("127.0.0.1", upstream.server_port)) as proxy:
        yield proxy
    names = [thread.name for thread in threading.enumerate() if "process_request" not in thread.name]
    assert len(names) <= before, names


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[http.client.HTTPConnection]:
    with closing(http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)) as connection:
        yield connection


def get(client: http.client.HTTPConnection, path: str, **headers: str) -> tuple[int, bytes]:
    client.request("GET", path, headers=headers)
    reply = client.getresponse()
    return reply.status, reply.read()


def raw_get(proxy: FaultProxy, path: str = "/data") -> socket.socket:
    sock = socket.socket()
    sock.settimeout(20)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)  # much smaller than the data
    sock.connect(("127.0.0.1", proxy.port))
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
    return sock


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(1 << 16), b""))


@pytest.mark.parametrize("path", ["/data", "/chunked", "/close"])
def test_without_faults_nothing_changes(
    proxy: FaultProxy, upstream: Upstream, client: http.client.HTTPConnection, path: str
) -> None:
    assert get(client, path) == (200, DATA)
    replies = []
    for port in (proxy.port, upstream.server_port):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
            replies.append(re.sub(rb"\r\nDate: [^\r]*", b"", read_all(sock)))
    assert replies[0] == replies[1]
    assert proxy.requests == [("GET", path)] * 2
    assert proxy.fired == {"connections": 2, "requests": 2}


def test_one_connection_carries_everything(proxy: FaultProxy, client: http.client.HTTPConnection) -> None:
    client.request("HEAD", "/data")
    reply = client.getresponse()
    assert (reply.headers["Content-Length"], reply.read()) == (str(len(DATA)), b"")
    client.request("PUT", "/data", DATA)
    assert client.getresponse().read().decode() == hashlib.sha256(DATA).hexdigest()
    client.request("PUT", "/data", iter([DATA[:10], DATA[10:]]), encode_chunked=True)
    assert client.getresponse().read().decode() == hashlib.sha256(DATA).hexdigest()
    assert get(client, "/data", Range="bytes=4999990-") == (206, DATA[-10:])
    assert get(client, "/data", Range="bytes=5000000-") == (416, b"")
    assert proxy.fired == {"connections": 1, "requests": 5}


def test_other_loopback_address(upstream: Upstream) -> None:
    with FaultProxy(("127.0.0.1", upstream.server_port), host="127.0.0.2") as proxy:
        assert proxy.url == f"http://127.0.0.2:{proxy.port}"
        with closing(http.client.HTTPConnection("127.0.0.2", proxy.port, timeout=20)) as client:
            assert get(client, "/data") == (200, DATA)


def test_upstream_gone(client: http.client.HTTPConnection, upstream: Upstream) -> None:
    upstream.socket.close()
    with pytest.raises(ConnectionError):
        get(client, "/data")


def test_cut_after_seconds(proxy: FaultProxy) -> None:
    proxy.faults.cut_after_seconds = 0.2
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as idle:
        with pytest.raises(ConnectionResetError):
            idle.recv(1)
    assert time.monotonic() - start >= 0.2
    proxy.faults.cut_after_seconds = 2.0  # after the first bytes, on a busy machine too
    with raw_get(proxy) as unread:  # the proxy blocks: the socket buffers cannot hold the data
        received = unread.recv(1000)
        wait_for(lambda: proxy.fired["cut_after_seconds"] == 2)
        with pytest.raises(ConnectionResetError):
            while data := unread.recv(1 << 16):
                received += data
    assert len(received) < len(DATA)


@pytest.mark.parametrize("path", ["/data", "/chunked", "/close"])
def test_cut_after_bytes(proxy: FaultProxy, client: http.client.HTTPConnection, path: str) -> None:
    proxy.faults.cut_after_bytes = 100_000
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        get(client, path)
    assert proxy.fired["cut_after_bytes"] == 1


def test_cut_after_exactly_that_many_bytes(proxy: FaultProxy) -> None:
    proxy.faults.cut_after_bytes = 100_000
    with raw_get(proxy) as sock:
        assert len(read_all(sock)) == 100_000


def test_silent_after_bytes(proxy: FaultProxy) -> None:
    proxy.faults.silent_after_bytes = 100_000
    with raw_get(proxy) as sock:
        received = 0
        while received < 100_000:
            received += len(sock.recv(1 << 16))
        assert received == 100_000
        assert proxy.fired["silent_after_bytes"] == 1
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):  # neither data nor the end of the stream
            sock.recv(1)
        proxy.faults.cut_after_seconds = 0
        sock.settimeout(20)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1])
@pytest.mark.parametrize("path", ["/data", "/chunked", "/close"])
def test_false_end(proxy: FaultProxy, client: http.client.HTTPConnection, path: str, size: int) -> None:
    proxy.faults.false_end_bytes = size
    assert get(client, path) == (200, DATA[:size])
    assert proxy.fired["false_end_bytes"] == 1
    proxy.faults.false_end_bytes = len(DATA)  # no body is longer
    assert get(client, path) == (200, DATA)
    assert proxy.fired["false_end_bytes"] == 1
    assert proxy.fired["connections"] == (2 if path == "/close" else 1)


def test_false_end_of_a_range(proxy: FaultProxy, client: http.client.HTTPConnection) -> None:
    proxy.faults.false_end_bytes = 50
    client.request("GET", "/data", headers={"Range": "bytes=100-"})
    reply = client.getresponse()
    assert (reply.status, reply.headers["Content-Range"]) == (206, "bytes 100-149/150")
    assert reply.read() == DATA[100:150]


def test_lose_replies(proxy: FaultProxy, upstream: Upstream, client: http.client.HTTPConnection) -> None:
    proxy.faults.lose_replies = 2
    for count in (1, 2):
        client.request("POST", "/jobs", b"{}")
        with pytest.raises(http.client.RemoteDisconnected):
            client.getresponse()
        client.close()
        assert upstream.posts == proxy.fired["lose_replies"] == count
    assert get(client, "/data") == (200, DATA)
    client.request("POST", "/jobs", b"{}")
    assert client.getresponse().read() == b"posted"
    assert upstream.posts == 3
    assert proxy.fired["lose_replies"] == 2


def test_status(proxy: FaultProxy, upstream: Upstream, client: http.client.HTTPConnection) -> None:
    proxy.faults = Faults(status=503)
    client.request("POST", "/jobs", DATA)
    reply = client.getresponse()
    assert (reply.status, reply.reason, reply.read()) == (503, "Service Unavailable", b"503 from the proxy\n")
    assert upstream.posts == 0
    client.request("HEAD", "/data")
    assert client.getresponse().read() == b""
    proxy.faults.status = None
    assert get(client, "/data") == (200, DATA)
    assert proxy.fired == {"connections": 1, "requests": 3, "status": 2}


@pytest.mark.parametrize("fault", ["false_end_bytes", "silent_after_bytes", "cut_after_bytes", "status"])
def test_match(proxy: FaultProxy, client: http.client.HTTPConnection, fault: str) -> None:
    proxy.faults.match = "/logs"
    setattr(proxy.faults, fault, 500)
    assert get(client, "/data") == (200, DATA)
    assert proxy.fired[fault] == 0
    client.request("GET", "/data/logs?a=b")
    wait_for(lambda: proxy.fired[fault] == 1)
    assert proxy.requests[-1] == ("GET", "/data/logs?a=b")


def test_refuse(proxy: FaultProxy, client: http.client.HTTPConnection) -> None:
    with raw_get(proxy) as busy, socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as idle:
        busy.recv(1)
        wait_for(lambda: proxy.fired["connections"] == 2)
        proxy.refuse(3600)
        for sock in (busy, idle):
            with pytest.raises(ConnectionResetError):
                read_all(sock)
    with pytest.raises(ConnectionRefusedError):
        client.connect()
    start = time.monotonic()
    proxy.refuse(0.2)
    wait_for(lambda: accepts(client))
    assert time.monotonic() - start >= 0.2
    assert get(client, "/data") == (200, DATA)
    assert proxy.fired["refused"] == 2


def accepts(client: http.client.HTTPConnection) -> bool:
    try:
        client.connect()
    except ConnectionRefusedError:
        return False
    return True


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
