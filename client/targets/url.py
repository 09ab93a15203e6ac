"""The target `http(s)://...`: any Ray head, port-forward or ingress that serves the dashboard's API."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from client.errors import UsageError
from client.targets.target import Endpoint, is_token, same_host_agent


def find_token() -> str | None:
    """The token that Ray's own tools would use.

    Returns:
        The value of RAY_AUTH_TOKEN, else the content of the file RAY_AUTH_TOKEN_PATH names, else of
        ~/.ray/auth_token (the order of ray/_private/authentication), or None.

    Raises:
        UsageError: the named file cannot be read, or what was found can be no token.
    """
    token, source = os.environ.get("RAY_AUTH_TOKEN", "").strip(), "RAY_AUTH_TOKEN"
    if not token:
        named = os.environ.get("RAY_AUTH_TOKEN_PATH")
        path = Path(named) if named else Path.home() / ".ray" / "auth_token"
        try:
            token, source = path.read_text(errors="replace").strip(), str(path)
        except OSError as error:
            if named:
                reason = f"which cannot be read: {error.strerror}"
                raise UsageError(f"RAY_AUTH_TOKEN_PATH names {named}, {reason}") from error
    if not is_token(token):
        raise UsageError(f"{source} does not hold a token: that is one line of ASCII")
    return token or None


@contextmanager
def connect(address: str) -> Iterator[Endpoint]:
    """Yield the endpoint at an http or https URL. Nothing is asked of it yet.

    Args:
        address: the URL; a trailing slash does not count.

    Raises:
        UsageError: it is not the URL of a host.
    """
    url = address.rstrip("/")
    try:
        parts = urlsplit(url)
        valid = bool(parts.hostname) and parts.port != 0 and not parts.query and not parts.fragment
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"{address} is not a usable address: give one like http://127.0.0.1:8265")
    token = find_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    yield Endpoint(address=url, url=url, agent=same_host_agent(url), headers=headers)
