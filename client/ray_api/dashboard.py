"""Ray's dashboard on a local port, with the login and the token added to each request.

Anyone who may use this port can run code on the cluster, and every user and every web page on this machine can try to.
Therefore:

- It listens on 127.0.0.1 only, and `Host` must name that address, so DNS rebinding does not work.
- A link works once, because the list of processes may show it. It gives the browser a cookie and a secret path:
  browsers send a cookie to all ports of a host, but not to other paths.
- `Origin` and `Sec-Fetch-Site`, which a page cannot forge, must be this server's own.
- Only paths below the dashboard's are requested: above it is the rest of the API server.

A browser cannot submit jobs: Ray refuses that itself, by headers that are passed on.
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
_TIMEOUT = (5.0, 300.0)  # seconds to connect, and between two bytes of a response: a followed log may pause
_IDLE_SECONDS = 120.0
_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:[0-9]+)?")
_HOP_BY_HOP = {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"}
_HOP_BY_HOP |= {"te", "trailer", "transfer-encoding", "upgrade"}
_NOT_FORWARDED = _HOP_BY_HOP | {"host", "content-length", "expect", "cookie", "authorization", "x-ray-authorization"}
_NOT_RETURNED = _HOP_BY_HOP | {"content-length", "set-cookie", "server", "date"}
_OWN_HEADERS = {"Referrer-Policy": "same-origin", "X-Frame-Options": "SAMEORIGIN"}
_ENTRY_PAGE = '<!doctype html><meta http-equiv="refresh" content="0;url=/{path}/"><title>Ray Dashboard</title>'


class Dashboard(ThreadingHTTPServer):
    """Forwards the requests of one browser to a server."""

    def __init__(self, upstream: Server) -> None:
        """Listen on a free port; no request is answered before `serve_forever`.

        Args:
            upstream: the server with the dashboard.
        """
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.session = Http(upstream).session
        self.session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.path, self._cookie = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        self._links: set[str] = set()

    @property
    def cookie(self) -> str:
        """Name and value, as the browser sends them."""
        return f"ray-workload-{self.server_port}={self._cookie}"

    def link(self) -> str:
        """A new link, which works once."""
        self._links.add(link := secrets.token_urlsafe(24))
        return f"http://127.0.0.1:{self.server_port}/{link}"

    def use_link(self, path: str) -> bool:
        """Invalidate the link that a request's path is; False if it is none."""
        found = next((link for link in list(self._links) if _same(path, f"/{link}")), None)
        try:
            self._links.remove(found or "")
        except KeyError:  # not a link, or used by another request at the same time
            return False
        return True

    def handle_error(self, *_: Any) -> None:
        """Print nothing when a browser disconnects."""


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), wanted.encode())


class _Body:
    """A request's body, read while it is forwarded."""

    def __init__(self, handler: "_Handler", size: int) -> None:
        self._handler, self._size = handler, size

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        remaining = self._size
        while remaining:
            if not (data := self._handler.rfile.read1(min(remaining, _CHUNK))):
                raise ConnectionResetError("the browser disconnected")
            remaining -= len(data)
            yield data


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    server: Dashboard

    def do_GET(self) -> None:
        """Answer a request of any method."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
            return self._refuse(403, "Open the dashboard at the address that `dashboard` printed.")
        if any(origin != f"http://{hosts[0]}" for origin in self.headers.get_all("Origin") or ()):
            return self._refuse(403, "Pages of other origins may not use the dashboard.")
        if self.command == "GET" and self.server.use_link(self.path):
            cookie = f"{self.server.cookie}; Path=/{self.server.path}/; HttpOnly; SameSite=Strict"
            # Not a redirect: the cookie is not sent with a redirect that starts at another site.
            return self._send(200, {"Set-Cookie": cookie}, _ENTRY_PAGE.format(path=self.server.path), "text/html")
        site = self.headers.get("Sec-Fetch-Site", "none")
        inside = self.path.startswith(f"/{self.server.path}/")
        if site not in ("none", "same-origin") or not (inside and self._has_cookie()):
            return self._refuse(403, "The link works once, in one browser. Run `dashboard` again for a new one.")
        target = self.path.removeprefix(f"/{self.server.path}")
        if _has_parent(target):
            return self._refuse(400, "This path leads out of the dashboard.")
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not re.fullmatch("[0-9]+", length):
            return self._refuse(411, "A request needs a Content-Length.")
        return self._forward(target, int(length))

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET

    def log_message(self, *_: object) -> None:
        """Print nothing: the path is a secret."""

    def _has_cookie(self) -> bool:
        given = [part.strip() for line in self.headers.get_all("Cookie") or () for part in line.split(";")]
        return any(_same(part, self.server.cookie) for part in given)

    def _forward(self, target: str, length: int) -> None:
        server = self.server
        dropped = _NOT_FORWARDED | {name.strip().lower() for name in self.headers.get("Connection", "").split(",")}
        headers: dict[str, str | None] = {"Accept-Encoding": None, "User-Agent": None, "Accept": None}
        headers |= {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in dropped and not name.lower().startswith(("impersonate-", "x-remote-"))
        }
        headers["Referer"] = None  # it contains the secret path
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
            self._return(response)

    def _return(self, response: requests.Response) -> None:
        """Send a response on as it arrives, byte for byte."""
        no_body = self.command == "HEAD" or response.status_code in (204, 304)
        size = response.headers.get("Content-Length")
        headers = {name: value for name, value in response.headers.items() if name.lower() not in _NOT_RETURNED}
        headers = {name: value for name, value in headers.items() if not name.lower().startswith("access-control-")}
        if "Location" in headers:
            headers["Location"] = self._location(headers["Location"])
        if size is not None:
            headers["Content-Length"] = size
        elif not no_body:
            headers["Transfer-Encoding"] = "chunked"
        self._head(response.status_code, headers)
        if no_body:
            return
        sent = 0
        try:
            while data := response.raw.read1(_CHUNK, decode_content=False):
                sent += len(data)
                self.wfile.write(data if size is not None else b"%x\r\n%b\r\n" % (len(data), data))
            if size is None:
                self.wfile.write(b"0\r\n\r\n")
        except (HTTPError, requests.RequestException):
            self.close_connection = True  # tells the browser that the response is incomplete
        if size is not None and sent != int(size):
            self.close_connection = True

    def _location(self, location: str) -> str:
        """The target of a redirect, as a path of this server where it is one of the dashboard."""
        base = self.server.upstream.url
        for prefix in (base, urlsplit(base).path):
            if location.startswith(f"{prefix}/"):
                return f"/{self.server.path}{location.removeprefix(prefix)}"
        return location

    def _refuse(self, status: int, why: str) -> None:
        self.close_connection = True  # an unread body would be taken for the next request
        self._send(status, {"Connection": "close"}, f"{why}\n", "text/plain")

    def _send(self, status: int, headers: Mapping[str, str], text: str, kind: str) -> None:
        body = text.encode()
        common = {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
        }
        self._head(status, {**headers, **common})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response_only(status)
        for name, value in {**headers, **_OWN_HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()


def _has_parent(target: str) -> bool:
    """Whether a path contains `..`, for a server that decodes it once or more."""
    path = target.partition("?")[0]
    while (decoded := unquote(path)) != path:
        path = decoded
    return ".." in re.split(r"[/\\]", path) or not path.isprintable()
