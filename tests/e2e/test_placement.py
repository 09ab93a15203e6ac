"""Where pods are scheduled: the head only on nodes with its label, and no pod on a reserved node.

The reserved node is only an object in the API server: pods can be bound to it, but do not run.
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
RENEWAL = 5.0  # seconds; after 40 s without renewal, a node is lost


@dataclass(frozen=True)
class Nodes:
    reserved: str
    real: str
    key: str  # of the label that the head requires, and of the taint

    def label(self, node: str) -> None:
        kubectl("label", "node", node, f"{self.key}={VALUE}")

    def unlabel(self, node: str) -> None:
        kubectl("label", "node", node, f"{self.key}-", check=False)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def node(name: str, key: str) -> Object:
    """Return a node as a kubelet would register it, with a taint for pods that do not tolerate it."""
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
    """Report the node as alive, as a kubelet does."""
    spec = {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now()}
    metadata = {"name": name, "namespace": LEASES}
    apply({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec})


@contextlib.contextmanager
def alive(name: str) -> Iterator[None]:
    """Renew the node's lease until the end of the block."""
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
            # A new node has a `not-ready` taint until the controller removes it.
            until("the node is ready", lambda: taints(made.reserved) == [made.key])
            yield made
    finally:
        made.unlabel(made.real)
        bound = get("pods", "-A", "--field-selector", f"spec.nodeName={made.reserved}")["items"]
        for pod in bound:  # no kubelet ends them
            metadata = pod["metadata"]
            kubectl("delete", "pod", metadata["name"], "-n", metadata["namespace"], "--force", "--ignore-not-found")
        kubectl("delete", "node", made.reserved, "--ignore-not-found")
        kubectl("delete", "lease", made.reserved, "-n", LEASES, "--ignore-not-found")


def where(pod: Object) -> str | None:
    """Return the node to which a pod is bound."""
    name: str | None = pod["spec"].get("nodeName")
    return name


def reasons(namespace: str, pod: str) -> str:
    """Return why the scheduler finds no node for a pod."""
    of_pod = f"involvedObject.name={pod},reason=FailedScheduling"
    return " ".join(event["message"] for event in get("events", "-n", namespace, "--field-selector", of_pod)["items"])


def bound(namespace: str) -> set[str]:
    """Return all nodes to which the namespace's pods were ever bound: the events of deleted pods remain."""
    events = get("events", "-n", namespace, "--field-selector", "reason=Scheduled")["items"]
    return {event["message"].rpartition(" to ")[2] for event in events}


def test_pods_for_the_reserved_node_are_bound_to_it(nodes: Nodes, namespace: str) -> None:
    """Proves that the other test can fail: the node accepts pods that tolerate its taint, its only restriction."""
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
        ray = install(namespace, f"head.nodeSelector.{key}={VALUE}")
        until("the head's pod", lambda: ray.pods("head"), namespace=namespace)
        head = ray.name("head")
        # The node with the label has the taint, and the other nodes have no label.
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
