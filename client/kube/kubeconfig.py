"""The kubeconfig, read and merged as kubectl does: for each name, and for the current context, the first file counts.

https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig/
The `kubernetes` package can read it, too, but takes 0.3 s to import.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from client.errors import UsageError

Entry = dict[str, Any]

_ENTRIES = {"clusters": "cluster", "contexts": "context", "users": "user"}
_PATHS = ("certificate-authority", "client-certificate", "client-key", "tokenFile")  # relative to the file they are in
# kind, k3d, Docker Desktop, Rancher Desktop and OrbStack give the context and its cluster one name. minikube, whose
# profiles may have any name and address, adds an extension to the cluster.
_LOCAL_NAME = re.compile(r"(kind|k3d)-.+|docker-desktop|rancher-desktop|orbstack")
_LOCAL_HOST = re.compile(r"localhost|127\.[\d.]+|::1|0\.0\.0\.0|(kubernetes|host)\.docker\.internal")
_MINIKUBE = "minikube.sigs.k8s.io"


@dataclass(frozen=True)
class Context:
    """A context, and what it refers to.

    Attributes:
        name: of the context.
        namespace: its default one.
        cluster_name: by which the context refers to its cluster.
        cluster: how to reach the API server.
        user: how to log in; empty for an anonymous user.
    """

    name: str
    namespace: str
    cluster_name: str
    cluster: Mapping[str, Any]
    user: Mapping[str, Any] = field(repr=False)

    @property
    def is_local(self) -> bool:
        """Whether a tool for clusters on this machine made it. A loopback address alone may be an SSH tunnel."""
        if any((e.get("extension") or {}).get("provider") == _MINIKUBE for e in self.cluster.get("extensions") or ()):
            return True
        host = urlsplit(self.cluster["server"]).hostname or ""
        same_name = self.name == self.cluster_name
        return bool(same_name and _LOCAL_NAME.fullmatch(self.name) and _LOCAL_HOST.fullmatch(host))


def files() -> list[Path]:
    """The files in KUBECONFIG that exist, or the default one."""
    paths = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    return [Path(path) for path in paths.split(os.pathsep) if os.path.isfile(path)]


def load(name: str | None) -> Context:
    """Read a context.

    Args:
        name: of the context; None for the current one.

    Raises:
        UsageError: there is no kubeconfig, no such context in it, or no cluster for that.
    """
    if not (paths := files()):
        raise UsageError("there is no kubeconfig", "log in to the cluster, or name a kubeconfig in KUBECONFIG")
    merged: dict[str, dict[str, Entry]] = {kind: {} for kind in _ENTRIES}
    current = ""
    for path in paths:
        try:
            data = yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader)) or {}
            for kind, key in _ENTRIES.items():
                for entry in data.get(kind) or ():
                    merged[kind].setdefault(entry["name"], _resolve(entry.get(key) or {}, path.absolute().parent))
            current = current or str(data.get("current-context") or "")
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror})", "name another in KUBECONFIG") from error
        except (yaml.YAMLError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise UsageError(f"{path} is not a kubeconfig", "name another in KUBECONFIG") from error
    wanted = name or current
    if (context := merged["contexts"].get(wanted)) is None:
        what = f"the kubeconfig has no context {wanted}" if wanted else "the kubeconfig sets no current context"
        raise UsageError(what, f"use one of its contexts: {', '.join(merged['contexts']) or 'it has none'}")
    cluster_name, user = str(context.get("cluster")), merged["users"].get(str(context.get("user")), {})
    if not (cluster := merged["clusters"].get(cluster_name, {})).get("server"):
        raise UsageError(
            f"the kubeconfig has no server for cluster {cluster_name} of context {wanted}",
            "correct the kubeconfig, or log in to the cluster again",
        )
    return Context(wanted, context.get("namespace") or "default", cluster_name, cluster, user)


def _resolve(entry: Entry, folder: Path) -> Entry:
    """Make the paths in an entry absolute."""
    resolved = entry | {key: str(folder / entry[key]) for key in _PATHS if entry.get(key)}
    plugin = entry.get("exec")
    if plugin and os.sep in plugin.get("command", ""):  # else it is looked up in PATH
        resolved["exec"] = plugin | {"command": str(folder / plugin["command"])}
    return resolved
