"""What a release waits for: its RayCluster, its operator, its hooks."""

import time
from collections.abc import Callable, Iterable, Iterator

from client.errors import ClientError, TimedOut
from client.http import NotFound, patient
from client.kube.cluster import Api, Cluster, Object, is_ready, node_type, started
from client.kube.login import Login

Tell = Callable[[str], object]
_INSTANCE = "app.kubernetes.io/instance"
_POLL_SECONDS = 0.25
_HOOK_SECONDS = 30.0  # for a hook's pod to start
_NO_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_NOT_LISTED = ("events", "customresourcedefinitions")
_DISCOVERY = ",".join(
    f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList" for version in ("v2", "v2beta1")
)


class HookStuckError(ClientError):
    """A hook of the chart does not start."""


class Admin(Api):
    """Also deletes, and knows all kinds."""

    def delete(self, path: str) -> None:
        """Delete an object; it is gone once all that it owns is gone."""
        try:
            self._transport.request("DELETE", path, params={"propagationPolicy": "Foreground"})
        except NotFound:
            pass

    def kinds(self) -> Iterator[tuple[str, str, str, bool]]:
        """What can be listed: the path of group and version, the plural, the kind, and whether it is namespaced."""
        for root in ("/api", "/apis"):
            groups = self._transport.request("GET", root, headers={"Accept": _DISCOVERY}).json()
            for group in groups["items"]:
                name, seen = group.get("metadata", {}).get("name", ""), set()
                for version in group["versions"]:
                    if version.get("freshness") == "Stale" or name == "metrics.k8s.io":
                        continue
                    at = f"{root}/{name}/{version['version']}" if name else f"{root}/{version['version']}"
                    for kind in version.get("resources", ()):
                        plural = kind["resource"]
                        if "list" in kind["verbs"] and plural not in seen and plural not in _NOT_LISTED:
                            seen.add(plural)
                            yield at, plural, kind["responseKind"]["kind"], kind["scope"] == "Namespaced"


