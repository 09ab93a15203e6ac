"""A RayCluster as the API server shows it: found, its token read, its pods, its Service, and why it is not ready.

Names and labels are those of KubeRay 1.7 (ray-operator/controllers/ray/utils/constant.go) and of the chart: the Service
CLUSTER-api, with the ports `dashboard` and `agent`, is preferred to the operator's.
"""

import base64
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any
from urllib.parse import quote, urlsplit

from client.errors import ClientError, NotAuthorised, TimedOut, Unreachable, UsageError
from client.http import NotFound, Transport, patient
from client.kube import login as kubeconfig
from client.targets.target import Endpoint, is_token

_POLL_SECONDS = 0.5
_GONE = "it is gone"
_ON_THE_WAY = ("Pulling", "FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox")  # events of a pod's start
DASHBOARD, AGENT = 8265, 52365
RAY = "/apis/ray.io/v1"
Object = dict[str, Any]


class Api:
    """What the client reads of the API server."""

    def __init__(self, login: kubeconfig.Login) -> None:
        self.login = login
        at = f"context {login.context}" if login.context else "this pod's account"
        self._transport = Transport(
            Endpoint(at, login.url, lambda _: None, connection=login.connection, auth=login.auth)
        )

    def get(self, path: str, **options: Any) -> Object | None:
        """One object or list, or None where there is none, or nothing of its kind."""
        try:
            response = self._transport.request("GET", path, **options)
        except NotFound:
            return None
        if response.status_code == 404:  # of a kind that nobody has defined the server knows no path
            return None
        try:
            found: Object = response.json()
        except ValueError as error:
            raise Unreachable(f"{self.login.url} does not answer as an API server does") from error
        return found

    def post(self, path: str, body: Object) -> Object:
        """Ask the server what it answers to an object: a review."""
        answer: Object = self._transport.request("POST", path, json=body).json()
        return answer

    def list(self, path: str) -> list[Object]:
        """The items of a list."""
        items: list[Object] = (self.get(path) or {}).get("items", [])
        return items

    def said(self, namespace: str, name: str, reasons: Sequence[str] = ()) -> str:
        """The newest event of an object that has one of these reasons, or without reasons the newest warning."""
        events = self.list(f"/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.name%3D{name}")
        fitting = [e for e in events if (e.get("reason") in reasons if reasons else e.get("type") == "Warning")]
        return " ".join(fitting[-1].get("message", "").split()) if fitting else ""

    def why(self, pod: Object) -> str:
        """Why a pod is not ready: what it says itself, and while nothing of it runs what was said of its start."""
        why, metadata = why_not_ready(pod), pod["metadata"]
        if not why.endswith("is starting") or started(pod):
            return why
        said = self.said(metadata["namespace"], metadata["name"], _ON_THE_WAY)
        return f"{why}: {said}" if said else why


def clusters(api: Api, namespace: str | None) -> list[Object]:
    """The RayClusters of a namespace, or of all that the login may see."""
    try:
        return api.list(f"{RAY}/namespaces/{namespace}/rayclusters" if namespace else f"{RAY}/rayclusters")
    except NotAuthorised:
        if namespace:
            raise
        return api.list(f"{RAY}/namespaces/{api.login.namespace}/rayclusters")


def find(api: Api, namespace: str | None, name: str | None) -> Object:
    """The one RayCluster that an address means."""
    where = f"namespace {namespace}" if namespace else "any namespace"
    where += f" of context {api.login.context}" if api.login.context else ""
    found = [c for c in clusters(api, namespace) if name in (None, c["metadata"]["name"])]
    if len(found) == 1:
        return found[0]
    if found:
        known = ", ".join(sorted(address(api.login, *path(c).split("/")) for c in found))
        raise UsageError(f"{len(found)} RayClusters in {where}: give one of them as the address: {known}")
    if api.get(RAY) is None:
        raise Unreachable(f"{api.login.url} knows no RayCluster: install the chart there first (`helm install`)")
    raise Unreachable(
        f"no RayCluster {f'{name} ' if name else ''}in {where}: install the chart, or give another address"
    )


def address(login: kubeconfig.Login, namespace: str, name: str) -> str:
    """What to give as --address to come back to a RayCluster."""
    return f"kubernetes://{quote(login.context or '', safe='')}/{namespace}/{name}"


def path(cluster: Object) -> str:
    """Namespace and name."""
    return f"{cluster['metadata']['namespace']}/{cluster['metadata']['name']}"


def token_ref(cluster: Object) -> tuple[str, str] | None:
    """The Secret and key that the head's RAY_AUTH_TOKEN names, or that the cluster's own authOptions mean."""
    spec, metadata = cluster["spec"], cluster["metadata"]
    environment = spec["headGroupSpec"]["template"]["spec"]["containers"][0].get("env", ())
    refs = [v.get("valueFrom", {}).get("secretKeyRef") for v in environment if v["name"] == "RAY_AUTH_TOKEN"]
    if ref := next(filter(None, refs), None):
        return ref["name"], ref["key"]
    options = spec.get("authOptions") or {}
    return (options.get("secretName") or metadata["name"], "auth_token") if options.get("mode") == "token" else None


def token(api: Api, cluster: Object) -> str | None:
    """The token that the cluster asks for, if it does."""
    if not (ref := token_ref(cluster)):
        return None
    name, key = ref
    secret = api.get(f"/api/v1/namespaces/{cluster['metadata']['namespace']}/secrets/{name}")
    if not secret or key not in secret.get("data", {}):
        raise Unreachable(
            f"the Secret {name} with the token of RayCluster {path(cluster)} is not there: upgrade or install the chart"
        )
    found = base64.b64decode(secret["data"][key]).decode(errors="replace").strip()
    if not is_token(found):
        raise UsageError(f"the Secret {name} does not hold a token in {key}: that is one line of ASCII")
    return found


