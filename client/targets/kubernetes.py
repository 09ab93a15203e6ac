"""The target `kubernetes[://CONTEXT/NAMESPACE/CLUSTER]`: a RayCluster, each part of its address optional.

Everything goes through the API server's proxy: no port-forward, no local port, each request stands alone. From inside
a pod, directly. Names and labels are those of KubeRay 1.7 (ray-operator/controllers/ray/utils/constant.go) and of the
chart: the Service CLUSTER-api, with the ports `dashboard` and `agent`, is preferred to the operator's.
"""

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from client.errors import ClientError, NotAuthorised, TimedOut, Unreachable, UsageError
from client.targets import kubeconfig
from client.targets.endpoint import Endpoint
from client.transport import NotFound, Transport

_POLL_SECONDS = 0.5
_DASHBOARD, _AGENT = 8265, 52365
_RAY = "/apis/ray.io/v1"
Object = dict[str, Any]


class _Api:
    """What the client reads of the API server."""

    def __init__(self, login: kubeconfig.Login) -> None:
        self.login = login
        at = f"context {login.context}" if login.context else "this pod's account"
        self._transport = Transport(Endpoint(at, login.url, lambda _: None, tls=login.tls, auth=login.auth))

    def get(self, path: str) -> Object | None:
        """One object or list, or None where there is none."""
        try:
            found: Object = self._transport.request("GET", path).json()
        except NotFound:
            return None
        return found

    def list(self, path: str) -> list[Object]:
        """The items of a list."""
        items: list[Object] = (self.get(path) or {}).get("items", [])
        return items


def _parts(address: str) -> tuple[str | None, str | None, str | None]:
    """Context, namespace and cluster of an address."""
    parts = address.partition("://")[2].rstrip("/").split("/")
    if len(parts) > 3:
        raise UsageError(f"{address}: give kubernetes://CONTEXT/NAMESPACE/CLUSTER (a slash in a name as %2F)")
    context, namespace, cluster = (unquote(part) or None for part in [*parts, "", ""][:3])
    return context, namespace, cluster


def _clusters(api: _Api, namespace: str | None) -> list[Object]:
    """The RayClusters of a namespace, or of all that the login may see."""
    try:
        return api.list(f"{_RAY}/namespaces/{namespace}/rayclusters" if namespace else f"{_RAY}/rayclusters")
    except NotAuthorised:
        if namespace:
            raise
        return api.list(f"{_RAY}/namespaces/{api.login.namespace}/rayclusters")


def _find(api: _Api, namespace: str | None, name: str | None) -> Object:
    """The one RayCluster that an address means."""
    where = f"namespace {namespace}" if namespace else "any namespace"
    where += f" of context {api.login.context}" if api.login.context else ""
    found = [c for c in _clusters(api, namespace) if name in (None, c["metadata"]["name"])]
    if len(found) == 1:
        return found[0]
    if found:
        known = ", ".join(sorted(f"kubernetes://{api.login.context or ''}/{_path(c)}" for c in found))
        raise UsageError(f"{len(found)} RayClusters in {where}: give one of them as the address: {known}")
    if api.get(_RAY) is None:
        raise Unreachable(f"{api.login.url} knows no RayCluster: install the chart there first (`helm install`)")
    raise Unreachable(
        f"no RayCluster {f'{name} ' if name else ''}in {where}: install the chart, or give another address"
    )


def _path(cluster: Object) -> str:
    return f"{cluster['metadata']['namespace']}/{cluster['metadata']['name']}"


def _token(api: _Api, cluster: Object) -> str | None:
    """The token of the Secret that the head's RAY_AUTH_TOKEN names, or that the cluster's own authOptions mean."""
    spec, metadata = cluster["spec"], cluster["metadata"]
    environment = spec["headGroupSpec"]["template"]["spec"]["containers"][0].get("env", ())
    refs = [v.get("valueFrom", {}).get("secretKeyRef") for v in environment if v["name"] == "RAY_AUTH_TOKEN"]
    options = spec.get("authOptions") or {}
    if options.get("mode") == "token":
        refs.append({"name": options.get("secretName") or metadata["name"], "key": "auth_token"})
    if not (ref := next(filter(None, refs), None)):
        return None
    secret = api.get(f"/api/v1/namespaces/{metadata['namespace']}/secrets/{ref['name']}")
    if not secret or ref["key"] not in secret.get("data", {}):
        raise Unreachable(f"the Secret {ref['name']} with the token of RayCluster {_path(cluster)} is not there")
    return base64.b64decode(secret["data"][ref["key"]]).decode().strip()


def _pod_specs(cluster: Object) -> dict[str, Object]:
    """The pods that the cluster may have, by group."""
    spec = cluster["spec"]
    most = "maxReplicas" if spec.get("enableInTreeAutoscaling") else "replicas"
    groups = {g["groupName"]: g for g in spec.get("workerGroupSpecs") or () if g.get(most, 1)}
    return {name: group["template"]["spec"] for name, group in {"head": spec["headGroupSpec"], **groups}.items()}


def _gpus(pod: Object) -> float:
    """The GPUs of a pod's Ray container, as KubeRay counts them: every resource whose name ends in `gpu`."""
    limits = pod["containers"][0].get("resources", {}).get("limits") or {}
    return sum(float(amount) for name, amount in limits.items() if name.endswith("gpu"))


def _secrets(pod: Object) -> dict[str, str]:
    """Where a pod's Ray container has Secrets, by their name."""
    folders = {m["name"]: m["mountPath"] for m in pod["containers"][0].get("volumeMounts") or ()}
    names = {v["name"]: (v.get("secret") or {}).get("secretName") for v in pod.get("volumes") or ()}
    return {secret: folders[volume] for volume, secret in names.items() if secret and volume in folders}


