"""Requests to a Kubernetes API server, and the state of its pods."""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import requests

from client.errors import RUN_DOCTOR, ClientError, Forbidden, NotAuthorised, NotFound, Unreachable
from client.http import Http
from client.kube.login import Login

Object = dict[str, Any]

_START_EVENTS = ("Pulling", "FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox")
_RECENT_SECONDS = 600.0  # older events do not describe the present


class Api:
    """Sends requests to the API server with one login."""

    def __init__(self, login: Login) -> None:
        """Make no request yet."""
        self.login = login
        self.http = Http(login.server, refusal)

    def get(self, path: str, **options: Any) -> Object | None:
        """One object or list; None if it does not exist, or its kind does not."""
        try:
            response = self.http.request("GET", path, **options)
        except NotFound:
            return None
        if response.status_code == 404:  # without a Status: no resource definition has this path
            return None
        try:
            found: Object = response.json()
        except ValueError as error:
            raise Unreachable(f"{self.login.server.url} is not a Kubernetes API server", "check the context") from error
        return found

    def post(self, path: str, body: Object) -> Object:
        """Create an object, such as a review, and return the server's answer."""
        answer: Object = self.http.request("POST", path, json=body).json()
        return answer

    def delete(self, path: str) -> None:
        """Delete an object, after all objects that it owns. It need not exist."""
        try:
            self.http.request("DELETE", path, params={"propagationPolicy": "Foreground"})
        except NotFound:
            pass

    def list(self, path: str) -> list[Object]:
        """The items of a list."""
        items: list[Object] = (self.get(path) or {}).get("items", [])
        return items

    def event(self, namespace: str, name: str, reasons: Sequence[str] = ()) -> str:
        """The newest recent event of an object.

        Args:
            namespace: of the object.
            name: of the object.
            reasons: of the events to look for; empty for all warnings.

        Returns:
            Its message, or "".
        """
        events = self.list(f"/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.name%3D{name}")
        matching = [e for e in events if (e.get("reason") in reasons if reasons else e.get("type") == "Warning")]
        recent = [e for e in matching if time.time() - _last_seen(e) < _RECENT_SECONDS]
        return " ".join(max(recent, key=_last_seen).get("message", "").split()) if recent else ""

    def why_not_ready(self, pod: Object) -> str:
        """Why a pod is not ready: from its status and, before its containers start, from its events."""
        why, metadata = why_not_ready(pod), pod["metadata"]
        if not why.endswith("is starting") or started(pod):
            return why
        event = self.event(metadata["namespace"], metadata["name"], _START_EVENTS)
        return f"{why}: {event}" if event else why


def _last_seen(event: Object) -> float:
    """When an event was last seen, as Unix time; the present if it has no time."""
    series = (event.get("series") or {}).get("lastObservedTime")
    timestamp = series or event.get("lastTimestamp") or event.get("eventTime")
    return datetime.fromisoformat(timestamp).timestamp() if timestamp else time.time()


def refusal(response: requests.Response) -> ClientError | None:
    """The error for an answer of the API server itself; None for an answer of Ray through its proxy."""
    if not response.headers.get("Content-Type", "").startswith("application/json"):
        return None
    try:
        status = response.json()
        message = str(status["message"]) if status["kind"] == "Status" else None
    except (ValueError, KeyError, TypeError):
        return None
    return None if message is None else status_error(response.url, response.status_code, message)


def status_error(url: str, code: int, message: str) -> ClientError:
    """The error for a status of the API server.

    Args:
        url: of the request.
        code: the HTTP status.
        message: of the server's Status object.
    """
    if code == 401:
        return NotAuthorised(f"{urlsplit(url).netloc} does not accept this login", "log in again")
    if code == 403:
        return Forbidden(f"not allowed: {message}", "ask for the permissions of the chart's Role CLUSTER-submitter")
    return (NotFound if code == 404 else Unreachable)(f"the API server answers {code} ({message})", RUN_DOCTOR)


def node_type(pod: Object) -> str:
    """`head` or `worker`."""
    return str(pod["metadata"]["labels"].get("ray.io/node-type", ""))


def group(pod: Object) -> str:
    """`head`, or the name of the worker group."""
    labels = pod["metadata"]["labels"]
    return str(labels.get("ray.io/group", "")) if node_type(pod) == "worker" else "head"


def is_ready(pod: Object) -> bool:
    """Whether all containers of a pod are ready."""
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod.get("status", {}).get("conditions", ()))


def is_deleted(pod: Object) -> bool:
    """Whether an object is being deleted."""
    return "deletionTimestamp" in pod["metadata"]


def why_not_ready(pod: Object) -> str:
    """Why a pod is not ready, from its status."""
    status, name = pod.get("status", {}), pod["metadata"]["name"]
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"pod {name} has no node: {' '.join(condition.get('message', condition.get('reason')).split())}"
    for container in [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]:
        waiting = container["state"].get("waiting", {})
        if waiting.get("message"):
            return f"pod {name}: {waiting['reason']}: {' '.join(waiting['message'].split())}"
    return f"pod {name} is starting"


def oom_killed(pod: Object, since: float) -> bool:
    """Whether the kernel killed a container of a pod after a Unix time, because its memory ran out."""
    containers = pod.get("status", {}).get("containerStatuses", ())
    ends = [c.get(state, {}).get("terminated") or {} for c in containers for state in ("state", "lastState")]
    return any(
        end.get("reason") == "OOMKilled" and datetime.fromisoformat(end["finishedAt"]).timestamp() >= since
        for end in ends
    )


def started(pod: Object) -> bool:
    """Whether any container of a pod has ever started, not counting init containers."""
    containers = pod.get("status", {}).get("containerStatuses", ())
    return any(c.get("restartCount") or not {"running", "terminated"}.isdisjoint(c["state"]) for c in containers)
