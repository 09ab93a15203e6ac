"""The exact objects that each values file renders, their namespace and labels, and their fields in the upstream CRD."""

from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from tests.chart.conftest import CHART, LOADER, Manifest, Render, find, names, values_files

FILES = values_files()
ROLES = {f"{kind}-{what}-role" for kind in ("raycronjob", "rayjob", "rayservice") for what in ("editor", "viewer")}
OPERATOR = {
    ("Deployment", "kuberay-operator"),
    ("Service", "kuberay-operator"),
    ("ServiceAccount", "kuberay-operator"),
    ("Role", "kuberay-operator-leader-election"),
    ("RoleBinding", "kuberay-operator-leader-election"),
}
OF_THE_CLUSTER = {("ClusterRole", "kuberay-operator"), ("ClusterRoleBinding", "kuberay-operator")} | {
    ("ClusterRole", role) for role in ROLES
}
OF_A_NAMESPACE = {("Role", "kuberay-operator"), ("RoleBinding", "kuberay-operator")}
RAY = {
    ("RayCluster", "ray"),
    ("Service", "ray-api"),
    ("Role", "ray-submitter"),
    ("Pod", "ray-test"),
}
SECURED: set[tuple[str, str]] = {
    ("Secret", "ray-auth-token"),
    ("ServiceAccount", "ray-head"),
    ("ServiceAccount", "ray-worker"),
    ("NetworkPolicy", "ray-ray-head"),
    ("NetworkPolicy", "ray-ray-worker"),
    ("PodDisruptionBudget", "ray-head"),
}
CLEANUP = {(kind, "ray-cleanup") for kind in ("ServiceAccount", "Role", "RoleBinding", "Job")}
USUAL = OPERATOR | OF_THE_CLUSTER | RAY | SECURED | CLEANUP
OBJECTS = {
    "values.yaml": USUAL,
    "values-local.yaml": USUAL - OF_THE_CLUSTER | OF_A_NAMESPACE,
    "values-gke.yaml": USUAL | {("PodMonitoring", "ray"), ("NetworkPolicy", "ray-ray-egress")},
    **dict.fromkeys(("custom-ports.yaml", "gcs-bucket.yaml", "gpu-spot.yaml", "head-recovery.yaml", "nfs.yaml"), USUAL),
    **dict.fromkeys(("private-registry.yaml", "queued.yaml", "redis.yaml", "reserved-node.yaml"), USUAL),
    **dict.fromkeys(("compute-class.yaml", "filestore.yaml"), USUAL),
    **dict.fromkeys(("home-secret.yaml", "load-balancer.yaml", "volume-claim.yaml"), USUAL),
    "egress.yaml": USUAL | {("NetworkPolicy", "ray-ray-egress")},
    "second-cluster.yaml": RAY | SECURED - {("Secret", "ray-auth-token")} | CLEANUP,
    "everything.yaml": RAY | {("Secret", "cloudvolume"), ("RoleBinding", "ray-submitter"), ("PodMonitor", "ray")},
}
HOOKS = {"cleanup": "pre-delete", "test": "test"}


@pytest.mark.parametrize("file", FILES)
def test_the_objects_are_exactly_these(file: str, helm: Path, render: Render) -> None:
    found = names(render(*FILES[file], helm=helm))
    assert found == sorted(OBJECTS[file])


def test_each_file_is_listed_and_starts_with_a_comment() -> None:
    assert OBJECTS.keys() == FILES.keys()
    for paths in FILES.values():
        for path in paths:
            assert path.read_text().startswith("# "), path


def of_ours(manifests: list[Manifest]) -> list[Manifest]:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    mine = f"{chart['name']}-{chart['version']}"
    return [m for m in manifests if m["metadata"]["labels"]["helm.sh/chart"] == mine]


