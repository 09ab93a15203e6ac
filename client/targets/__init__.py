"""Where a job runs: one word, --address, and one way to choose it when none is given.

A target is a context manager that yields an `Endpoint`; `follow` and `cli` know nothing else of it. A new one is a
module here and a line in `connect`.
"""

import os
import tomllib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from client.errors import UsageError
from client.targets.endpoint import Endpoint

_FORMS = "give embedded or http(s)://HOST:PORT"


@dataclass(frozen=True)
class Address:
    """An address and where it came from.

    Attributes:
        value: `embedded` or a URL.
        source: why this one, for the line that says so.
        warning: what was passed over on the way, if that may surprise.
    """

    value: str
    source: str
    warning: str | None = None


def resolve(flag: str | None) -> Address:
    """Choose where jobs go: the flag, RAY_WORKLOAD_ADDRESS, an http(s) RAY_ADDRESS, pyproject.toml, else embedded.

    Args:
        flag: the user's own --address.

    Raises:
        UsageError: the address found has no form that is known, or holds a password.
    """
    found, warning = _find(flag)
    if "@" in found.value.partition("://")[2].partition("/")[0]:
        raise UsageError(f"the address of {found.source} holds a password: give a token in RAY_AUTH_TOKEN_PATH instead")
    scheme = found.value.partition("://")[0]
    if scheme not in ("http", "https") and found.value != "embedded":
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
    return _configured() or Address("embedded", "no other address is set"), warning


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
    if address.value != "embedded":
        from client.targets import url

        return url.connect(address.value)
    from client.targets import embedded

    if (kept := embedded.warm()) is not None:
        return nullcontext(kept)
    if start_in is None:
        raise UsageError("no cluster: start one with `up embedded`, or give its --address")
    return embedded.cold(start_in)
