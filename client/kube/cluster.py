"""A RayCluster as the API server shows it: its token, its pods, its Service, and why it is not ready.

Names and labels are those of KubeRay 1.7 (ray-operator/controllers/ray/utils/constant.go) and of the chart. The chart's
Service CLUSTER-api, with the ports `dashboard` and `agent`, is preferred to the operator's.
"""

import base64
from collections import Counter
from contextlib import suppress
from functools import cached_property
from urllib.parse import quote, urlsplit

from client.errors import RUN_DOCTOR, ClientError, NotAuthorised, NotFound, TimedOut, Unreachable, UsageError
from client.http import is_token
from client.kube.api import Api, Object, group, is_deleted, is_ready, node_type, oom_killed
from client.kube.login import Login
from client.wait import Note, wait

DASHBOARD, AGENT = 8265, 52365
RAY = "/apis/ray.io/v1"


def clusters(api: Api, namespace: str | None) -> list[Object]:
    """The RayClusters of a namespace, or of all namespaces; of the login's own if it may not list all."""
    try:
        return api.list(f"{RAY}/namespaces/{namespace}/rayclusters" if namespace else f"{RAY}/rayclusters")
    except NotAuthorised:
        if namespace:
            raise
        return api.list(f"{RAY}/namespaces/{api.login.namespace}/rayclusters")


def find(api: Api, namespace: str | None, name: str | None) -> Object:
    """The one RayCluster that has this name and namespace, as far as they are given.

    Raises:
        UsageError: there are several.
        Unreachable: there is none.
    """
    where = f"namespace {namespace}" if namespace else "any namespace"
    where += f" of context {api.login.context}" if api.login.context else ""
    found = [c for c in clusters(api, namespace) if name in (None, c["metadata"]["name"])]
    if len(found) == 1:
        return found[0]
    if found:
        addresses = ", ".join(sorted(address_of(api.login, *path(c).split("/")) for c in found))
        raise UsageError(f"there are {len(found)} RayClusters in {where}", f"use one as the address: {addresses}")
    if api.get(RAY) is None:
        what = f"{api.login.server.url} has no RayCluster resource definition"
        raise Unreachable(what, "install the chart there first (`helm install`)")
    hint, wanted = "install the chart, or use another address", f"RayCluster {name}" if name else "RayCluster"
    with suppress(NotAuthorised):
        if others := sorted(address_of(api.login, *path(c).split("/")) for c in clusters(api, None)):
            hint = f"use another address: {', '.join(others)}"
    raise Unreachable(f"there is no {wanted} in {where}", hint)


def address_of(login: Login, namespace: str, name: str) -> str:
    """The --address of a RayCluster."""
    return f"kubernetes://{quote(login.context or '', safe='')}/{namespace}/{name}"


def path(cluster: Object) -> str:
    """Namespace and name."""
    return f"{cluster['metadata']['namespace']}/{cluster['metadata']['name']}"


def token_ref(cluster: Object) -> tuple[str, str] | None:
    """The Secret and key of the token: from the head's RAY_AUTH_TOKEN, else from the cluster's authOptions."""
    spec, metadata = cluster["spec"], cluster["metadata"]
    environment = spec["headGroupSpec"]["template"]["spec"]["containers"][0].get("env", ())
    refs = [v.get("valueFrom", {}).get("secretKeyRef") for v in environment if v["name"] == "RAY_AUTH_TOKEN"]
    if ref := next(filter(None, refs), None):
        return ref["name"], ref["key"]
    options = spec.get("authOptions") or {}
    return (options.get("secretName") or metadata["name"], "auth_token") if options.get("mode") == "token" else None


def token(api: Api, cluster: Object) -> str | None:
    """The token that the cluster requires; None if it requires none.

    Raises:
        Unreachable: the Secret with it does not exist.
        UsageError: it does not hold a token.
    """
    if not (ref := token_ref(cluster)):
        return None
    name, key = ref
    secret = api.get(f"/api/v1/namespaces/{cluster['metadata']['namespace']}/secrets/{name}")
    if not secret or key not in secret.get("data", {}):
        what = f"the Secret {name} with the token of RayCluster {path(cluster)} does not exist, or has no key {key}"
        raise Unreachable(what, "install or upgrade the chart")
    found = base64.b64decode(secret["data"][key]).decode(errors="replace").strip()
    if not is_token(found):
        raise UsageError(f"the key {key} of the Secret {name} does not hold a token", "put one line of ASCII there")
    return found


