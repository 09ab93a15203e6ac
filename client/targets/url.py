"""The target `http(s)://...`: any Ray head, port-forward or ingress that serves the dashboard's API."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from client.errors import UsageError
from client.http import Http, Server, is_token
from client.ray_api.http import token_refusal
from client.targets.target import Runtime, Target, same_host_agent
from client.wait import Note


def find_token() -> str | None:
    """The token that Ray's own tools would use.

    Returns:
        The value of RAY_AUTH_TOKEN, else the content of the file RAY_AUTH_TOKEN_PATH names, else of
        ~/.ray/auth_token (the order of ray/_private/authentication), or None.

    Raises:
        UsageError: the named file cannot be read, or what was found is not a token.
    """
    token, source = os.environ.get("RAY_AUTH_TOKEN", "").strip(), "RAY_AUTH_TOKEN"
    if not token:
        named = os.environ.get("RAY_AUTH_TOKEN_PATH")
        path = Path(named) if named else Path.home() / ".ray" / "auth_token"
        try:
            token, source = path.read_text(errors="replace").strip(), str(path)
        except OSError as error:
            if named:
                what = f"RAY_AUTH_TOKEN_PATH names {named}, which cannot be read ({error.strerror})"
                raise UsageError(what, "correct or unset it") from error
    if not is_token(token):
        raise UsageError(f"{source} does not hold a token", "put one line of ASCII there")
    return token or None


class UrlTarget(Target):
    """The Ray whose dashboard answers at a URL."""

    def __init__(self, url: str, *, send_token: bool) -> None:
        """Make no request yet."""
        token = find_token() if send_token else None
        hint = "put its token into the file that RAY_AUTH_TOKEN_PATH names"
        if not send_token:
            hint = f"your token is not sent to an address that a pyproject.toml names; to send it, use --address {url}"
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.address, self.runtime = url, Runtime(secrets={})
        self.http = Http(Server(url, headers), token_refusal(sent=bool(token), hint=hint))

    def agent(self, address: str) -> str | None:
        """The agent of a node on the dashboard's own host."""
        return same_host_agent(self.address, address)

    def wait_ready(self, note: Note, seconds: float) -> None:
        """Return at once: the first request reports a server that does not answer."""


@contextmanager
def connect(address: str, *, send_token: bool) -> Iterator[Target]:
    """Yield the target at an http or https URL; `send_token`, where the user's own token is meant for it."""
    url = address.rstrip("/")
    try:
        parts = urlsplit(url)
        valid = bool(parts.hostname) and parts.port != 0 and not parts.query and not parts.fragment
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"{address} is not a usable address", "use one like http://127.0.0.1:8265")
    yield UrlTarget(url, send_token=send_token)
