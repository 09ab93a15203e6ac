"""The GPUs that a driver asks for, held to what the groups of a cluster have."""

from typing import Any

import pytest

from client.errors import UsageError
from client.job.request import JobSpec
from client.targets.kubernetes import _groups, _resources
from client.targets.target import Endpoint

NODES = {"head": {"GPU": 0.0}, "l4": {"GPU": 1.0, "accelerator_type:L4": 1.0}, "a100": {"GPU": 2.0}}
ENDPOINT = Endpoint("a", "http://a", lambda _: None, nodes=NODES)


def spec(accelerator: str | None = None, **arguments: Any) -> JobSpec:
    return JobSpec(command=["x"], accelerator=accelerator, arguments=arguments)


def test_an_accelerator_is_one_gpu_of_its_kind() -> None:
    arguments = spec("L4", entrypoint_resources={"worker": 1}).arguments
    assert arguments == {
        "entrypoint_num_gpus": 1,
        "entrypoint_resources": {"worker": 1, "accelerator_type:L4": 0.001},
    }
    assert spec("L4", entrypoint_num_gpus=0.5).arguments["entrypoint_num_gpus"] == 0.5


@pytest.mark.parametrize(
    "wanted", [spec(), spec(entrypoint_num_gpus=2), spec("L4"), spec(entrypoint_resources={"worker": 9})]
)
def test_what_a_group_has(wanted: JobSpec) -> None:
    wanted.check_gpus(ENDPOINT)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (spec(entrypoint_num_gpus=3), "the 3 GPU that"),
        (spec("l4"), "the 1 GPU l4 that"),
        (spec("L4", entrypoint_num_gpus=2), "the 2 GPU L4 that"),
    ],
)
def test_what_no_group_has(wanted: JobSpec, words: str) -> None:
    with pytest.raises(UsageError, match=f"{words}.*: head has 0 GPU, l4 has 1 GPU L4, a100 has 2 GPU"):
        wanted.check_gpus(ENDPOINT)


def test_a_target_that_does_not_know_is_asked_itself() -> None:
    spec("L4").check_gpus(Endpoint("a", "http://a", lambda _: None))


def group(limits: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
    return {"template": {"spec": {"containers": [{"resources": {"limits": limits or {}}}]}}, **fields}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (group(), {"GPU": 0}),
        (group({"cpu": "4", "nvidia.com/gpu": "2"}), {"GPU": 2}),
        (group({"nvidia.com/gpu": "2"}, rayStartParams={"num-gpus": "1"}), {"GPU": 1}),
        (
            group(rayStartParams={"resources": r'"{\"accelerator_type:L4\": 1, \"worker\": 2}"'}),
            {"GPU": 0, "accelerator_type:L4": 1},
        ),
        (group(resources={"GPU": "4", "accelerator_type:A100": "1"}), {"GPU": 4, "accelerator_type:A100": 1}),
        (group(rayStartParams={"resources": "nonsense"}), {"GPU": 0}),
    ],
)
def test_what_a_group_of_pods_has(given: dict[str, Any], found: dict[str, float]) -> None:
    assert _resources(given) == found


@pytest.mark.parametrize(("autoscaled", "known"), [(False, ["head", "on"]), (True, ["head", "off", "on"])])
def test_a_group_that_may_have_pods(autoscaled: bool, known: list[str]) -> None:
    groups = [
        {"groupName": "off", "replicas": 0, "maxReplicas": 4},
        {"groupName": "never", "replicas": 0, "maxReplicas": 0},
        {"groupName": "on", "replicas": 1, "maxReplicas": 1},
    ]
    spec = {"headGroupSpec": {}, "workerGroupSpecs": groups, "enableInTreeAutoscaling": autoscaled}
    assert sorted(_groups({"spec": spec})) == known
