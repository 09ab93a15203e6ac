"""Requests to a Kubernetes API server, and what its objects say of themselves."""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import requests

from client.errors import ClientError, Forbidden, NotAuthorised, NotFound, Unreachable
from client.http import Http
from client.kube.login import Login

Object = dict[str, Any]

_ON_THE_WAY = ("Pulling", "FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox")  # events of a pod's start
_RECENT_SECONDS = 600.0  # an event that is older says nothing of now


class Api:
    """The API server as one login sees it."""

    def __init__(self, login: Login) -> None:
        """Make no request yet."""
        self.login = login
        self.http = Http(login.server, refusal)

    def get(self, path: str, **options: Any) -> Object | None:
        """One object or list, or None where there is none, or nothing of its kind."""
        try:
            response = self.http.request("GET", path, **options)
        except NotFound:
            return None
        if response.status_code == 404:  # the server knows no path of a kind that nobody has defined
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
        """Delete an object. It is gone once all that it owns is gone; it is no error where it does not exist."""
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
            reasons: which events count; without any, all warnings.
        """
        events = self.list(f"/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.name%3D{name}")
        fitting = [e for e in events if (e.get("reason") in reasons if reasons else e.get("type") == "Warning")]
        recent = [e for e in fitting if time.time() - _seen(e) < _RECENT_SECONDS]
        return " ".join(max(recent, key=_seen).get("message", "").split()) if recent else ""

    def why_not_ready(self, pod: Object) -> str:
        """Why a pod is not ready: what it says itself, and before its containers run, what its events say."""
        why, metadata = why_not_ready(pod), pod["metadata"]
        if not why.endswith("is starting") or started(pod):
            return why
        event = self.event(metadata["namespace"], metadata["name"], _ON_THE_WAY)
        return f"{why}: {event}" if event else why


def _seen(event: Object) -> float:
    """When an event was last seen, as Unix time; now, where it does not say."""
    series = (event.get("series") or {}).get("lastObservedTime")
    when = series or event.get("lastTimestamp") or event.get("eventTime")
    return datetime.fromisoformat(when).timestamp() if when else time.time()


def refusal(response: requests.Response) -> ClientError | None:
    """The error for an API server's own answer; None where it is an answer of Ray behind its proxy."""
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
        url: that was asked.
        code: of HTTP.
        message: the server's own.
    """
    if code == 401:
        return NotAuthorised(f"{urlsplit(url).netloc} does not accept this login", "log in again")
    if code == 403:
        return Forbidden(f"not allowed: {message}", "ask for the Role CLUSTER-submitter of the chart, or one like it")
    return (NotFound if code == 404 else Unreachable)(f"the API server answers {code}: {message}")


def node_type(pod: Object) -> str:
    """`head` or `worker`."""
    return str(pod["metadata"]["labels"].get("ray.io/node-type", ""))


def group(pod: Object) -> str:
    """`head`, or the name of the worker group."""
    labels = pod["metadata"]["labels"]
    return str(labels.get("ray.io/group", "")) if node_type(pod) == "worker" else "head"


def is_ready(pod: Object) -> bool:
    """Whether the kubelet found all containers of a pod ready."""
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod.get("status", {}).get("conditions", ()))


def is_deleted(pod: Object) -> bool:
    """Whether an object is being deleted."""
    return "deletionTimestamp" in pod["metadata"]


def why_not_ready(pod: Object) -> str:
    """The reason that a pod itself gives."""
    status, name = pod.get("status", {}), pod["metadata"]["name"]
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"pod {name} has no node: {' '.join(condition.get('message', condition.get('reason')).split())}"
    for container in [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]:
        waiting = container["state"].get("waiting", {})
        if waiting.get("message"):
            return f"pod {name}: {waiting['reason']}: {' '.join(waiting['message'].split())}"
    return f"pod {name} is starting"


def started(pod: Object) -> bool:
    """Whether any container of it was ever started, init containers aside."""
    containers = pod.get("status", {}).get("containerStatuses", ())
    return any(c.get("restartCount") or not {"running", "terminated"}.isdisjoint(c["state"]) for c in containers)
