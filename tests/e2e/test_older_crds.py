"""A Kubernetes whose RayCluster CRD is older than the chart, such as that of a managed operator."""

import json
from collections.abc import Iterator

import pytest

from tests.e2e._release import Login, install_crds, ray_cluster, token_of, upgrade_command, wait_ready
from tests.e2e.conftest import get, helm, inventory, kubectl, run

CRD = "rayclusters.ray.io"
KEEP_CRDS = "--skip-crds"  # Helm 4 would upgrade them, or refuse that, because another tool has changed them
TOO_OLD = "the RayCluster CRD of this Kubernetes is too old for"


@pytest.fixture(scope="module")
def older_crd() -> Iterator[None]:
    """Remove the fields that KubeRay 1.4 does not have, and at the end restore them with ci/upgrade-crds."""
    install_crds()
    crd = get("crd", CRD)
    for version in crd["spec"]["versions"]:
        spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        for field in ("authOptions", "upgradeStrategy"):
            spec.pop(field, None)
        for field in ("backend", "storage"):
            spec.get("gcsFaultToleranceOptions", {}).get("properties", {}).pop(field, None)
    kubectl("replace", "-f", "-", input=json.dumps(crd))
    try:
        yield
    finally:
        run("ci/upgrade-crds")
        assert "authOptions" in json.dumps(get("crd", CRD))


@pytest.mark.alone
def test_values_that_need_newer_crds_are_refused(older_crd: None, namespace: str) -> None:
    values = ("headRecovery.enabled=true", "replacePodsOnUpgrade=true")
    said = helm(*upgrade_command(namespace, *values), KEEP_CRDS, check=False)
    assert said.returncode
    for field in ("gcsFaultToleranceOptions", "upgradeStrategy"):
        assert f"{TOO_OLD} {field}: run `ci/upgrade-crds`" in said.stderr, said.stderr
    assert inventory(namespace) == set()


@pytest.mark.alone
def test_the_cluster_still_requires_the_token(older_crd: None, namespace: str) -> None:
    helm(*upgrade_command(namespace), KEEP_CRDS)
    wait_ready(namespace)
    assert not {"authOptions", "upgradeStrategy"} & ray_cluster(namespace)["spec"].keys()
    login = Login.of_kubeconfig()
    jobs = login.at(namespace) + "/api/jobs/"
    assert [login.ask("GET", jobs, token).status_code for token in ("", "wrong", token_of(namespace))] == [
        401,
        403,
        200,
    ]