class Release:
    """A release as the API server shows it.

    Attributes:
        cluster: the name of its RayCluster, once that is known.
    """

    def __init__(self, login: Login, namespace: str, name: str) -> None:
        """Ask for nothing yet."""
        self.api, self.namespace = Admin(login), namespace
        self.cluster: str | None = None
        self.selector = f"labelSelector={_INSTANCE.replace('/', '%2F')}%3D{name}"
        self.core = f"/api/v1/namespaces/{namespace}"
        self._hook_since: dict[str, float] = {}

    def _cluster(self) -> Cluster:
        return Cluster(self.api, {"metadata": {"namespace": self.namespace, "name": self.cluster}})

    def check_reachable(self) -> None:
        """Ask for what everybody may see.

        Raises:
            Unreachable: there is no answer.
            NotAuthorised: the login is not good.
        """
        self.api.get("/version")

    def wait_ready(self, tell: Tell, end: float) -> None:
        """Wait until the head and the minimum of workers are ready.

        Pods that were never started and are older than helm's last change of the cluster are deleted: the operator
        leaves them as they are, so what was wrong with them would stay.

        Args:
            tell: told what is waited for.
            end: until when, on the monotonic clock.

        Raises:
            TimedOut: it is not ready, and why. Everything is left as it is.
        """
        cluster = self._cluster()
        ask = patient(lambda: self._why(cluster))
        while why := ask():
            if time.monotonic() > end:
                raise TimedOut(f"{cluster} is not ready in time: {why} (nothing was removed: `up` again goes on)")
            tell(f"waiting for {cluster}: {why}")
            time.sleep(_POLL_SECONDS)

    def _why(self, cluster: Cluster) -> str:
        found = cluster.read()
        if not found or found["spec"].get("suspend"):
            return cluster.why() or "it has just been made"
        status, pods = found.get("status", {}), [p for p in cluster.pods() if "deletionTimestamp" not in p["metadata"]]
        if self._replace(pods, found):
            return "pods that never started are made again"
        pods.sort(key=lambda p: node_type(p) != "head")
        ready = [node_type(p) for p in pods if is_ready(p)]
        least = _least(found)
        if "head" in ready and ready.count("worker") >= least and status.get("state") == "ready":
            return ""
        if waiting := next((p for p in pods if not is_ready(p)), None):
            return self.api.why(waiting)
        if "head" not in ready:
            return self._operator() or cluster.why() or "it has no head pod yet"
        if ready.count("worker") < least:
            said = self.api.said(self.namespace, str(self.cluster))
            return f"{ready.count('worker')} of {least} workers are there" + (f": {said}" if said else "")
        return str(status.get("reason") or "the operator has not said so yet")

    def pods(self) -> int:
        """How many pods its cluster has."""
        return len(self._cluster().pods()) if self.cluster else 0

    def older_pods(self) -> int:
        """How many pods are older than helm's last change of the cluster."""
        return len(_older(self._cluster().pods(), self._cluster().read()))

    def _replace(self, pods: Iterable[Object], cluster: Object) -> bool:
        stuck = [p for p in _older(pods, cluster) if not started(p)]
        for pod in stuck:
            self.api.delete(f"{self.core}/pods/{pod['metadata']['name']}")
        return bool(stuck)

    def _operator(self) -> str:
        """What the release's own operator waits for, if it has one that does not run."""
        selector = f"{self.selector},app.kubernetes.io%2Fname%3Dkuberay-operator"
        for deployment in self.api.list(f"/apis/apps/v1/namespaces/{self.namespace}/deployments?{selector}"):
            if deployment.get("status", {}).get("availableReplicas"):
                continue
            for condition in deployment.get("status", {}).get("conditions", ()):
                if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
                    return f"the operator has no pod: {condition['message']}"
            pods = self.api.list(f"{self.core}/pods?{selector}")
            waiting = next((p for p in pods if not is_ready(p) and "deletionTimestamp" not in p["metadata"]), None)
            return f"the operator: {self.api.why(waiting)}" if waiting else "the operator is starting"
        return ""

    def hook_waits_for(self) -> str:
        """What a hook that helm runs waits for, if its pod has not started."""
        try:
            return self.check_hooks()
        except HookStuckError as error:
            return str(error)
        except ClientError:
            return ""  # helm goes on, whatever we can see of it

    def check_hooks(self) -> str:
        """The same.

        Raises:
            HookStuckError: it will not start, or has not in half a minute.
        """
        for job in self.api.list(f"/apis/batch/v1/namespaces/{self.namespace}/jobs?{self.selector}"):
            name = job["metadata"]["name"]
            pods = self.api.list(f"{self.core}/pods?labelSelector=job-name%3D{name}")
            if not is_hook(job) or any(map(started, pods)) or job.get("status", {}).get("conditions"):
                continue
            since = self._hook_since.setdefault(job["metadata"]["uid"], time.monotonic())
            said = self.api.said(self.namespace, name, ("FailedCreate",)) if not pods else ""
            why = self.api.why(pods[0]) if pods else f"job {name} has no pod{f': {said}' if said else ''}"
            if any(reason in why for reason in _NO_IMAGE) or time.monotonic() - since > _HOOK_SECONDS:
                raise HookStuckError(why)
            return why
        return ""


def is_hook(found: Object) -> bool:
    """Whether helm made it for one of the chart's hooks."""
    return "helm.sh/hook" in found["metadata"].get("annotations", {})


def _older(pods: Iterable[Object], cluster: Object) -> list[Object]:
    """The pods that were there before helm changed the cluster."""
    fields = cluster.get("metadata", {}).get("managedFields", ())
    changed = max((f["time"] for f in fields if f["manager"] == "helm" and "time" in f), default="")
    return [p for p in pods if p["metadata"]["creationTimestamp"] < changed]


def _least(cluster: Object) -> int:
    """The workers that it always has. Its status is not of this generation where nothing else there changed."""
    groups = [g for g in cluster["spec"].get("workerGroupSpecs") or () if not g.get("suspend")]
    return sum(g.get("minReplicas", 0) * g.get("numOfHosts", 1) for g in groups)
