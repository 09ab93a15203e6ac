"""The login to an API server: a user of the kubeconfig, of any kind that kubectl takes, or the account of our own pod.

Only a user with an `auth-provider`, the predecessor of login plugins, needs the `kubernetes` package.
"""

import base64
import math
import os
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import requests

from client.errors import ClientError, NotAuthorised, Unreachable, UsageError
from client.http import Server, is_token, reason
from client.kube import kubeconfig, login_plugin

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_FILE_SECONDS = 60.0  # other programs renew a token file; kubectl reads it as often


@dataclass(frozen=True)
class Login:
    """How to talk to an API server.

    Attributes:
        context: the kubeconfig's, or None in a pod.
        namespace: the login's default one.
        server: the API server; its `auth` adds the Authorization header, and logs in again where that has expired.
    """

    context: str | None
    namespace: str
    server: Server


@dataclass(frozen=True)
class _Credentials:
    """The credentials of one login.

    Attributes:
        header: for Authorization; empty for none.
        certificate: our own, and its key, in PEM; both empty for none.
        expires: when to log in again, by `time.time`.
    """

    header: str = field(default="", repr=False)
    certificate: tuple[bytes, bytes] = field(default=(b"", b""), repr=False)
    expires: float = field(default=math.inf, compare=False)


class _Authorization(requests.auth.AuthBase):
    """Adds the Authorization header to each request, and logs in again when the login has expired or is refused."""

    def __init__(self, credentials: _Credentials, log_in: Callable[[], _Credentials]) -> None:
        self._current, self._log_in, self._lock = credentials, log_in, threading.Lock()

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        used = self._current
        if time.time() >= used.expires:
            used = self._renew(used)
        if used.header:
            request.headers["Authorization"] = used.header
        request.hooks["response"].append(partial(self._retry_refused, used))
        return request

    def _retry_refused(self, used: _Credentials, response: requests.Response, **options: Any) -> requests.Response:
        """Send once more what the API server refused. A 401 of Ray behind its proxy says nothing about this login."""
        request = response.request
        if response.status_code != 401 or response.text.startswith("Unauthorized:"):
            return response
        if not isinstance(request.body, bytes | str | None) or (renewed := self._renew(used)) == used:
            return response
        response.connection.close()  # an open connection keeps the certificate it was made with
        request = request.copy()
        if renewed.header:
            request.headers["Authorization"] = renewed.header
        answer: requests.Response = response.connection.send(request, **options)
        answer.request = request
        return answer

    def _renew(self, used: _Credentials) -> _Credentials:
        """Get newer credentials than those used. Several threads may ask; the first one logs in for all."""
        with self._lock:
            if self._current is used:
                try:
                    self._current = self._log_in()
                except ClientError as error:  # the next attempt may succeed: callers retry when Unreachable
                    raise Unreachable(error.what, error.hint) from error
            return self._current


