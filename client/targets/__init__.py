"""Where a job runs: one word, --address, and one way to choose it when none is given.

A new target is a module here that satisfies `client.targets.target.Target`, and a line in `connect`.
"""

import os
import re
import sys
import tomllib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from client.errors import UsageError
from client.targets.target import Runtime, Target

UNASKED = "no other address is set"
_FORMS = "use embedded, kubernetes://CONTEXT/NAMESPACE/CLUSTER or http(s)://HOST:PORT"


@dataclass(frozen=True)
class Address:
    """An address and where it came from.

    Attributes:
        value: `embedded`, `kubernetes` with or without the parts of its URL, or a URL of HTTP.
        source: why this one, for the line that says so.
        from_file: a file named it, and the user may not know that. It gets no token from the user's environment.
        warning: what was ignored on the way, if that may surprise.
    """

    value: str
    source: str
    from_file: bool = False
    warning: str | None = None

    @property
    def scheme(self) -> str:
        """`embedded`, `kubernetes`, `http` or `https`."""
        return self.value.partition("://")[0]


def resolve(flag: str | None) -> Address:
    """Choose where jobs go.

    In this order: the flag, RAY_WORKLOAD_ADDRESS, an http(s) RAY_ADDRESS, pyproject.toml, a Ray kept by `up embedded`,
    a RayCluster of the Kubernetes that this pod runs in, or of the kubeconfig's current context where that is a cluster
    on this machine, else embedded. A remote context is used only on request: it may be production.

    Args:
        flag: the user's own --address.

    Raises:
        UsageError: the address found has no known form, or holds a password.
    """
    found = _find(flag)
    if found.scheme != "kubernetes" and "@" in found.value.partition("://")[2].partition("/")[0]:
        what = f"the address of {found.source} contains a password"
        raise UsageError(what, "put a token into the file that RAY_AUTH_TOKEN_PATH names instead")
    if found.scheme not in ("http", "https", "kubernetes") and found.value != "embedded":
        is_host = re.fullmatch(r"[\w.-]+:\d+/?", found.value)
        raise UsageError(
            f"{found.value} ({found.source}) is not an address", f"use http://{found.value}" if is_host else _FORMS
        )
    return found


def _find(flag: str | None) -> Address:
    if flag:
        return Address(flag, "--address")
    if own := os.environ.get("RAY_WORKLOAD_ADDRESS"):
        return Address(own, "RAY_WORKLOAD_ADDRESS")
    warning = None
    if rays := os.environ.get("RAY_ADDRESS"):
        if rays.startswith(("http://", "https://")):
            return Address(rays, "RAY_ADDRESS")
        warning = f"RAY_ADDRESS={rays} is ignored, because it is not an http address"
    found = _configured() or _discovered() or Address("embedded", UNASKED)
    return Address(found.value, found.source, found.from_file, warning)


def _discovered() -> Address | None:
    """Find a cluster that is used without being named."""
    from client.kube import login
    from client.targets.embedded import target as embedded

    context = login.local_context()
    if embedded.warm() is not None or not (context or login.in_pod()):
        return None
    from client.targets import kubernetes

    if login.in_pod():
        return Address("kubernetes", "the cluster of this pod") if kubernetes.has_cluster(None) else None
    found = kubernetes.has_cluster(context)
    source = "the current context, a cluster on this machine"
    return Address(context_address(context or ""), source) if found else None


def context_address(context: str) -> str:
    """The --address of a context of the kubeconfig."""
    return f"kubernetes://{quote(context, safe='')}"


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
                raise UsageError(f"tool.ray-workload in {path} must be a table") from error
            return Address(str(value), str(path), from_file=True) if value else None
    return None


def runtime(address: Address) -> Runtime:
    """The properties of an address that a job's command line depends on, as far as they are known without a request."""
    embedded = address.value == "embedded"
    return Runtime(sys.executable, in_place=True, secrets={}) if embedded else Runtime()


def is_cold(address: Address) -> bool:
    """Whether `connect` would start a Ray of our own."""
    from client.targets.embedded import target as embedded

    return address.value == "embedded" and embedded.warm() is None


def connect(address: Address, *, start_in: Path | None = None) -> AbstractContextManager[Target]:
    """The target at an address.

    Args:
        address: as `resolve` found it.
        start_in: the folder to start a Ray of our own in, where `embedded` finds none kept by `up embedded`.

    Raises:
        UsageError: the address is not usable, or names a Ray that is not there and may not be started.
    """
    if address.scheme == "kubernetes":
        from client.targets import kubernetes

        return kubernetes.connect(address.value)
    if address.value != "embedded":
        from client.targets import url

        return url.connect(address.value, send_token=not address.from_file)
    from client.targets.embedded import target as embedded

    if (kept := embedded.warm()) is not None:
        return nullcontext(kept)
    if start_in is None:
        raise _no_cluster()
    return embedded.cold(start_in)


def _no_cluster() -> UsageError:
    """The error that names the clusters that exist, but are used only on request."""
    from client.kube import login
    from client.targets.embedded import folder

    what, hint = "there is no cluster", "start one with `up embedded`, or use --address"
    if heads := ", ".join(f"process {pid} in {cwd}" for pid, cwd in folder.owners()):
        what += f" except the Ray that another client started for itself ({heads})"
    name, is_local = login.current_context()
    if name and not is_local:
        other = "for the current context of the kubeconfig, which is not on this machine"
        hint += f"; {other}: --address {context_address(name)}"
    return UsageError(what, hint)
