"""`up --config`: the RayCluster has the sizes that the file says, on top of the values of each target."""

from typing import Any

import pytest
import yaml

from client.chart.config import values_of
from tests.chart.conftest import CHART, Render, find
from tests.conftest import ROOT

EXAMPLE = yaml.safe_load((ROOT / "jobs" / "ray_cluster_config.yaml").read_text())
GPUS = {**EXAMPLE, "num_workers": 3, "worker_memory": "512Mi", "worker_gpus": 2, "worker_accelerator": "T4"}


def resources(pod: dict[str, Any], what: str) -> dict[str, str]:
    found = pod["template"]["spec"]["containers"][0]["resources"][what]
    return {name: amount for name, amount in found.items() if name != "ephemeral-storage"}


@pytest.mark.parametrize(
    ("target", "given", "group"),
    [
        ("local", EXAMPLE, "workergroup"),
        ("local", GPUS, "workergroup"),
        ("gke", EXAMPLE, "cpu"),
        ("gke", GPUS, "gpu-l4"),
    ],
)
def test_the_cluster_has_these_sizes(target: str, given: dict[str, Any], group: str, render: Render) -> None:
    file = CHART / f"values-{target}.yaml"
    own = values_of("c.yaml", given, {}, target, pytest.fail)
    cluster, before = (find(render(file, values=values), "RayCluster", "ray")["spec"] for values in (own, {}))
    head = cluster["headGroupSpec"]
    groups = {found["groupName"]: found for found in cluster["workerGroupSpecs"]}
    workers, count = groups.pop(group), given["num_workers"]
    assert [workers[key] for key in ("replicas", "minReplicas", "maxReplicas")] == [count] * 3
    gpus = {"nvidia.com/gpu": str(given["worker_gpus"])} if given["worker_gpus"] else {}
    limits = {
        "head": {"cpu": str(given["head_cpu"]), "memory": given["head_memory"]},
        "worker": {"cpu": str(given["worker_cpu"]), "memory": given["worker_memory"], **gpus},
    }
    for name, pod in (("head", head), ("worker", workers)):
        assert resources(pod, "limits") == limits[name]
        requested = {"cpu": "500m"} if target == "local" else {}
        assert resources(pod, "requests") == {**limits[name], **requested}
    # The other groups are unchanged: on GKE, the autoscaler adds their pods when a job needs them.
    assert groups == {g["groupName"]: g for g in before["workerGroupSpecs"] if g["groupName"] != group}
    if gpus:
        assert "accelerator_type:T4" in workers["rayStartParams"]["resources"]
        labels = workers["template"]["spec"].get("nodeSelector", {})
        assert labels == ({"cloud.google.com/gke-accelerator": "nvidia-tesla-t4"} if target == "gke" else {})
