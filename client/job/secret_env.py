"""Variables of a driver whose values come from Secrets that the cluster mounts.

Ray shows a job's `env_vars` to everyone who may list jobs, so the values never leave the cluster: the entrypoint reads
the mounted file.
"""

import re
import shlex
from collections.abc import Mapping

from client.errors import UsageError


def exports(variables: Mapping[str, str | None], mounted: Mapping[str, str] | None) -> str:
    """The shell code that sets and exports the variables, and fails if a file is missing.

    Args:
        variables: by name: where the value is, as SECRET/KEY, or None for the Secret that has the name as a key.
        mounted: the folder of each mounted Secret, by its name; None where no cluster was asked.
    """
    return " && ".join(_export(name, where, mounted) for name, where in variables.items())


def _export(name: str, where: str | None, mounted: Mapping[str, str] | None) -> str:
    secret, _, key = (where or f"/{name}").partition("/")
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise UsageError(f"{name!r} is not a valid name of a variable", "use --secret-env NAME=SECRET/KEY")
    if not key:
        raise UsageError(f"{name}={where} names no key", f"use --secret-env {name}=SECRET/KEY")
    if mounted is None:
        mounted = {secret: "..."}
    if (secret and secret not in mounted) or not mounted:
        what = f"the cluster mounts no Secret {secret or f'for {name}'}; it mounts {', '.join(mounted) or 'none'}"
        raise UsageError(what, "add it to `secrets` in the chart's values")
    files = shlex.join(f"{folder}/{key}" for folder in ([mounted[secret]] if secret else mounted.values()))
    missing = shlex.quote(f"no mounted Secret has the key {key}")
    look = f'for f in {files}; do [ -f "$f" ] && cat "$f" && exit; done; echo {missing} >&2; exit 1'
    return f"{name}=$({look}) && export {name}"