def in_pod() -> bool:
    """Whether we run in a pod that has an account's token."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and (_ACCOUNT / "token").is_file()


def current_context() -> tuple[str | None, bool]:
    """The current context of the kubeconfig, if there is one, and whether its cluster is on this machine."""
    try:
        context = kubeconfig.load(None)
        return context.name, context.is_local
    except (UsageError, ValueError, TypeError, AttributeError):
        return None, False  # `login` reports what is wrong with it


def local_context() -> str | None:
    """The current context of the kubeconfig, if its cluster is on this machine."""
    name, is_local = current_context()
    return name if is_local else None


def source() -> str:
    """The files of the kubeconfig, as KUBECONFIG lists them."""
    return os.pathsep.join(map(str, kubeconfig.files()))


def login(context: str | None) -> Login:
    """Log in.

    Args:
        context: of the kubeconfig; None for the pod's account in a pod, else for the current context.

    Raises:
        UsageError: there is no kubeconfig, no such context in it, or a file it names cannot be used.
        NotAuthorised: the login plugin failed, or the token is not one.
    """
    if context is None and in_pod():
        return _pod_login()
    chosen = kubeconfig.load(context)
    cluster = chosen.cluster
    with _usable(chosen.name):
        tls = _tls(_pem(cluster, "certificate-authority"), verify=not cluster.get("insecure-skip-tls-verify"))
    server = Server(
        str(cluster["server"]).rstrip("/"),
        auth=_Authorization(_log_in(chosen, tls), lambda: _log_in(kubeconfig.load(chosen.name), tls)),
        tls=tls,
        server_name=cluster.get("tls-server-name"),
        proxy=cluster.get("proxy-url") or None,
    )
    return Login(chosen.name, chosen.namespace, server)


def _pod_login() -> Login:
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")

    def log_in() -> _Credentials:
        header = f"Bearer {_token('the pod', _read(_ACCOUNT / 'token'))}"
        return _Credentials(header, expires=time.time() + _FILE_SECONDS)

    url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    server = Server(url, auth=_Authorization(log_in(), log_in), tls=_tls(_read(_ACCOUNT / "ca.crt")), proxy="")
    return Login(None, _read(_ACCOUNT / "namespace").decode(), server)


def _log_in(context: kubeconfig.Context, tls: ssl.SSLContext) -> _Credentials:
    """Get the credentials of a context's user, and load its certificate.

    Args:
        context: of the kubeconfig, just read.
        tls: that gets the certificate.
    """
    user, name = dict(context.user), f"context {context.name}"
    with _usable(context.name):
        header, expires = "", math.inf
        if "exec" in user and not (user.get("token") or user.get("tokenFile")):
            status = login_plugin.run(user["exec"], context.cluster, name)
            user |= {"token": status.get("token"), **_certificate_data(status)}
            if expiration := status.get("expirationTimestamp"):
                expires = datetime.fromisoformat(expiration).timestamp()
        if "auth-provider" in user:
            header = f"Bearer {_token(name, _provider_token(context))}"
        elif path := user.get("tokenFile"):
            header, expires = f"Bearer {_token(name, _read(path))}", time.time() + _FILE_SECONDS
        elif token := user.get("token"):
            header = f"Bearer {_token(name, token.encode())}"
        elif "username" in user and "password" in user:
            pair = f"{user['username']}:{user['password']}".encode()
            header = f"Basic {base64.b64encode(pair).decode()}"
        certificate, key = _pem(user, "client-certificate"), _pem(user, "client-key")
        if certificate:
            with _as_file(certificate) as certificate_path, _as_file(key) as key_path:
                tls.load_cert_chain(certificate_path, key_path)
        return _Credentials(header, (certificate, key), expires)


def _certificate_data(status: Mapping[str, Any]) -> dict[str, str]:
    """The certificate in a plugin's answer, as a kubeconfig has it."""
    parts = {"client-certificate-data": "clientCertificateData", "client-key-data": "clientKeyData"}
    return {key: base64.b64encode(status[part].encode()).decode() for key, part in parts.items() if status.get(part)}


def _provider_token(context: kubeconfig.Context) -> bytes:
    """The token of a user with an `auth-provider`, refreshed if it must be."""
    from kubernetes.client import Configuration
    from kubernetes.config import load_kube_config_from_dict

    provider, configuration = context.user["auth-provider"], Configuration()
    config = {  # no certificate: the package would write it to a file
        "current-context": "it",
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        "clusters": [{"name": "it", "cluster": {"server": context.cluster["server"]}}],
        "users": [{"name": "it", "user": {"auth-provider": provider}}],
    }
    what = f"the auth-provider of context {context.name} returns no token"
    try:
        load_kube_config_from_dict(config, client_configuration=configuration)
        header = configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
    except Exception as error:  # Google's, OAuth's and urllib3's errors have no base in common
        raise NotAuthorised(f"{what} ({reason(error)})", "log in again") from error
    if not header:
        raise NotAuthorised(what, "log in with a plugin (`exec` of the kubeconfig's user) instead")
    return header.removeprefix("Bearer ").encode()


def _token(owner: str, content: bytes) -> str:
    """A token without the line end that a file has."""
    token = content.decode(errors="replace").strip()
    if not is_token(token):
        raise NotAuthorised(f"the token of {owner} contains invalid characters", "log in again")
    return token


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})", "log in again") from error


def _pem(entry: Mapping[str, Any], key: str) -> bytes:
    """What an entry of the kubeconfig holds as data, or names as a file; data counts first."""
    if data := entry.get(f"{key}-data"):
        return base64.b64decode("".join(data.split()), validate=True)
    return _read(entry[key]) if entry.get(key) else b""


@contextmanager
def _usable(context: str) -> Iterator[None]:
    """Say in one line what is wrong with an entry of the kubeconfig."""
    try:
        yield
    except (OSError, ValueError) as error:
        what = f"the certificates of context {context} cannot be used ({reason(error)})"
        raise UsageError(what, "log in again") from error
    except (TypeError, AttributeError, KeyError) as error:
        what = f"the cluster or the user of context {context} is not valid in the kubeconfig"
        raise UsageError(what, "correct it, or log in again") from error


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """A path for `ssl`, which takes nothing else. No other user can read the key: the file has no name."""
    linux = sys.platform == "linux"
    with os.fdopen(os.memfd_create("pem"), "w+b") if linux else tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        yield f"/dev/fd/{file.fileno()}"


def _tls(ca: bytes, *, verify: bool = True) -> ssl.SSLContext:
    """Trust what kubectl trusts: the cluster's CA, or the system's where the kubeconfig has none."""
    if ca:
        with _as_file(ca) as path:
            tls = ssl.create_default_context(cafile=path)
    else:
        tls = ssl.create_default_context()
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT  # from Python 3.13 on; CAs of old clusters have no key identifiers
    if not verify:
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    return tls
