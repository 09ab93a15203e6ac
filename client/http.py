"""One HTTP session to a cluster: every call has a timeout, and its failures are errors of ours."""

import os
import ssl
import time
import warnings
from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.exceptions import ConnectTimeoutError, InsecureRequestWarning, NewConnectionError

from client.errors import ClientError, NotAuthorised, Unreachable, UsageError
from client.targets.target import Connection, Endpoint

_TIMEOUT = (5.0, 10.0)  # seconds to connect, and between two bytes of an answer
_PAUSES = (0.1, 0.4)  # seconds before the second and the third try
_AWAY_SECONDS = 60.0
_FORBIDDEN = "not allowed:"
_LOOPBACK = ("127.", "localhost", "::1")


def session(endpoint: Endpoint) -> requests.Session:
    """A session that takes nothing from the environment unseen: a .netrc would replace the token."""
    http = requests.Session()
    http.trust_env = False
    http.headers.update(endpoint.headers)
    http.auth = endpoint.auth
    way = endpoint.connection
    if way is None and endpoint.url.startswith("https:"):
        http.verify = _ca_bundle() or True
    elif way:
        http.mount("https://", _Pinned(way))
        if way.tls.verify_mode == ssl.CERT_NONE:  # urllib3 would turn it on again, in the context itself
            http.verify = False
            warnings.simplefilter("ignore", InsecureRequestWarning)
    if way and way.proxy:
        http.proxies.update(dict.fromkeys(("http", "https"), way.proxy))
    elif not (urlsplit(endpoint.url).hostname or "").startswith(_LOOPBACK):
        http.proxies.update(requests.utils.get_environ_proxies(endpoint.url))
    return http


def _ca_bundle() -> str | None:
    """The CA file that the environment names, as `requests` takes it."""
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if path := os.environ.get(name):
            if not os.path.exists(path):
                raise UsageError(f"{name} names {path}, which is not there: name the CA file, or unset it")
            return path
    return None


class _Pinned(requests.adapters.HTTPAdapter):
    """Trusts what its context trusts, and nothing besides."""

    def __init__(self, way: Connection) -> None:
        self._tls = {"ssl_context": way.tls, "server_hostname": way.server_name}
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Give the context to every connection."""
        super().init_poolmanager(*args, **options | self._tls)

    def proxy_manager_for(self, *args: Any, **options: Any) -> Any:
        """Give it to those through a proxy, too."""
        return super().proxy_manager_for(*args, **options | self._tls)

    def cert_verify(self, *_: Any) -> None:
        """Leave the context as it is: `requests` would add the public CAs to it."""


class Forbidden(NotAuthorised):
    """The API server does not allow this login to do that; nothing was asked of Ray."""


class NotFound(Unreachable):
    """The API server knows no such object."""


class NotReady(Unreachable):
    """The server answers that it does not take this yet."""


class Failed(ClientError):
    """The server failed at a request: what it did of it is not known."""


class Transport:
    """Sends requests to one endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Make no request yet.

        Args:
            endpoint: where to.
        """
        self.endpoint = endpoint
        self._http = session(endpoint)

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send one request; a GET that was cut off is sent again.

        Args:
            method: of HTTP.
            path: below the endpoint's URL, or a whole URL.
            **options: as `requests.request` takes them.

        Returns:
            The answer, where it is not one of the errors below.

        Raises:
            NotAuthorised: 401 or 403.
            Unreachable: no answer, a gateway's error, or one that is not Ray's.
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
        url = path if "://" in path else self.endpoint.url + path
        try:
            response = self._http.request(method, url, **{"timeout": _TIMEOUT, "allow_redirects": False, **options})
        except requests.exceptions.SSLError as error:
            in_kubeconfig = "mend its cluster's certificate-authority in the kubeconfig"
            fix = in_kubeconfig if self.endpoint.connection else "set REQUESTS_CA_BUNDLE to its CA file"
            raise Unreachable(f"{self.endpoint.url} cannot be trusted: {reason(error)} ({fix})") from error
        except requests.RequestException as error:
            raise Unreachable(
                f"{self.endpoint.url} does not answer: {reason(error)} (is the address right?)"
            ) from error
        if response.is_redirect:  # followed, a POST would arrive as a GET
            there = "{0.scheme}://{0.netloc}".format(urlsplit(urljoin(url, response.headers["location"])))
            raise Unreachable(f"{self.endpoint.url} redirects to {there}: log in there first, or give that address")
        if response.status_code in (401, 403):
            refusal = _refusal(response, self.endpoint)
            raise (Forbidden if refusal.startswith(_FORBIDDEN) else NotAuthorised)(refusal)
        if response.status_code >= 400 and (said := _api_server_says(response)):
            kind = NotFound if response.status_code == 404 else Unreachable
            raise kind(f"the API server answers {response.status_code}: {said}")
        if response.status_code in (429, 502, 503, 504):
            raise Unreachable(f"{self.endpoint.url} answers {response.status_code}: try again in a moment")
        return response


def patient(ask: Callable[[], str]) -> Callable[[], str]:
    """Ask for a reason to wait; that the API server does not answer is one, for a minute."""
    answered = time.monotonic()

    def why() -> str:
        nonlocal answered
        try:
            found = ask()
        except Unreachable as error:
            if time.monotonic() - answered > _AWAY_SECONDS:
                raise
            return str(error)
        answered = time.monotonic()
        return found

    return why


def refused(response: requests.Response) -> ClientError:
    """The error for an answer of 4xx or 5xx: its last line is the cause, what is above it the server's traceback."""
    if response.status_code in (404, 405, 501):
        return Unreachable(
            f"{urlsplit(response.url).netloc} has no job API of Ray (it answers {response.status_code}): "
            "give the address of port 8265 of a head with ray[default]"
        )
    last = response.text.rstrip("\n. ").rpartition("\n")[2][:500] or response.reason
    if response.status_code == 400:
        return UsageError(f"the cluster refused the request: {last}")
    return Failed(f"the cluster answered {response.status_code}: {last}")


