"""The client on a cluster of the chart: submits, logs and exit codes, also during real faults."""

import base64
import hashlib
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.client.proxy import FaultProxy
from tests.conftest import ROOT
from tests.e2e.conftest import CHART, apply, get, helm, kubectl, new_namespace, until, user_environment

SECRET = "s3cret-of-wandb"
LINES = 50_000
NUMBERED = f"""
import hashlib, time
time.sleep(1)  # Ray's own first line may come a moment later, into the middle of one
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
SMALL = {"requests": {"cpu": "100m"}}
VALUES = {
    "api": {"type": "ClusterIP", "nodePort": None},
    "secrets": {"wandb": {"mountPath": "/home/ray/.wandb", "data": {"api-key": SECRET}}},
    "submitter": {"subjects": [{"kind": "ServiceAccount", "name": "submitter"}]},
    "kuberay-operator": {"resources": {"requests": {"cpu": "50m"}}},
    "head": SMALL,
    "workers": {
        **SMALL,
        # As on a node where Ray detects a GPU that the group's spec does not mention.
        "env": {"RAY_OVERRIDE_RESOURCES": '{"GPU": 1, "accelerator_type:L4": 1}'},
        "rayStartParams": {"resources": '"{\\"worker\\": 1}"'},
    },
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Install a cluster and yield its namespace; the client waits until the cluster is ready."""
    values = tmp_path_factory.mktemp("values") / "values.yaml"
    values.write_text(yaml.safe_dump(VALUES))
    with new_namespace("client") as name:
        helm("install", "ray", CHART, "-n", name, "-f", f"{CHART}/values-local.yaml", "-f", str(values))
        yield name


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a working directory, so that the entrypoint in the log is the script's name, not its code."""
    folder = tmp_path_factory.mktemp("scripts")
    for name, text in {"numbered": NUMBERED, "slow": SLOW, "waiting": WAITING, "tasks": TASKS}.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def environment(namespace: str, **more: str) -> dict[str, str]:
    address = f"kubernetes:///{namespace}/ray"
    return {**user_environment(), "RAY_WORKLOAD_ADDRESS": address, "PYTHONPATH": str(ROOT), **more}


def start(namespace: str, *args: str, kubeconfig: Path | None = None, **more: str) -> "subprocess.Popen[bytes]":
    env = environment(namespace, **more, **({"KUBECONFIG": str(kubeconfig)} if kubeconfig else {}))
    command = [sys.executable, "-m", "client", *args]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def client(namespace: str, *args: str, timeout: float = 120, kubeconfig: Path | None = None) -> Run:
    process = start(namespace, *args, kubeconfig=kubeconfig)
    out, err = process.communicate(timeout=timeout)
    return Run(process.args, process.returncode, out, err)


def without_rays_lines(log: bytes) -> bytes:
    """Remove the lines of Ray's job manager, which can be in the middle of a driver's line."""
    return re.sub(rb"\d{4}-\d\d-\d\d [\d:,]{12}\tINFO \w+\.py:\d+ -- [^\n]*\n", b"", log)


def driver(job: Run) -> bytes:
    """Return a job's log without Ray's own lines."""
    noise = (b"INFO job_manager.py", b"Running entrypoint", b"INFO worker.py", b"(autoscaler", b"(raylet")
    return b"".join(
        line for line in without_rays_lines(job.stdout).splitlines(keepends=True) if not any(n in line for n in noise)
    )


def error(done: Run) -> str:
    """Return the error: the line of stderr after the line with the address."""
    address, line = done.stderr.decode().splitlines()
    assert address.startswith("ray-workload: address kubernetes://") and address.endswith("(RAY_WORKLOAD_ADDRESS)")
    return line


def pod(namespace: str, kind: str) -> tuple[str, str]:
    """Return the name and UID of the only pod of this type."""
    pods = get("pods", "-n", namespace, "-l", f"ray.io/cluster=ray,ray.io/node-type={kind}")["items"]
    alive = [p["metadata"] for p in pods if "deletionTimestamp" not in p["metadata"]]
    return (alive[0]["name"], alive[0]["uid"]) if alive else ("", "")


