"""What is left of a release: ended in the order that lets nothing hang, and looked for when helm is done."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from client.chart.release import Release, is_hook
from client.errors import NotAuthorised, TimedOut
from client.kube.cluster import RAY, Object

Tell = Callable[[str], object]
_POLL_SECONDS = 0.25
_GONE_SECONDS = 180.0  # for what an operator must end


class Left(NamedTuple):
    """An object of the release that is there."""

    kind: str
    name: str
    path: str
    hook: bool


class Remains:
    """The objects that are labelled as a release's, in its namespace, and where they name it, outside."""

    def __init__(self, release: Release) -> None:
        self._release, self._api = release, release.api
        self._ray, self._batch = (f"{at}/namespaces/{release.namespace}" for at in (RAY, "/apis/batch/v1"))

    def end_own_jobs(self, tell: Tell) -> None:
        """Delete RayServices and RayJobs labelled as the release's, while its operator is there to end them."""
        kinds = [f"{self._ray}/{kind}" for kind in ("rayservices", "rayjobs")]
        self._end([f"{kind}/{o['metadata']['name']}" for kind in kinds for o in self._labelled(kind)], tell)

    def end_cluster(self, tell: Tell) -> None:
        """Do what the chart's hook does, where that cannot run: delete the cluster and the RayJobs that select it."""
        for job in filter(is_hook, self._labelled(f"{self._batch}/jobs")):
            self._api.delete(f"{self._batch}/jobs/{job['metadata']['name']}")
        if self._release.cluster:
            jobs = [
                f"{self._ray}/rayjobs/{job['metadata']['name']}"
                for job in self._api.list(f"{self._ray}/rayjobs")
                if (job["spec"].get("clusterSelector") or {}).get("ray.io/cluster") == self._release.cluster
            ]
            self._end([*jobs, f"{self._ray}/rayclusters/{self._release.cluster}"], tell)

    def _labelled(self, path: str) -> list[Object]:
        return self._api.list(f"{path}?{self._release.selector}")

    def _end(self, paths: list[str], tell: Tell) -> None:
        for path in paths:
            self._api.delete(path)
        end = time.monotonic() + _GONE_SECONDS
        while paths := [path for path in paths if self._api.get(path)]:
            names = ", ".join("/".join(path.split("/")[-2:]) for path in paths)
            if time.monotonic() > end:
                raise TimedOut(f"{names} did not end in {_GONE_SECONDS:g} s: is a KubeRay operator running?")
            tell(f"waiting for the end of {names}")
            time.sleep(_POLL_SECONDS)

    def sweep(self, tell: Tell, seconds: float, *, purge: bool) -> tuple[list[Left], list[Left]]:
        """Wait until nothing but CRDs and volume claims is left; hooks that helm left are deleted.

        Args:
            tell: told what is waited for.
            seconds: how long.
            purge: delete the claims too.

        Returns:
            What is left all the same, and the claims that are kept.
        """
        end, kinds, asked, kept = time.monotonic() + seconds, list(self._api.kinds()), set(), []
        while True:
            found = [(kind, left) for kind in kinds for left in self._left(*kind)]
            if not purge:
                kept += [left for _, left in found if left.kind == "PersistentVolumeClaim"]
                found = [(kind, left) for kind, left in found if left.kind != "PersistentVolumeClaim"]
            for _, left in found:
                if (left.hook or left.kind == "PersistentVolumeClaim") and left.path not in asked:
                    asked.add(left.path)
                    self._api.delete(left.path)
            if not found or time.monotonic() > end:
                return [left for _, left in found], kept
            tell(f"waiting for the end of {', '.join(f'{left.kind}/{left.name}' for _, left in found)}")
            kinds = sorted({kind for kind, _ in found})
            time.sleep(_POLL_SECONDS)

    def _left(self, group: str, plural: str, kind: str, namespaced: bool) -> Iterator[Left]:
        at = f"{group}/namespaces/{self._release.namespace}/{plural}" if namespaced else f"{group}/{plural}"
        queries = [self._release.selector]
        if self._release.cluster and (group, plural) == ("/api/v1", "pods"):
            queries.append(f"labelSelector=ray.io%2Fcluster%3D{self._release.cluster}")
        found: dict[str, Object] = {}
        for query in queries:
            try:
                found |= {o["metadata"]["name"]: o["metadata"] for o in self._api.list(f"{at}?{query}")}
            except NotAuthorised:
                continue  # whoever may not see them has made none
        for name, metadata in found.items():
            if (
                namespaced
                or metadata.get("annotations", {}).get("meta.helm.sh/release-namespace") == self._release.namespace
            ):
                yield Left(kind, name, f"{at}/{name}", is_hook({"metadata": metadata}))
