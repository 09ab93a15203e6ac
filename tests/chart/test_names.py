"""The names of the release, of the cluster and of the objects named after it."""

import json
import re
from typing import Any

import pytest

from tests.chart.conftest import Manifest, Render, RenderError, find, names
from tests.chart.test_conditions import nest

LONG = "abcdefghi-" * 6
CLUSTERS = {
    "ray": "ray",
    "my-ray-2": "my-ray-2",
    "xray": "xray",
    "demo": "demo-ray",
    "r": "r-ray",
    LONG[:49]: f"{LONG[:49]}-ray",
    f"ray-{LONG}"[:53]: f"ray-{LONG}"[:53],
}
REFUSED = {
    LONG[:51]: f"the cluster name {LONG[:51]}-ray must have at most 53 characters, start with a letter, ",
    f"x{LONG}"[:53]: "must have at most 53 characters",
    "1ray": "the cluster name 1ray must ",
    "2-b": "the cluster name 2-b-ray must ",
    "my.ray": "the cluster name my.ray must ",
}
EVERY_SWITCH: dict[str, Any] = {
    "networkPolicy.egress.enabled": True,
    "metrics.podMonitor.enabled": True,
    "submitter.subjects": [{"kind": "Group", "name": "all"}],
}
AFTER_THE_CLUSTER = {
    *(("NetworkPolicy", f"{{}}-ray-{what}") for what in ("head", "worker", "egress")),
    *((kind, "{}-cleanup") for kind in ("Job", "ServiceAccount", "Role", "RoleBinding")),
    *(("ServiceAccount", f"{{}}-{node}") for node in ("head", "worker")),
    ("Secret", "{}-auth-token"),
    ("PodDisruptionBudget", "{}-head"),
    ("PodMonitor", "{}"),
    ("Pod", "{}-test"),
    ("RayCluster", "{}"),
    ("Role", "{}-submitter"),
    ("RoleBinding", "{}-submitter"),
    ("Service", "{}-api"),
}


def valid(manifests: list[Manifest]) -> None:
    """Check names as the API server does: at most 63 characters for some kinds, 253 for the others."""
    for kind, name in names(manifests):
        limit = 63 if kind in ("Service", "Job", "Pod", "RayCluster") else 253
        assert len(name) <= limit and re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name), (kind, name)


@pytest.mark.parametrize("release", CLUSTERS)
def test_the_cluster_and_the_objects_named_after_it(release: str, render: Render) -> None:
    cluster = CLUSTERS[release]
    manifests = render(values=nest({**EVERY_SWITCH, "kuberay-operator.enabled": False}), release=release)
    assert set(names(manifests)) == {(kind, name.format(cluster)) for kind, name in AFTER_THE_CLUSTER}
    valid(manifests)
    labels = {m["metadata"]["labels"]["app.kubernetes.io/instance"] for m in manifests}
    assert labels == {release}
    job = find(manifests, "Job", f"{cluster}-cleanup")["spec"]["template"]["spec"]["containers"][0]
    assert {v["name"]: v["value"] for v in job["env"]} == {"NAMESPACE": "ray", "CLUSTER": cluster}
    test = find(manifests, "Pod", f"{cluster}-test")["spec"]["containers"][0]
    assert {"name": "URL", "value": f"http://{cluster}-api:8265"} in test["env"]
    for kind, name in (("Service", "{}-api"), ("NetworkPolicy", "{}-ray-head"), ("PodDisruptionBudget", "{}-head")):
        spec = find(manifests, kind, name.format(cluster))["spec"]
        selector = spec.get("podSelector", spec.get("selector"))
        wanted = {"ray.io/cluster": cluster, "ray.io/node-type": "head"}
        assert selector.get("matchLabels", selector) == wanted


@pytest.mark.parametrize("release", REFUSED)
def test_invalid_names_are_refused(release: str, render: Render) -> None:
    with pytest.raises(RenderError, match=re.escape(REFUSED[release])):
        render(release=release)
    manifests = render(values=nest({"ray-cluster.fullnameOverride": "short"}), release=release)
    valid(manifests)
    assert ("RayCluster", "short") in names(manifests)


def test_helm_refuses_longer_ones(render: Render) -> None:
    with pytest.raises(RenderError, match="must not be longer than 53"):
        render(release="r" * 54)


def test_overrides(render: Render) -> None:
    for override, cluster in {"ray-cluster.nameOverride": "demo-mine", "ray-cluster.fullnameOverride": "mine"}.items():
        manifests = render(values=nest({override: "mine"}), release="demo")
        assert {("RayCluster", cluster), ("Service", f"{cluster}-api"), ("Role", f"{cluster}-submitter")} <= set(
            names(manifests)
        )
    longest = "r" * 53
    valid(render(values=nest({**EVERY_SWITCH, "ray-cluster.fullnameOverride": longest})))
    with pytest.raises(RenderError, match="must have at most 53 characters"):
        render(values=nest({"ray-cluster.fullnameOverride": longest + "r"}))


def test_the_namespace_is_that_of_the_release(render: Render) -> None:
    manifests = render(namespace="elsewhere", release="ray", values=nest(EVERY_SWITCH))
    assert {m["metadata"].get("namespace") for m in manifests} == {"elsewhere", None}
    pod = find(manifests, "Pod", "ray-test")["spec"]["containers"][0]
    assert {"name": "NAMESPACE", "value": "elsewhere"} in pod["env"]


READ_AS_OTHERS: dict[str, dict[str, Any]] = {
    "a release": {"release": "123", "values": {"ray-cluster.fullnameOverride": "ray"}},
    "a namespace": {"namespace": "123", "values": {}},
    "a cluster": {"values": {"ray-cluster.fullnameOverride": "null"}},
    "an account": {"values": {"serviceAccounts.head.name": "123"}},
    "an account that is there": {
        "values": {"serviceAccounts.worker.name": "1e3", "serviceAccounts.worker.create": False}
    },
}


@pytest.mark.parametrize("which", READ_AS_OTHERS)
def test_names_that_yaml_reads_as_other_types(which: str, render: Render) -> None:
    """The API server refuses a number, a boolean or null as a name, and the upstream templates do not quote names."""
    given = READ_AS_OTHERS[which]
    with pytest.raises(RenderError, match="which YAML reads as a number or a keyword"):
        render(**{**given, "values": nest(given["values"])})


@pytest.mark.parametrize("name", ["123", "true", "1e-3", "0b1", "head", "Big", "under_score", "-a", "a-", "x" * 64])
def test_names_of_groups_that_are_refused(name: str, render: Render) -> None:
    with pytest.raises(RenderError, match=f"workerGroups.{name}: the name must have at most 63 characters"):
        render(values={"workerGroups": {name: {}}})


def test_two_clusters_in_a_namespace_share_no_name(render: Render) -> None:
    """Except for the objects of the operator, of which a namespace has one."""
    one = render(values=nest(EVERY_SWITCH), release="ray", namespace="team")
    more = {**EVERY_SWITCH, "kuberay-operator.enabled": False}
    two = render(values=nest(more), release="other-ray", namespace="team")
    assert not {*names(one)} & {*names(two)}
    assert not re.search(r'"(ray-auth-token|ray-api|ray)"', json.dumps(two))


@pytest.mark.parametrize("name", ["r2d2", "only", "nullable", "e1", "x0b1", "v1e3"])
def test_names_that_yaml_reads_as_strings(name: str, render: Render) -> None:
    manifests = render(values={"workerGroups": {name: {}}}, release=name, namespace=name)
    assert {m["metadata"].get("namespace") for m in manifests} == {name, None}
