"""A kubeconfig's `exec`: the program that knows the login.

The `kubernetes` package runs one, too, but lets it read our stdin, which may be meant for a command in a pod, hides
what it asks the user, leaves it behind at Ctrl-C, and logs what goes wrong. This is what kubectl does
(client-go/plugin/pkg/client/auth/exec).
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from client.errors import NotAuthorised

_OF_CLUSTER = ("server", "tls-server-name", "insecure-skip-tls-verify", "certificate-authority-data", "proxy-url")
_EXTENSION = "client.authentication.k8s.io/exec"


def run(plugin: Mapping[str, Any], cluster: Mapping[str, Any], folder: Path, of: str) -> dict[str, Any]:
    """Ask for the login, and wait for as long as it takes: it may be asking the user.

    Args:
        plugin: the `exec` of the kubeconfig's user.
        cluster: of the same context.
        folder: of the kubeconfig, where a command that is a relative path is looked for.
        of: whose login it is, for what is said.

    Returns:
        The `status` of its ExecCredential.

    Raises:
        NotAuthorised: it is not there, it failed, or it did not answer with a login.
    """
    command = str(plugin["command"])
    path = str(folder / command) if os.sep in command else command
    interactive = plugin.get("interactiveMode") != "Never" and sys.stdin is not None and sys.stdin.isatty()
    spec: dict[str, Any] = {"interactive": interactive}
    if plugin.get("provideClusterInfo"):
        spec["cluster"] = {key: cluster[key] for key in _OF_CLUSTER if key in cluster}
        for extension in cluster.get("extensions") or ():
            if extension["name"] == _EXTENSION:
                spec["cluster"]["config"] = extension["extension"]
    info = {"apiVersion": plugin["apiVersion"], "kind": "ExecCredential", "spec": spec}
    own = {variable["name"]: variable["value"] for variable in plugin.get("env") or ()}
    try:
        done = subprocess.run(
            [path, *(plugin.get("args") or ())],
            env={**os.environ, **own, "KUBERNETES_EXEC_INFO": json.dumps(info)},
            stdin=None if interactive else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None if sys.stderr.isatty() else subprocess.PIPE,
            check=False,
        )
    except OSError as error:
        hint = " ".join(str(plugin.get("installHint") or "install it, or log in again").split())
        raise NotAuthorised(
            f"{command}, which knows the login of {of}, cannot be run ({error.strerror}): {hint}"
        ) from None
    if done.returncode:
        said = (done.stderr or b"").decode(errors="replace").strip().rpartition("\n")[2]
        why = f"exit code {done.returncode}{f', {said}' if said else ''}"
        raise NotAuthorised(f"{command}, which knows the login of {of}, failed ({why}): log in again")
    if (status := _status(done.stdout, str(plugin["apiVersion"]))) is None:
        wanted = f"ExecCredential of {plugin['apiVersion']} with a token or a certificate"
        raise NotAuthorised(f"{command}, which knows the login of {of}, prints no {wanted}: mend it, or log in again")
    return status


def _status(answer: bytes, version: str) -> dict[str, Any] | None:
    try:
        credential = json.loads(answer)
        status = credential["status"]
        good = credential["kind"] == "ExecCredential" and credential["apiVersion"] == version
        known = status.get("token") or (status["clientCertificateData"] and status["clientKeyData"])
        datetime.fromisoformat(status.get("expirationTimestamp") or "2000-01-01")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return dict(status) if good and known else None
