"""`exec`, `fetch`, `doctor`, `dashboard` and the port-forward on a cluster of the chart, and with restricted logins."""

import fcntl
import hashlib
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import pytest
import requests

from client.job.api import attach
from client.kube.port_forward import PortForwards
from client.targets import kubernetes
from tests.e2e._cluster import Cluster, install
from tests.e2e._cutter import Cutter, cutter
from tests.e2e.conftest import Object, apply, get, kubectl, new_namespace, until, user_environment

SECONDS = 25
SLOW = f"import time\nfor n in range({SECONDS * 20}):\n    print(n, flush=True)\n    time.sleep(0.05)\n"
READ = [
    {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["get", "list"]},
    {"apiGroups": [""], "resources": ["pods", "events"], "verbs": ["get", "list"]},
    {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["ray-auth-token"], "verbs": ["get"]},
]
FETCH = [
    {"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["get", "create"]},
    {"apiGroups": [""], "resources": ["services/proxy", "pods/proxy"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["services"], "verbs": ["get"]},
]
FORWARD = {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get", "create"]}


@pytest.fixture(scope="module")
def ray() -> Iterator[Cluster]:
    with new_namespace("pods") as where:
        made = install(
            where, "outputs=/results", "volumes.results.mountPath=/results", "volumes.results.emptyDir.medium="
        )
        made.wait()
        yield made


@contextmanager
def begun(
    ray: Cluster,
    *args: str,
    kubeconfig: Path | None = None,
    stdin: int = subprocess.PIPE,
    stdout: int | IO[bytes] = subprocess.PIPE,
) -> Iterator["subprocess.Popen[bytes]"]:
    """The client, started as a user does, with the address in the command: it prints any other."""
    env = user_environment() | ({"KUBECONFIG": str(kubeconfig)} if kubeconfig else {})
    address = [] if args[0] in ("up", "down") else ["--address", f"kubernetes:///{ray.namespace}/ray"]
    command, pipe = [sys.executable, "-m", "client", args[0], *address, *args[1:]], subprocess.PIPE
    process = subprocess.Popen(command, env=env, stdin=stdin, stdout=stdout, stderr=pipe)
    try:
        yield process
    finally:
        process.kill()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()
        process.wait()


def client(
    ray: Cluster, *args: str, stdin: bytes = b"", kubeconfig: Path | None = None, timeout: float = 60
) -> "subprocess.CompletedProcess[bytes]":
    with begun(ray, *args, kubeconfig=kubeconfig) as process:
        out, err = process.communicate(stdin, timeout=timeout)
        return subprocess.CompletedProcess(args, process.returncode, out, err)


def checks(ray: Cluster, *args: str, kubeconfig: Path | None = None) -> tuple[int, dict[str, dict[str, str]]]:
    """Return the exit code of `doctor` and the last result of each check."""
    done = client(ray, "doctor", "-o", "json", *args, kubeconfig=kubeconfig)
    assert done.stderr == b""
    found = {check["check"]: check for check in json.loads(done.stdout)}
    assert all(check["fix"] for check in found.values() if check["status"] != "ok")
    return done.returncode, found


def account(ray: Cluster, name: str, rules: Sequence[Object], folder: Path, server: str | None = None) -> Path:
    """Write a kubeconfig of an account with these rules; with a `server`, for that URL, without checking its name."""
    where = ray.namespace
    metadata = {"name": name, "namespace": where}
    group = "rbac.authorization.k8s.io"
    apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": metadata, "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", **metadata}],
        },
    )
    token = kubectl("create", "token", name, "-n", where).stdout.strip()
    data = json.loads(kubectl("config", "view", "--raw", "--minify", "-o", "json").stdout)
    if server:
        data["clusters"][0]["cluster"] = {"server": server, "insecure-skip-tls-verify": True}
    data["users"][0]["user"] = {"token": token}
    path = folder / f"{name}.kubeconfig"
    path.write_text(json.dumps(data))
    return path


def api_server() -> tuple[str, int]:
    data = json.loads(kubectl("config", "view", "--minify", "-o", "json").stdout)
    parts = urlsplit(data["clusters"][0]["cluster"]["server"])
    return str(parts.hostname), parts.port or 443


# exec


def test_every_byte_goes_through_both_ways(ray: Cluster) -> None:
    data = bytes(range(256)) * 20_000
    done = client(ray, "exec", "--", "cat", stdin=data)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == data


def test_an_output_that_is_large_and_stderr_apart(ray: Cluster) -> None:
    code = (
        "import sys; n = 200; [sys.stdout.buffer.write(bytes([i]) * 500_000) for i in range(n)]; sys.stderr.write('e')"
    )
    done = client(ray, "exec", "--", "python", "-c", code, timeout=120)
    wanted = hashlib.sha256(b"".join(bytes([n]) * 500_000 for n in range(200))).digest()
    assert (done.returncode, done.stderr, len(done.stdout)) == (0, b"e", 100_000_000)
    assert hashlib.sha256(done.stdout).digest() == wanted


def test_a_command_that_reads_late_gets_all_of_a_pipe(ray: Cluster) -> None:
    done = client(ray, "exec", "--", "sh", "-c", "sleep 3; wc -c", stdin=b"x" * 3_000_000)
    assert (done.returncode, done.stdout.strip()) == (0, b"3000000")


@pytest.mark.parametrize("code", [0, 1, 7, 124, 255])
def test_the_exit_code_is_the_commands(ray: Cluster, code: int) -> None:
    done = client(ray, "exec", "--", "sh", "-c", f"exit {code}")
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")


def test_a_command_that_is_not_there(ray: Cluster) -> None:
    done = client(ray, "exec", "--", "no-such-command")
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    assert b"no-such-command" in done.stderr


def test_no_terminal_in_a_pipe(ray: Cluster) -> None:
    done = client(ray, "exec", "--", "sh", "-c", "test -t 0 || test -t 1 || test -t 2 || echo none")
    assert done.stdout == b"none\n"
    shell = client(ray, "exec", stdin=b"echo from $0\nexit 3\n")
    assert (shell.returncode, shell.stdout) == (3, b"from bash\n")


def test_arguments_arrive_as_they_are(ray: Cluster) -> None:
    words = ["", " a  b ", "*", "$HOME", "'\"", "ä\n", "--worker", "&;|"]
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    assert json.loads(client(ray, "exec", "--", "python", "-c", code, *words).stdout) == words


def test_in_which_pod(ray: Cluster) -> None:
    assert client(ray, "exec", "--", "hostname").stdout.decode().strip() == ray.name("head")
    assert client(ray, "exec", "--worker", "0", "--", "hostname").stdout.decode().strip() == ray.name("worker")
    done = client(ray, "exec", "--worker", "1", "--", "hostname")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"no worker 1: it has 1, numbered from 0" in done.stderr


def test_a_reader_that_leaves(ray: Cluster) -> None:
    with begun(ray, "exec", "--", "sh", "-c", "while echo y; do sleep 0.01; done") as process:
        assert process.stdout and process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.wait(20) == 141
        assert process.stderr and process.stderr.read() == b""


def test_an_output_that_cannot_be_written(ray: Cluster) -> None:
    with open("/dev/full", "wb") as full, begun(ray, "exec", "--", "echo", "lost", stdout=full) as process:
        assert process.stderr and process.wait(20) == 74
        err = process.stderr.read()
    assert err.count(b"\n") == 1 and b"output cannot be written (No space left on device)" in err, err


def test_ctrl_c_without_a_terminal(ray: Cluster) -> None:
    with begun(ray, "exec", "--", "sh", "-c", "echo up; sleep 5") as process:
        assert process.stdout and process.stderr and process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr.read().count(b"\n") == 1


def test_exec_needs_a_cluster(ray: Cluster) -> None:
    done = client(ray, "exec", "--address", "http://127.0.0.1:1", "--", "true")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Screen:
    """The client on its own terminal."""

    def __init__(self, ray: Cluster, *args: str) -> None:
        self.master, self.slave = pty.openpty()
        self.size(33, 101)
        self.before = termios.tcgetattr(self.slave)
        self.seen = b""
        env = user_environment() | {"RAY_WORKLOAD_ADDRESS": f"kubernetes:///{ray.namespace}/ray"}
        command = [sys.executable, "-m", "client", *args]
        at = self.slave
        self.process = subprocess.Popen(
            command, env=env, stdin=at, stdout=at, stderr=at, start_new_session=True, preexec_fn=_take_terminal
        )

    def __enter__(self) -> "Screen":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)

    def size(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def wait_for(self, pattern: bytes, timeout: float = 20) -> None:
        """Wait until the pattern appears on the screen after the previous match."""
        end = time.monotonic() + timeout
        while not (found := re.search(pattern, self.seen)):
            left = end - time.monotonic()
            assert left > 0, (pattern, self.seen)
            if select.select([self.master], [], [], left)[0]:
                self.seen += os.read(self.master, 1 << 16)
        self.seen = self.seen[found.end() :]

    def restored(self) -> bool:
        return termios.tcgetattr(self.slave) == self.before


def test_a_shell_at_a_terminal_follows_its_size(ray: Cluster) -> None:
    with Screen(ray, "exec") as screen:
        screen.wait_for(rb"\$ ")
        assert not screen.restored()
        screen.type(b"stty size; tty\r")
        screen.wait_for(rb"[\r\n]33 101\r\n/dev/pts/\d+\r\n")
        screen.size(40, 120)
        screen.wait_for(rb"\$ ")
        until("the new size", lambda: _size(screen) == b"40 120")
        screen.type(b"sleep 100\r")
        time.sleep(0.5)
        screen.type(b"\x03")  # for the remote command, not for the client
        screen.wait_for(rb"\^C")
        screen.wait_for(rb"\$ ")
        screen.type(b"exit 5\r")
        assert screen.process.wait(20) == 5
        assert screen.restored()


def _size(screen: Screen) -> bytes:
    screen.type(b"stty size\r")
    screen.wait_for(rb"stty size\r\n(?:\x1b\[\?2004l\r)?(?=\d+ \d+\r\n)")  # bash may print its bracketed-paste sequence
    return screen.seen.partition(b"\r\n")[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_restored_when_we_are_ended(ray: Cluster, number: signal.Signals) -> None:
    with Screen(ray, "exec", "--", "cat") as screen:
        until("raw mode", lambda: not screen.restored())
        screen.type(b"a\r")
        screen.wait_for(b"a")
        screen.process.send_signal(number)
        assert screen.process.wait(20) == 128 + number
        assert screen.restored()


# doctor


def test_a_good_cluster_is_all_ok(ray: Cluster) -> None:
    code, found = checks(ray)
    assert (code, {check["status"] for check in found.values()}) == (0, {"ok"}), found
    assert {"operator", "crds", "pods", "service", "secret", "permissions", "auth", "python"} <= found.keys()


def test_the_doctor_shows_no_token(ray: Cluster, tmp_path: Path) -> None:
    may = account(ray, "looker", READ, tmp_path)
    token = json.loads(may.read_text())["users"][0]["user"]["token"]
    secret = kubectl("get", "secret", "ray-auth-token", "-n", ray.namespace, "-o", "jsonpath={.data.auth_token}").stdout
    done = client(ray, "doctor", kubeconfig=may)
    assert token not in done.stdout.decode() + done.stderr.decode()
    assert secret and secret not in done.stdout.decode()


def test_what_a_limited_login_may_not_do(ray: Cluster, tmp_path: Path) -> None:
    code, found = checks(ray, kubeconfig=account(ray, "reader", READ, tmp_path))
    assert code == 1
    assert found["login"]["found"].endswith(f"system:serviceaccount:{ray.namespace}:reader")
    assert found["operator"]["status"] == "warn" and "unknown" in found["operator"]["found"]
    assert found["permissions"]["status"] == "FAIL" and "ray-submitter" in found["permissions"]["fix"]
    assert "services/proxy http:ray-" in found["permissions"]["found"]
    assert found["optional"]["status"] == "warn"
    assert found["dashboard"]["status"] == "FAIL"
    assert found["secret"]["status"] == "ok"


def test_a_login_that_may_do_nothing(ray: Cluster, tmp_path: Path) -> None:
    code, found = checks(ray, kubeconfig=account(ray, "nobody", [], tmp_path))
    assert code == 1
    assert found["login"]["status"] == "ok" and found["cluster"]["status"] == "FAIL"


def test_a_login_that_is_refused(ray: Cluster, tmp_path: Path) -> None:
    path = account(ray, "refused", [], tmp_path)
    data = json.loads(path.read_text())
    data["users"][0]["user"]["token"] = "n0tatoken"
    path.write_text(json.dumps(data))
    code, found = checks(ray, kubeconfig=path)
    assert (code, list(found)[-1], found["login"]["status"]) == (1, "login", "FAIL")
    assert "log in again" in found["login"]["fix"] and "n0tatoken" not in json.dumps(found)


def test_the_wrong_namespace(ray: Cluster) -> None:
    code, found = checks(ray, "--address", "kubernetes:///no-such-namespace/ray")
    assert (code, found["cluster"]["status"]) == (1, "FAIL")
    assert "no-such-namespace" in found["cluster"]["found"]


def test_an_operator_that_does_not_run(ray: Cluster) -> None:
    scale = ("scale", "-n", ray.namespace, "deployment/kuberay-operator")
    kubectl(*scale, "--replicas=0")
    try:
        code, found = until("it is seen", lambda: seen if (seen := checks(ray))[0] else None)
        assert code == 1 and found["operator"]["status"] == "FAIL"
        assert "--replicas=1" in found["operator"]["fix"]
        assert found["dashboard"]["status"] == "ok"
    finally:
        kubectl(*scale, "--replicas=1")
        kubectl("rollout", "status", *scale[1:], "--timeout=1m", timeout=70)


# dashboard


def test_the_dashboard_through_the_api_server(ray: Cluster) -> None:
    with begun(ray, "dashboard", "--no-open") as process:
        assert process.stdout
        link = process.stdout.readline().decode().strip()
        browser = requests.Session()
        page = browser.get(link, timeout=10)
        assert page.status_code == 200, page.text
        base = link.rpartition("/")[0] + re.findall(r'url=([^"]+)"', page.text)[0]
        assert "<title>Ray Dashboard</title>" in browser.get(base, timeout=10).text
        assert browser.get(f"{base}api/version", timeout=10).json()["ray_version"]
        assert requests.get(f"{base}api/version", timeout=10).status_code == 403
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


# fetch

WRITER = """
import os, ray, socket, sys
from pathlib import Path
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

def write(size):
    for folder in (Path(os.environ["RAY_WORKLOAD_OUTPUTS"]), Path("results")):
        folder.mkdir(exist_ok=True)
        (folder / f"{socket.gethostname()}.bin").write_bytes(os.urandom(10) * size)
        (folder / "log").write_text(socket.gethostname())
    return os.environ["RAY_WORKLOAD_OUTPUTS"]

ray.init(log_to_driver=False)
task = ray.remote(num_cpus=0)(write)
nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
size = int(sys.argv[1])
print(len(nodes), set(ray.get([task.options(scheduling_strategy=On(node, soft=False)).remote(size) for node in nodes])))
sys.exit(int(sys.argv[2]))
"""


def fetched(folder: Path) -> dict[str, str]:
    """Return the hash of each file that was fetched."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def in_pods(ray: Cluster, path: str) -> dict[str, str]:
    """Return the hash of each pod's own file."""
    code = "import hashlib, socket, sys; name = f'{sys.argv[1]}/{socket.gethostname()}.bin'; "
    code += "print(hashlib.sha256(open(name, 'rb').read()).hexdigest())"
    names = [str(pod["metadata"]["name"]) for pod in ray.pods()]
    return {f"{name}.bin": ray.python(name, code, path).strip() for name in names}


@pytest.fixture
def writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "writer.py").write_text(WRITER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_files_of_a_job_on_all_pods(ray: Cluster, writer: Path) -> None:
    """Also of one that failed, whose exit code stays; an unchanged upload is not fetched."""
    head, worker = ray.name("head"), ray.name("worker")
    done = client(ray, "submit", "--id", "writes", "--fetch", "results/**", "writer.py", "10", "7")
    assert done.returncode == 7 and b"2 {'/results/writes'}\n" in done.stdout, done.stderr
    last = "ray-workload: outputs: /results/writes on the cluster; get them with ray-workload fetch "
    assert done.stderr.decode().splitlines()[-1].startswith(last)
    got = fetched(writer / "outputs" / "writes")
    own = {
        f"results/{name}": found for name, found in in_pods(ray, "/tmp/ray/session_latest/jobs/writes/results").items()
    }
    assert got.pop("results/log") == hashlib.sha256(head.encode()).hexdigest()
    assert got.pop(f"{worker}/results/log") == hashlib.sha256(worker.encode()).hexdigest()
    assert got == own and len(own) == 2

    done = client(ray, "fetch", "writes", "--to", "all")
    assert done.returncode == 0, done.stderr
    got = fetched(writer / "all")
    assert sorted(done.stdout.decode().splitlines()) == sorted(f"all/{path}" for path in got)
    logs = {"log", "results/log", f"{worker}/log", f"{worker}/results/log"}
    assert {path: found for path, found in got.items() if path not in logs} == own | in_pods(ray, "/results/writes")
    job = attach("writes", f"kubernetes:///{ray.namespace}/ray")
    assert job.fetch("log", to="python") == [Path("python", name) for name in sorted(logs, key=len)]
    shown = client(ray, "status", "writes").stdout.decode()
    assert re.search(r"^outputs +/results/writes$", shown, re.MULTILINE)


def test_a_fetch_that_fails_is_not_a_success(ray: Cluster, writer: Path) -> None:
    done = client(ray, "submit", "--id", "nothing", "--fetch", "none/**", "writer.py", "1", "0")
    assert done.returncode == 1 and b"no file of job nothing matches 'none/**'" in done.stderr
    may = account(ray, "no-exec", [*READ, *FETCH[1:]], writer)
    done = client(ray, "fetch", "nothing", kubeconfig=may)
    assert done.returncode == 77 and b"pods/exec" in done.stderr, done.stderr
    assert not (writer / "outputs").exists()


def test_a_fetch_over_a_connection_that_is_cut(ray: Cluster, writer: Path) -> None:
    """It continues at the byte that was reached, and the file has the hash that it has in the pod."""
    assert client(ray, "submit", "--id", "large", "writer.py", "15000000", "0").returncode == 0
    with cutter(*api_server()) as way:
        may = account(ray, "fetcher", [*READ, *FETCH], writer, server=f"https://127.0.0.1:{way.port}")
        cuts = []
        with begun(ray, "fetch", "large", "*.bin", kubeconfig=may) as process:
            assert process.stderr
            for size in (20_000_000, 60_000_000, 100_000_000):
                until("bytes arrive", lambda size=size: any(f.stat().st_size > size for f in part_files(writer)))  # type: ignore[misc]
                cuts.append(way.cut())
            said = process.stderr.read()
            assert process.wait(120) == 0, said
    assert all(cuts) and said.count(b"connection lost, retrying") == len(cuts), said
    got, pods = fetched(writer / "outputs" / "large"), in_pods(ray, "/results/large")
    assert {path: found for path, found in got.items() if path in pods} == pods
    assert not part_files(writer)


def part_files(folder: Path) -> list[Path]:
    return [path for path in (folder / "outputs").rglob(".*.part") if path.exists()]


def test_a_fetch_that_is_interrupted_leaves_whole_files_only(ray: Cluster, writer: Path) -> None:
    assert client(ray, "submit", "--id", "ended", "writer.py", "15000000", "0").returncode == 0
    with begun(ray, "fetch", "ended") as process:
        until("bytes arrive", lambda: any(f.stat().st_size > 1_000_000 for f in part_files(writer)))
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert not part_files(writer)
    known = {**in_pods(ray, "/results/ended"), **in_pods(ray, "/tmp/ray/session_latest/jobs/ended/results")}
    for path, found in fetched(writer / "outputs" / "ended").items():
        assert found in known.values() or path.endswith("log")
    done = client(ray, "fetch", "ended", timeout=120)
    assert done.returncode == 0, done.stderr


# port-forward


@contextmanager
def forwarding(ray: Cluster, folder: Path) -> Iterator[tuple[Cutter, Path]]:
    """Create a login with pods/portforward but without services/proxy, behind a proxy that can cut connections."""
    with cutter(*api_server()) as way:
        yield way, account(ray, "forwarder", [*READ, FORWARD], folder, server=f"https://127.0.0.1:{way.port}")


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "slow.py").write_text(SLOW)
    return tmp_path / "work" / "slow.py"


def test_a_submit_without_the_proxy(ray: Cluster, tmp_path: Path, script: Path) -> None:
    wanted = "".join(f"{n}\n" for n in range(SECONDS * 20)).encode()
    with forwarding(ray, tmp_path) as (way, may):
        args = ("submit", "--working-dir", str(script.parent), str(script))
        with begun(ray, *args, kubeconfig=may, stdin=subprocess.DEVNULL) as process:
            assert process.stdout and process.stderr
            read = b""
            while b"\n20\n" not in read:
                assert (line := process.stdout.readline()), process.stderr.read()
                read += line
            cuts = [way.cut()]
            time.sleep(2)
            cuts.append(way.cut())
            read += process.stdout.read()
            err = process.stderr.read()
            assert process.wait(60) == 0, err
        assert all(cuts), cuts
        assert read.endswith(wanted), read
        assert err.count(b"port-forward") == 1, err
        code, found = checks(ray, kubeconfig=may)
        assert (code, found["permissions"]["status"], found["dashboard"]["status"]) == (0, "warn", "ok")
        assert "port-forward" in found["permissions"]["found"]


def test_a_login_that_may_use_neither(ray: Cluster, tmp_path: Path) -> None:
    done = client(ray, "list", kubeconfig=account(ray, "reader", READ, tmp_path))
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (77, b"", 1)
    assert b"services/proxy" in done.stderr


# The head is deleted. This test is last, because a new head takes a while to start.


def test_the_head_deleted_under_a_command(ray: Cluster) -> None:
    cluster = kubernetes.find_cluster(f"kubernetes:///{ray.namespace}/ray")
    with PortForwards(cluster) as forwards:
        port = forwards.dashboard()
        assert requests.get(f"{port}/api/version", timeout=10).status_code == 401  # without the token
        with begun(ray, "exec", "--", "sh", "-c", "echo up; exec sleep 300", stdin=subprocess.DEVNULL) as process:
            assert process.stdout and process.stdout.readline() == b"up\n"
            head = ray.name("head")
            kubectl("delete", "pod", head, "-n", ray.namespace, "--grace-period=1", "--wait=false")
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err.count(b"\n")) == (75, b"", 1), err
        assert head.encode() in err and b"deleted" in err
        until("another head", lambda: _ready_head(ray, head), timeout=120, namespace=ray.namespace)
        assert requests.get(f"{port}/api/version", timeout=10).status_code == 401


def _ready_head(ray: Cluster, before: str) -> bool:
    pods = get("pods", "-n", ray.namespace, "-l", "ray.io/node-type=head")["items"]
    states: Mapping[str, Any] = {p["metadata"]["name"]: p["status"].get("containerStatuses", ()) for p in pods}
    return any(name != before and all(c["ready"] for c in found) and bool(found) for name, found in states.items())
