"""Ray's dashboard at a port of this machine, with the login and the token added on the way.

Whoever gets in here runs code on the cluster, and every user and every web page of this machine may try. So:

- It listens on 127.0.0.1 alone, and `Host` must name that: a page whose name was rebound to us does not.
- A link works once, for it may be seen in the list of processes. It gives the browser a cookie, and a path that nobody
  else knows: browsers send a cookie to all ports of a host, but not to another path.
- `Origin` and `Sec-Fetch-Site`, which a page cannot forge, must be our own.
- Nothing is asked for above the dashboard's own path, where the rest of the API server would be.

A browser may not send jobs: Ray itself refuses that, by headers that are passed on.
"""

import hmac
import re
import secrets
from collections.abc import Iterator, Mapping
from http.cookiejar import DefaultCookiePolicy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import requests
from urllib3.exceptions import HTTPError

from client.http import Http, Server, reason

_CHUNK = 1 << 16
_TIMEOUT = (5.0, 300.0)  # seconds to connect, and between two bytes of an answer: a followed log may be silent
_IDLE_SECONDS = 120.0
_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:[0-9]+)?")
_HOP = {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer"}
_HOP |= {"transfer-encoding", "upgrade"}
_NOT_SENT = _HOP | {"host", "content-length", "expect", "cookie", "authorization", "x-ray-authorization"}
_NOT_SHOWN = _HOP | {"content-length", "set-cookie", "server", "date"}
_OURS = {"Referrer-Policy": "same-origin", "X-Frame-Options": "SAMEORIGIN"}
_ENTER = '<!doctype html><meta http-equiv="refresh" content="0;url=/{path}/"><title>Ray Dashboard</title>'


class Dashboard(ThreadingHTTPServer):
    """Forwards what the right browser asks for to a server."""

    def __init__(self, upstream: Server) -> None:
        """Listen on a free port; nothing is answered before `serve_forever`.

        Args:
            upstream: where the dashboard is.
        """
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.session = Http(upstream).session
        self.session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.path, self._cookie = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        self._links: set[str] = set()

    @property
    def cookie(self) -> str:
        """Name and value, as the browser sends it."""
        return f"ray-workload-{self.server_port}={self._cookie}"

    def link(self) -> str:
        """A new address to open, once."""
        self._links.add(link := secrets.token_urlsafe(24))
        return f"http://127.0.0.1:{self.server_port}/{link}"

    def enter(self, path: str) -> bool:
        """Use up a link, where a request's path is one."""
        found = next((link for link in list(self._links) if _same(path, f"/{link}")), None)
        try:
            self._links.remove(found or "")
        except KeyError:  # two requests at the same time
            return False
        return True

    def handle_error(self, *_: Any) -> None:
        """Say nothing of a browser that left."""


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), wanted.encode())


