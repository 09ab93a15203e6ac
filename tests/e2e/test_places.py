"""The environments of the client: in a pod, with several clusters, and on a Kubernetes without Ray's CRDs."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.e2e._cluster import Cluster, install, run_pods, tiny_pod
from tests.e2e.conftest import Object, apply, get, kubectl, new_namespace, run, unproved, until
from tests.e2e.test_client import proxied
from tests.e2e.test_pod_commands import account, client

LINES = 20_000
NUMBERED = f"for n in range({LINES}): print(n, 'x' * 50)"
LOG = "".join(f"{n} {'x' * 50}\n" for n in range(LINES)).encode()
WHERE = ("python", "-c", "import os; print(os.uname().nodename)")
WAITS = ("python", "-c", "import time; print('waits', flush=True); time.sleep(300)")
SUBJECT = ("submitter.subjects[0].kind=ServiceAccount", "submitter.subjects[0].name=person")
EXEC = {"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["get", "create"]}
DEFINITIONS = "customresourcedefinitions.apiextensions.k8s.io"
Run = subprocess.CompletedProcess[bytes]


def taken(ray: Cluster) -> bytes:
    return f"ray-workload: address kubernetes:///{ray.namespace}/ray (the cluster of this pod)\n".encode()


def last_line(done: Run) -> str:
    return done.stdout.decode().rstrip("\n").rpartition("\n")[2]


def one_line(done: Run, code: int, *words: str) -> None:
    assert (done.returncode, done.stderr.count(b"\n")) == (code, 1), (done.stdout, done.stderr)
    assert all(word in done.stderr.decode() for word in words), done.stderr


# Without Ray's CRDs. These tests are first, because the others in this file install a cluster.


@contextmanager
def without_definitions() -> Iterator[None]:
    """Delete Ray's CRDs and restore them afterwards; only if nothing in the cluster uses them."""
    found = [d for d in get(DEFINITIONS)["items"] if d["spec"]["group"] == "ray.io"]
    names = [f"{DEFINITIONS}/{d['metadata']['name']}" for d in found]
    used = [d["spec"]["names"]["plural"] for d in found if get(d["metadata"]["name"], "-A")["items"]]
    pods = get("pods", "-A")["items"]
    operators = [p for p in pods if "kuberay-operator" in p["metadata"].get("labels", {}).values()]
    if used or operators:
        unproved(f"a Kubernetes without Ray's kinds: {len(operators)} operators run, and there are {used}")
    kept = [
        {key: d[key] for key in ("apiVersion", "kind", "spec")}
        | {"metadata": {key: d["metadata"][key] for key in ("name", "labels", "annotations") if key in d["metadata"]}}
        for d in found
    ]
    try:
        if names:
            kubectl("delete", *names, "--timeout=1m", timeout=70)
        until("the kinds are gone", lambda: kubectl("get", "--raw", "/apis/ray.io/v1", check=False).returncode)
        yield
    finally:
        if kept:
            given = json.dumps({"apiVersion": "v1", "kind": "List", "items": kept})
            put = ("apply", "--server-side", "--force-conflicts", "-f", "-")
            until("they are back", lambda: not kubectl(*put, input=given, check=False).returncode, timeout=120)
            kubectl("wait", "--for=condition=Established", *names, "--timeout=1m", timeout=70)


@pytest.mark.alone
def test_a_kubernetes_without_rays_kinds(tmp_path: Path) -> None:
    nowhere = Cluster("default")
    with without_definitions(), proxied(tmp_path, "kind-none") as (proxy, kubeconfig):  # looks like a kind cluster
        for args in (["list"], ["status"], ["submit", "--", "true"], ["exec", "--", "true"]):
            asked = client(nowhere, args[0], "--address", "kubernetes", *args[1:])
            one_line(asked, 69, "has no RayCluster resource definition: install the chart there first")
        looked = client(nowhere, "doctor", "--address", "kubernetes")
        assert (looked.returncode, looked.stderr) == (1, b"")
        assert "has no RayCluster resource definition" in last_line(looked) and "helm install" in last_line(looked)
        done = run(
            sys.executable, "-m", "client", "submit", "--", "echo", "hello", check=False, timeout=120,
            env={"KUBECONFIG": str(kubeconfig)},
        )  # fmt: skip
        assert (done.returncode, "hello\n" in done.stdout) == (0, True), done.stderr
        assert "embedded" in done.stderr and "Traceback" not in done.stderr
        assert ("GET", "/apis/ray.io/v1/rayclusters") in proxy.requests  # it looked there by default