class Cluster:
    """A RayCluster as seen through the API server."""

    def __init__(self, api: Api, cluster: Object) -> None:
        self.api = api
        self.namespace, self.name = cluster["metadata"]["namespace"], cluster["metadata"]["name"]
        self.core = f"/api/v1/namespaces/{self.namespace}"
        self._agents: dict[str, str | None] = {}

    def __str__(self) -> str:
        return f"RayCluster {self.namespace}/{self.name}"

    @cached_property
    def service(self) -> str:
        """The Service to use; the operator's where there is none of the chart's, or the login may not look for it."""
        try:
            own = self.api.get(f"{self.core}/services/{self.name}-api")
        except NotAuthorised:
            own = None
        return f"{self.name}-api" if own else self._head_status().get("serviceName") or f"{self.name}-head-svc"

    def url(self, port: int) -> str:
        """A port of the Service, as the submitter Role spells it."""
        if self.api.login.context is None:
            return f"http://{self.service}.{self.namespace}:{port}"
        return f"{self.api.login.url}{self.core}/services/http:{self.service}:{port}/proxy"

    def agent(self, address: str) -> str | None:
        """The way to a node agent: the head's by the Service, a worker's by its pod where that is allowed."""
        if address not in self._agents:
            parts = urlsplit(address)
            if parts.hostname == self._head_status().get("podIP"):
                self._agents[address] = self.url(AGENT) if self.service.endswith("-api") else None
            elif self.api.login.context is None:
                self._agents[address] = address
            else:
                self._agents[address] = self._pod_agent(parts.hostname or "", parts.port or AGENT)
        return self._agents[address]

    def _pod_agent(self, ip: str, port: int) -> str | None:
        for pod in self.pods():
            if pod.get("status", {}).get("podIP") == ip:
                path = f"{self.core}/pods/http:{pod['metadata']['name']}:{port}/proxy"
                try:
                    return self.api.login.url + path if self.api.get(f"{path}/api/healthz") is not None else None
                except (ClientError, ValueError):
                    return None  # the dashboard hands on the log then
        return None

    def read(self) -> Object:
        """The object as it is now."""
        return self.api.get(f"{RAY}/namespaces/{self.namespace}/rayclusters/{self.name}") or {}

    def _head_status(self) -> Object:
        """What the operator says of its head: podIP, serviceName."""
        return self.read().get("status", {}).get("head") or {}

    def pods(self) -> list[Object]:
        """Its pods."""
        return self.api.list(f"{self.core}/pods?labelSelector=ray.io%2Fcluster%3D{self.name}")

    def head(self) -> Object | None:
        """Its head pod; of two, the one that is not on its way out."""
        heads = [p for p in self.pods() if node_type(p) == "head"]
        return min(heads, key=lambda p: "deletionTimestamp" in p["metadata"], default=None)

    def ready(self, note: Callable[[str], object], seconds: float) -> None:
        """Wait until the head takes jobs.

        Args:
            note: told what is waited for, each time that it changes.
            seconds: how long.
        """
        end, told, ask = time.monotonic() + seconds, "", patient(self.why)
        while (why := ask()) and time.monotonic() < end:
            if why == _GONE:
                raise NotFound(f"{self} is gone: install the chart again, or give another address")
            if why != told:
                note(f"waiting for {self}: {why}")
                told = why
            time.sleep(_POLL_SECONDS)
        if why:
            raise TimedOut(f"{self} is not ready after {seconds:g} s: {why}")

    def facts(self) -> dict[str, object]:
        """The release that it belongs to, and how many pods each group has ready, and should have."""
        cluster, ready = self.read(), Counter(map(group, filter(is_ready, self.pods())))
        workers = {g["groupName"]: g.get("replicas", 0) for g in cluster["spec"].get("workerGroupSpecs") or ()}
        return {
            "release": cluster["metadata"].get("annotations", {}).get("meta.helm.sh/release-name"),
            "pods_ready": {name: ready[name] for name in ("head", *workers)},
            "pods_wanted": {"head": 1, **workers},
        }

    def why(self) -> str:
        """Why the head takes no jobs, or nothing where it does."""
        cluster = self.read()
        if not cluster:
            return _GONE
        if cluster["spec"].get("suspend"):
            return "it is suspended, until its `suspend` is set to false"
        if head_ready(cluster):
            return ""
        if not (head := self.head()):
            said = self.api.said(self.namespace, self.name)
            return said or "it has no head pod yet (is a KubeRay operator running?)"
        if not cluster.get("status", {}).get("conditions") and is_ready(head):
            return ""  # before KubeRay 1.3, or by its feature gate, an operator sets none
        return self.api.why(head)


def head_ready(cluster: Object) -> bool:
    """Whether the operator saw the head ready."""
    conditions = {c["type"]: c for c in cluster.get("status", {}).get("conditions", ())}
    return bool(conditions.get("HeadPodReady", {}).get("status") == "True")


def node_type(pod: Object) -> str:
    """`head` or `worker`."""
    return str(pod["metadata"]["labels"].get("ray.io/node-type", ""))


def group(pod: Object) -> str:
    """`head`, or the name of the worker group."""
    labels = pod["metadata"]["labels"]
    return str(labels.get("ray.io/group", "")) if node_type(pod) == "worker" else "head"


def is_ready(pod: Object) -> bool:
    """Whether the kubelet saw all containers of a pod ready."""
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod.get("status", {}).get("conditions", ()))


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
    """Whether a container of it, but for those that run before, was ever started."""
    containers = pod.get("status", {}).get("containerStatuses", ())
    return any(c.get("restartCount") or not {"running", "terminated"}.isdisjoint(c["state"]) for c in containers)
