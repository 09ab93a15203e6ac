"""The remains of a release: deleted in an order that does not hang, and searched for when helm is done."""

from collections.abc import Iterator
from typing import NamedTuple

from client.chart.release import Release, is_hook
from client.errors import NotAuthorised, TimedOut
from client.kube.api import Api, Object
from client.kube.cluster import RAY
from client.wait import Note, wait

_OPERATOR_SECONDS = 180.0  # for what an operator must end
_NOT_LISTED = ("events", "customresourcedefinitions")
_DISCOVERY = ",".join(
    f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList" for version in ("v2", "v2beta1")
)


class Remnant(NamedTuple):
    """An object of the release that exists."""

    kind: str
    path: str
    hook: bool = False

    def __str__(self) -> str:
        return f"{self.kind}/{self.path.rpartition('/')[2]}"

    @property
    def is_claim(self) -> bool:
        """Whether it is a volume claim, which is kept unless the user wants otherwise."""
        return self.kind == "PersistentVolumeClaim"


class Remains:
    """The objects with a release's label: in its namespace, and outside if they name that namespace."""

    def __init__(self, release: Release) -> None:
        """Make no request yet."""
        self._release, self._api = release, release.api
        self._ray = f"{RAY}/namespaces/{release.namespace}"

    def end_own_jobs(self, note: Note) -> None:
        """Delete RayServices and RayJobs with the release's label, while its operator exists to end them."""
        services = self._labelled("RayService", f"{self._ray}/rayservices")
        self._end([*services, *self._labelled("RayJob", f"{self._ray}/rayjobs")], note)

    def end_cluster(self, note: Note) -> None:
        """Delete the cluster and the RayJobs that select it, if the chart's cleanup hook cannot.

        `cleanup` in the chart's files/hooks.py deletes the same objects. They share no code: that file runs alone in
        a pod of the Ray image, and the release may come from a chart that is not on this machine.
        """
        for job in self._labelled("Job", f"/apis/batch/v1/namespaces/{self._release.namespace}/jobs"):
            if job.hook:
                self._api.delete(job.path)
        if name := self._release.cluster_name:
            jobs = [
                Remnant("RayJob", f"{self._ray}/rayjobs/{job['metadata']['name']}")
                for job in self._api.list(f"{self._ray}/rayjobs")
                if (job["spec"].get("clusterSelector") or {}).get("ray.io/cluster") == name
            ]
            self._end([*jobs, Remnant("RayCluster", f"{self._ray}/rayclusters/{name}")], note)

    def _end(self, remnants: list[Remnant], note: Note) -> None:
        if remaining := self._delete(remnants, remnants, note, _OPERATOR_SECONDS):
            names = ", ".join(map(str, remaining))
            raise TimedOut(
                f"{names} did not end in {_OPERATOR_SECONDS:g} s", "check that a KubeRay operator is running"
            )

    def remove(self, remnants: list[Remnant], note: Note, seconds: float) -> list[Remnant]:
        """Wait until all objects are gone. Deletes hooks and volume claims, because nothing else does.

        Args:
            remnants: what is to be gone.
            note: takes what is waited for, each time that it changes.
            seconds: how long.

        Returns:
            The objects that still exist.
        """
        return self._delete([r for r in remnants if r.hook or r.is_claim], remnants, note, seconds)

    def _delete(self, deleted: list[Remnant], awaited: list[Remnant], note: Note, seconds: float) -> list[Remnant]:
        for remnant in deleted:
            self._api.delete(remnant.path)

        def names() -> str:
            nonlocal awaited
            awaited = [remnant for remnant in awaited if self._api.get(remnant.path)]
            return ", ".join(map(str, awaited))

        wait(names, seconds, lambda names: note(f"waiting until {names} is deleted"))
        return awaited

    def find(self) -> list[Remnant]:
        """All objects of the release that exist, except CRDs."""
        return [remnant for kind in _kinds(self._api) for remnant in self._of_kind(*kind)]

    def _of_kind(self, group: str, plural: str, kind: str, namespaced: bool) -> list[Remnant]:
        path = f"{group}/namespaces/{self._release.namespace}/{plural}" if namespaced else f"{group}/{plural}"
        selectors = [self._release.selector]
        if self._release.cluster_name and kind in ("Pod", "PersistentVolumeClaim"):  # the operator's have this label
            selectors.append(f"labelSelector=ray.io%2Fcluster%3D{self._release.cluster_name}")
        try:
            return sorted({remnant for selector in selectors for remnant in self._labelled(kind, path, selector)})
        except NotAuthorised:
            return []  # a login that may not list a kind has created none of it

    def _labelled(self, kind: str, path: str, selector: str = "") -> list[Remnant]:
        namespace = None if "/namespaces/" in path else self._release.namespace
        return [
            Remnant(kind, f"{path}/{o['metadata']['name']}", is_hook(o))
            for o in self._api.list(f"{path}?{selector or self._release.selector}")
            if namespace in (None, o["metadata"].get("annotations", {}).get("meta.helm.sh/release-namespace"))
        ]


def _kinds(api: Api) -> Iterator[tuple[str, str, str, bool]]:
    """The kinds that can be listed: path of group and version, plural, kind, and whether it is namespaced."""
    for root in ("/api", "/apis"):
        groups: Object = api.get(root, headers={"Accept": _DISCOVERY}) or {"items": ()}
        for group in groups["items"]:
            name, listed = group.get("metadata", {}).get("name", ""), set()
            for version in group["versions"]:
                if version.get("freshness") == "Stale" or name == "metrics.k8s.io":
                    continue
                path = f"{root}/{name}/{version['version']}" if name else f"{root}/{version['version']}"
                for kind in version.get("resources", ()):
                    plural = kind["resource"]
                    if "list" in kind["verbs"] and plural not in listed and plural not in _NOT_LISTED:
                        listed.add(plural)
                        yield path, plural, kind["responseKind"]["kind"], kind["scope"] == "Namespaced"