# In a pod


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    values = tmp_path_factory.mktemp("values") / "values.yaml"
    values.write_text(yaml.safe_dump({"ray-cluster": {"worker": {"rayStartParams": {"resources": '"{\\"w\\": 1}"'}}}}))
    with new_namespace("places") as where:
        made = install(where, *SUBJECT, values=[str(values)])
        for name in ("person", "nobody"):
            apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": where}})
        made.wait()
        yield made


@pytest.fixture(scope="module")
def pods(ray: Cluster) -> None:
    """Run one pod per service account, like a user's own pods."""

    def pod(name: str) -> Object:
        made = tiny_pod(name, ray.namespace, labels={"ray-workload/client": "true"})
        made["spec"] |= {"serviceAccountName": name, "automountServiceAccountToken": True}
        return made

    run_pods(pod("person"), pod("nobody"))


def inside(ray: Cluster, *args: str, pod: str = "person", stdin: str | None = None, timeout: float = 120) -> Run:
    """Run the image's client in a pod."""
    command = ("python", "-m", "client", *args)
    done = kubectl("exec", "-i", "-n", ray.namespace, pod, "--", *command, input=stdin, check=False, timeout=timeout)
    err = done.stderr.replace(f"command terminated with exit code {done.returncode}\n", "")  # printed by kubectl
    return Run(command, done.returncode, done.stdout.encode(), err.encode())


@pytest.mark.usefixtures("pods")
def test_a_pod_takes_the_cluster_around_it(ray: Cluster) -> None:
    done = inside(ray, "submit", "--working-dir", "/app/jobs", "/app/jobs/simple_job.py")
    assert done.returncode == 0, done.stderr
    assert b"all well: there are 9,592 primes below 100,000" in done.stdout
    assert b"(the cluster of this pod)" in done.stderr and f"{ray.namespace}/ray".encode() in done.stderr, done.stderr