def test_submit_waits_for_the_cluster(cluster: str) -> None:
    done = client(cluster, "submit", "--wait-cluster", "3m", "--working-dir", "jobs", "jobs/simple_job.py", timeout=240)
    assert done.returncode == 0, done.stderr
    assert b"all well: there are 9,592 primes below 100,000" in done.stdout
    assert b"waiting for RayCluster" in done.stderr


def test_a_log_arrives_whole(cluster: str, scripts: Path) -> None:
    job = f"numbered-{time.monotonic_ns()}"
    done = client(cluster, "submit", "--id", job, "--working-dir", str(scripts), str(scripts / "numbered.py"))
    expected = b"".join(b"%d %s\n" % (n, hashlib.sha256(b"%d" % n).hexdigest().encode()) for n in range(LINES))
    assert done.returncode == 0, done.stderr
    path = f"/tmp/ray/session_latest/logs/job-driver-{job}.log"
    assert done.stdout.decode() == kubectl("exec", "-n", cluster, pod(cluster, "head")[0], "--", "cat", path).stdout
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
        (["--secret-env", "KEY=other/key"], "the cluster mounts no Secret other; it mounts wandb: "),
        (["--num-gpus", "2"], "no node of the cluster has the 2 GPU that the driver asks for (head has 0 GPU; "),
        (["--num-cpus", "50"], "no node of the cluster has the 50 CPU that the driver asks for (head has 2 CPU; "),
        (
            ["--accelerator", "A100"],
            "that the driver asks for (head has 0 GPU; workergroup has 0 GPU; a live node has ",
        ),
    ):
        done = client(cluster, "submit", *args, "--id", "never-sent", "--", "true")
        assert done.returncode == 2 and words in error(done), done.stderr
    assert b"never-sent" not in client(cluster, "list", "--limit", "1000").stdout


def test_an_accelerator_that_only_the_live_node_tells_of(cluster: str) -> None:
    spec = get("raycluster", "ray", "-n", cluster)["spec"]["workerGroupSpecs"][0]
    assert "L4" not in json.dumps([spec["rayStartParams"], spec.get("resources")])
    until("the worker has joined", lambda: b"L4" in client(cluster, "status").stdout)
    done = client(cluster, "submit", "--accelerator", "L4", "--", "uname", "-n")
    assert (done.returncode, driver(done).decode().strip()) == (0, pod(cluster, "worker")[0]), done.stderr


def kubeconfig_of(account: str, namespace: str, folder: Path) -> Path:
    """Write a kubeconfig that contains only the login of a service account."""
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
    assert stopped.returncode == 0, stopped.stderr  # at once, not when Ray kills the driver after 30 s
    assert client(cluster, "logs", "--follow", job, kubeconfig=theirs).returncode == 143
    assert job.encode() in client(cluster, "list", kubeconfig=theirs).stdout
    refused = client(cluster, "list", kubeconfig=kubeconfig_of("stranger", cluster, tmp_path))
    assert refused.returncode == 77, refused.stderr
    assert "rayclusters" in error(refused) and "Role" in error(refused)


def test_the_status_of_the_cluster(cluster: str) -> None:
    status = json.loads(client(cluster, "status", "-o", "json").stdout)
    groups = {"head": 1, "workergroup": 1}
    assert (status["release"], status["pods_ready"], status["pods_wanted"]) == ("ray", groups, groups)
    assert status["resources"]["worker"] == 1


def test_a_wrong_place_is_one_line(cluster: str) -> None:
    nowhere = client("no-such-namespace", "list")
    assert nowhere.returncode == 69 and "there is no RayCluster ray in namespace no-such-namespace" in error(nowhere)


def test_a_suspended_cluster_is_waited_for_and_several_are_listed(cluster: str, tmp_path: Path) -> None:
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
    waiting = start(
        cluster, "submit", "--address", f"kubernetes:///{cluster}/other", "--", "true", TMPDIR=str(tmp_path)
    )
    assert waiting.stderr
    while b"waiting for RayCluster" not in (line := waiting.stderr.readline()):
        assert line, "the client does not wait"
    assert [*tmp_path.iterdir()], "the client has packed nothing"
    waiting.terminate()
    _, err = waiting.communicate(timeout=10)
    assert (waiting.returncode, [*tmp_path.iterdir()]) == (130, []), err
    assert err == b"ray-workload: interrupted before the job was sent\n"
    for command in (["list"], ["status"], ["logs", "x"], ["stop", "x"]):
        done = client(cluster, command[0], "--address", f"kubernetes:///{cluster}/other", *command[1:])
        assert (done.returncode, done.stderr.count(b"\n")) == (69, 1), done.stderr
        assert f"RayCluster {cluster}/other is not ready: it is suspended".encode() in done.stderr
    kubectl("delete", "raycluster", "other", "-n", cluster)


