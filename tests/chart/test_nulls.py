"""null in the values removes a default: the chart accepts it for optional values, and otherwise names the value."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chart.conftest import Render, RenderError, find, names, values_files
from tests.chart.test_conditions import nest

MAY_BE = [
    "image.pullSecrets",
    "env",
    "secrets",
    "volumes",
    "workerGroups",
    "acceleratorNodes",
    "spotNodes",
    "head.env",
    "head.nodeSelector",
    "workers.minReplicas",
    "workers.tolerations",
    "rayCluster.labels",
    "serviceAccounts.head.annotations",
    "api.nodePort",
    "api.sourceRanges",
    "api.annotations",
    "submitter.subjects",
    "networkPolicy.apiServerFrom",
    "networkPolicy.metricsFrom",
    "networkPolicy.headIngress",
    "networkPolicy.egress.rules",
    "ray-cluster.head.rayStartParams",
    "ray-cluster.head.nodeSelector",
]
SECTIONS = """image auth head workers autoscaling headRecovery rayCluster serviceAccounts api submitter networkPolicy
podDisruptionBudget metrics cleanup""".split()
MAY_NOT_BE = [
    *SECTIONS,
    "replacePodsOnUpgrade",
    "image.tag",
    "workers.replicas",
    "headRecovery.redisPassword",
    "serviceAccounts.head",
    "serviceAccounts.worker",
    "networkPolicy.egress",
    "metrics.podMonitor",
    "metrics.podMonitoring",
    "ray-cluster.common",
    "ray-cluster.common.containerEnv",
    "ray-cluster.head",
    "ray-cluster.worker",
]


def test_optional_values_may_be_null(render: Render) -> None:
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda path: names(render(values=nest({path: None}))), MAY_BE)
        assert dict(zip(MAY_BE, found, strict=True)) == dict.fromkeys(MAY_BE, names(render()))


def test_sections_that_templates_read_may_not_be_null(render: Render) -> None:
    def named(path: str) -> bool:
        with pytest.raises(RenderError) as error:
            render(values=nest({path: None}))
        key, place, said = path.rpartition(".")[2], f"/{path.replace('.', '/')}", str(error.value)
        missing = re.search(r"missing propert(?:y|ies) (.*)", said)
        return f"at '{place}': got null" in said or bool(missing and f"'{key}'" in missing[1].split(", "))

    with ThreadPoolExecutor(2) as pool:
        assert [path for path, found in zip(MAY_NOT_BE, pool.map(named, MAY_NOT_BE), strict=True) if not found] == []


@pytest.mark.parametrize("value", [None, {"enabled": False}], ids=str)
def test_a_group_of_the_values_for_gke_can_be_removed(value: object, render: Render, helm: Path) -> None:
    given = {"workerGroups": {"gpu-l4": value}}
    cluster = find(render(*values_files()["values-gke.yaml"], values=given, helm=helm), "RayCluster", "ray")
    assert [group["groupName"] for group in cluster["spec"]["workerGroupSpecs"]] == ["cpu"]
