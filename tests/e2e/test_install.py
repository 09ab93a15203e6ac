"""The release that `ci/kind install` creates, in a namespace that enforces Pod Security `restricted`."""

import base64
import json
import socket
from collections.abc import Iterator

import pytest
import requests
from ray.job_submission import JobSubmissionClient

from tests.e2e._cluster import Cluster, of_image
from tests.e2e._release import Login, run_job, token_of, uids
from tests.e2e.conftest import IMAGE, get, helm, inventory, kubectl, new_namespace, run, unproved, until

HELLO = "import ray; ray.init(); print(ray.get(ray.remote(lambda: 'hello from a task').remote()))"
PORT = 30265
# What the head's ports answer without the token, by Ray's design: metrics on any path, and health checks.
METRICS = {8080, 44217, 44227}
ANSWERS: dict[int, set[str]] = {
    6379: {"health"},
    8265: {"/", "/api/gcs_healthz", "/api/authentication_mode"},
    10001: set(),
    52365: {"/api/healthz", "/api/local_raylet_healthz"},
}
# Runs in a pod of the cluster, which the policies allow: what each port answers without the token.
ASK = """
import http.client, json, os, sys, grpc

HTTP = '''/ /metrics /api/version /api/jobs/ /api/job_agent/jobs/ /api/gcs_healthz /api/healthz
/api/local_raylet_healthz /api/authentication_mode /nodes /logs/ /logical/actors /api/v0/tasks /api/v0/logs
/api/cluster_status /log_proxy /worker/traceback /api/actors/kill /api/serve/applications/ /timezone'''.split()
GRPC = '''NodeInfoGcsService/GetAllNodeInfo InternalKVGcsService/InternalKVKeys JobInfoGcsService/GetAllJobInfo
NodeManagerService/GetNodeStats ObjectManagerService/Pull RayletDriver/ClusterInfo CoreWorkerService/GetCoreWorkerStats
ReporterService/HealthCheck LogService/ListLogs'''.split()

def over_http(host, port):
    for path in HTTP:
        connection = http.client.HTTPConnection(host, port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            yield path, "metrics" if answer.read(6) == b"# HELP" else answer.status
        except http.client.BadStatusLine:
            return
        finally:
            connection.close()

def over_grpc(host, port, *metadata):
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        methods = {f"/ray.rpc.{m}": m for m in GRPC} | {"/grpc.health.v1.Health/Check": "health"}
        for method, name in methods.items():
            try:
                channel.unary_unary(method)(b"", timeout=10, metadata=metadata)
                yield name, "OK"
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                    yield name, error.code().name

found, (host, *ports) = {}, sys.argv[1:]
for port in ports:
    said = dict(over_http(host, int(port)))
    found[port] = {"speaks": "http", "said": said}
    if not said:
        token = ("authorization", f"Bearer {os.environ['RAY_AUTH_TOKEN']}")
        with_token = dict(over_grpc(host, port, token))
        found[port] = {"speaks": "grpc", "said": dict(over_grpc(host, port)), "with_token": with_token}
print(json.dumps(found))
"""
# Finds a service account's token in a container, wherever it is mounted.
TOKENS = """
import glob, json
mounts = [line.split()[1] for line in open("/proc/mounts")]
files = glob.glob("/var/run/secrets/**/*token*", recursive=True)
print(json.dumps([mount for mount in mounts if "serviceaccount" in mount] + files))
"""


def ci_kind(*args: str, namespace: str) -> str:
    context = kubectl("config", "current-context").stdout.strip()
    more = {"CONTEXT": context, "NAMESPACE": namespace, "RELEASE": "ray", "TIMEOUT": "3m"}
    # Its `make charts` must not recreate .venv after a change of the requirements: the tests run in .venv.
    more["BASH_FUNC_make%%"] = '() { command make -o .venv/.done "$@"; }'
    return run("ci/kind", *args, timeout=280, env=more).stdout


@pytest.fixture(scope="module")
def ray() -> Iterator[Cluster]:
    with new_namespace("install", restricted=True) as namespace:
        said = ci_kind("install", *of_image(IMAGE), namespace=namespace)
        assert said.count("condition met") == 2, said
        yield Cluster(namespace)


@pytest.fixture(scope="module")
def token(ray: Cluster) -> str:
    return token_of(ray.namespace)


@pytest.fixture(scope="module")
def login() -> Login:
    return Login.of_kubeconfig()


def node_port() -> str:
    """Return the dashboard's address on a node, if nodes can be reached from here."""
    addresses = get("nodes")["items"][0]["status"]["addresses"]
    host = next(a["address"] for a in addresses if a["type"] == "InternalIP")
    try:
        socket.create_connection((host, 10250), 5).close()  # the kubelet
    except OSError:
        unproved(f"the NodePort: from here the node {host} cannot be reached")
    return f"http://{host}:{PORT}"


