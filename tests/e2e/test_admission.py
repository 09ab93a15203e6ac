"""The API server accepts each object of the chart, in a namespace that enforces Pod Security `restricted`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.e2e._release import install_crds
from tests.e2e.conftest import CHART, Object, helm, kubectl, new_namespace, until

FILES = [
    "",
    *(f"{CHART}/values-{name}.yaml" for name in ("local", "gke")),
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("ci/values/*.yaml")),
]
CUSTOM = {"PodMonitor", "PodMonitoring"}  # kinds whose CRDs a cluster may not have
FREE = ["--set", "api.nodePort=null"]  # another release may use the port
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    """Yield a namespace with only a service account for the pods, in a Kubernetes with the CRDs."""
    install_crds()
    with new_namespace("admission", restricted=True) as name:
        until("an account", lambda: not kubectl("get", "sa", "default", "-n", name, check=False).returncode)
        yield name


def rendered(namespace: str, *args: str) -> list[Object]:
    said = helm("template", "ray", CHART, "-n", namespace, *FREE, "--set", "rayCluster.checkCRD=false", *args).stdout
    return [o for o in yaml.load_all(said, LOADER) if o]


def pods_of(cluster: Object) -> Iterator[Object]:
    """Yield the pods that an operator would create for a RayCluster, with what the chart defines of them."""
    spec = cluster["spec"]
    groups = {"head": spec["headGroupSpec"]} | {g["groupName"]: g for g in spec.get("workerGroupSpecs", ())}
    for name, group in groups.items():
        pod: dict[str, Any] = {**group["template"]["spec"], "serviceAccountName": "default"}
        if name == "head" and spec.get("enableInTreeAutoscaling"):
            options = {
                key: spec["autoscalerOptions"][key] for key in ("env", "volumeMounts", "securityContext", "resources")
            }
            pod["containers"] = [*pod["containers"], {"name": "autoscaler", "image": "autoscaler", **options}]
        metadata = {"name": f"pod-of-{name}", "namespace": cluster["metadata"]["namespace"]}
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod}


@pytest.mark.parametrize("file", FILES, ids=lambda file: Path(file).stem or "values")
def test_the_api_server_takes_each_object(namespace: str, file: str) -> None:
    """There must be no warnings either: they report pods that a Deployment or Job could not create."""
    objects = rendered(namespace, *(["--values", file] if file else []))
    objects += [pod for o in objects if o["kind"] == "RayCluster" for pod in pods_of(o)]
    known = [o for o in objects if o["kind"] not in CUSTOM]
    said = create(known)
    if file.endswith("nfs.yaml"):  # as the file says
        assert said.returncode == 1 and said.stderr.count('(volume "home" uses restricted volume type "nfs")') == 2
        return
    assert (said.returncode, said.stderr) == (0, "")
    assert len(said.stdout.splitlines()) == len(known)


def create(objects: list[Object]) -> Any:
    given = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    return kubectl("apply", "--dry-run=server", "-f", "-", input=given, check=False)


def test_only_the_monitors_may_be_of_kinds_that_it_does_not_know(namespace: str) -> None:
    found = {o["kind"] for file in FILES for o in rendered(namespace, *(["--values", file] if file else []))}
    assert found >= CUSTOM
    columns = kubectl("api-resources", "--no-headers").stdout.splitlines()
    assert found - {line.split()[-1] for line in columns} <= CUSTOM


def test_a_pod_that_is_not_restricted_would_be_told_of(namespace: str) -> None:
    """Proves that the API server would warn in the other tests."""
    (cluster,) = (o for o in rendered(namespace) if o["kind"] == "RayCluster")
    head, *_ = pods_of(cluster)
    del head["spec"]["containers"][0]["securityContext"]
    said = create([head])
    assert said.returncode == 1 and 'violates PodSecurity "restricted' in said.stderr
    metadata = {"name": "job", "namespace": namespace}
    template = {"spec": {**head["spec"], "restartPolicy": "Never"}}
    said = create([{"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": template}}])
    assert said.returncode == 0 and 'would violate PodSecurity "restricted' in said.stderr
