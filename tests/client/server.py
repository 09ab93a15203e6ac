"""An HTTP server with arbitrary behaviour, to stand in for dashboards and API servers."""

import http.server
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import requests


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends the response that the server's `answer` returns."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        status, headers, content = self.server.answer(self, body)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        pass


Answer = Callable[[Handler, bytes], tuple[int, Mapping[str, str], bytes]]


def forward(url: str, asked: Handler, body: bytes) -> tuple[int, dict[str, str], bytes]:
    """Forward a request to another server and return its response."""
    headers = {name: value for name, value in asked.headers.items() if name != "Host"}
    got = requests.request(asked.command, url + asked.path, headers=headers, data=body, timeout=30)
    return got.status_code, {"Content-Type": got.headers.get("Content-Type", "text/plain")}, got.content


class Server(http.server.ThreadingHTTPServer):
    answer: Answer


@contextmanager
def serving(answer: Answer, tls: tuple[Path, Path] | None = None, client_ca: Path | None = None) -> Iterator[str]:
    """Serve and yield the URL. `tls` is a certificate and its key; clients need a certificate from `client_ca`."""
    with Server(("127.0.0.1", 0), Handler) as server:
        server.answer = answer
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            if client_ca:
                context.load_verify_locations(client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
