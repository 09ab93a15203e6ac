"""Where pods may go: the head to the nodes that are named for it, and nothing to a node that is reserved.

The reserved node is an object of the API server alone: pods are bound to it, and none runs there.
"""

import contextlib
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from tests.e2e._cluster import install, tiny_pod
from tests.e2e.conftest import Object, apply, get, kubectl, new_namespace, unproved, until

pytestmark = pytest.mark.alone
LEASES = "kube-node-lease"
VALUE = "reserved"
RENEWAL = 5.0  # seconds; past 40 a node counts as lost


@dataclass(frozen=True)
class Nodes:
    reserved: str
    real: str
    key: str  # of the label that the head asks for, and of the taint

    def label(self, node: str) -> None:
        kubectl("label", "node", node, f"{self.key}={VALUE}")

    def unlabel(self, node: str) -> None:
        kubectl("label", "node", node, f"{self.key}-", check=False)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def node(name: str, key: str) -> Object:
    """What a kubelet would register, with a taint that keeps away what is not meant for it."""
    labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", key: VALUE}
    room = {"cpu": "8", "memory": "32Gi", "pods": "110", "ephemeral-storage": "100Gi"}
    ready = {"type": "Ready", "status": "True", "reason": "Test", "message": "", "lastHeartbeatTime": now()}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": [{"key": key, "value": VALUE, "effect": "NoSchedule"}]},
        "status": {"capacity": room, "allocatable": room, "conditions": [ready | {"lastTransitionTime": now()}]},
    }


def renew(name: str) -> None:
    """Say that the node is alive, as a kubelet does."""
    spec = {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now()}
    metadata = {"name": name, "namespace": LEASES}
    apply({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec})


@contextlib.contextmanager
def alive(name: str) -> Iterator[None]:
    """Renew its lease until the end."""
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(RENEWAL):
            renew(name)

    renew(name)
    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def taints(name: str) -> list[str]:
    return [taint["key"] for taint in get("node", name)["spec"].get("taints", ())]


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    if kubectl("auth", "can-i", "create", "nodes", check=False).returncode:
        unproved("nodes may not be made here")
    usable = [n for n in get("nodes")["items"] if not n["spec"].get("taints") and not n["spec"].get("unschedulable")]
    if not usable:
        unproved("no node takes pods without a toleration")
    name = f"rwt-reserved-{secrets.token_hex(3)}"
    made = Nodes(name, usable[0]["metadata"]["name"], f"ray-workload.test/{name}")
    try:
        apply(node(made.reserved, made.key))
        with alive(made.reserved):
            # New nodes are `not-ready` until the controller has seen them.
            until("the node is ready", lambda: taints(made.reserved) == [made.key])
            yield made
    finally:
        made.unlabel(made.real)
        bound = get("pods", "-A", "--field-selector", f"spec.nodeName={made.reserved}")["items"]
        for pod in bound:  # there is no kubelet that would end them
            metadata = pod["metadata"]
            kubectl("delete", "pod", metadata["name"], "-n", metadata["namespace"], "--force", "--ignore-not-found")
        kubectl("delete", "node", made.reserved, "--ignore-not-found")
        kubectl("delete", "lease", made.reserved, "-n", LEASES, "--ignore-not-found")


def where(pod: Object) -> str | None:
    """The node that it is bound to."""
    name: str | None = pod["spec"].get("nodeName")
    return name


def reasons(namespace: str, pod: str) -> str:
    """Why the scheduler finds no node for it."""
    of_pod = f"involvedObject.name={pod},reason=FailedScheduling"
    return " ".join(event["message"] for event in get("events", "-n", namespace, "--field-selector", of_pod)["items"])


def bound(namespace: str) -> set[str]:
    """Every node that a pod of the namespace was ever bound to: pods may be gone, their events stay."""
    events = get("events", "-n", namespace, "--field-selector", "reason=Scheduled")["items"]
    return {event["message"].rpartition(" to ")[2] for event in events}


def test_pods_for_the_reserved_node_are_bound_to_it(nodes: Nodes, namespace: str) -> None:
    """The other test can fail: the node takes pods that tolerate its taint, and that alone keeps the others away."""
    account = ("serviceaccount", "default", "-n", namespace)
    until("an account for pods", lambda: not kubectl("get", *account, check=False).returncode)
    tolerant, other = tiny_pod("tolerant", namespace), tiny_pod("other", namespace)
    for pod in (tolerant, other):
        pod["spec"]["nodeSelector"] = {nodes.key: VALUE}
    tolerant["spec"]["tolerations"] = [{"key": nodes.key, "operator": "Exists"}]
    apply(tolerant, other)
    until("it is bound", lambda: where(get("pod", "tolerant", "-n", namespace)) == nodes.reserved)
    until("it is refused", lambda: "untolerated taint" in reasons(namespace, "other"))
    assert bound(namespace) == {nodes.reserved}
    kubectl("delete", "pod", "tolerant", "other", "-n", namespace, "--force")


def test_the_head_keeps_to_its_nodes_and_the_reserved_one_is_left_alone(nodes: Nodes) -> None:
    with new_namespace("placement") as namespace:
        key = nodes.key.replace(".", r"\.")
        ray = install(namespace, f"ray-cluster.head.nodeSelector.{key}={VALUE}")
        until("the head's pod", lambda: ray.pods("head"), namespace=namespace)
        head = ray.name("head")
        # The labelled node is tainted, and the others have no label.
        until("it is refused", lambda: "untolerated taint" in reasons(namespace, head), namespace=namespace)
        assert "didn't match Pod's node affinity/selector" in reasons(namespace, head)
        until("the worker has its node", lambda: all(map(where, ray.pods("worker"))), namespace=namespace)
        (pending,) = ray.pods("head")
        assert pending["status"]["phase"] == "Pending" and where(pending) is None

        nodes.label(nodes.real)
        until("the head has its node", lambda: where(ray.pods("head")[0]), namespace=namespace)
        ray.wait()
        assert ray.name("head") == head
        assert where(ray.pods("head")[0]) == nodes.real
        assert taints(nodes.reserved) == [nodes.key]
        assert nodes.reserved not in bound(namespace)
        assert {where(pod) for pod in ray.pods()} <= bound(namespace)