class _Cluster:
    """A RayCluster as seen through the API server."""

    def __init__(self, api: _Api, cluster: Object) -> None:
        self.api = api
        self.namespace, self.name = cluster["metadata"]["namespace"], cluster["metadata"]["name"]
        self.token = _token(api, cluster)
        self._core = f"/api/v1/namespaces/{self.namespace}"
        self._agents: dict[str, str | None] = {}
        own = api.get(f"{self._core}/services/{self.name}-api")
        self._service = f"{self.name}-api" if own else f"{self.name}-head-svc"

    def url(self, port: int) -> str:
        """A port of the Service, as the submitter Role spells it."""
        if self.api.login.context is None:
            return f"http://{self._service}.{self.namespace}:{port}"
        return f"{self.api.login.url}{self._core}/services/http:{self._service}:{port}/proxy"

    def agent(self, address: str) -> str | None:
        """The way to a node agent: the head's by the Service, a worker's by its pod where that is allowed."""
        if address not in self._agents:
            parts = urlsplit(address)
            if parts.hostname == (self.read().get("status", {}).get("head") or {}).get("podIP"):
                self._agents[address] = self.url(_AGENT) if self._service.endswith("-api") else None
            elif self.api.login.context is None:
                self._agents[address] = address
            else:
                self._agents[address] = self._pod_agent(parts.hostname or "", parts.port or _AGENT)
        return self._agents[address]

    def _pod_agent(self, ip: str, port: int) -> str | None:
        for pod in self.pods():
            if pod.get("status", {}).get("podIP") == ip:
                path = f"{self._core}/pods/http:{pod['metadata']['name']}:{port}/proxy"
                try:
                    return self.api.login.url + path if self.api.get(f"{path}/api/healthz") is not None else None
                except (ClientError, ValueError):
                    return None  # the dashboard hands on the log then
        return None

    def read(self) -> Object:
        """The object as it is now."""
        return self.api.get(f"{_RAY}/namespaces/{self.namespace}/rayclusters/{self.name}") or {}

    def pods(self) -> list[Object]:
        """Its pods."""
        return self.api.list(f"{self._core}/pods?labelSelector=ray.io%2Fcluster%3D{self.name}")

    def events(self, name: str) -> list[str]:
        """What was said of an object, the newest last."""
        events = self.api.list(f"{self._core}/events?fieldSelector=involvedObject.name%3D{name}")
        return [e.get("message", "") for e in events if e.get("type") == "Warning"]

    def ready(self, note: Callable[[str], object], seconds: float) -> None:
        """Wait until the head takes jobs.

        Args:
            note: told what is waited for, each time that it changes.
            seconds: how long.
        """
        end, told = time.monotonic() + seconds, ""
        while (why := self._why()) and time.monotonic() < end:
            if why != told:
                note(f"waiting for RayCluster {self.namespace}/{self.name}: {why}")
                told = why
            time.sleep(_POLL_SECONDS)
        if why:
            raise TimedOut(f"RayCluster {self.namespace}/{self.name} is not ready after {seconds:g} s: {why}")

    def _why(self) -> str:
        """Why the head takes no jobs, or nothing where it does."""
        cluster = self.read()
        if not cluster:
            return "it is gone"
        if cluster["spec"].get("suspend"):
            return "it is suspended"
        conditions = {c["type"]: c for c in cluster.get("status", {}).get("conditions", ())}
        if conditions.get("HeadPodReady", {}).get("status") == "True":
            return ""
        heads = [p for p in self.pods() if p["metadata"]["labels"].get("ray.io/node-type") == "head"]
        if not heads:
            said = self.events(self.name)
            return said[-1] if said else "it has no head pod yet (is a KubeRay operator running?)"
        return _why_not_ready(heads[0])


def _why_not_ready(pod: Object) -> str:
    """The reason that a pod itself gives."""
    status, name = pod.get("status", {}), pod["metadata"]["name"]
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"pod {name} has no node: {condition.get('message', condition.get('reason'))}"
    for container in [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]:
        waiting = container["state"].get("waiting", {})
        if waiting.get("message"):
            return f"pod {name}: {waiting['reason']}: {waiting['message']}"
    return f"pod {name} is starting"


def has_cluster(context: str | None) -> bool:
    """Whether a context has a RayCluster that can be seen; not where it does not answer."""
    try:
        return bool(_clusters(_Api(kubeconfig.login(context)), None))
    except ClientError:
        return False


@contextmanager
def connect(address: str) -> Iterator[Endpoint]:
    """Yield the endpoint of a RayCluster.

    Args:
        address: `kubernetes`, or kubernetes://CONTEXT/NAMESPACE/CLUSTER with any part empty or left out.

    Raises:
        UsageError: the address means none, or several.
        Unreachable: the API server does not answer, or there is no such cluster.
        NotAuthorised: the login is not good for it.
    """
    context, namespace, name = _parts(address)
    api = _Api(kubeconfig.login(context))
    found = _find(api, namespace, name)
    cluster, pods = _Cluster(api, found), _pod_specs(found)
    in_pod = api.login.context is None
    header = "Authorization" if in_pod else "X-Ray-Authorization"  # the API server keeps the other for itself
    yield Endpoint(
        address=f"kubernetes://{quote(api.login.context or '', safe='')}/{cluster.namespace}/{cluster.name}",
        url=cluster.url(_DASHBOARD),
        agent=cluster.agent,
        headers={header: f"Bearer {cluster.token}"} if cluster.token else {},
        tls=None if in_pod else api.login.tls,
        auth=None if in_pod else api.login.auth,
        secrets=_secrets(pods["head"]),
        gpus={group: _gpus(pod) for group, pod in pods.items()},
        ready=cluster.ready,
    )