def _api_server_says(response: requests.Response) -> str | None:
    """The message of a Kubernetes API server's own answer, which is not Ray's."""
    if not response.headers.get("Content-Type", "").startswith("application/json"):
        return None
    try:
        status = response.json()
        return str(status["message"]) if status["kind"] == "Status" else None
    except (ValueError, KeyError, TypeError):
        return None


def _refusal(response: requests.Response, endpoint: Endpoint) -> str:
    if said := _api_server_says(response):
        if response.status_code == 401:
            return f"{urlsplit(response.url).netloc} does not take this login: log in again"
        return f"{_FORBIDDEN} {said} (the chart's Role for submitters allows what submit needs)"
    if not response.text.startswith(("Unauthorized:", "Forbidden:")):
        host = urlsplit(response.url).netloc
        return f"{host} answers {response.status_code}, and it is not Ray that does: log in there first"
    if endpoint.address.startswith("kubernetes:"):
        if endpoint.headers:
            return "the cluster's pods do not take the token of its Secret: delete them, so that they read it anew"
        return "the cluster wants a token: have its head take RAY_AUTH_TOKEN from a Secret, as the chart does"
    if endpoint.headers:
        return "the cluster refused the token: put its own into the file that RAY_AUTH_TOKEN_PATH names"
    return "the cluster wants a token: put it into a file, and name that in RAY_AUTH_TOKEN_PATH"


def _causes(error: BaseException) -> list[BaseException]:
    """An error and what led to it, the innermost last."""
    inner = error.__cause__ or error.__context__ or next((a for a in error.args if isinstance(a, BaseException)), None)
    return [error, *(_causes(inner) if inner else ())]


def reason(error: BaseException) -> str:
    """The innermost cause in a few words, without object addresses."""
    inmost = _causes(error)[-1]
    words = (getattr(inmost, "strerror", None) or str(inmost) or type(inmost).__name__).rpartition(": ")[2]
    return words if words.isprintable() else "it does not speak HTTP"


def was_sent(error: BaseException) -> bool:
    """Whether a request that failed may have been taken: not where no connection was made."""
    never = NotReady | NewConnectionError | ConnectTimeoutError
    return not any(isinstance(cause, never) for cause in _causes(error))
