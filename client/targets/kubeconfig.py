"""The login to a Kubernetes API server: a kubeconfig's, of every kind that kubectl takes, or that of the pod we are in.

The `kubernetes` package reads it and runs exec plugins. Importing it takes 0.3 s, so what only looks does without.
"""

import logging
import os
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
import yaml

from client.errors import NotAuthorised, UsageError

if TYPE_CHECKING:
    from kubernetes.client import Configuration

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_LOCAL_CONTEXTS = ("kind-", "k3d-", "minikube", "docker-desktop", "rancher-desktop", "orbstack")
_LOCAL_HOST = re.compile(r"localhost|127\.[\d.]+|::1|0\.0\.0\.0")


@dataclass(frozen=True)
class Login:
    """How to talk to an API server.

    Attributes:
        context: the kubeconfig's, or None in a pod.
        url: of the API server.
        namespace: where the login is at home.
        tls: trusts the server and holds the client's certificate.
        auth: adds the Authorization header.
    """

    context: str | None
    url: str
    namespace: str
    tls: ssl.SSLContext
    auth: requests.auth.AuthBase


class _Authorization(requests.auth.AuthBase):
    """Asks for the header at each request: a token may run out while a job is followed."""

    def __init__(self, configuration: "Configuration") -> None:
        self._configuration = configuration

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if value := self._configuration.get_api_key_with_prefix("BearerToken"):
            request.headers["Authorization"] = value
        return request


class _Said(logging.Handler):
    """Keeps what the `kubernetes` package logs: it does not raise where a login fails."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += record.getMessage().split("\n")


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
    server = str(clusters.get(contexts.get(current, {}).get("cluster"), {}).get("server", ""))
    host = urlsplit(server).hostname or ""
    return current if current.startswith(_LOCAL_CONTEXTS) or _LOCAL_HOST.fullmatch(host) else None


def _files() -> list[Path]:
    named = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    return [path for part in named.split(os.pathsep) if part and (path := Path(part)).is_file()]


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
    if not (files := _files()):
        raise UsageError("there is no kubeconfig: name one in KUBECONFIG, or log in to the cluster first")
    from kubernetes.client import Configuration
    from kubernetes.config import ConfigException, kube_config

    path = os.pathsep.join(map(str, files))
    configuration, said, root = Configuration(), _Said(), logging.getLogger()
    root.addHandler(said)
    try:
        contexts, active = kube_config.list_kube_config_contexts(path)
        if context:
            active = next((c for c in contexts if c["name"] == context), None)
        if not active:
            known = ", ".join(c["name"] for c in contexts) or "none"
            raise UsageError(f"the kubeconfig has no context {context or 'that is current'}: it has {known}")
        kube_config.load_kube_config(path, active["name"], configuration, persist_config=False)
        tls = _tls(configuration)
    except ConfigException as error:
        raise UsageError(f"the kubeconfig cannot be used ({error}): mend it, or name another in KUBECONFIG") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"the kubeconfig's certificates cannot be used ({error}): log in again") from error
    except (yaml.YAMLError, TypeError, AttributeError, KeyError) as error:
        raise UsageError(f"{path} is no kubeconfig: name another in KUBECONFIG") from error
    finally:
        root.removeHandler(said)
        kube_config._cleanup_temp_files()  # the key was written there to be read once
    if said.lines and not configuration.api_key and not configuration.cert_file:
        raise NotAuthorised(f"the login of context {active['name']} failed: {said.lines[0]}: log in again")
    namespace = active["context"].get("namespace") or "default"
    return Login(active["name"], configuration.host, namespace, tls, _Authorization(configuration))


def _of_pod() -> Login:
    from kubernetes.client import Configuration
    from kubernetes.config import load_incluster_config

    configuration = Configuration()
    load_incluster_config(configuration)
    namespace = (_ACCOUNT / "namespace").read_text()
    return Login(None, configuration.host, namespace, _tls(configuration), _Authorization(configuration))


def _tls(configuration: "Configuration") -> ssl.SSLContext:
    tls = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if not configuration.verify_ssl:
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    if configuration.cert_file:
        tls.load_cert_chain(configuration.cert_file, configuration.key_file)
    return tls
