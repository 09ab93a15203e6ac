"""Installs a small cluster and queries its pods, for the tests of network, ports and placement."""

import contextlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.conftest import ROOT
from tests.e2e.conftest import CHART, IMAGE, Object, get, helm, kubectl, new_namespace, until, user_environment

SMALL = [
    "api.type=ClusterIP",
    "api.nodePort=null",
    "kuberay-operator.resources.requests.cpu=100m",
    "head.requests.cpu=100m",
    "workers.requests.cpu=100m",
]
# Runs in a pod: the TCP ports with a listener, except those that listen only on loopback.
LISTENING = """
def listening():
    found = set()
    for name, loopback in (("tcp", "0100007F"), ("tcp6", "0000000000000000FFFF00000100007F")):
        for line in open(f"/proc/net/{name}").read().splitlines()[1:]:
            address, port = line.split()[1].split(":")
            if line.split()[3] == "0A" and address not in (loopback, "0" * 24 + "01000000"):
                found.add(int(port, 16))
    return sorted(found)
"""


@contextlib.contextmanager
def started(*command: str) -> Iterator["subprocess.Popen[str]"]:
    """Run a command in the background until the end of the block."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=user_environment(), stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def tiny_pod(name: str, where: str, *command: str, labels: dict[str, str] | None = None, image: str = IMAGE) -> Object:
    """Return a pod with an image of the tests, so that nothing is pulled; when it is deleted, it ends at once."""
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": command or ["sleep", "infinity"],
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
    }
    metadata = {"name": name, "namespace": where, "labels": labels or {}}
    spec = {"terminationGracePeriodSeconds": 0, "automountServiceAccountToken": False, "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def run_pods(*pods: Object) -> None:
    """Create pods and wait until they are ready."""

    def accepted() -> bool:
        given = json.dumps({"apiVersion": "v1", "kind": "List", "items": pods})
        done = kubectl("apply", "-f", "-", input=given, check=False)
        assert not done.returncode or "serviceaccount" in done.stderr, done.stderr  # a new namespace has no account yet
        return not done.returncode

    until("pods are accepted", accepted)
    for pod in pods:
        name, where = pod["metadata"]["name"], pod["metadata"]["namespace"]
        kubectl("wait", "-n", where, "--for=condition=Ready", f"pod/{name}", "--timeout=2m", timeout=150)


@dataclass
class Cluster:
    """The RayCluster of the release `ray`."""

    namespace: str

    def pods(self, kind: str = "") -> list[Object]:
        selector = "ray.io/cluster=ray" + (f",ray.io/node-type={kind}" if kind else "")
        return list(get("pods", "-n", self.namespace, "-l", selector)["items"])

    def name(self, kind: str) -> str:
        """Return the name of the head's pod, or of the only worker's pod."""
        (one,) = self.pods(kind)
        return str(one["metadata"]["name"])

    def python(self, pod: str, code: str, *args: str) -> str:
        """Run Python code in a pod and return its output."""
        return kubectl("exec", "-n", self.namespace, pod, "--", "python", "-c", code, *args, timeout=120).stdout

    def listening(self, pod: str) -> set[int]:
        """Return the ports of a pod that accept connections from other pods."""
        return set(json.loads(self.python(pod, LISTENING + "print(listening())")))

    def wait(self) -> None:
        """Wait until the head and the workers are ready."""
        ready = ("--for=condition=RayClusterProvisioned", "raycluster/ray", "--timeout=3m")
        kubectl("wait", "-n", self.namespace, *ready, timeout=200)


def of_image(image: str) -> list[str]:
    repository, _, tag = image.rpartition(":")
    return ["--set", f"image.repository={repository},image.tag={tag}"]


@contextlib.contextmanager
def new_cluster(purpose: str, *sets: str, values: Sequence[str] = (), image: str = IMAGE) -> Iterator[Cluster]:
    """Install a cluster in a new namespace. Does not wait until Ray is ready."""
    with new_namespace(purpose) as where:
        yield install(where, *sets, values=values, image=image)


def install(where: str, *sets: str, values: Sequence[str] = (), image: str = IMAGE) -> Cluster:
    files = [part for file in (f"{CHART}/values-local.yaml", *values) for part in ("--values", file)]
    given = [part for item in (*SMALL, *sets) for part in ("--set", item)]
    helm("install", "ray", CHART, "-n", where, *files, *of_image(image), *given)
    return Cluster(where)
