"""A RayCluster as the API server shows it: found, its token, its pods, its Service, and why it is not ready.

Names and labels are those of KubeRay 1.7 (ray-operator/controllers/ray/utils/constant.go) and of the chart, whose
Service CLUSTER-api with the ports `dashboard` and `agent` is preferred to the operator's.
"""

import base64
from collections import Counter
from functools import cached_property
from urllib.parse import quote, urlsplit

from client.errors import ClientError, NotAuthorised, NotFound, TimedOut, Unreachable, UsageError
from client.http import is_token
from client.kube.api import Api, Object, group, is_deleted, is_ready, node_type
from client.kube.login import Login
from client.wait import Note, wait

DASHBOARD, AGENT = 8265, 52365
RAY = "/apis/ray.io/v1"


def clusters(api: Api, namespace: str | None) -> list[Object]:
    """The RayClusters of a namespace, or of all that the login may see."""
    try:
        return api.list(f"{RAY}/namespaces/{namespace}/rayclusters" if namespace else f"{RAY}/rayclusters")
    except NotAuthorised:
        if namespace:
            raise
        return api.list(f"{RAY}/namespaces/{api.login.namespace}/rayclusters")


def find(api: Api, namespace: str | None, name: str | None) -> Object:
    """The one RayCluster that an address means.

    Raises:
        UsageError: it means several.
        Unreachable: there is none.
    """
    where = f"namespace {namespace}" if namespace else "any namespace"
    where += f" of context {api.login.context}" if api.login.context else ""
    found = [c for c in clusters(api, namespace) if name in (None, c["metadata"]["name"])]
    if len(found) == 1:
        return found[0]
    if found:
        known = ", ".join(sorted(address_of(api.login, *path(c).split("/")) for c in found))
        raise UsageError(f"there are {len(found)} RayClusters in {where}", f"give one as the address: {known}")
    if api.get(RAY) is None:
        raise Unreachable(
            f"{api.login.server.url} does not know RayClusters", "install the chart there first (`helm install`)"
        )
    wanted = f"RayCluster {name}" if name else "RayCluster"
    raise Unreachable(f"there is no {wanted} in {where}", "install the chart, or give another address")


def address_of(login: Login, namespace: str, name: str) -> str:
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
    """The token that the cluster requires, if it does.

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

    @cached_property
    def reaches_agent(self) -> bool:
        """Whether the chart's Service is there, which has the head's node agent; not where the login may not look."""
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
        return self._head_status().get("serviceName") or f"{self.name}-head-svc"

    def url(self, port: int) -> str:
        """A port of the Service, as the submitter Role spells it."""
        if self.api.login.context is None:
            return f"http://{self.service}.{self.namespace}.svc:{port}"
        return f"{self.api.login.server.url}{self.core}/services/http:{self.service}:{port}/proxy"

    def agent(self, address: str) -> str | None:
        """The URL of a node agent: the head's by the Service, a worker's by its pod where that is allowed.

        Args:
            address: of the agent, as a job's record has it.
        """
        if address not in self._agents:
            parts = urlsplit(address)
            if parts.hostname == self._head_status().get("podIP"):
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
                    return None  # the dashboard passes the log on then
                return self.api.login.server.url + path if found else None
        return None

    def read(self) -> Object:
        """The object as it is now; empty where it is gone."""
        return self.api.get(f"{RAY}/namespaces/{self.namespace}/rayclusters/{self.name}") or {}

    def _head_status(self) -> Object:
        """What the operator says of its head: podIP, serviceName."""
        return self.read().get("status", {}).get("head") or {}

    def pods(self) -> list[Object]:
        """Its pods."""
        return self.api.list(f"{self.core}/pods?labelSelector=ray.io%2Fcluster%3D{self.name}")

    def head(self) -> Object | None:
        """Its head's pod; of two, the one that is not being deleted."""
        return min((p for p in self.pods() if node_type(p) == "head"), key=is_deleted, default=None)

    def wait_ready(self, note: Note, seconds: float) -> None:
        """Wait until the head takes jobs.

        Args:
            note: takes what is waited for, each time that it changes.
            seconds: how long.

        Raises:
            NotFound: the cluster is gone.
            TimedOut: it is not ready, and why.
        """
        known, self._just_read = self._just_read, {}
        if head_ready(known):
            return  # without asking again
        if why := wait(self._why_present, seconds, lambda why: note(f"waiting for {self}: {why}"), poll=0.5):
            raise TimedOut(f"{self} is not ready after {seconds:g} s: {why}", "run `doctor`")

    def _why_present(self) -> str:
        if not (cluster := self.read()):
            raise NotFound(f"{self} is gone", "install the chart again, or give another address")
        return self._why(cluster)

    def facts(self) -> dict[str, object]:
        """The release that it belongs to, and how many pods each group has ready, and should have."""
        cluster, ready = self.read(), Counter(map(group, filter(is_ready, self.pods())))
        workers = {g["groupName"]: g.get("replicas", 0) for g in cluster["spec"].get("workerGroupSpecs") or ()}
        return {
            "release": cluster["metadata"].get("annotations", {}).get("meta.helm.sh/release-name"),
            "pods_ready": {name: ready[name] for name in ("head", *workers)},
            "pods_wanted": {"head": 1, **workers},
        }

    def why_not_ready(self) -> str:
        """Why the head takes no jobs, or "" where it does."""
        cluster = self.read()
        return self._why(cluster) if cluster else "it is gone"

    def _why(self, cluster: Object) -> str:
        if cluster["spec"].get("suspend"):
            return "it is suspended, until its `suspend` is set to false"
        if head_ready(cluster):
            return ""
        if not (head := self.head()):
            event = self.api.event(self.namespace, self.name)
            return event or "it has no head pod yet (is a KubeRay operator running?)"
        if not cluster.get("status", {}).get("conditions") and is_ready(head):
            return ""  # operators before KubeRay 1.3, or by their feature gate, set none
        return self.api.why_not_ready(head)


def head_ready(cluster: Object) -> bool:
    """Whether the operator found the head ready."""
    conditions = {c["type"]: c for c in cluster.get("status", {}).get("conditions", ())}
    return bool(conditions.get("HeadPodReady", {}).get("status") == "True")