def following(namespace: str, script: Path, *flags: str) -> "subprocess.Popen[bytes]":
    """Start a submit and wait for the first line of the script."""
    process = start(namespace, "submit", *flags, "--working-dir", str(script.parent), str(script))
    assert process.stdout
    while not (line := process.stdout.readline()).startswith((b"started", b"driver")):
        assert line, process.communicate()
    return process


@pytest.fixture
def no_cpus(cluster: str) -> Iterator[list[str]]:
    """Start jobs that use all CPUs of the head and the worker; a test that ends one removes it from the list."""
    jobs = []
    for _ in range(2):
        options = ["--num-cpus", "2", "--detach", "-o", "json"]
        jobs.append(json.loads(client(cluster, "submit", *options, "--", "sleep", "600").stdout)["submission_id"])
    until("both run", lambda: all(record(cluster, job)["status"] == "RUNNING" for job in jobs))
    yield jobs
    for job in jobs:
        assert client(cluster, "stop", job).returncode == 0


def record(namespace: str, job: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(client(namespace, "status", "-o", "json", job).stdout)
    return found


def test_a_pending_job_is_stopped_for_good(cluster: str, no_cpus: list[str]) -> None:
    job = f"pending-{time.monotonic_ns()}"
    process = start(cluster, "submit", "--num-cpus", "1", "--id", job, "--", "echo", "it ran")
    until("it is there", lambda: job.encode() in client(cluster, "list").stdout)
    assert record(cluster, job)["status"] == "PENDING"
    stopped = client(cluster, "stop", job)
    assert stopped.returncode == 0 and f"job {job} was stopped".encode() in stopped.stderr, stopped.stderr
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143 and b"it ran" not in out, (out, err)
    assert client(cluster, "stop", no_cpus.pop()).returncode == 0
    done = client(cluster, "submit", "--num-cpus", "2", "--", "true")  # the stopped job uses no CPU
    assert done.returncode == 0, done.stderr
    seen = record(cluster, job)
    assert (seen["status"], seen["start_time"], seen["driver_exit_code"]) == ("STOPPED", None, None)
    assert b"it ran" not in client(cluster, "logs", job).stdout
    listed = json.loads(client(cluster, "list", "--limit", "1000", "-o", "json").stdout)
    assert not [found["submission_id"] for found in listed if found["submission_id"].startswith("stop-")]


def test_a_job_that_waited_is_not_one_that_ran_too_long(cluster: str, no_cpus: list[str]) -> None:
    job = f"waited-{time.monotonic_ns()}"
    options = ["--timeout", "10s", "--num-cpus", "1", "--id", job, "--", "sh", "-c", "exit 137"]
    process = start(cluster, "submit", *options)
    assert process.stderr
    while b"the job is pending: " not in (line := process.stderr.readline()):
        assert line, "the job was not pending for 10 s"
    waits = until("its wait is longer than its timeout", lambda: process.poll() is None and waited(cluster, job) > 12)
    assert waits and client(cluster, "stop", no_cpus.pop()).returncode == 0
    out, err = process.communicate(timeout=60)
    assert process.returncode == 137, (out, err)
    found = record(cluster, job)
    assert found["start_time"] - found["submit_time"] > 12_000 > 10_000 > found["end_time"] - found["start_time"]
    last = err.decode().splitlines()[-2]
    ran, waited_for = map(float, re.findall(r"([\d.]+) s\b", last))
    assert f"job {job} failed with exit code 137 after" in last and "s to start)" in last
    assert waited_for > 12 > 10 > ran


def waited(namespace: str, job: str) -> float:
    """Return the seconds since a job was submitted."""
    return time.time() - float(record(namespace, job)["submit_time"]) / 1000


def test_the_clients_own_output_is_not_uploaded(cluster: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import os; print(sorted(os.listdir()))")
    (tmp_path / ".env").write_text("left out, and a line of it said while packing")
    command = f"exec {shlex.quote(sys.executable)} -m client submit train.py > train.log 2>&1"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment(cluster), timeout=120, check=False)
    log = (tmp_path / "train.log").read_text()
    assert done.returncode == 0 and "not uploaded because it looks like a secret: .env" in log, log
    assert "\n['train.py']\n" in log


@pytest.mark.parametrize("flags", [[], ["--on-interrupt", "stop"]], ids=["detach", "stop"])
def test_a_ci_system_cancels_a_submit(cluster: str, scripts: Path, flags: Sequence[str]) -> None:
    """A CI system cancels with SIGTERM."""
    process = following(cluster, scripts / "waiting.py", *flags)
    process.terminate()
    _, err = process.communicate(timeout=60)
    *_, last = said = err.decode().splitlines()
    job = next(line.split()[2] for line in said if line.endswith(" submitted"))
    assert process.returncode == 130, said
    if flags:
        assert last == f"ray-workload: job {job} was stopped" and record(cluster, job)["status"] == "STOPPED"
        return
    assert last == f"ray-workload: detached from job {job}, which goes on"
    assert f"ray-workload: the job goes on; follow it with ray-workload logs -f {job}" in said
    assert record(cluster, job)["status"] == "RUNNING"
    assert client(cluster, "stop", job).returncode == 0


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


@contextmanager
def proxied(folder: Path, name: str) -> Iterator[tuple[FaultProxy, Path]]:
    """Put a proxy in front of the API server; yield it and a kubeconfig for it whose context has this name."""
    command = ["kubectl", "proxy", "--port=0"]
    with subprocess.Popen(command, env=user_environment(), stdout=subprocess.PIPE, text=True) as kubectl_proxy:
        assert kubectl_proxy.stdout
        host, port = kubectl_proxy.stdout.readline().split()[-1].split(":")
        with FaultProxy((host, int(port))) as proxy:
            context = {"name": name, "context": {"cluster": name, "user": "u"}}
            config = {"clusters": [{"name": name, "cluster": {"server": proxy.url}}], "contexts": [context]}
            path = folder / "kubeconfig"
            path.write_text(json.dumps({**config, "users": [{"name": "u", "user": {}}], "current-context": name}))
            yield proxy, path
        kubectl_proxy.terminate()


@pytest.fixture
def api_server(tmp_path: Path) -> Iterator[tuple[FaultProxy, Path]]:
    with proxied(tmp_path, "c") as made:
        yield made


@pytest.mark.parametrize(
    ("fault", "when"),
    [
        ("cut_after_seconds", 1.5),
        ("cut_after_bytes", 30_000),
        ("silent_after_bytes", 150_000),
        pytest.param("silent_after_bytes", 30_000, marks=pytest.mark.soak),
        ("refused", 15),
    ],
)
def test_no_byte_is_lost_or_repeated_through_a_bad_api_server(
    cluster: str, scripts: Path, api_server: tuple[FaultProxy, Path], fault: str, when: float
) -> None:
    proxy, kubeconfig = api_server
    script = scripts / "slow.py"
    with start(cluster, "submit", "--working-dir", str(scripts), str(script), kubeconfig=kubeconfig) as process:
        assert process.stdout and process.stderr
        while not (line := process.stdout.readline()).endswith(b"0 begins\n"):
            assert line, process.stderr.read()
        if fault == "refused":
            proxy.refuse(when)
        else:
            setattr(proxy.faults, fault, when)
        out, err = process.stdout.read(), process.stderr.read()  # `communicate` would lose what `readline` has buffered
    assert process.returncode == 0, err
    assert without_rays_lines(out) == b"".join(b"%d %s\n" % (n, b"x" * 100) for n in range(1, SLOW_LINES))
    assert proxy.fired[fault], proxy.fired


def test_the_token_rotated(cluster: str) -> None:
    new = base64.b64encode(b"another-token").decode()
    kubectl("patch", "secret", "ray-auth-token", "-n", cluster, "-p", json.dumps({"data": {"auth_token": new}}))
    refused = client(cluster, "list")
    assert refused.returncode == 77 and "the cluster refused the token: " in error(refused)
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
    assert b"lost when the Ray head restarted" in err.splitlines()[-1]
