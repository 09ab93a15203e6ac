"""The HTTP server of Ray's API, and what its refusals mean."""

from typing import Protocol
from urllib.parse import urlsplit

import requests

from client.errors import ClientError, NotAuthorised, ServerFailed, Unreachable, UsageError
from client.http import Http, Refusal

POLL_TIMEOUT = (5.0, 5.0)  # seconds; for what is asked again and again, and is answered at once
HINT = "use the address of port 8265 of a head with ray[default]"


class RayServer(Protocol):
    """The part of a target that Ray's API needs: its dashboard, and its node agents.

    Attributes:
        address: what to give as --address to come back.
        http: sends requests to the dashboard.
    """

    address: str
    http: Http

    def agent(self, address: str) -> str | None:
        """The URL of the node agent that a job's record names, or None where it cannot be reached."""


def token_refusal(*, sent: bool, hint: str) -> Refusal:
    """Make the function that turns Ray's refusal of a token into an error.

    Args:
        sent: whether a token is sent.
        hint: what to do about it.
    """
    what = "the cluster refused the token" if sent else "the cluster requires a token"

    def refusal(response: requests.Response) -> ClientError | None:
        if response.status_code in (401, 403) and response.text.startswith(("Unauthorized:", "Forbidden:")):
            return NotAuthorised(what, hint)
        return None

    return refusal


def refused(response: requests.Response) -> ClientError:
    """The error for an answer of 4xx or 5xx. Its last line is the cause; the lines above are the server's traceback."""
    code = response.status_code
    if code in (404, 405, 501):
        return Unreachable(f"{urlsplit(response.url).netloc} has no job API of Ray (it answers {code})", HINT)
    last = response.text.rstrip("\n. ").rpartition("\n")[2][:500] or response.reason
    if code == 400:
        return UsageError(f"the cluster refused the request: {last}")
    return ServerFailed(f"the cluster answered {code}: {last}")
