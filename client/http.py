"""HTTP to one server: every request has a timeout, and every failure is one of the client's errors."""

import os
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from client.errors import ClientError, NotAuthorised, NotFound, NotReady, Unreachable, UsageError

_TIMEOUT = (5.0, 10.0)  # seconds to connect, and between two bytes of an answer
_PAUSES = (0.1, 0.4)  # seconds before the second and the third attempt
_LOOPBACK = ("127.", "localhost", "::1")
Refusal = Callable[[requests.Response], ClientError | None]


@dataclass(frozen=True)
class Server:
    """An HTTP server: its address, how it is verified, and how the client identifies itself.

    Attributes:
        url: the base of all its paths.
        headers: sent with every request; may hold a token.
        auth: adds credentials that expire to every request.
        tls: what to trust, and our own certificate; None trusts what the system or REQUESTS_CA_BUNDLE says.
        server_name: the name in the server's certificate, if not the URL's host.
        proxy: the URL of a proxy on the way; None takes the environment's, "" none at all.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    auth: requests.auth.AuthBase | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None
    server_name: str | None = None
    proxy: str | None = field(default=None, repr=False)


def is_token(text: str) -> bool:
    """Whether a token can be sent in a header: in its error, the HTTP library would print one that cannot."""
    return text.isascii() and text.isprintable()


class Http:
    """Sends requests to one server."""

    def __init__(self, server: Server, *refusals: Refusal) -> None:
        """Make no request yet. Each refusal can turn an answer of 400 or above into an error; the first one wins."""
        self.server = server
        self.session = _session(server)
        self._refusals = refusals

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send one request; a GET that was cut off is sent again.

        Args:
            method: of HTTP.
            path: below the server's URL, or a whole URL.
            **options: as `requests.request` takes them.

        Returns:
            The answer, where it is not one of the errors below.

        Raises:
            NotAuthorised: 401 or 403.
            Unreachable: no answer, a redirect, or a gateway's error.
            ClientError: what a refusal made of the answer.
        """
        for pause in _PAUSES if method == "GET" else ():
            try:
                return self._send(method, path, **options)
            except Unreachable as error:
                if isinstance(error, NotFound) or isinstance(error.__cause__, requests.Timeout):
                    raise
                time.sleep(pause)
        return self._send(method, path, **options)

    def _send(self, method: str, path: str, **options: Any) -> requests.Response:
        base = self.server.url
        url = path if "://" in path else base + path
        try:
            response = self.session.request(method, url, **{"timeout": _TIMEOUT, "allow_redirects": False, **options})
            refused = self._refused(response)  # reads a refusal's text, which may break off
        except requests.exceptions.SSLError as error:
            pinned = "correct certificate-authority of its cluster in the kubeconfig"
            hint = pinned if self.server.tls else "name its CA file in REQUESTS_CA_BUNDLE"
            raise Unreachable(f"the certificate of {base} is not trusted ({reason(error)})", hint) from error
        except requests.RequestException as error:
            raise Unreachable(f"{base} does not answer ({reason(error)})", "check the address") from error
        if response.is_redirect:  # not followed: a POST would arrive as a GET
            there = "{0.scheme}://{0.netloc}".format(urlsplit(urljoin(url, response.headers["location"])))
            raise Unreachable(f"{base} redirects to {there}", "log in there first, or use that address")
        if refused:
            raise refused
        host = urlsplit(url).netloc
        if response.status_code in (401, 403):
            raise NotAuthorised(f"{host} answers {response.status_code}, but it is not Ray", "log in there first")
        if response.status_code in (429, 502, 503, 504):
            raise Unreachable(f"{base} answers {response.status_code}", "try again in a moment")
        return response

    def _refused(self, response: requests.Response) -> ClientError | None:
        found = (refusal(response) for refusal in self._refusals if response.status_code >= 400)
        return next(filter(None, found), None)


def _session(server: Server) -> requests.Session:
    """A session that ignores the environment: a .netrc would replace the token."""
    session = requests.Session()
    session.trust_env = False
    session.headers.update(server.headers)
    session.auth = server.auth
    if server.tls:
        session.mount("https://", _Pinned(server.tls, server.server_name))
        # Left at True, urllib3 would turn verification on again, in the context itself.
        session.verify = server.tls.verify_mode != ssl.CERT_NONE
    elif server.url.startswith("https:"):
        session.verify = _ca_bundle() or True
    if url := proxy_url(server):
        session.proxies.update(dict.fromkeys(("http", "https"), url))
    return session


def proxy_url(server: Server) -> str:
    """The URL of the proxy on the way to a server, or "" for none."""
    if server.proxy is not None:
        return server.proxy
    if (urlsplit(server.url).hostname or "").startswith(_LOOPBACK):
        return ""
    url = requests.utils.select_proxy(server.url, requests.utils.get_environ_proxies(server.url)) or ""
    return url if "://" in url or not url else f"http://{url}"


def _ca_bundle() -> str | None:
    """The CA file that the environment names, as `requests` takes it."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if path := os.environ.get(name):
            if not os.path.exists(path):
                raise UsageError(f"{name} names {path}, which does not exist", "set it to the CA file, or unset it")
            return path
    return None


class _Pinned(requests.adapters.HTTPAdapter):
    """Trusts what its TLS context trusts, and nothing else."""

    def __init__(self, tls: ssl.SSLContext, server_name: str | None) -> None:
        self._tls = {"ssl_context": tls, "server_hostname": server_name}
        self._unverified = tls.verify_mode == ssl.CERT_NONE
        super().__init__()

    def _pools(self, manager: Any) -> Any:
        if self._unverified:
            manager.pool_classes_by_scheme = {"http": HTTPConnectionPool, "https": _UnverifiedPool}
        return manager

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Use the context for every connection."""
        super().init_poolmanager(*args, **options | self._tls)
        self._pools(self.poolmanager)

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
        """Use the context for connections through a proxy, too."""
        return self._pools(super().proxy_manager_for(*args, **options | self._tls))

    def cert_verify(self, *_: Any) -> None:
        """Leave the context as it is: `requests` would add the public CAs to it."""


class _Unverified(HTTPSConnection):
    """The kubeconfig says insecure-skip-tls-verify: urllib3 need not warn of it, in a process that may not be ours."""

    def connect(self) -> None:
        super().connect()
        self.is_verified = True


class _UnverifiedPool(HTTPSConnectionPool):
    ConnectionCls = _Unverified


def _causes(error: BaseException) -> list[BaseException]:
    """An error and what led to it, the innermost last."""
    inner = error.__cause__ or error.__context__ or next((a for a in error.args if isinstance(a, BaseException)), None)
    return [error, *(_causes(inner) if inner else ())]


def reason(error: BaseException) -> str:
    """The innermost cause in a few words, without object addresses."""
    innermost = _causes(error)[-1]
    words = (getattr(innermost, "strerror", None) or str(innermost) or type(innermost).__name__).rpartition(": ")[2]
    return words if words.isprintable() else "it does not speak HTTP"


def was_sent(error: BaseException) -> bool:
    """Whether a failed request may have reached the server; not if there was no connection."""
    never = NotReady | NewConnectionError | ConnectTimeoutError
    return not any(isinstance(cause, never) for cause in _causes(error))