def test_ready_and_nothing_was_refused(ray: Cluster) -> None:
    status = get("raycluster", "ray", "-n", ray.namespace)["status"]
    assert (status["state"], status["readyWorkerReplicas"]) == ("ready", 1)
    assert {len(ray.pods("head")), len(ray.pods("worker"))} == {1}
    events = get("events", "-n", ray.namespace)["items"]
    assert events and not [e["message"] for e in events if "PodSecurity" in e.get("message", "")]


def test_helm_test_passes(ray: Cluster) -> None:
    assert "Succeeded" in helm("test", "ray", "-n", ray.namespace, "--timeout", "2m").stdout


def test_a_job_over_the_node_port(ray: Cluster, token: str) -> None:
    jobs = JobSubmissionClient(node_port(), headers={"Authorization": f"Bearer {token}"})
    assert "hello from a task" in run_job(jobs, HELLO, ray.namespace)


def test_a_job_over_the_api_servers_proxy(ray: Cluster, token: str, login: Login) -> None:
    assert "hello from a task" in run_job(login.jobs(ray.namespace, token), HELLO, ray.namespace)


def test_the_token_decides_over_the_node_port(ray: Cluster, token: str) -> None:
    url = f"{node_port()}/api/jobs/"
    given: list[dict[str, str]] = [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {token}"}]
    assert [requests.get(url, headers=headers, timeout=30).status_code for headers in given] == [401, 403, 200]


@pytest.mark.parametrize(("port", "path"), [(8265, "/api/jobs/"), (52365, "/api/job_agent/jobs/none/logs/tail")])
def test_the_token_decides_over_the_proxy(ray: Cluster, token: str, login: Login, port: int, path: str) -> None:
    url = login.at(ray.namespace, name=f"http:ray-api:{port}") + path
    assert [login.ask("GET", url, ray_token).status_code for ray_token in ("", "wrong")] == [401, 403]
    assert login.ask("GET", url, token).status_code not in (401, 403)


def test_what_the_heads_ports_answer_without_a_token(ray: Cluster) -> None:
    head = ray.pods("head")[0]
    listening = ray.listening(head["metadata"]["name"])
    assert METRICS | set(ANSWERS) <= listening
    ports = [str(port) for port in sorted(listening)]
    found = json.loads(ray.python(ray.name("worker"), ASK, head["status"]["podIP"], *ports))
    assert {int(port) for port in found} == listening
    for port, seen in found.items():
        said, codes = seen["said"], {*seen["said"].values()}
        if int(port) in METRICS:
            assert codes == {"metrics"}, port
            continue
        answered = {name for name, code in said.items() if code in (200, "OK")}
        assert answered == ANSWERS.get(int(port), answered & {"health"}), port
        assert codes & {401, "UNAUTHENTICATED"}, f"{port} asks for no token: {seen}"
        if seen["speaks"] == "grpc":
            assert codes <= {"OK", "UNAUTHENTICATED"}, seen
            assert "UNAUTHENTICATED" not in seen["with_token"].values()  # so the error was the missing token


def test_ray_containers_have_no_api_token(ray: Cluster) -> None:
    for pod in ray.pods():
        assert json.loads(ray.python(pod["metadata"]["name"], TOKENS)) == []


def test_no_secret_outside_of_secrets(ray: Cluster, token: str) -> None:
    """Neither in an object nor in a log, neither as plain text nor as base64."""
    kinds = kubectl("api-resources", "--verbs=list", "--namespaced", "-o", "name").stdout.split()
    names = ",".join(kind for kind in kinds if kind != "secrets" and "metrics" not in kind)
    objects = get(names, "-n", ray.namespace)["items"]
    assert {"ConfigMap", "RayCluster", "Pod", "Deployment"} <= {o["kind"] for o in objects}
    encoded = base64.b64encode(token.encode()).decode()
    assert not [o["metadata"]["name"] for o in objects if token in json.dumps(o) or encoded in json.dumps(o)]
    for pod in ray.pods():
        name = pod["metadata"]["name"]
        assert token not in kubectl("logs", "-n", ray.namespace, name, "--all-containers").stdout
        grep = ["exec", "-i", "-n", ray.namespace, name, "--", "grep", "-rlFf", "-", "/tmp/ray"]
        assert kubectl(*grep, input="worker", check=False).stdout  # proves that the search works
        assert kubectl(*grep, input=token, check=False).stdout == ""


def test_the_same_again_changes_nothing(ray: Cluster, token: str) -> None:
    before = uids(ray.namespace)
    said = ci_kind("install", *of_image(IMAGE), namespace=ray.namespace)
    assert "REVISION: 2" in said
    assert (uids(ray.namespace), token_of(ray.namespace)) == (before, token)


def test_uninstalled_nothing_is_left(ray: Cluster) -> None:
    """The last test in this file: it uninstalls the release."""
    assert len(inventory(ray.namespace)) > 20
    ci_kind("uninstall", namespace=ray.namespace)
    until("nothing is left", lambda: not inventory(ray.namespace), namespace=ray.namespace)
    assert len(get("crd")["items"]) >= 4
    ci_kind("uninstall", namespace=ray.namespace)  # every command can be repeated
