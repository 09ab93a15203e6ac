"""What a release waits for: its RayCluster, its operator, its hooks."""

import time
from collections.abc import Iterable

from client.errors import HookStuck, TimedOut
from client.kube.api import Api, Object, is_deleted, is_ready, node_type, started
from client.kube.cluster import Cluster
from client.kube.login import Login
from client.wait import Note, wait

_HOOK_SECONDS = 30.0  # for a hook's pod to start
_NO_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")


class Release:
    """A release as the API server shows it.

    Attributes:
        cluster_name: of its RayCluster, once that is known.
    """

    def __init__(self, login: Login, namespace: str, name: str) -> None:
        """Make no request yet."""
        self.api, self.namespace = Api(login), namespace
        self.cluster_name: str | None = None
        self.selector = f"labelSelector=app.kubernetes.io%2Finstance%3D{name}"
        self.core = f"/api/v1/namespaces/{namespace}"
        self._hook_waits_since: float | None = None

    def _cluster(self) -> Cluster:
        return Cluster(self.api, {"metadata": {"namespace": self.namespace, "name": self.cluster_name}})

    def wait_ready(self, note: Note, seconds: float) -> None:
        """Wait until the head and the minimum of workers are ready.

        Pods that never started and are older than helm's last change of the cluster are deleted meanwhile: the operator
        does not replace them, so they would keep the settings that the change corrects.

        Args:
            note: takes what is waited for, each time that it changes.
            seconds: how long.

        Raises:
            TimedOut: the release is not ready; the message says why. Nothing is removed.
        """
        cluster = self._cluster()

        def why() -> str:
            found, pods = cluster.read(), [pod for pod in cluster.pods() if not is_deleted(pod)]
            outdated = [pod for pod in _older(pods, found) if not started(pod)]
            for pod in outdated:
                self.api.delete(f"{self.core}/pods/{pod['metadata']['name']}")
            return "replacing pods that never started" if outdated else self._why_not_ready(found, pods)

        if reason := wait(why, seconds, lambda reason: note(f"waiting for {cluster}: {reason}")):
            hint = "nothing was removed; run `up` again to continue"
            raise TimedOut(f"{cluster} is not ready in time: {reason}", hint)

    def _why_not_ready(self, found: Object, pods: list[Object]) -> str:
        cluster = self._cluster()
        if not found or found["spec"].get("suspend"):
            return cluster.why_not_ready() or "its state is changing"
        status, ready = found.get("status", {}), [node_type(pod) for pod in pods if is_ready(pod)]
        minimum = _minimum_workers(found)
        if "head" in ready and ready.count("worker") >= minimum and status.get("state") == "ready":
            return ""
        if waiting := [pod for pod in pods if not is_ready(pod)]:
            return self.api.why_not_ready(min(waiting, key=node_type))  # a head before workers
        if "head" not in ready:
            return self._why_no_operator() or cluster.why_not_ready() or "it has no head pod yet"
        if ready.count("worker") < minimum:
            event = self.api.event(self.namespace, cluster.name)
            return f"{ready.count('worker')} of {minimum} workers exist" + (f": {event}" if event else "")
        return str(status.get("reason") or "the operator has not reported it ready yet")

    def count_pods(self) -> int:
        """How many pods its cluster has."""
        return len(self._cluster().pods()) if self.cluster_name else 0

    def count_older_pods(self) -> int:
        """How many pods are older than helm's last change of the cluster."""
        return len(_older(self._cluster().pods(), self._cluster().read()))

    def _why_no_operator(self) -> str:
        """Why the release's own operator does not run, if it has one that does not."""
        selector = f"{self.selector},app.kubernetes.io%2Fname%3Dkuberay-operator"
        for deployment in self.api.list(f"/apis/apps/v1/namespaces/{self.namespace}/deployments?{selector}"):
            if deployment.get("status", {}).get("availableReplicas"):
                continue
            for condition in deployment.get("status", {}).get("conditions", ()):
                if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
                    return f"the operator has no pod: {condition['message']}"
            pods = self.api.list(f"{self.core}/pods?{selector}")
            waiting = next((pod for pod in pods if not is_ready(pod) and not is_deleted(pod)), None)
            return f"the operator: {self.api.why_not_ready(waiting)}" if waiting else "the operator is starting"
        return ""

    def why_hook_waits(self) -> str:
        """Why the pod of a hook that helm runs has not started, or "" if none waits."""
        for job in self.api.list(f"/apis/batch/v1/namespaces/{self.namespace}/jobs?{self.selector}"):
            name = job["metadata"]["name"]
            pods = self.api.list(f"{self.core}/pods?labelSelector=job-name%3D{name}")
            if not is_hook(job) or any(map(started, pods)) or job.get("status", {}).get("conditions"):
                continue
            if pods:
                return self.api.why_not_ready(pods[0])
            event = self.api.event(self.namespace, name, ("FailedCreate",))
            return f"job {name} has no pod{f': {event}' if event else ''}"
        return ""

    def check_hook(self) -> str:
        """The same.

        Raises:
            HookStuck: its image cannot be pulled, or it has waited for half a minute.
        """
        why, now = self.why_hook_waits(), time.monotonic()
        self._hook_waits_since = (self._hook_waits_since or now) if why else None
        if any(reason in why for reason in _NO_IMAGE) or now - (self._hook_waits_since or now) > _HOOK_SECONDS:
            raise HookStuck(why)
        return why


def is_hook(found: Object) -> bool:
    """Whether helm made an object for one of the chart's hooks."""
    return "helm.sh/hook" in found["metadata"].get("annotations", {})


def _older(pods: Iterable[Object], cluster: Object) -> list[Object]:
    """The pods that existed before helm last changed the cluster."""
    fields = cluster.get("metadata", {}).get("managedFields", ())
    changed = max((f["time"] for f in fields if f["manager"] == "helm" and "time" in f), default="")
    return [pod for pod in pods if pod["metadata"]["creationTimestamp"] < changed]


def _minimum_workers(cluster: Object) -> int:
    """From the spec: where nothing else in the status changes, it is not that of this generation."""
    groups = [g for g in cluster["spec"].get("workerGroupSpecs") or () if not g.get("suspend")]
    return sum(g.get("minReplicas", 0) * g.get("numOfHosts", 1) for g in groups)
