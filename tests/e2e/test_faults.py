"""Real faults while a job is followed: of the head, the kubelet, the API server, and disks.

The variable OUTAGE is a command that takes a component (`kubelet` or `kube-apiserver`) and seconds. It stops
the component for that time, restarts it and returns when it is ready; for example, `ci/kind outage`.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Self

import pytest
import yaml

from tests.conftest import ROOT
from tests.e2e._cluster import Cluster, started
from tests.e2e._release import Login, token_of
from tests.e2e.conftest import CHART, apply, get, helm, kubectl, new_namespace, unproved, until, user_environment
from tests.e2e.test_client import VALUES, kubeconfig_of, pod
from tests.e2e.test_pod_commands import FORWARD, READ, account
from tests.e2e.test_uninstall import redis

# Writes until it is told to end, so that every fault happens in time; then checks that Ray still works.
LINES = """
import os, sys, time, ray
ray.init(log_to_driver=False)
n = 0
while not os.path.exists(f"/tmp/ray/end-{sys.argv[1]}"):
    print("line", n, "x" * 100, flush=True)
    n += 1
    time.sleep(0.01)

@ray.remote(num_cpus=0.1)
def total():
    return n

print("lines", ray.get(total.remote()), flush=True)
"""
DISK = {"name": "log-volume", "emptyDir": {"medium": "Memory", "sizeLimit": "200Mi"}}  # the head's /tmp/ray
FULL = "No space left on device"
# Runs a command with a TMPDIR of 1 MiB.
SMALL_TMPDIR = ("unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs "$TMPDIR" && exec "$@"', "-")
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Install a cluster with its state in Redis; yield its namespace."""
    given = {**VALUES, "ray-cluster": {"head": {"volumes": [DISK]}}}
    values = tmp_path_factory.mktemp("values") / "values.yaml"
    values.write_text(yaml.safe_dump(given))
    files = (f"{CHART}/values-local.yaml", "ci/values/redis.yaml", str(values))
    with new_namespace("faults") as name:
        until("an account", lambda: not kubectl("get", "sa", "default", "-n", name, check=False).returncode)
        submitter = {"kind": "ServiceAccount", "metadata": {"name": "submitter", "namespace": name}}
        apply(*redis(name), {"apiVersion": "v1", **submitter})
        helm("install", "ray", CHART, "-n", name, *(part for file in files for part in ("-f", file)))
        Cluster(name).wait()
        yield name


def user(namespace: str, **more: str) -> dict[str, str]:
    address = f"kubernetes:///{namespace}/ray"
    return {**user_environment(), "RAY_WORKLOAD_ADDRESS": address, "PYTHONPATH": str(ROOT), **more}


def submit(namespace: str, folder: Path, *args: str, stdout: int | IO[bytes] = subprocess.PIPE) -> Done:
    command = [sys.executable, "-m", "client", "submit", "--working-dir", str(folder), *args]
    env, pipe = user(namespace), subprocess.PIPE
    return subprocess.run(command, env=env, stdout=stdout, stderr=pipe, text=True, timeout=60, check=False)


def said(err: str) -> str:
    """Return the one line of stderr that not every submit prints."""
    lines = [line for line in err.splitlines() if not line.startswith("ray-workload: outputs: ")]
    (line,) = [line for line in lines if not line.endswith((" submitted", "RAY_WORKLOAD_ADDRESS)"))]
    return line


class Followed:
    """A running `submit`. Its output goes to files, so that it never blocks."""

    def __init__(self, namespace: str, folder: Path, *args: str, kubeconfig: Path | None = None) -> None:
        self.namespace, self.out, self.err = namespace, folder / "out", folder / "err"
        self.id = f"lines-{time.monotonic_ns()}"
        job = folder / "job"
        job.mkdir()
        (job / "lines.py").write_text(LINES)
        command = [sys.executable, "-m", "client", "submit", "--id", self.id, "--working-dir", str(job), *args]
        env = user(namespace, **({"KUBECONFIG": str(kubeconfig)} if kubeconfig else {}))
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen([*command, str(job / "lines.py"), self.id], env=env, stdout=out, stderr=err)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def more(self, count: int = 300) -> None:
        """Wait until `count` more lines have arrived."""
        wanted, end = self.lines() + count, time.monotonic() + 150
        while self.lines() < wanted:
            late = self.process.poll() is not None or time.monotonic() > end
            assert not late, f"{self.lines()} lines\n{self.err.read_text()}"
            time.sleep(0.1)

    def lines(self) -> int:
        return self.out.read_bytes().count(b"\nline ")

    def ends_well(self, kind: str) -> None:
        """End the driver, which runs on this type of pod. Assert that every byte has arrived once, in order."""
        on = ("exec", "-n", self.namespace, pod(self.namespace, kind)[0], "--")
        kubectl(*on, "touch", f"/tmp/ray/end-{self.id}")
        assert self.process.wait(120) == 0, self.err.read_text()
        log = kubectl(*on, "cat", f"/tmp/ray/session_latest/logs/job-driver-{self.id}.log").stdout
        assert self.out.read_text() == log
        *lines, last = [line for line in log.splitlines() if line.startswith("line")]
        assert lines == [f"line {n} {'x' * 100}" for n in range(len(lines))]
        assert last == f"lines {len(lines)}"


