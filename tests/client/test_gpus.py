"""The resources that a job requests are checked against the worker groups and the live nodes of a cluster."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from client.errors import UsageError
from client.http import Http, Server
from client.job.request import Request
from client.job.resources import check_resources
from client.ray_api.jobs import RayJobs
from client.targets.resources import groups
from client.targets.target import NodeGroup, Runtime, Target
from client.wait import Note
from tests.client.server import serving

Groups = Sequence[NodeGroup]
GROUPS: Groups = [
    NodeGroup("head", {"GPU": 0.0, "CPU": 2.0, "memory": 4e9}, 1),
    NodeGroup("l4", {"GPU": 1.0, "accelerator_type:L4": 1.0, "CPU": 4.0, "worker": 9.0}, 1),
    NodeGroup("a100", {"GPU": 2.0}, 1),
]


class Cluster(Target):
    """A cluster with these groups; without a `url`, its dashboard cannot be reached."""

    def __init__(self, groups: Groups | None, url: str = "http://127.0.0.1:9") -> None:
        self.address, self.http, self.runtime = url, Http(Server(url)), Runtime()
        self._groups, self.waited = groups, 0

    def agent(self, address: str) -> str | None:
        return None

    def wait_ready(self, note: Note, seconds: float) -> None:
        self.waited += 1

    def groups(self) -> Groups | None:
        return self._groups


@contextmanager
def with_nodes(groups: Groups | None, *nodes: Mapping[str, Any]) -> Iterator[Cluster]:
    """Yield a cluster whose dashboard lists these nodes in /api/v0/nodes."""
    answer = json.dumps({"data": {"result": {"result": nodes}}}).encode()
    with serving(lambda *_: (200, {}, answer)) as url:
        yield Cluster(groups, url)


def node(**resources: float) -> dict[str, Any]:
    return {"node_id": "n", "state": "ALIVE", "resources_total": resources}


def request(accelerator: str | None = None, **arguments: Any) -> Request:
    return Request(command=["x"], accelerator=accelerator, arguments=arguments)


def check(wanted: Request, target: Cluster) -> list[str]:
    notes: list[str] = []
    check_resources(wanted.resources, target, RayJobs(target), notes.append, 60)
    return notes


def test_an_accelerator_is_one_gpu_of_its_kind() -> None:
    arguments = request("L4", entrypoint_resources={"worker": 1}).arguments
    assert arguments == {
        "entrypoint_num_gpus": 1,
        "entrypoint_resources": {"worker": 1, "accelerator_type:L4": 0.001},
    }
    assert request("L4", entrypoint_num_gpus=0.5).arguments["entrypoint_num_gpus"] == 0.5


@pytest.mark.parametrize(
    "wanted",
    [
        request(),
        request(entrypoint_num_gpus=2),
        request("L4"),
        request(entrypoint_resources={"worker": 9}),
        request("L4", entrypoint_num_cpus=4, entrypoint_resources={"worker": 9}),
        request(entrypoint_memory=4e9),
    ],
)
def test_what_a_group_has(wanted: Request) -> None:
    cluster = Cluster(GROUPS)
    assert check(wanted, cluster) == []
    assert cluster.waited == 0, "a group has the resources, so the nodes need not be queried"


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (
            request(entrypoint_num_gpus=3),
            "the 3 GPU that the driver asks for (head has 0 GPU; l4 has 1 GPU L4; a100 has 2 GPU; a live node has 0 ",
        ),
        (request("l4"), "the 1 GPU l4 that the driver asks for (head has 0 GPU; l4 has 1 GPU L4; a100 has 2 GPU; "),
        (request("L4", entrypoint_num_gpus=2), "the 2 GPU L4 that the driver asks for (head has 0 GPU; l4"),
        (
            request(entrypoint_num_cpus=5),
            "the 5 CPU that the driver asks for (head has 2 CPU; l4 has 4 CPU L4; a100 has 0 CPU; a live node has 2 ",
        ),
        (request(entrypoint_memory=5e9), "the 5e+09 memory that the driver asks for (head has 4e+09 memory; "),
        (request(entrypoint_resources={"worker": 10}), "the 10 worker that the driver asks for (head has 0 worker; "),
        (request(entrypoint_num_cpus=2, entrypoint_num_gpus=2), "the 2 CPU 2 GPU that the driver asks for ("),
    ],
)  # fmt: skip
def test_what_no_group_and_no_node_has(wanted: Request, words: str) -> None:
    with with_nodes(GROUPS, node(CPU=2)) as cluster, pytest.raises(UsageError) as raised:
        check(wanted, cluster)
    assert words in raised.value.what
    assert raised.value.hint == "ask for less, or add a worker group that has it"


def test_what_only_a_live_node_has() -> None:
    """A RayCluster may omit what its nodes detect themselves, such as the type of their GPUs."""
    found = node(**{"GPU": 1.0, "accelerator_type:T4": 1.0})
    with with_nodes(GROUPS, found) as cluster:
        assert check(request("T4"), cluster) == []
        assert cluster.waited == 1, "the nodes are queried when the cluster is ready"
    with with_nodes(GROUPS, {**found, "state": "DEAD"}) as cluster, pytest.raises(UsageError, match="the 1 GPU T4"):
        check(request("T4"), cluster)


def test_a_cluster_that_does_not_tell_its_groups() -> None:
    with with_nodes(None, node(CPU=2)) as cluster:
        assert check(request(entrypoint_num_cpus=2), cluster) == []
        assert check(request("L4"), cluster) == [
            "no node of the cluster has the 1 GPU L4 that the driver asks for (a live node has 0 GPU), "
            "so the job waits until one has"
        ]


def group(limits: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
    return {"template": {"spec": {"containers": [{"resources": {"limits": limits or {}}}]}}, **fields}


REST = {"CPU": math.inf, "memory": math.inf, "GPU": 0.0}  # of a group without limits


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (group(), {}),
        (group({"cpu": "4", "nvidia.com/gpu": "2"}), {"CPU": 4, "GPU": 2}),
        (group({"cpu": "1500m", "memory": "2Gi"}), {"CPU": 2, "memory": 2 * 2.0**30}),
        (group({"nvidia.com/gpu": "2"}, rayStartParams={"num-gpus": "1"}), {"GPU": 1}),
        (group({"cpu": "4"}, rayStartParams={"num-cpus": "0"}), {"CPU": 0}),
        (
            group(rayStartParams={"resources": r'"{\"accelerator_type:L4\": 1, \"worker\": 2}"'}),
            {"accelerator_type:L4": 1, "worker": 2},
        ),
        (group(resources={"GPU": "4", "accelerator_type:A100": "1"}), {"GPU": 4, "accelerator_type:A100": 1}),
        (group(rayStartParams={"resources": "nonsense"}), {}),
    ],
)
def test_what_a_group_of_pods_has(given: dict[str, Any], found: dict[str, float]) -> None:
    worker = {"groupName": "w", **given}
    (_, of_head, _), (_, of_worker, _) = groups({"spec": {"headGroupSpec": given, "workerGroupSpecs": [worker]}})
    assert of_head == of_worker == REST | found


@pytest.mark.parametrize(("autoscaled", "known"), [(False, ["head", "on"]), (True, ["head", "off", "on"])])
def test_a_group_that_may_have_pods(autoscaled: bool, known: list[str]) -> None:
    workers = [
        group(groupName="off", replicas=0, maxReplicas=4),
        group(groupName="never", replicas=0, maxReplicas=0),
        group(groupName="on", replicas=1, maxReplicas=1),
    ]
    spec = {"headGroupSpec": group(), "workerGroupSpecs": workers, "enableInTreeAutoscaling": autoscaled}
    assert sorted(found.name for found in groups({"spec": spec})) == known
