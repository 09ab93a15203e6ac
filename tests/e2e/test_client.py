"""The client on a cluster that the chart made: the same submit, log and exit code, with real faults under way."""

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.client.proxy import FaultProxy
from tests.conftest import ROOT
from tests.e2e.conftest import CHART, apply, get, helm, kubectl, new_namespace, until, user_environment

SECRET = "s3cret-of-wandb"
LINES = 50_000
NUMBERED = f"""
import hashlib
for n in range({LINES}):
    print(n, hashlib.sha256(str(n).encode()).hexdigest(), flush=n % 1000 == 0)
"""
SLOW_LINES = 4_000
SLOW = f"""
import time
print("0 begins", flush=True)
for n in range(1, {SLOW_LINES}):
    time.sleep(0.003)
    print(n, "x" * 100, flush=True)
"""
WAITING = "import time; print('started', flush=True); time.sleep(300)"
TASKS = """
import os, time, ray
ray.init()
print("driver", os.uname().nodename, flush=True)

@ray.remote(max_retries=5, num_cpus=1, resources={"worker": 0.1})
def task(n):
    time.sleep(10)
    return n

print("sum", sum(ray.get([task.remote(n) for n in range(2)])), flush=True)
"""
Run = subprocess.CompletedProcess[bytes]
SMALL = {"resources": {"requests": {"cpu": "100m"}}}
LOG = {"name": "log-volume", "emptyDir": {}}, {"name": "log-volume", "mountPath": "/tmp/ray"}
WANDB = (
    {"name": "wandb", "secret": {"secretName": "wandb", "defaultMode": 0o440}},
    {"name": "wandb", "mountPath": "/home/ray/.wandb", "readOnly": True},
)
VALUES = {
    "api": {"type": "ClusterIP", "nodePort": None},
    "secrets": {"wandb": {"data": {"api-key": SECRET}}},
    "submitter": {"subjects": [{"kind": "ServiceAccount", "name": "submitter"}]},
    "kuberay-operator": {"resources": {"requests": {"cpu": "50m"}}},
    "ray-cluster": {
        "head": {**SMALL, "volumes": [LOG[0], WANDB[0]], "volumeMounts": [LOG[1], WANDB[1]]},
        "worker": {
            **SMALL,
            "rayStartParams": {"resources": '"{\\"worker\\": 1}"'},
            "volumes": [LOG[0], WANDB[0]],
            "volumeMounts": [LOG[1], WANDB[1]],
        },
    },
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The namespace of a cluster, not waited for: the client does that."""
    values = tmp_path_factory.mktemp("values") / "values.yaml"
    values.write_text(yaml.safe_dump(VALUES))
    with new_namespace("client") as name:
        helm("install", "ray", CHART, "-n", name, "-f", f"{CHART}/values-local.yaml", "-f", str(values))
        yield name


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory; the entrypoint, which Ray writes into the log, is a name then."""
    folder = tmp_path_factory.mktemp("scripts")
    for name, text in {"numbered": NUMBERED, "slow": SLOW, "waiting": WAITING, "tasks": TASKS}.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def start(namespace: str, *args: str, kubeconfig: Path | None = None) -> "subprocess.Popen[bytes]":
    env = {**user_environment(), "RAY_WORKLOAD_ADDRESS": f"kubernetes:///{namespace}/ray", "PYTHONPATH": str(ROOT)}
    if kubeconfig:
        env["KUBECONFIG"] = str(kubeconfig)
    command = [sys.executable, "-m", "client", *args]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def client(namespace: str, *args: str, timeout: float = 120, kubeconfig: Path | None = None) -> Run:
    process = start(namespace, *args, kubeconfig=kubeconfig)
    out, err = process.communicate(timeout=timeout)
    return Run(process.args, process.returncode, out, err)


def driver(job: Run) -> bytes:
    """The log without what Ray itself writes into it."""
    noise = (b"INFO job_manager.py", b"Running entrypoint", b"INFO worker.py", b"(autoscaler", b"(raylet")
    return b"".join(line for line in job.stdout.splitlines(keepends=True) if not any(n in line for n in noise))


def pod(namespace: str, kind: str) -> tuple[str, str]:
    """Name and UID of the only one."""
    pods = get("pods", "-n", namespace, "-l", f"ray.io/cluster=ray,ray.io/node-type={kind}")["items"]
    alive = [p["metadata"] for p in pods if "deletionTimestamp" not in p["metadata"]]
    return (alive[0]["name"], alive[0]["uid"]) if alive else ("", "")


def test_submit_waits_for_the_cluster(cluster: str) -> None:
    done = client(cluster, "submit", "--wait-cluster", "3m", "--working-dir", "jobs", "jobs/simple_job.py", timeout=240)
    assert done.returncode == 0, done.stderr
    assert b"all well: there are 9,592 primes below 100,000" in done.stdout
    assert b"waiting for RayCluster" in done.stderr


def test_a_log_arrives_whole(cluster: str, scripts: Path) -> None:
    done = client(cluster, "submit", "--working-dir", str(scripts), str(scripts / "numbered.py"))
    expected = b"".join(b"%d %s\n" % (n, hashlib.sha256(b"%d" % n).hexdigest().encode()) for n in range(LINES))
    assert done.returncode == 0, done.stderr
    assert driver(done) == expected


@pytest.mark.parametrize(("code", "expected"), [("exit 7", 7), ("kill -9 $$", 137), ("exit 0", 0)])
def test_exit_codes(cluster: str, code: str, expected: int) -> None:
    assert client(cluster, "submit", "--", "sh", "-c", code).returncode == expected


def test_a_driver_on_a_worker_is_followed_there(cluster: str, scripts: Path, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("entrypoint_resources: {worker: 0.1}\n")
    options = ["-f", str(tmp_path / "job.yaml"), "--working-dir", str(scripts)]
    done = client(cluster, "submit", *options, str(scripts / "tasks.py"), timeout=180)
    assert done.returncode == 0, done.stderr
    assert f"driver {pod(cluster, 'worker')[0]}\n".encode() in done.stdout
    assert b"sum 1\n" in done.stdout


def test_a_secret_reaches_the_driver_alone(cluster: str) -> None:
    script = "import hashlib, os; print(hashlib.sha256(os.environ['KEY'].encode()).hexdigest())"
    done = client(cluster, "submit", "--secret-env", "KEY=wandb/api-key", "--", "python", "-c", script)
    assert driver(done).decode().strip() == hashlib.sha256(SECRET.encode()).hexdigest(), done.stderr
    listed = client(cluster, "list", "-o", "json")
    assert b"secret-env" not in listed.stdout and SECRET.encode() not in listed.stdout + done.stdout + done.stderr


def test_what_the_cluster_does_not_have(cluster: str) -> None:
    for args, words in (
        (["--secret-env", "KEY=other/key"], b"no Secret other, it has wandb"),
        (["--num-gpus", "2"], b"2 GPU"),
    ):
        done = client(cluster, "submit", *args, "--", "true")
        assert (done.returncode, done.stderr.count(b"\n")) == (2, 2), done.stderr  # and the line with the address
        assert words in done.stderr


def kubeconfig_of(account: str, namespace: str, folder: Path) -> Path:
    """A kubeconfig of a service account, with nothing else in it."""
    view = json.loads(kubectl("config", "view", "--minify", "--raw", "-o", "json").stdout)
    token = kubectl("create", "token", account, "-n", namespace).stdout.strip()
    view["users"][0]["user"] = {"token": token}
    path = folder / account
    path.write_text(json.dumps(view))
    return path


def test_a_submitter_submits_follows_lists_and_stops_and_no_more(cluster: str, tmp_path: Path) -> None:
    for name in ("submitter", "stranger"):
        apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": cluster}})
    theirs = kubeconfig_of("submitter", cluster, tmp_path)
    hello = client(cluster, "submit", "--", "echo", "hello", kubeconfig=theirs)
    assert (hello.returncode, driver(hello)) == (0, b"hello\n"), hello.stderr
    detached = client(cluster, "submit", "--detach", "--", "python", "-c", WAITING, kubeconfig=theirs)
    job = detached.stdout.decode().strip()
    stopped = client(cluster, "stop", "--grace", "20", job, kubeconfig=theirs)
    assert stopped.returncode == 0, stopped.stderr  # at once, and not when Ray kills it after 30 s
    assert client(cluster, "logs", "--follow", job, kubeconfig=theirs).returncode == 143
    assert job.encode() in client(cluster, "list", kubeconfig=theirs).stdout
    refused = client(cluster, "list", kubeconfig=kubeconfig_of("stranger", cluster, tmp_path))
    assert (refused.returncode, refused.stderr.count(b"\n")) == (77, 1), refused.stderr
    assert b"rayclusters" in refused.stderr and b"Role" in refused.stderr


def test_the_status_of_the_cluster(cluster: str) -> None:
    status = json.loads(client(cluster, "status", "-o", "json").stdout)
    groups = {"head": 1, "workergroup": 1}
    assert (status["release"], status["pods_ready"], status["pods_wanted"]) == ("ray", groups, groups)
    assert status["resources"]["worker"] == 1


def test_a_wrong_place_is_one_line(cluster: str) -> None:
    nowhere = client("no-such-namespace", "list")
    assert (nowhere.returncode, nowhere.stderr.count(b"\n")) == (69, 1), nowhere.stderr
    assert b"no-such-namespace" in nowhere.stderr


def test_a_suspended_cluster_is_waited_for_and_several_are_listed(cluster: str) -> None:
    live = get("raycluster", "ray", "-n", cluster)
    metadata = {"name": "other", "namespace": cluster}
    apply(
        {
            "apiVersion": "ray.io/v1",
            "kind": "RayCluster",
            "metadata": metadata,
            "spec": live["spec"] | {"suspend": True},
        }
    )
    process = start(cluster, "submit", "--address", f"kubernetes:///{cluster}", "--", "true")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and f"{cluster}/other".encode() in err and f"{cluster}/ray".encode() in err
    waited = client(
        cluster, "submit", "--address", f"kubernetes:///{cluster}/other", "--wait-cluster", "2", "--", "true"
    )
    assert waited.returncode == 124 and b"suspended" in waited.stderr
    for command in (["list"], ["status"], ["logs", "x"], ["stop", "x"]):
        done = client(cluster, command[0], "--address", f"kubernetes:///{cluster}/other", *command[1:])
        assert (done.returncode, done.stderr.count(b"\n")) == (69, 1), done.stderr
        assert f"RayCluster {cluster}/other is not ready: it is suspended".encode() in done.stderr
    kubectl("delete", "raycluster", "other", "-n", cluster)


def following(namespace: str, script: Path) -> "subprocess.Popen[bytes]":
    """A submit that is under way: the script's first line has arrived."""
    process = start(namespace, "submit", "--working-dir", str(script.parent), str(script))
    assert process.stdout
    while not (line := process.stdout.readline()).startswith((b"started", b"driver")):
        assert line, process.communicate()
    return process


def test_the_operator_gone_hinders_nobody(cluster: str) -> None:
    kubectl("scale", "deployment/kuberay-operator", "--replicas=0", "-n", cluster)
    until(
        "no operator", lambda: not get("pods", "-n", cluster, "-l", "app.kubernetes.io/name=kuberay-operator")["items"]
    )
    assert client(cluster, "submit", "--", "true").returncode == 0
    kubectl("scale", "deployment/kuberay-operator", "--replicas=1", "-n", cluster)


def test_a_worker_deleted_under_a_job(cluster: str, scripts: Path) -> None:
    process = following(cluster, scripts / "tasks.py")
    name, uid = pod(cluster, "worker")
    kubectl("delete", "pod", name, "-n", cluster, "--grace-period=1")
    out, err = process.communicate(timeout=180)
    assert pod(cluster, "worker")[1] not in ("", uid)
    assert (process.returncode, b"sum 1\n" in out) == (0, True), err


@pytest.fixture
def api_server(tmp_path: Path) -> Iterator[tuple[FaultProxy, Path]]:
    """The API server behind a proxy of ours, and a kubeconfig that leads there."""
    command = ["kubectl", "proxy", "--port=0"]
    with subprocess.Popen(command, env=user_environment(), stdout=subprocess.PIPE, text=True) as kubectl_proxy:
        assert kubectl_proxy.stdout
        host, port = kubectl_proxy.stdout.readline().split()[-1].split(":")
        with FaultProxy((host, int(port))) as proxy:
            context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
            config = {"clusters": [{"name": "c", "cluster": {"server": proxy.url}}], "contexts": [context]}
            path = tmp_path / "kubeconfig"
            path.write_text(json.dumps({**config, "users": [{"name": "u", "user": {}}], "current-context": "c"}))
            yield proxy, path
        kubectl_proxy.terminate()


@pytest.mark.parametrize("fault", ["cut_after_seconds", "cut_after_bytes", "silent_after_bytes", "refused for 15 s"])
def test_no_byte_is_lost_or_repeated_through_a_bad_api_server(
    cluster: str, scripts: Path, api_server: tuple[FaultProxy, Path], fault: str
) -> None:
    proxy, kubeconfig = api_server
    script = scripts / "slow.py"
    with start(cluster, "submit", "--working-dir", str(scripts), str(script), kubeconfig=kubeconfig) as process:
        assert process.stdout and process.stderr
        while not (line := process.stdout.readline()).endswith(b"0 begins\n"):
            assert line, process.stderr.read()
        if fault.startswith("refused"):
            proxy.refuse(15)
        else:
            setattr(proxy.faults, fault, 1.5 if fault == "cut_after_seconds" else 30_000)
        out, err = process.stdout.read(), process.stderr.read()  # `communicate` would lose what readline has buffered
    assert process.returncode == 0, err
    assert out == b"".join(b"%d %s\n" % (n, b"x" * 100) for n in range(1, SLOW_LINES))
    assert sum(proxy.fired.values()) >= 1, proxy.fired


def test_the_token_rotated(cluster: str) -> None:
    new = base64.b64encode(b"another-token").decode()
    kubectl("patch", "secret", "ray-auth-token", "-n", cluster, "-p", json.dumps({"data": {"auth_token": new}}))
    refused = client(cluster, "list")
    assert (refused.returncode, refused.stderr.count(b"\n")) == (77, 1), refused.stderr
    kubectl("delete", "pods", "-n", cluster, "-l", "ray.io/cluster=ray", "--wait=true", timeout=120)
    until("a new head", lambda: pod(cluster, "head")[0])
    assert client(cluster, "submit", "--", "true", timeout=180).returncode == 0


def test_the_head_deleted_under_a_job_is_an_error_of_its_own(cluster: str, scripts: Path) -> None:
    process = following(cluster, scripts / "waiting.py")
    name, uid = pod(cluster, "head")
    kubectl("delete", "pod", name, "-n", cluster, "--grace-period=1")
    out, err = process.communicate(timeout=180)
    assert until("a new head", lambda: pod(cluster, "head")[1]) != uid
    assert process.returncode == 75, (out, err)
    assert b"lost" in err.splitlines()[-1]
