"""Mistakes that are refused before anything is created, and a second cluster that uses the existing operator."""

from collections.abc import Iterator

import pytest

from tests.e2e._release import uids, upgrade, wait_ready
from tests.e2e.conftest import CHART, get, helm, inventory, new_namespace, releases, unproved, until

MISTAKES = {
    "a type": (["auth.enabled=perhaps"], "auth/enabled"),
    "an unknown key": (["ray-cluster.haed.x=1"], "haed"),
    "what does not fit together": (
        ["auth.token=a", "auth.existingSecret=b"],
        "auth.token and auth.existingSecret are both",
    ),
}
OF_OPERATORS = ["-A", "-l", "app.kubernetes.io/name=kuberay-operator"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_creates_nothing(namespace: str, mistake: str) -> None:
    sets, message = MISTAKES[mistake]
    said = upgrade(namespace, *sets, check=False)
    assert said.returncode and message in said.stderr, said.stderr
    assert inventory(namespace) == set()
    assert releases(namespace) == set()


@pytest.fixture(scope="module")
def operator() -> Iterator[str]:
    """Install an operator for the whole cluster, or if others run, for its own namespace; yield the namespace."""
    others = get("deployments", *OF_OPERATORS)["items"]
    with new_namespace("operator", restricted=True) as namespace:
        sets = ["ray-cluster.enabled=false", f"kuberay-operator.singleNamespaceInstall={str(bool(others)).lower()}"]
        helm("install", "operator", CHART, "-n", namespace, "--set", ",".join(sets), "--wait")
        cluster_scoped = [name for name in inventory(namespace) if name.startswith("ClusterRole")]
        assert bool(cluster_scoped) != bool(others)
        yield namespace
        helm("uninstall", "operator", "-n", namespace, "--wait")
        until("nothing is left", lambda: not inventory(namespace), namespace=namespace)


@pytest.mark.alone
def test_a_second_operator_is_refused(operator: str, namespace: str) -> None:
    said = helm("install", "second", CHART, "-n", namespace, check=False)
    running = f"a KubeRay operator is already running in namespace {operator}"
    message = f"{running}: set kuberay-operator.enabled=false to use it"
    assert said.returncode and message in said.stderr, said.stderr
    assert inventory(namespace) == set()


@pytest.mark.alone
def test_a_cluster_uses_the_operator_that_is_there(operator: str, namespace: str) -> None:
    if not any(name.startswith("ClusterRole") for name in inventory(operator)):
        unproved(
            "a cluster that uses the operator of another namespace: other KubeRay operators run in this Kubernetes"
        )
    upgrade(namespace, "kuberay-operator.enabled=false")
    wait_ready(namespace)
    assert len(uids(namespace)) == 2
    assert not get("deployments", "-n", namespace)["items"]
    helm("uninstall", "ray", "-n", namespace, "--wait")
    until("nothing is left", lambda: not inventory(namespace), namespace=namespace)