class Cluster:
    """A RayCluster as seen through the API server."""

    def __init__(self, api: Api, cluster: Object) -> None:
        """Make no request yet.

        Args:
            api: the API server.
            cluster: as it was just read; a name and a namespace suffice.
        """
        self._just_read = cluster
        self.api = api
        self.namespace, self.name = cluster["metadata"]["namespace"], cluster["metadata"]["name"]
        self.core = f"/api/v1/namespaces/{self.namespace}"
        self._agents: dict[str, str | None] = {}

    def __str__(self) -> str:
        return f"RayCluster {self.namespace}/{self.name}"

    @property
    def address(self) -> str:
        """Its --address."""
        return address_of(self.api.login, self.namespace, self.name)

    @cached_property
    def reaches_agent(self) -> bool:
        """Whether the login can read the chart's Service, which has a port for the head's node agent."""
        try:
            found = self.api.get(f"{self.core}/services/{self.name}-api") or {}
        except NotAuthorised:
            return False
        return any(port.get("name") == "agent" for port in found.get("spec", {}).get("ports", ()))

    @cached_property
    def service(self) -> str:
        """The Service to use: the chart's, else the operator's."""
        if self.reaches_agent:
            return f"{self.name}-api"
        cluster = self.read()
        service = cluster.get("spec", {}).get("headGroupSpec", {}).get("headService") or {}
        named = service.get("metadata", {}).get("name") or f"{self.name}-head-svc"
        return str(_head_status(cluster).get("serviceName") or named)

    def url(self, port: int) -> str:
        """The URL of a port of the Service, with the name that the submitter Role allows."""
        if self.api.login.context is None:
            return f"http://{self.service}.{self.namespace}.svc:{port}"
        return f"{self.api.login.server.url}{self.core}/services/http:{self.service}:{port}/proxy"

    def agent(self, address: str) -> str | None:
        """The URL of a node agent: for the head through the Service, for a worker through its pod.

        Args:
            address: of the agent, from a job's record.

        Returns:
            The URL, or None if the login may not use it.
        """
        if address not in self._agents:
            parts = urlsplit(address)
            if parts.hostname == _head_status(self.read()).get("podIP"):
                self._agents[address] = self.url(AGENT) if self.reaches_agent else None
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
                    found = self.api.get(f"{path}/api/healthz") is not None
                except (ClientError, ValueError):
                    return None
                return self.api.login.server.url + path if found else None
        return None

    def read(self) -> Object:
        """The object as it is now; empty if it no longer exists."""
        return self.api.get(f"{RAY}/namespaces/{self.namespace}/rayclusters/{self.name}") or {}

    def pods(self) -> list[Object]:
        """Its pods."""
        return self.api.list(f"{self.core}/pods?labelSelector=ray.io%2Fcluster%3D{self.name}")

    def head(self) -> Object | None:
        """The head's pod; of two, the one that is not being deleted."""
        return min((p for p in self.pods() if node_type(p) == "head"), key=is_deleted, default=None)

    def existing_head(self) -> Object:
        """The head's pod.

        Raises:
            Unreachable: there is none.
        """
        if not (head := self.head()):
            raise Unreachable(f"{self} has no head pod", RUN_DOCTOR)
        return head

    def wait_ready(self, note: Note, seconds: float) -> None:
        """Wait until the head takes jobs.

        Args:
            note: takes the reason to wait, each time that it changes.
            seconds: how long to wait.

        Raises:
            NotFound: the cluster no longer exists.
            TimedOut: it is still not ready; the message has the reason.
        """
        known, self._just_read = self._just_read, {}
        if head_ready(known):
            return  # without asking again
        if why := wait(self._why_present, seconds, lambda why: note(f"waiting for {self}: {why}"), poll=0.5):
            raise TimedOut(f"{self} is not ready after {seconds:g} s: {why}", RUN_DOCTOR)

    def _why_present(self) -> str:
        if not (cluster := self.read()):
            raise NotFound(f"{self} no longer exists", "install the chart again, or use another address")
        return self._why(cluster)

    def facts(self) -> dict[str, object]:
        """The release that it belongs to, and the number of ready and of wanted pods in each group."""
        cluster, ready = self.read(), Counter(map(group, filter(is_ready, self.pods())))
        workers = {g["groupName"]: g.get("replicas", 0) for g in cluster["spec"].get("workerGroupSpecs") or ()}
        return {
            "release": cluster["metadata"].get("annotations", {}).get("meta.helm.sh/release-name"),
            "pods_ready": {name: ready[name] for name in ("head", *workers)},
            "pods_wanted": {"head": 1, **workers},
        }

    def out_of_memory(self, since: float, said: str) -> str:
        """The pod that ran out of memory after a Unix time, and the chart's value to raise; "" if none is known.

        Args:
            since: earlier ends of containers do not count.
            said: by Ray, which may end a process before the kernel does, and names its node by IP.
        """
        for pod in self.pods():
            name, ip = group(pod), pod.get("status", {}).get("podIP")
            word = "OOMKilled" if oom_killed(pod, since) else "Ray's OutOfMemoryError"
            if word == "OOMKilled" or f"Memory on the node (IP: {ip}," in said:
                value = "head.memory" if name == "head" else f"workerGroups.{name}.memory, or workers.memory,"
                return f"pod {pod['metadata']['name']} ran out of memory ({word}): raise {value} in the chart's values"
        return ""

    def why_not_ready(self) -> str:
        """Why the head takes no jobs, or "" if it takes them."""
        cluster = self.read()
        return self._why(cluster) if cluster else "it no longer exists"

    def _why(self, cluster: Object) -> str:
        if cluster["spec"].get("suspend"):
            return "it is suspended until its `suspend` is set to false"
        if head_ready(cluster):
            return ""
        if not (head := self.head()):
            event = self.api.event(self.namespace, self.name)
            return event or "it has no head pod yet (is a KubeRay operator running?)"
        if is_ready(head):
            return ""  # operators before KubeRay 1.3 set no conditions, and 1.7's may be late after a kubelet's restart
        return self.api.why_not_ready(head)


def _head_status(cluster: Object) -> Object:
    """The operator's record of a cluster's head: podIP, serviceName."""
    return cluster.get("status", {}).get("head") or {}


def head_ready(cluster: Object) -> bool:
    """Whether the operator found the head ready."""
    conditions = {c["type"]: c for c in cluster.get("status", {}).get("conditions", ())}
    return bool(conditions.get("HeadPodReady", {}).get("status") == "True")