@pytest.fixture
def on_worker(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "job.yaml").write_text("entrypoint_resources: {worker: 0.1}\n")
    return "-f", str(tmp_path / "job.yaml")


# The head's pod


def replace_head(namespace: str) -> None:
    name, uid = pod(namespace, "head")
    kubectl("delete", "pod", name, "-n", namespace, "--grace-period=1")
    until("another head", lambda: pod(namespace, "head")[1] not in ("", uid), namespace=namespace)


@pytest.mark.parametrize("login", ["admin", "submitter"])
def test_the_head_replaced_under_a_driver_on_a_worker(
    cluster: str, tmp_path: Path, on_worker: tuple[str, str], login: str
) -> None:
    """The submitter has no access to the worker: it gets the log through the head."""
    theirs = kubeconfig_of(login, cluster, tmp_path) if login == "submitter" else None
    with Followed(cluster, tmp_path, *on_worker, kubeconfig=theirs) as job:
        job.more()
        replace_head(cluster)
        until("it was missed", lambda: "connection lost, retrying" in job.err.read_text())
        job.more(1000)
        assert f"waiting for RayCluster {cluster}/ray: pod ray-head-" in job.err.read_text()
        job.ends_well("worker")


def test_the_head_replaced_under_a_driver_on_it_is_an_error(cluster: str, tmp_path: Path) -> None:
    """Ray itself still reports such a job as running."""
    with Followed(cluster, tmp_path) as job:
        job.more()
        replace_head(cluster)
        assert job.process.wait(200) == 75
        assert job.err.read_text().splitlines()[-1] in gone(job.id)


# The worker's pod


def gone(job: str) -> list[str]:
    """Return the possible messages for a job whose node is gone: from the node's state, or from Ray's job status."""
    return [
        f"ray-workload: the node of job {job} is gone, and the job is lost: submit it again",
        f"ray-workload: job {job} ended FAILED: its node is gone, and its log with it",
    ]


def nodes(namespace: str) -> dict[str, str]:
    """Return the state of each node in the cluster's own list, by IP."""
    url = Login.of_kubeconfig().at(namespace) + "/api/v0/nodes"
    found = Login.of_kubeconfig().ask("GET", url, token_of(namespace)).json()["data"]["result"]["result"]
    return {node["node_ip"]: node["state"] for node in found}


def lose_worker(namespace: str) -> None:
    """Delete the worker's pod without a graceful end; wait until the cluster has noticed it and has a new worker."""
    name, uid = pod(namespace, "worker")
    address = get("pod", name, "-n", namespace)["status"]["podIP"]
    assert nodes(namespace)[address] == "ALIVE"
    kubectl("delete", "pod", name, "-n", namespace, "--force", "--grace-period=0")
    until("another worker", lambda: pod(namespace, "worker")[1] not in ("", uid), namespace=namespace)
    until("the cluster reports the node as dead", lambda: nodes(namespace).get(address) == "DEAD", timeout=90)


def test_the_node_lost_under_a_job(cluster: str, tmp_path: Path, on_worker: tuple[str, str]) -> None:
    with Followed(cluster, tmp_path, *on_worker) as job:
        job.more()
        lose_worker(cluster)
        assert job.process.wait(25) == 75, job.err.read_text()  # Ray detects it within 10 s
        assert job.err.read_text().splitlines()[-1] in gone(job.id)


@pytest.mark.parametrize("login", ["admin", "submitter"])
def test_the_log_of_a_job_whose_node_is_gone(
    cluster: str, tmp_path: Path, on_worker: tuple[str, str], login: str
) -> None:
    theirs = {"KUBECONFIG": str(kubeconfig_of(login, cluster, tmp_path))} if login == "submitter" else {}
    until("the worker takes jobs", lambda: [*nodes(cluster).values()].count("ALIVE") == 2, timeout=90)
    job = f"ended-{time.monotonic_ns()}"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    done = submit(cluster, tmp_path / "folder", *on_worker, "--id", job, "--", "echo", "hello")
    assert done.returncode == 0 and "hello\n" in done.stdout, done.stderr
    lose_worker(cluster)
    command = [sys.executable, "-m", "client", "logs", job]
    began = time.monotonic()
    done = subprocess.run(command, env=user(cluster, **theirs), capture_output=True, text=True, timeout=60, check=False)
    assert time.monotonic() - began < 15, done.stderr
    assert (done.returncode, done.stdout) == (75, "")
    assert said(done.stderr) == f"ray-workload: job {job} ended SUCCEEDED: its node is gone, and its log with it"


# The node's kubelet, and the API server


def answers(path: str) -> bool:
    return not kubectl("get", "--raw", path, "--request-timeout=2s", check=False).returncode


