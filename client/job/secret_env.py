"""Variables of a driver whose values come from Secrets that the cluster mounts.

Ray shows a job's `env_vars` to everyone who may list jobs, so the values never leave the cluster: the entrypoint reads
the mounted file.
"""

import re
import shlex
from collections.abc import Mapping

from client.errors import UsageError
from client.targets.target import Endpoint


def exports(variables: Mapping[str, str | None], endpoint: Endpoint) -> str:
    """The shell's words that set and export them, and fail where a file is not there.

    Args:
        variables: by name: where the value is, as SECRET/KEY, or None for the Secret that has the name as a key.
        endpoint: where they will run; one without a URL stands for a cluster that is not asked.

    Raises:
        UsageError: a variable cannot be had there.
    """
    return " && ".join(_export(name, where, endpoint) for name, where in variables.items())


def _export(name: str, where: str | None, endpoint: Endpoint) -> str:
    secret, _, key = (where or f"/{name}").partition("/")
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise UsageError(f"{name!r} is no name of a variable (--secret-env)")
    if not key:
        raise UsageError(f"{name}={where} names no key: give --secret-env {name}=SECRET/KEY")
    mounted = endpoint.secrets if endpoint.url else {secret: "..."}
    if (secret and secret not in mounted) or not mounted:
        known = ", ".join(mounted) or "none"
        raise UsageError(
            f"the cluster mounts no Secret {secret or f'for {name}'}, it has {known}: see the chart's `secrets`"
        )
    files = shlex.join(f"{folder}/{key}" for folder in ([mounted[secret]] if secret else mounted.values()))
    missing = shlex.quote(f"no mounted Secret has the key {key}")
    look = f'for f in {files}; do [ -f "$f" ] && cat "$f" && exit; done; echo {missing} >&2; exit 1'
    return f"{name}=$({look}) && export {name}"
