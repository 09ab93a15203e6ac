"""A login plugin: the program that the `exec` of a kubeconfig's user names.

The `kubernetes` package can run one, too, but lets it read our stdin, which may be meant for a command in a pod, hides
what it asks the user, leaves it running after Ctrl-C, and logs its failures. This does as kubectl does
(client-go/plugin/pkg/client/auth/exec).
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from client.errors import NotAuthorised

_CLUSTER_FIELDS = ("server", "tls-server-name", "insecure-skip-tls-verify", "certificate-authority-data", "proxy-url")
_EXTENSION = "client.authentication.k8s.io/exec"


def run(plugin: Mapping[str, Any], cluster: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Run the plugin. There is no timeout: it may be waiting for the user.

    Args:
        plugin: the `exec` of the kubeconfig's user.
        cluster: of the same context.
        owner: whose login it is, for messages.

    Returns:
        The `status` of its ExecCredential.

    Raises:
        NotAuthorised: it is not installed, it failed, or its output is not a login.
    """
    command = str(plugin["command"])
    name = f"the login plugin {command} of {owner}"
    interactive = plugin.get("interactiveMode") != "Never" and sys.stdin is not None and sys.stdin.isatty()
    spec: dict[str, Any] = {"interactive": interactive}
    if plugin.get("provideClusterInfo"):
        spec["cluster"] = {key: cluster[key] for key in _CLUSTER_FIELDS if key in cluster}
        for extension in cluster.get("extensions") or ():
            if extension["name"] == _EXTENSION:
                spec["cluster"]["config"] = extension["extension"]
    info = {"apiVersion": plugin["apiVersion"], "kind": "ExecCredential", "spec": spec}
    environment = {variable["name"]: variable["value"] for variable in plugin.get("env") or ()}
    try:
        done = subprocess.run(
            [command, *(plugin.get("args") or ())],
            env={**os.environ, **environment, "KUBERNETES_EXEC_INFO": json.dumps(info)},
            stdin=None if interactive else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None if sys.stderr.isatty() else subprocess.PIPE,
            check=False,
        )
    except OSError as error:
        hint = " ".join(str(plugin.get("installHint") or "install it, or log in again").split())
        raise NotAuthorised(f"{name} cannot be run ({error.strerror})", hint) from None
    if done.returncode:
        last_line = (done.stderr or b"").decode(errors="replace").strip().rpartition("\n")[2]
        cause = f"exit code {done.returncode}{f', {last_line}' if last_line else ''}"
        raise NotAuthorised(f"{name} failed ({cause})", "log in again")
    if (status := _status(done.stdout, str(plugin["apiVersion"]))) is None:
        what = f"{name} printed no ExecCredential of {plugin['apiVersion']} with a token or a certificate"
        raise NotAuthorised(what, "correct its entry in the kubeconfig, or log in again")
    return status


def _status(output: bytes, version: str) -> dict[str, Any] | None:
    """The status in a plugin's output, if it is valid."""
    try:
        credential = json.loads(output)
        status = credential["status"]
        right_kind = credential["kind"] == "ExecCredential" and credential["apiVersion"] == version
        has_login = status.get("token") or (status["clientCertificateData"] and status["clientKeyData"])
        datetime.fromisoformat(status.get("expirationTimestamp") or "2000-01-01")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return dict(status) if right_kind and has_login else None
