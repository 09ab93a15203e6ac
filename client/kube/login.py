"""The login to a Kubernetes API server: a kubeconfig's, of every kind that kubectl takes, or that of the pod we are in.

The `kubernetes` package reads it. Importing it takes 0.3 s, so what only looks does without.
"""

import base64
import math
import os
import re
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
import yaml

from client.errors import ClientError, NotAuthorised, Unreachable, UsageError
from client.http import Server, is_token
from client.kube import login_plugin

if TYPE_CHECKING:
    from kubernetes.config.kube_config import KubeConfigLoader

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_LOCAL_CONTEXTS = ("kind-", "k3d-", "minikube", "docker-desktop", "rancher-desktop", "orbstack")
_FILE_SECONDS = 60.0  # a token's file is written anew by others; kubectl reads it as often
_ONE_AT_A_TIME = threading.Lock()  # the package keeps one table of temporary files for all threads
_LOCAL_HOST = re.compile(r"localhost|127\.[\d.]+|::1|0\.0\.0\.0")


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
    """What the API server knows us by.

    Attributes:
        header: for Authorization, or nothing.
        certificate: the client's.
        expires: when it is to be asked for again, by `time.time`.
    """

    header: str = field(default="", repr=False)
    certificate: bytes = field(default=b"", repr=False)
    expires: float = field(default=math.inf, compare=False)


class _Authorization(requests.auth.AuthBase):
    """Signs each request. Where a login has run out while a job is followed, it is asked for again."""

    def __init__(self, credentials: _Credentials, again: Callable[[], _Credentials]) -> None:
        self._now, self._again, self._lock = credentials, again, threading.Lock()

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        used = self._now
        if time.time() >= used.expires:
            used = self._renewed(used)
        if used.header:
            request.headers["Authorization"] = used.header
        request.hooks["response"].append(partial(self._answered, used))
        return request

    def _answered(self, used: _Credentials, response: requests.Response, **options: Any) -> requests.Response:
        """Send again, once, what the API server refused; a 401 of Ray behind it is not about this login."""
        request = response.request
        if response.status_code != 401 or response.text.startswith("Unauthorized:"):
            return response
        if not isinstance(request.body, bytes | str | None) or (now := self._renewed(used)) == used:
            return response
        response.connection.close()  # one that is open has the certificate of before
        request = request.copy()
        if now.header:
            request.headers["Authorization"] = now.header
        answer: requests.Response = response.connection.send(request, **options)
        answer.request = request
        return answer

    def _renewed(self, used: _Credentials) -> _Credentials:
        """Newer credentials than those used, by whichever thread asked for them."""
        with self._lock:
            if self._now is used:
                try:
                    self._now = self._again()
                except (ClientError, OSError) as error:  # it may be good again in a moment: whoever follows tries on
                    raise Unreachable(str(error)) from error
            return self._now


def in_pod() -> bool:
    """Whether we run in a pod with an account."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and (_ACCOUNT / "token").is_file()


def local_context() -> str | None:
    """The kubeconfig's current context, where that is a cluster on this machine; read without the package."""
    clusters: dict[str, Any] = {}
    contexts: dict[str, Any] = {}
    current = ""
    for path in _files():
        try:
            data = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            clusters = {c["name"]: c["cluster"] for c in data.get("clusters") or ()} | clusters
            contexts = {c["name"]: c["context"] for c in data.get("contexts") or ()} | contexts
            current = current or data.get("current-context") or ""
        except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError):
            continue  # said when it is used
    try:
        host = urlsplit(clusters[contexts[current]["cluster"]]["server"]).hostname or ""
    except (ValueError, AttributeError, KeyError, TypeError):
        host = ""
    return current if current.startswith(_LOCAL_CONTEXTS) or _LOCAL_HOST.fullmatch(host) else None


def _files() -> list[Path]:
    named = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    return [Path(part) for part in named.split(os.pathsep) if os.path.isfile(part)]


def source() -> str:
    """The files of the kubeconfig, for a line that says so."""
    return os.pathsep.join(map(str, _files()))


def login(context: str | None) -> Login:
    """Log in.

    Args:
        context: of the kubeconfig; None for the pod's account in a pod, else for the current one.

    Raises:
        UsageError: there is no kubeconfig, or no such context in it.
        NotAuthorised: the login's own program failed.
    """
    if context is None and in_pod():
        return _of_pod()
    name, namespace, server, credentials = _load(context)
    auth = _Authorization(credentials, lambda: _load(name, server.tls)[-1])
    return Login(name, namespace, replace(server, auth=auth))


