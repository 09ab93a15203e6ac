"""Where a job runs: one word, --address, and one way to choose it when none is given.

A target is a context manager that yields an `Endpoint`; `follow` and `cli` know nothing else of it. A new one is a
module here and a line in `connect`.
"""

import os
import tomllib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from client.errors import UsageError
from client.targets.target import Endpoint

_FORMS = "give embedded, kubernetes://CONTEXT/NAMESPACE/CLUSTER or http(s)://HOST:PORT"


@dataclass(frozen=True)
class Address:
    """An address and where it came from.

    Attributes:
        value: `embedded`, `kubernetes` with or without the parts of its URL, or a URL of HTTP.
        source: why this one, for the line that says so.
        warning: what was passed over on the way, if that may surprise.
    """

    value: str
    source: str
    warning: str | None = None


def resolve(flag: str | None) -> Address:
    """Choose where jobs go.

    In this order: the flag, RAY_WORKLOAD_ADDRESS, an http(s) RAY_ADDRESS, pyproject.toml, a Ray kept by `up embedded`,
    a RayCluster of the Kubernetes that this pod runs in, or of the kubeconfig's current context where that is a cluster
    on this machine, else embedded. A remote context is never taken unasked: it may be production.

    Args:
        flag: the user's own --address.

    Raises:
        UsageError: the address found has no form that is known, or holds a password.
    """
    found, warning = _find(flag)
    scheme, _, rest = found.value.partition("://")
    if scheme != "kubernetes" and "@" in rest.partition("/")[0]:  # a context's name may hold one
        raise UsageError(f"the address of {found.source} holds a password: give a token in RAY_AUTH_TOKEN_PATH instead")
    if scheme not in ("http", "https", "kubernetes") and found.value != "embedded":
        raise UsageError(f"{found.value} ({found.source}) is not an address: {_FORMS}")
    return Address(found.value, found.source, warning)


def _find(flag: str | None) -> tuple[Address, str | None]:
    if flag:
        return Address(flag, "--address"), None
    if own := os.environ.get("RAY_WORKLOAD_ADDRESS"):
        return Address(own, "RAY_WORKLOAD_ADDRESS"), None
    warning = None
    if rays := os.environ.get("RAY_ADDRESS"):
        if rays.startswith(("http://", "https://")):
            return Address(rays, "RAY_ADDRESS"), None
        warning = f"RAY_ADDRESS={rays} is no http address and is not used: {_FORMS} as --address to reach that Ray"
    return _configured() or _discovered() or Address("embedded", "no other address is set"), warning


def _discovered() -> Address | None:
    """A cluster that is there without being named."""
    from client.kube import login as kubeconfig
    from client.targets.embedded import target as embedded

    context = kubeconfig.local_context()
    if embedded.warm() is not None or not (context or kubeconfig.in_pod()):
        return None
    from client.targets import kubernetes

    if kubeconfig.in_pod():
        return Address("kubernetes", "this pod's own") if kubernetes.has_cluster(None) else None
    found = kubernetes.has_cluster(context)
    return Address(f"kubernetes://{quote(context or '', safe='')}", "on this machine") if found else None


def _configured() -> Address | None:
    """`address` of [tool.ray-workload] in the nearest pyproject.toml."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        path = folder / "pyproject.toml"
        if path.is_file():
            try:
                value = tomllib.loads(path.read_text()).get("tool", {}).get("ray-workload", {}).get("address")
            except OSError as error:
                raise UsageError(f"cannot read {path}: {error.strerror}") from error
            except ValueError as error:
                raise UsageError(f"{path} is not valid TOML: {error}") from error
            except AttributeError as error:
                raise UsageError(f"{path}: tool.ray-workload must be a table") from error
            return Address(str(value), str(path)) if value else None
    return None


def connect(address: Address, *, start_in: Path | None = None) -> AbstractContextManager[Endpoint]:
    """The target at an address.

    Args:
        address: as `resolve` found it.
        start_in: the folder to start a Ray of our own in, where `embedded` finds none kept by `up embedded`.

    Raises:
        UsageError: the address is not usable, or names a Ray that is not there and may not be started.
    """
    if address.value.partition("://")[0] == "kubernetes":
        from client.targets import kubernetes

        return kubernetes.connect(address.value)
    if address.value != "embedded":
        from client.targets import url

        return url.connect(address.value)
    from client.targets.embedded import target as embedded

    if (kept := embedded.warm()) is not None:
        return nullcontext(kept)
    if start_in is None:
        raise UsageError("no cluster: start one with `up embedded`, or give its --address")
    return embedded.cold(start_in)