class _Body:
    """A request's body, read as it is sent on."""

    def __init__(self, handler: "_Handler", size: int) -> None:
        self._handler, self._size = handler, size

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        left = self._size
        while left:
            if not (data := self._handler.rfile.read1(min(left, _CHUNK))):
                raise ConnectionResetError("the browser left")
            left -= len(data)
            yield data


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    server: Dashboard

    def do_GET(self) -> None:
        """Answer a request of any method."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
            return self._refuse(403, "This is Ray's dashboard for one user of this machine, by its own address alone.")
        if any(origin != f"http://{hosts[0]}" for origin in self.headers.get_all("Origin") or ()):
            return self._refuse(403, "Pages of other origins may not use the dashboard.")
        if self.command == "GET" and self.server.enter(self.path):
            cookie = f"{self.server.cookie}; Path=/{self.server.path}/; HttpOnly; SameSite=Strict"
            # Not a redirect: that would count as the page's on which the link was, and the cookie would not be sent.
            return self._send(200, {"Set-Cookie": cookie}, _ENTER.format(path=self.server.path), "text/html")
        site = self.headers.get("Sec-Fetch-Site", "none")
        inside = self.path.startswith(f"/{self.server.path}/")
        if site not in ("none", "same-origin") or not (inside and self._has_cookie()):
            return self._refuse(403, "The link works once, in one browser. Run `dashboard` again for another.")
        target = self.path.removeprefix(f"/{self.server.path}")
        if _leaves(target):
            return self._refuse(400, "This path leads out of the dashboard.")
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not re.fullmatch("[0-9]+", length):
            return self._refuse(411, "A request needs a Content-Length.")
        return self._forward(target, int(length))

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET

    def log_message(self, *_: object) -> None:
        """Say nothing: a path is a secret."""

    def _has_cookie(self) -> bool:
        given = [part.strip() for line in self.headers.get_all("Cookie") or () for part in line.split(";")]
        return any(_same(part, self.server.cookie) for part in given)

    def _forward(self, target: str, length: int) -> None:
        server = self.server
        dropped = _NOT_SENT | {name.strip().lower() for name in self.headers.get("Connection", "").split(",")}
        headers: dict[str, str | None] = {"Accept-Encoding": None, "User-Agent": None, "Accept": None}
        headers |= {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in dropped and not name.lower().startswith(("impersonate-", "x-remote-"))
        }
        headers["Referer"] = None  # it holds the path
        try:
            response = server.session.request(
                self.command,
                server.upstream.url + target,
                headers=headers,
                data=_Body(self, length) if length else None,
                stream=True,
                timeout=_TIMEOUT,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            return self._refuse(502, f"{server.upstream.url} does not answer: {reason(error)}")
        with response:
            self._pass_on(response)

    def _pass_on(self, response: requests.Response) -> None:
        """Send an answer as it comes, its bytes untouched."""
        bare = self.command == "HEAD" or response.status_code in (204, 304)
        size = response.headers.get("Content-Length")
        headers = {name: value for name, value in response.headers.items() if name.lower() not in _NOT_SHOWN}
        headers = {name: value for name, value in headers.items() if not name.lower().startswith("access-control-")}
        if "Location" in headers:
            headers["Location"] = self._location(headers["Location"])
        if size is not None:
            headers["Content-Length"] = size
        elif not bare:
            headers["Transfer-Encoding"] = "chunked"
        self._head(response.status_code, headers)
        if bare:
            return
        sent = 0
        try:
            while data := response.raw.read1(_CHUNK, decode_content=False):
                sent += len(data)
                self.wfile.write(data if size is not None else b"%x\r\n%b\r\n" % (len(data), data))
            if size is None:
                self.wfile.write(b"0\r\n\r\n")
        except (HTTPError, requests.RequestException):
            self.close_connection = True  # so that the browser sees that the answer is not whole
        if size is not None and sent != int(size):
            self.close_connection = True

    def _location(self, location: str) -> str:
        """Where a redirect leads, seen from here."""
        base = self.server.upstream.url
        for prefix in (base, urlsplit(base).path):
            if location.startswith(f"{prefix}/"):
                return f"/{self.server.path}{location.removeprefix(prefix)}"
        return location

    def _refuse(self, status: int, why: str) -> None:
        self.close_connection = True  # a body that was not read would be taken for the next request
        self._send(status, {"Connection": "close"}, f"{why}\n", "text/plain")

    def _send(self, status: int, headers: Mapping[str, str], text: str, kind: str) -> None:
        body = text.encode()
        kinds = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
        }
        self._head(status, {**headers, **kinds})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response_only(status)
        for name, value in {**headers, **_OURS}.items():
            self.send_header(name, value)
        self.end_headers()


def _leaves(target: str) -> bool:
    """Whether a path climbs out of where it starts, for any server that decodes it once or more."""
    path = target.partition("?")[0]
    while (decoded := unquote(path)) != path:
        path = decoded
    return ".." in re.split(r"[/\\]", path) or not path.isprintable()
