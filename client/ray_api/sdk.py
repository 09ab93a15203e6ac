"""The one place where Ray's Job SDK is used; importing it takes half a second.

The SDK reads RAY_ADDRESS over the address it is given, makes two requests of its own and sends without timeouts
(ray/dashboard/modules/job/sdk.py, 2.60), so its constructor is left out and its requests go where ours do.
"""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import requests
from ray.job_submission import JobSubmissionClient

from client.errors import ClientError, UsageError
from client.http import NotReady, refused


class AlreadyExists(ClientError):
    """A job of this id is there already."""


class _Client(JobSubmissionClient):
    def __init__(self, send: Callable[..., requests.Response]) -> None:
        self._send = send
        self._default_metadata: dict[str, str] = {}

    def _check_connection_and_version(self, *_: object, **__: object) -> None:
        """Done by the caller, once."""

    def _do_request(self, method: str, endpoint: str, *, data: Any = None, json_data: Any = None) -> requests.Response:
        return self._send(method, endpoint, data=data, json=json_data)

    def _raise_error(self, r: requests.Response) -> NoReturn:
        if "already exists" in r.text:
            raise AlreadyExists("a job of this id is there already")
        if "No available agent" in r.text:
            raise NotReady("the cluster has no node that takes jobs yet: is the head still starting?")
        raise refused(r)


def submit_job(send: Callable[..., requests.Response], arguments: Mapping[str, Any]) -> None:
    """Validate and send one job.

    Args:
        send: sends a request, as `requests.request` without a base URL.
        arguments: of `JobSubmissionClient.submit_job`.

    Raises:
        AlreadyExists: the id is taken.
        UsageError: an argument is not valid.
        ClientError: the cluster refused it.
    """
    try:
        _Client(send).submit_job(**arguments)
    except (ValueError, TypeError, OSError) as error:
        raise UsageError(f"this job cannot be sent: {str(error).strip().partition(chr(10))[0]}") from error
