"""Ray's Job SDK, for what only it can check and send; importing this module takes half a second.

The SDK reads RAY_ADDRESS over the address it is given, makes two requests of its own and sends without timeouts
(ray/dashboard/modules/job/sdk.py, 2.60), so its constructor is left out and its requests go where ours do.
"""

from collections.abc import Callable, Mapping
from typing import Any

import requests
from ray.job_submission import JobSubmissionClient
from ray.runtime_env import RuntimeEnv

from client.errors import UsageError


class _Client(JobSubmissionClient):
    def __init__(self, send: Callable[[Mapping[str, Any]], requests.Response]) -> None:
        self._send = send
        self._default_metadata: dict[str, str] = {}

    def _check_connection_and_version(self, *_: object, **__: object) -> None:
        """Left to the caller, who does it once."""

    def _do_request(self, method: str, endpoint: str, *, data: Any = None, json_data: Any = None) -> requests.Response:
        return self._send(json_data)


def validate(runtime_env: Mapping[str, Any]) -> None:
    """Check a runtime_env as the SDK does when it submits."""
    try:
        RuntimeEnv(**runtime_env)
    except (ValueError, TypeError, OSError) as error:
        raise _invalid("runtime_env", error) from error


def submit_job(send: Callable[[Mapping[str, Any]], requests.Response], arguments: Mapping[str, Any]) -> None:
    """Validate and send one job with the arguments of `JobSubmissionClient.submit_job`.

    Args:
        send: sends the request with this body, and raises the errors below for the answers of the cluster.
        arguments: of the job.

    Raises:
        UsageError: an argument is not valid, or the cluster refused it.
        ServerFailed: the cluster failed.
    """
    try:
        _Client(send).submit_job(**arguments)
    except (ValueError, TypeError, OSError) as error:
        raise _invalid("job", error) from error


def _invalid(what: str, error: Exception) -> UsageError:
    return UsageError(f"Ray does not accept this {what}: {str(error).strip().partition(chr(10))[0]}")
