"""null in the values removes a default: the chart accepts it for optional values, and otherwise names the value."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.chart.conftest import Render, RenderError, find, names, values_files
from tests.chart.test_conditions import nest

MAY_BE = [
    "secrets",
    "serviceAccounts.head.annotations",
    "api.nodePort",
    "api.annotations",
    "submitter.subjects",
    "networkPolicy.apiServerFrom",
    "networkPolicy.metricsFrom",
    "networkPolicy.headIngress",
    "ray-cluster.additionalWorkerGroups",
    "ray-cluster.additionalWorkerGroups.smallGroup",
    "ray-cluster.head.rayStartParams",
    "ray-cluster.head.nodeSelector",
    "ray-cluster.worker.maxReplicas",
]
SECTIONS = "auth serviceAccounts api submitter networkPolicy podDisruptionBudget metrics rollout cleanup".split()
MAY_NOT_BE = [
    *SECTIONS,
    "serviceAccounts.head",
    "serviceAccounts.worker",
    "metrics.podMonitor",
    "metrics.podMonitoring",
    "ray-cluster.image",
    "ray-cluster.common",
    "ray-cluster.common.containerEnv",
    "ray-cluster.head",
    "ray-cluster.head.containerEnv",
    "ray-cluster.head.serviceAccountName",
    "ray-cluster.worker",
    "ray-cluster.worker.groupName",
    "ray-cluster.additionalWorkerGroups.gpu",
]


def test_optional_values_may_be_null(render: Render) -> None:
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda path: names(render(values=nest({path: None}))), MAY_BE)
        assert dict(zip(MAY_BE, found, strict=True)) == dict.fromkeys(MAY_BE, names(render()))


@pytest.mark.parametrize(
    "path", ["ray-cluster.head.ports", "ray-cluster.head.rayVersion", "ray-cluster.worker.replicas"]
)
def test_required_values_may_not_be_null(path: str, render: Render) -> None:
    with pytest.raises(RenderError) as error:
        render(values=nest({path: None}))
    assert path in str(error.value).replace("/", ".") and "executing" not in str(error.value)


def test_sections_that_templates_read_may_not_be_null(render: Render) -> None:
    def named(path: str) -> bool:
        with pytest.raises(RenderError) as error:
            render(values=nest({path: None}))
        key, place, said = path.rpartition(".")[2], f"/{path.replace('.', '/')}", str(error.value)
        missing = re.search(r"missing propert(?:y|ies) (.*)", said)
        return f"at '{place}': got null" in said or bool(missing and f"'{key}'" in missing[1].split(", "))

    with ThreadPoolExecutor(2) as pool:
        assert [path for path, found in zip(MAY_NOT_BE, pool.map(named, MAY_NOT_BE), strict=True) if not found] == []


def test_a_group_of_the_values_for_gke_can_be_removed_or_is_refused(render: Render) -> None:
    values = nest({"ray-cluster.additionalWorkerGroups.gpu-l4": None})
    try:
        cluster = find(render(*values_files()["values-gke.yaml"], values=values), "RayCluster", "ray")
    except RenderError as error:
        assert "at '/ray-cluster/additionalWorkerGroups/gpu-l4': got null" in str(error)
    else:
        assert [group["groupName"] for group in cluster["spec"]["workerGroupSpecs"]] == ["cpu"]