@contextlib.contextmanager
def outage(component: str, seconds: int, path: str) -> Iterator[None]:
    """Stop a component during the block; a path of the API server shows that it is down, and up again afterwards."""
    if not (command := os.environ.get("OUTAGE")):
        unproved(f"no {component} is stopped and started here: name the command in OUTAGE (for kind: ci/kind outage)")
    assert answers(path)
    with started(*shlex.split(command), component, str(seconds)) as process:
        until(f"{component} is down", lambda: not answers(path))
        began = time.monotonic()
        yield
        until(f"{component} is up", lambda: answers(path), timeout=120)
        assert time.monotonic() - began > seconds / 2
        assert process.wait(120) == 0


# The kubelet is last: after its outage, the operator may take minutes to report the head as ready.
@pytest.mark.alone
@pytest.mark.parametrize(("component", "seconds"), [("kube-apiserver", 15), ("kubelet", 10)])
def test_nothing_is_lost_while_a_component_is_down(cluster: str, tmp_path: Path, component: str, seconds: int) -> None:
    """Port-forwards go through the kubelet."""
    path, theirs = "/readyz", None
    if component == "kubelet":
        path = f"/api/v1/nodes/{get('nodes')['items'][0]['metadata']['name']}/proxy/healthz"
        theirs = account(Cluster(cluster), "forwarder", [*READ, FORWARD], tmp_path)
    with Followed(cluster, tmp_path, kubeconfig=theirs) as job:
        job.more()
        with outage(component, seconds, path):
            until("the client has noticed", lambda: "connection lost, retrying" in job.err.read_text())
        job.more()
        job.ends_well("head")
        assert job.err.read_text().count("connection lost, retrying") == 1


# Disks


@contextlib.contextmanager
def full(cluster: str, *, but_kib: int = 0) -> Iterator[None]:
    """Fill the head's disk, except for `but_kib` KiB."""
    on = ("exec", "-n", cluster, pod(cluster, "head")[0], "--", "sh", "-c")
    fill = f"cat /dev/zero >/tmp/ray/full; truncate -s -{but_kib}K /tmp/ray/full"
    assert FULL in kubectl(*on, fill).stderr
    try:
        yield
    finally:
        kubectl(*on, "rm /tmp/ray/full")


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Create a folder that does not compress."""
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "data").write_bytes(os.urandom(20_000_000))
    return folder


def test_no_room_on_the_head_to_unpack_the_files(cluster: str, large: Path) -> None:
    with full(cluster, but_kib=10_000):
        done = submit(cluster, large, "--", "true")
    assert (done.returncode, done.stdout) == (1, "")
    assert FULL in done.stderr.splitlines()[-1] and "df -h /tmp/ray" in done.stderr.splitlines()[-1]


def test_no_room_on_the_head_for_anything(cluster: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").touch()
    with full(cluster):
        done = submit(cluster, tmp_path, "--", "true")
    assert done.returncode not in (0, 70)
    assert FULL in done.stderr.splitlines()[-1], done.stderr


def test_no_room_on_the_head_for_more_of_a_log(cluster: str, tmp_path: Path) -> None:
    """Python then ends the driver; its earlier output must arrive."""
    with Followed(cluster, tmp_path) as job:
        job.more()
        with full(cluster):
            assert job.process.wait(60) == 1
            head = pod(cluster, "head")[0]
            path = f"/tmp/ray/session_latest/logs/job-driver-{job.id}.log"
            assert job.out.read_text() == kubectl("exec", "-n", cluster, head, "--", "cat", path).stdout
        assert "failed with exit code 1 after" in said(job.err.read_text())


def test_no_room_here_for_the_zip(cluster: str, large: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    env = user(cluster, TMPDIR=str(small))
    if subprocess.run([*SMALL_TMPDIR, "true"], env=env, check=False, stderr=subprocess.DEVNULL).returncode:
        unproved("no small file system can be made here (unshare, mount)")
    command = [*SMALL_TMPDIR, sys.executable, "-m", "client", "submit", "--working-dir", str(large), "--", "true"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert FULL in said(done.stderr) and "set TMPDIR" in said(done.stderr)


@pytest.mark.parametrize("flags", [[], ["-o", "json"]], ids=["log", "json"])
def test_no_room_here_for_what_is_printed(cluster: str, tmp_path: Path, flags: Sequence[str]) -> None:
    name = f"printed-{time.monotonic_ns()}"
    (tmp_path / name).write_text(name)  # different files: Ray caches failed unpacking for a while
    with open("/dev/full", "wb") as nowhere:
        done = submit(cluster, tmp_path, *flags, "--id", name, "--", "echo", "hello", stdout=nowhere)
    assert done.returncode == 74, done.stderr
    last = done.stderr.splitlines()[-1]
    assert FULL in last and name in last and "Traceback" not in done.stderr
    if not flags:
        assert f"the job goes on; follow it with ray-workload logs -f {name}" in said(done.stderr)
    again = [sys.executable, "-m", "client", "status", name, "-o", "json"]
    seen = json.loads(subprocess.run(again, env=user(cluster), capture_output=True, timeout=60, check=True).stdout)
    assert seen["status"] in ("RUNNING", "SUCCEEDED")