@pytest.mark.parametrize("file", FILES)
def test_namespace_labels_and_hooks(file: str, render: Render) -> None:
    manifests = render(*FILES[file], release="my-ray", namespace="theirs")
    everywhere = {m["kind"] for m in manifests if "namespace" not in m["metadata"]}
    assert everywhere <= {"ClusterRole", "ClusterRoleBinding"}
    assert {m["metadata"].get("namespace") for m in manifests} - {None} == {"theirs"}
    ours = of_ours(manifests)
    assert {m["kind"] for m in ours} == {kind for kind, _ in OBJECTS[file] & of_this_chart()}
    labels = {"name": "ray-workload", "instance": "my-ray", "version": "1.7.0", "managed-by": "Helm"}
    for manifest in ours:
        name, metadata = manifest["metadata"]["name"], manifest["metadata"]
        assert metadata["labels"].items() >= {f"app.kubernetes.io/{k}": v for k, v in labels.items()}.items(), name
        annotations = {k: v for k, v in metadata.get("annotations", {}).items() if k.startswith("helm.sh/")}
        hook = HOOKS.get(name.rpartition("-")[2])
        expected: dict[str, object] = {
            "helm.sh/hook": hook,
            "helm.sh/hook-delete-policy": "before-hook-creation,hook-succeeded",
        }
        if hook == HOOKS["cleanup"]:  # the Job runs after the objects that it needs
            expected["helm.sh/hook-weight"] = "1" if manifest["kind"] == "Job" else "0"
        assert annotations == (expected if hook else {}), name


def of_this_chart() -> set[tuple[str, str]]:
    return set().union(*OBJECTS.values()) - OPERATOR - OF_THE_CLUSTER - OF_A_NAMESPACE - {("RayCluster", "ray")}


@pytest.fixture(scope="module")
def crd(unpacked: Path) -> Any:
    """Return the schema of a RayCluster, changed to refuse unknown fields, which the API server drops."""
    text = (unpacked / "kuberay-operator" / "crds" / "ray.io_rayclusters.yaml").read_text()
    (schema,) = [
        v["schema"]["openAPIV3Schema"] for v in yaml.load(text, LOADER)["spec"]["versions"] if v["name"] == "v1"
    ]
    spec: Manifest = {"type": "object", "properties": {"spec": schema["properties"]["spec"]}}
    close(spec)
    spec["additionalProperties"] = True
    return jsonschema.Draft7Validator(spec)


def close(schema: Any) -> None:
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        close(inner)
    if isinstance(schema, dict) and isinstance(schema.get("properties"), dict):
        schema.setdefault("additionalProperties", bool(schema.get("x-kubernetes-preserve-unknown-fields")))


@pytest.mark.parametrize("file", FILES)
def test_the_crd_has_every_field_of_the_cluster(file: str, render: Render, crd: Any) -> None:
    cluster = find(render(*FILES[file]), "RayCluster", "ray")
    assert [error.message for error in crd.iter_errors(cluster)] == []
    for part in (cluster["spec"]["upgradeStrategy"], cluster["spec"]["headGroupSpec"]["template"]["spec"]):
        part["misspelled"] = 1
    assert len([e for e in crd.iter_errors(cluster) if "'misspelled' was unexpected" in e.message]) == 2


def leaves(values: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(values, dict) or not values:
        return {path: values}
    return {k: v for key, inner in values.items() for k, v in leaves(inner, f"{path}.{key}".lstrip(".")).items()}


def test_everything_gives_each_key_and_turns_each_switch() -> None:
    own = {path: value for path, value in leaves(yaml.safe_load((CHART / "values.yaml").read_text())).items()}
    own = {path: value for path, value in own.items() if not path.startswith(("kuberay-operator.", "ray-cluster."))}
    given = leaves(yaml.safe_load(FILES["everything.yaml"][0].read_text()))
    assert [path for path in own if not any(f"{key}.".startswith(f"{path}.") for key in given)] == []
    same = {path for path, value in own.items() if value == given.get(path)}
    # The chart refuses these together with the other value of their pair.
    assert same == {"auth.token", "metrics.podMonitoring.enabled", "api.sourceRanges"}
    assert given["kuberay-operator.enabled"] is False