def _of_pod() -> Login:
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")

    def read() -> _Credentials:
        token = (_ACCOUNT / "token").read_text().strip()
        return _Credentials(f"Bearer {token}", expires=time.time() + _FILE_SECONDS)

    url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    tls = _trusting(str(_ACCOUNT / "ca.crt"))
    return Login(None, (_ACCOUNT / "namespace").read_text(), Server(url, auth=_Authorization(read(), read), tls=tls))


def _load(context: str | None, tls: ssl.SSLContext | None = None) -> tuple[str, str, Server, _Credentials]:
    """Read the kubeconfig, and ask its plugin: name and namespace of the context, its URL, and how to log in there.

    Args:
        context: None for the current one.
        tls: of an earlier time, which is given the certificate of now.
    """
    if not (files := _files()):
        raise UsageError("there is no kubeconfig: name one in KUBECONFIG, or log in to the cluster first")
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException, kube_config

    path = os.pathsep.join(map(str, files))
    configuration = Configuration()
    with _ONE_AT_A_TIME:
        theirs, kube_config._temp_files = kube_config._temp_files, {}  # of a notebook's own clients
        try:
            config = kube_config.KubeConfigMerger(path).config
            contexts, wanted = [c.value for c in config["contexts"]], context or config.value.get("current-context")
            active = next((c for c in contexts if c["name"] == wanted), None)
            if not active:
                known = ", ".join(c["name"] for c in contexts) or "none"
                raise UsageError(f"the kubeconfig has no context {wanted or 'that is current'}: it has {known}")
            loader = kube_config.KubeConfigLoader(config, active["name"])
            expires = _ask_plugin(loader, active["name"])
            loader.load_and_set(configuration)
            tls = tls or _trusting(configuration.ssl_ca_cert)
            if not configuration.verify_ssl:
                tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
            if configuration.cert_file:
                tls.load_cert_chain(configuration.cert_file, configuration.key_file)
            certificate = Path(configuration.cert_file).read_bytes() if configuration.cert_file else b""
        except ConfigException as error:
            raise UsageError(
                f"the kubeconfig cannot be used ({error}): mend it, or name another in KUBECONFIG"
            ) from error
        except (OSError, ValueError) as error:
            raise UsageError(f"the kubeconfig's files cannot be used ({error}): log in again") from error
        except (yaml.YAMLError, TypeError, AttributeError, KeyError) as error:
            raise UsageError(f"{path} is no kubeconfig: name another in KUBECONFIG") from error
        finally:
            kube_config._cleanup_temp_files()  # the key was written there to be read once
            kube_config._temp_files = theirs
    header = (configuration.api_key.get("BearerToken") or "").strip()  # a token's file ends with a newline
    if not is_token(header):
        raise NotAuthorised(f"the login of context {active['name']} is not one: it has bytes of no token: log in again")
    credentials = _Credentials(header, certificate, expires)
    # The configuration's own proxy may be the environment's, which knows of exceptions.
    server_name, proxy = configuration.tls_server_name, getattr(loader, "proxy", None)
    server = Server(configuration.host, tls=tls, server_name=server_name, proxy=proxy)
    return active["name"], active["context"].get("namespace") or "default", server, credentials


def _ask_plugin(loader: "KubeConfigLoader", name: str) -> float:
    """Put what a plugin says in its place; until when the login is good."""
    node: Any = loader._user
    user = node.value if node else {}
    if "exec" not in user or user.get("token") or user.get("tokenFile"):
        return time.time() + _FILE_SECONDS if user.get("tokenFile") else math.inf
    folder = Path(node.path).absolute().parent
    cluster: Any = loader._cluster
    status = login_plugin.run(user["exec"], cluster.value, folder, f"context {name}")
    user.pop("exec")
    if status.get("token"):
        user["token"] = status["token"]
    for key, part in (("client-certificate-data", "clientCertificateData"), ("client-key-data", "clientKeyData")):
        if status.get(part):
            user[key] = base64.b64encode(status[part].encode()).decode()
    expires = status.get("expirationTimestamp")
    return datetime.fromisoformat(expires).timestamp() if expires else math.inf


def _trusting(ca: str | None) -> ssl.SSLContext:
    """Trust what kubectl does: Python 3.13 by itself wants key identifiers that CAs of old clusters do not have."""
    tls = ssl.create_default_context(cafile=ca)
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return tls
