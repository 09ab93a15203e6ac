"""A cluster with its state in Redis survives the loss of its head's pod; an uninstall removes everything from Redis."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.e2e._cluster import Cluster
from tests.e2e._release import Login, ray_cluster, run_job, submit, token_of, uids, upgrade, wait_job, wait_ready
from tests.e2e.conftest import REDIS_IMAGE, Object, apply, get, helm, inventory, kubectl, new_namespace, until

VALUES = ["ci/values/redis.yaml"]
BOUND = 90  # seconds for an uninstall: about 12 with a Redis cleanup, and 30 more for a head with a running job
CLEANUP_SECONDS = 15
SLEEP = "import time; print('sleeps', flush=True); time.sleep(600)"
# An actor on the worker, because the head's processes end with its pod.
ACTOR = """
import ray
ray.init(namespace="kept")
@ray.remote(num_cpus=0.1)
class Counter:
    def __init__(self):
        self.value = 0
    def add(self, more):
        self.value += more
        return self.value
nodes = {n["NodeManagerAddress"]: n["Resources"] for n in ray.nodes() if n["Alive"]}
(worker,) = [address for address, has in nodes.items() if "node:__internal_head__" not in has]
counter = Counter.options(name="counter", lifetime="detached", resources={f"node:{worker}": 0.1}).remote()
print("value", ray.get(counter.add.remote(41)))
"""
AGAIN = """
import ray
ray.init(namespace="kept")
print("value", ray.get(ray.get_actor("counter").add.remote(1)))
"""


class Installed(NamedTuple):
    namespace: str
    jobs: Any


def redis(namespace: str) -> list[Object]:
    """Return a Redis pod and its Service, which comply with Pod Security `restricted`."""
    container = {
        "name": "redis",
        "image": REDIS_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "readinessProbe": {"exec": {"command": ["redis-cli", "ping"]}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec = {
        "automountServiceAccountToken": False,
        "containers": [container],
        "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        "terminationGracePeriodSeconds": 0,
    }
    metadata = {"name": "redis", "namespace": namespace, "labels": {"app": "redis"}}
    service = {"selector": {"app": "redis"}, "ports": [{"port": 6379}]}
    return [
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec},
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service},
    ]


def keys(namespace: str) -> set[str]:
    return set(kubectl("exec", "-n", namespace, "redis", "--", "redis-cli", "keys", "*").stdout.split())


def keys_of_cluster(namespace: str) -> set[str]:
    uid = ray_cluster(namespace)["metadata"]["uid"]
    return {key for key in keys(namespace) if uid in key}


def ray_job(namespace: str) -> Object:
    """Return a RayJob on our cluster; the operator submits it itself, without a submitter pod."""
    spec = {"clusterSelector": {"ray.io/cluster": "ray"}, "submissionMode": "InteractiveMode"}
    metadata = {"name": "selected", "namespace": namespace}
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}


@pytest.fixture(scope="module")
def with_redis() -> Iterator[tuple[str, set[str]]]:
    """Yield a namespace with Redis, and its inventory before the release."""
    with new_namespace("uninstall", restricted=True) as namespace:
        until("an account", lambda: not kubectl("get", "sa", "default", "-n", namespace, check=False).returncode)
        apply(*redis(namespace))
        kubectl("wait", "-n", namespace, "pod/redis", "--for=condition=Ready", "--timeout=60s", timeout=70)
        assert keys(namespace) == set()
        until("endpoints", lambda: any("EndpointSlice" in name for name in inventory(namespace)), namespace=namespace)
        yield namespace, inventory(namespace)


@pytest.fixture
def installed(with_redis: tuple[str, set[str]]) -> Installed:
    """Install the release, or upgrade that of the previous test."""
    namespace, _ = with_redis
    upgrade(namespace, values=VALUES)
    wait_ready(namespace)
    return Installed(namespace, Login.of_kubeconfig().jobs(namespace, token_of(namespace)))


def test_helm_stays_the_owner_of_the_spec(installed: Installed) -> None:
    """The operator updates the whole object, to add its finalizer. As an owner, it would conflict with Helm 4."""
    found = get("raycluster", "ray", "-n", installed.namespace, "--show-managed-fields")["metadata"]
    assert "ray.io/gcs-ft-redis-cleanup-finalizer" in found["finalizers"]
    owners = {field["manager"] for field in found["managedFields"] if "f:spec" in field["fieldsV1"]}
    assert owners == {"helm"}, found["managedFields"]


def running_job(installed: Installed) -> str:
    job = submit(installed.jobs, SLEEP)
    wait_job(installed.jobs, job, installed.namespace, "RUNNING")
    return job


def kept_by_finalizers(namespace: str) -> list[str]:
    """Return the objects with finalizers that only an operator removes."""
    found = get("rayclusters,rayjobs", "-n", namespace)["items"]
    return [f"{o['kind']}/{o['metadata']['name']}" for o in found if o["metadata"].get("finalizers")]


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert (took := time.monotonic() - began) < seconds, f"it took {took:.0f} s"


def test_an_actor_outlives_the_heads_pod(installed: Installed) -> None:
    namespace, ray = installed.namespace, Cluster(installed.namespace)
    assert "value 41" in run_job(installed.jobs, ACTOR, namespace)
    head, worker, before = ray.name("head"), ray.name("worker"), uids(namespace)
    assert keys_of_cluster(namespace)
    kubectl("delete", "pod", "-n", namespace, head, timeout=120)
    wait_ready(namespace, without=[before[head]])
    (new,) = ray.pods("head")
    assert new["metadata"]["uid"] != before[head]
    (kept,) = ray.pods("worker")
    assert (kept["metadata"]["name"], kept["metadata"]["uid"]) == (worker, before[worker])
    assert [status["restartCount"] for status in kept["status"]["containerStatuses"]] == [0]
    assert "value 42" in run_job(installed.jobs, AGAIN, namespace)


def test_uninstalled_with_a_job_running_nothing_is_left(installed: Installed, with_redis: tuple[str, set[str]]) -> None:
    namespace, before = with_redis
    job = running_job(installed)
    apply(ray_job(namespace))
    until(
        "the RayJob has its finalizer", lambda: "RayJob/selected" in kept_by_finalizers(namespace), namespace=namespace
    )
    assert "RayCluster/ray" in kept_by_finalizers(namespace)
    assert keys_of_cluster(namespace)
    assert str(installed.jobs.get_job_status(job).value) == "RUNNING"
    with within(BOUND):
        helm("uninstall", "ray", "-n", namespace, "--wait")
        until("nothing is left", lambda: inventory(namespace) == before, namespace=namespace)
    assert keys(namespace) == set()


def test_installed_again_it_works(installed: Installed) -> None:
    (release,) = get("secrets", "-n", installed.namespace, "-l", "owner=helm,status=deployed")["items"]
    assert release["metadata"]["labels"]["version"] in ("1", "2")
    assert "1764" in run_job(
        installed.jobs, "import ray; print(ray.get(ray.remote(lambda: 42**2).remote()))", installed.namespace
    )


def test_without_an_operator_it_ends_in_time(installed: Installed, with_redis: tuple[str, set[str]]) -> None:
    """No operator removes the finalizers, and the data in Redis remains."""
    namespace, before = with_redis
    upgrade(installed.namespace, f"cleanup.timeoutSeconds={CLEANUP_SECONDS}", values=VALUES)
    apply(ray_job(namespace))
    until("finalizers", lambda: len(kept_by_finalizers(namespace)) == 2, namespace=namespace)
    kubectl("scale", "deployment/kuberay-operator", "-n", namespace, "--replicas=0")
    gone = ["-n", namespace, "-l", "app.kubernetes.io/name=kuberay-operator"]
    until("the operator is gone", lambda: not get("pods", *gone)["items"], namespace=namespace)
    with within(CLEANUP_SECONDS + 30):
        helm("uninstall", "ray", "-n", namespace, "--wait")
        until("nothing is left", lambda: inventory(namespace) == before, namespace=namespace)
    assert keys(namespace), "the operator was still running"
