"""null in the values removes a default: the chart renders without it, or names the value."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.conftest import CHART, LOADER, Render, RenderError, find, names, values_files
from tests.chart.test_conditions import nest

OPTIONAL = """image.pullSecrets env secrets volumes outputs workerGroups acceleratorNodes spotNodes head.env
workers.minReplicas rayCluster.labels api.nodePort api.sourceRanges submitter.subjects networkPolicy.headIngress
networkPolicy.egress.rules ray-cluster.head.nodeSelector
ray-cluster.additionalWorkerGroups kuberay-operator.featureGates""".split()


def paths(values: dict[str, Any], parents: tuple[str, ...] = ()) -> Iterator[str]:
    for key, value in values.items():
        yield ".".join((*parents, key))
        if isinstance(value, dict):
            yield from paths(value, (*parents, key))


def test_each_value_may_be_null_or_is_named(render: Render) -> None:
    values = yaml.load((CHART / "values.yaml").read_text(), LOADER)
    own = [path for path in paths(values) if not path.startswith("kuberay-operator.")]

    def outcome(path: str) -> str:
        try:
            return "" if names(render(values=nest({path: None}))) == usual else "renders other objects"
        except RenderError as error:
            key, place, said = path.rpartition(".")[2], f"/{path.replace('.', '/')}", str(error)
            missing = re.search(r"missing propert(?:y|ies) (.*)", said)
            named = f"at '{place}': got null" in said or f"do not set {path} to null" in said
            return "named" if named or (missing and f"'{key}'" in missing[1].split(", ")) else said

    usual = names(render())
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(tried := [*own, *OPTIONAL], pool.map(outcome, tried), strict=True))
    assert not [f"{path}: {said}" for path, said in found.items() if said not in ("", "named")]
    assert {path: found[path] for path in OPTIONAL} == dict.fromkeys(OPTIONAL, "")


@pytest.mark.parametrize("value", [None, {"enabled": False}], ids=str)
def test_a_group_of_the_values_for_gke_can_be_removed(value: object, render: Render, helm: Path) -> None:
    given = {"workerGroups": {"gpu-l4": value}}
    cluster = find(render(*values_files()["values-gke.yaml"], values=given, helm=helm), "RayCluster", "ray")
    assert [group["groupName"] for group in cluster["spec"]["workerGroupSpecs"]] == ["cpu"]