@pytest.mark.usefixtures("pods")
def test_every_command_in_a_pod(ray: Cluster) -> None:
    done = inside(ray, "submit", "--detach", "--id", "waits", "--", *WAITS)
    assert (done.returncode, done.stdout) == (0, b"waits\n"), done.stderr
    assert b"waits" in inside(ray, "list").stdout
    assert json.loads(inside(ray, "status", "-o", "json", "waits").stdout)["status"] in ("PENDING", "RUNNING")
    until("it runs", lambda: b"waits\n" in inside(ray, "logs", "waits").stdout, timeout=60)
    assert inside(ray, "stop", "waits").returncode == 0
    done = inside(ray, "logs", "--follow", "waits")
    assert done.returncode == 143 and b"waits\n" in done.stdout, done.stderr
    status = json.loads(inside(ray, "status", "-o", "json").stdout)
    assert (status["address"], status["source"]) == (f"kubernetes:///{ray.namespace}/ray", "the cluster of this pod")
    done = inside(ray, "doctor", "-o", "json")
    found = {check["check"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 0, found
    assert found["login"]["found"].endswith(f"system:serviceaccount:{ray.namespace}:person")
    assert {found[check]["status"] for check in ("cluster", "permissions", "dashboard", "auth")} == {"ok"}


@pytest.mark.usefixtures("pods")
def test_a_driver_on_a_worker_is_followed_from_a_pod(ray: Cluster) -> None:
    job = yaml.safe_dump({"entrypoint_resources": {"w": 0.1}})
    kubectl("exec", "-i", "-n", ray.namespace, "person", "--", "sh", "-c", "cat > /tmp/job.yaml", input=job)
    script = f"import os\nprint(os.uname().nodename)\n{NUMBERED}"
    done = inside(ray, "submit", "-f", "/tmp/job.yaml", "--", "python", "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"{ray.name('worker')}\n".encode() + LOG), done.stdout[:300]


@pytest.mark.usefixtures("pods")
def test_exec_in_a_pod_wants_a_role_of_its_own(ray: Cluster, tmp_path: Path) -> None:
    done = inside(ray, "exec", "--", "hostname")
    assert (done.returncode, done.stdout) == (77, b"") and taken(ray) in done.stderr, done.stderr
    assert done.stderr.count(b"\n") == 2 and b"pods/exec" in done.stderr, done.stderr
    account(ray, "person", [EXEC], tmp_path)
    done = inside(ray, "exec", "--", "sh", "-c", "cat; hostname; exit 7", stdin="given\n")
    assert (done.returncode, done.stderr) == (7, taken(ray))
    assert done.stdout.decode() == f"given\n{ray.name('head')}\n"


@pytest.mark.usefixtures("pods")
def test_a_pod_whose_account_may_do_nothing(ray: Cluster) -> None:
    for args in (["list"], ["submit"], ["exec"]):
        more = ["--", "true"] if args != ["list"] else []
        done = inside(ray, *args, "--address", "kubernetes", *more, pod="nobody")
        one_line(done, 77, "rayclusters")
    done = inside(ray, "doctor", "--address", "kubernetes", pod="nobody")
    assert done.returncode == 1 and b"FAIL" in done.stdout, done.stdout
    done = inside(ray, "submit", "--", "echo", "hello", pod="nobody")  # it cannot see the cluster
    assert done.returncode == 0 and b"embedded" in done.stderr, done.stderr


# Several clusters


@pytest.fixture
def operator(ray: Cluster) -> Iterator[list[str]]:
    """Yield the arguments that scale the operator; scale it up again at the end."""
    scale = ["scale", "deployment/kuberay-operator", "-n", ray.namespace]
    yield scale
    kubectl(*scale, "--replicas=1")
    kubectl("rollout", "status", *scale[1:], "--timeout=1m", timeout=70)


def test_a_second_cluster_in_the_namespace(ray: Cluster, operator: list[str]) -> None:
    kubectl(*operator, "--replicas=0")
    selector = ("-l", "app.kubernetes.io/name=kuberay-operator")
    until("no operator", lambda: not get("pods", "-n", ray.namespace, *selector)["items"])
    spec = get("raycluster", "ray", "-n", ray.namespace)["spec"] | {"workerGroupSpecs": []}
    # The operator's Service has a name like the chart's Service, but no port for the node agent.
    metadata = {"name": "x-api", "namespace": ray.namespace}
    head = spec["headGroupSpec"] | {"headService": {"metadata": {"name": "x-api"}}}
    container = head["template"]["spec"]["containers"][0]
    container["ports"] = [port for port in container["ports"] if port["name"] != "agent"]
    spec["headGroupSpec"] = head
    other = f"kubernetes:///{ray.namespace}/x-api"
    apply({"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": spec})
    try:
        done = client(ray, "submit", "--wait-cluster", "3", "--address", other, "--", "true")
        assert done.returncode == 124 and b"is a KubeRay operator running?" in done.stderr.splitlines()[-1], done.stderr
        kubectl(*operator, "--replicas=1")
        there = client(ray, "submit", "--wait-cluster", "3m", "--address", other, "--", *WHERE, timeout=200)
        here = client(ray, "submit", "--address", f"kubernetes:///{ray.namespace}/ray", "--", *WHERE)
        assert there.returncode == 0, there.stderr.decode()
        assert here.returncode == 0, here.stderr.decode()
        assert last_line(there).startswith("x-api-head-") and last_line(here) == ray.name("head")
        done = client(ray, "submit", "--address", f"kubernetes:///{ray.namespace}", "--", "true")
        said = done.stderr.decode().splitlines()[-1]
        assert done.returncode == 2, done.stderr
        assert f"2 RayClusters in namespace {ray.namespace}" in said
        assert all(f"/{ray.namespace}/{name}" in said for name in ("x-api", "ray"))
    finally:
        kubectl("delete", "raycluster", "x-api", "-n", ray.namespace, "--timeout=1m", timeout=70)


def test_two_releases_of_one_name(ray: Cluster) -> None:
    with new_namespace("second") as where:
        second = install(where)
        second.wait()
        done = client(ray, "list", "--address", "kubernetes")
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1, done.stderr
        assert all(f"/{name}/ray".encode() in done.stderr for name in (ray.namespace, where))
        for cluster in (ray, second):
            done = client(cluster, "submit", "--id", f"to-{cluster.namespace}", "--", *WHERE)
            assert (done.returncode, last_line(done)) == (0, cluster.name("head")), done.stderr
        for cluster, stranger in ((ray, second), (second, ray)):
            jobs = client(cluster, "list").stdout.decode()
            assert f"to-{cluster.namespace}" in jobs and f"to-{stranger.namespace}" not in jobs
        context = kubectl("config", "current-context").stdout.strip()
        done = client(ray, "down", "local", "--context", context, "--namespace", where, "--yes", timeout=200)
        assert done.returncode == 0 and not second.pods(), done.stderr
        done = client(ray, "submit", "--", *WHERE)
        assert (done.returncode, last_line(done)) == (0, ray.name("head")), done.stderr
        (name,) = [p["metadata"]["name"] for p in ray.pods("worker")]
        kubectl("delete", "pod", name, "-n", ray.namespace, "--grace-period=1", timeout=60)
        until(
            "its own operator makes another worker",
            lambda: [p for p in ray.pods("worker") if p["metadata"]["name"] != name],
        )
