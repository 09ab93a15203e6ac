"""The target `kubernetes` without a cluster: addresses, and the errors for a bad login.

The logins themselves are tested in test_login.py, everything that needs a cluster in tests/e2e.
"""

import base64
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from client.errors import UsageError
from client.http import Http, Server
from client.kube import login
from client.kube.api import Api
from client.ray_api.jobs import RayJobs
from client.targets import kubernetes, resolve
from client.targets.target import Target
from tests.client.server import Handler, forward, serving
from tests.client.test_login import config as config  # imported by other tests
from tests.conftest import Cli


@pytest.fixture
def closed() -> Iterator[str]:
    """Yield a URL whose port stays bound but not listening, so that connections are refused."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"https://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("kubernetes", (None, None, None)),
        ("kubernetes://", (None, None, None)),
        ("kubernetes://admin@here", ("admin@here", None, None)),
        ("kubernetes:///team/ray", (None, "team", "ray")),
        ("kubernetes://here/team", ("here", "team", None)),
        ("kubernetes://arn:aws:eks:x:1:cluster%2Fme/team/ray/", ("arn:aws:eks:x:1:cluster/me", "team", "ray")),
    ],
)
def test_parts_of_an_address(address: str, parts: tuple[str | None, ...]) -> None:
    assert resolve(address).value == address
    assert kubernetes.parts(address) == parts


def test_too_many_parts() -> None:
    with pytest.raises(UsageError, match="%2F"):
        kubernetes.parts("kubernetes://a/b/c/d")


def test_without_a_kubeconfig(run: Cli) -> None:
    done = run("list", "--address", "kubernetes")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"KUBECONFIG" in done.stderr


def test_an_unknown_context_names_the_known(run: Cli, tmp_path: Path, closed: str) -> None:
    done = run("list", "--address", "kubernetes://near", env={"KUBECONFIG": str(config(tmp_path, closed, {}))})
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"near" in done.stderr and b"far" in done.stderr


def test_nonsense_for_a_kubeconfig(run: Cli, tmp_path: Path) -> None:
    for content in (b"\x00\xff", b"- a", b"clusters: 3", b"{"):
        (tmp_path / "config").write_bytes(content)
        done = run("list", "--address", "kubernetes", env={"KUBECONFIG": str(tmp_path / "config")})
        assert (done.returncode, done.stderr.count(b"\n")) == (2, 1), (content, done.stderr)


def test_an_api_server_that_does_not_answer(run: Cli, tmp_path: Path, closed: str) -> None:
    done = run(
        "list", "--address", "kubernetes", env={"KUBECONFIG": str(config(tmp_path, closed, {"token": "t0psecret"}))}
    )
    assert (done.returncode, done.stderr.count(b"\n")) == (69, 1)
    assert closed.encode() in done.stderr
    assert b"t0psecret" not in done.stderr


def test_a_login_plugin_that_fails(run: Cli, tmp_path: Path, closed: str) -> None:
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": "no-such-plugin", "interactiveMode": "Never"}
    done = run("list", "--address", "kubernetes", env={"KUBECONFIG": str(config(tmp_path, closed, {"exec": plugin}))})
    assert (done.returncode, done.stderr.count(b"\n")) == (77, 1), done.stderr
    assert b"no-such-plugin" in done.stderr and b"log in again" in done.stderr


@pytest.mark.parametrize("token", ["t0p\nsecret", "t0psecret\x00", "t0psecret-ä"])
def test_a_token_that_is_none_is_not_said_aloud(run: Cli, tmp_path: Path, closed: str, token: str) -> None:
    for user in ({"token": token}, {"tokenFile": str(tmp_path / "token")}):
        (tmp_path / "token").write_text(token)
        done = run("list", "--address", "kubernetes", env={"KUBECONFIG": str(config(tmp_path, closed, user))})
        assert (done.returncode, done.stderr.count(b"\n")) == (77, 1), done.stderr
        assert b"t0p" not in done.stderr and b"log in again" in done.stderr


def test_a_private_key_is_not_left_in_a_file(run: Cli, tmp_path: Path, closed: str) -> None:
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=x -keyout key -out certificate"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    files = ("key", "certificate")
    data = {f"client-{file}-data": base64.b64encode((tmp_path / file).read_bytes()).decode() for file in files}
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    env = {"KUBECONFIG": str(config(tmp_path, closed, data)), "TMPDIR": str(temporary)}
    assert run("list", "--address", "kubernetes", env=env).returncode == 69
    assert os.listdir(temporary) == []


def test_a_remote_context_is_never_taken_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(config(tmp_path, "https://34.1.2.3", {})))
    assert resolve(None).value == "embedded"


def test_a_remote_context_is_named_where_there_is_no_cluster(run: Cli, tmp_path: Path) -> None:
    env = {"KUBECONFIG": str(config(tmp_path, "https://34.1.2.3", {}, "far@gke"))}
    env["TMPDIR"] = str(tmp_path)  # where the other tests' Ray is not found
    for command in (["list"], ["status"], ["logs", "x"], ["submit", "--detach", "--", "true"]):
        done = run(*command, env=env)
        assert done.returncode == 2
        assert done.stderr.decode().splitlines()[-1] == (
            "ray-workload: there is no cluster: start one with `up embedded`, or use --address; for the current "
            "context of the kubeconfig, which is not on this machine: --address kubernetes://far%40gke"
        )


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("kubernetes://far/nope", "there is no RayCluster in namespace nope of context far"),
        ("kubernetes://far//nope", "there is no RayCluster nope in any namespace of context far"),
        ("kubernetes://far/team/nope", "there is no RayCluster nope in namespace team of context far"),
    ],
)
def test_a_wrong_namespace_or_cluster_lists_those_that_exist(address: str, what: str, run: Cli, tmp_path: Path) -> None:
    there = [{"metadata": {"namespace": "team", "name": name}} for name in ("b", "a")]

    def answer(handler: Any, _: bytes) -> tuple[int, dict[str, str], bytes]:
        items = [] if "/namespaces/nope/" in handler.path else there
        return 200, {"Content-Type": "application/json"}, json.dumps({"items": items}).encode()

    def answer_without_others(handler: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if handler.path == "/apis/ray.io/v1/rayclusters" or "/namespaces/team/" in handler.path:
            status = {"kind": "Status", "message": "rayclusters.ray.io is forbidden"}
            return 403, {"Content-Type": "application/json"}, json.dumps(status).encode()
        return answer(handler, body)

    with serving(answer) as url:
        done = run("list", "--address", address, env={"KUBECONFIG": str(config(tmp_path, url, {"token": "t"}))})
    assert (done.returncode, done.stderr.decode()) == (
        69,
        f"ray-workload: {what}: use another address: kubernetes://far/team/a, kubernetes://far/team/b\n",
    )
    if address.endswith("far/nope"):
        with serving(answer_without_others) as url:
            done = run("list", "--address", address, env={"KUBECONFIG": str(config(tmp_path, url, {"token": "t"}))})
        assert done.returncode == 69
        assert done.stderr.decode() == f"ray-workload: {what}: install the chart, or use another address\n"


def test_a_local_context_that_is_down_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(config(tmp_path, closed, {}, "kind-off")))
    assert resolve(None).value == "embedded"


def test_an_ssh_tunnel_is_not_taken_for_a_cluster_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(lambda *_: (200, {"Content-Type": "application/json"}, b'{"items": [{}]}')) as url:
        for context, address in (("production", "embedded"), ("kind-x", "kubernetes://kind-x")):
            monkeypatch.setenv("KUBECONFIG", str(config(tmp_path, url, {"token": "t"}, context)))
            assert resolve(None).value == address


def test_in_a_pod_the_ray_service_is_reached_without_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head, proxied = {"template": {"spec": {"containers": [{"name": "ray-head"}]}}}, list[str]()
    found = {"metadata": {"namespace": "team", "name": "ray"}, "spec": {"headGroupSpec": head}}

    def answer(handler: Any, _: bytes) -> tuple[int, dict[str, str], bytes]:
        return 200, {}, json.dumps({"host": handler.headers["Host"]}).encode()  # serves as the API server and as Ray

    def answer_as_proxy(handler: Any, _: bytes) -> tuple[int, dict[str, str], bytes]:
        proxied.append(handler.path)
        return 200, {}, b"{}"

    with serving(answer) as url, serving(answer_as_proxy) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        there = ("127.0.0.1", int(url.rpartition(":")[2]))
        resolved, local = socket.getaddrinfo, (socket.AF_INET, socket.SOCK_STREAM, 6, "", there)
        monkeypatch.setattr(socket, "getaddrinfo", lambda host, *a: [local] if ".svc" in host else resolved(host, *a))
        api = Api(login.Login(None, "team", Server(url)))
        target = kubernetes.KubernetesTarget(api, found)
        assert target.http.request("GET", "/").json() == {"host": "ray-head-svc.team.svc:8265"}
        assert proxied == []
        assert Http(Server(target.http.server.url)).request("GET", "/").json() == {}
        assert proxied == ["http://ray-head-svc.team.svc:8265/"]  # the proxy works


def test_an_api_server_that_has_never_heard_of_ray(run: Cli, tmp_path: Path) -> None:
    """The path of an undefined API group gets a plain 404, like that of any web server."""

    def answer(handler: Any, _: bytes) -> tuple[int, dict[str, str], bytes]:
        if handler.path.startswith("/apis/ray.io"):
            return 404, {"Content-Type": "text/plain; charset=utf-8"}, b"404 page not found\n"
        me = {"gitVersion": "v1.34.4", "status": {"userInfo": {"username": "me"}}}
        return 200, {"Content-Type": "application/json"}, json.dumps(me).encode()

    with serving(answer) as url:
        env = {"KUBECONFIG": str(config(tmp_path, url, {"token": "l0gin"}, "kind-none"))}
        for args in (["list"], ["status"], ["exec", "--", "true"], ["submit", "--", "true"]):
            done = run(args[0], "--address", "kubernetes", *args[1:], env=env)
            said = done.stderr.decode().splitlines()
            assert (done.returncode, len(said)) == (69, 2 if "address kubernetes" in said[0] else 1), said
            assert said[-1].endswith(
                "no RayCluster resource definition: install the chart there first (`helm install`)"
            )
        done = run("doctor", "--address", "kubernetes", env=env)
        assert (done.returncode, done.stderr) == (1, b"")
        assert b"has no RayCluster resource definition" in done.stdout.splitlines()[-1]
        done = run("list", env=env)  # without an address on the command line, the cluster is ignored
        assert (done.returncode, b"address embedded" in done.stderr) == (2, True), done.stderr


@contextmanager
def a_cluster(head: Target, pod: dict[str, Any], lose: Callable[[str], bool] = lambda _: False) -> Iterator[str]:
    """Serve an API server with a RayCluster, whose Ray is the head, and yield its URL. `lose` makes paths a 404."""
    spec = {"headGroupSpec": {"template": {"spec": {"containers": [{"name": "ray-head"}]}}}}
    ready = {"conditions": [{"type": "HeadPodReady", "status": "True"}]}
    cluster = {"metadata": {"namespace": "team", "name": "ray"}, "spec": spec, "status": ready}

    def answer(handler: Handler, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        _, is_proxy, handler.path = handler.path.rpartition("/http:ray-head-svc:8265/proxy")
        if is_proxy:
            if lose(handler.path):
                return 404, {"Content-Type": "text/plain"}, b"Job does not exist"
            handler.headers.replace_header("Authorization", head.http.server.headers["Authorization"])
            return forward(head.http.server.url, handler, body)
        items = [pod] if "/pods?" in handler.path else [cluster]
        found = cluster if handler.path.endswith("/rayclusters/ray") else {"items": items}
        return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()

    with serving(answer) as url:
        yield url


def killed_pod(labels: dict[str, str], seconds: int) -> dict[str, Any]:
    """A pod with a container that was killed so many seconds from now."""
    ended = (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    killed = {"state": {"running": {}}, "lastState": {"terminated": {"reason": "OOMKilled", "finishedAt": ended}}}
    status = {"podIP": "10.9.0.7", "containerStatuses": [{"state": {"running": {}}}, killed]}
    return {"metadata": {"name": "ray-pod", "labels": labels}, "status": status}


HEAD, WORKER = {"ray.io/node-type": "head"}, {"ray.io/node-type": "worker", "ray.io/group": "big"}
KILLED = "kill -9 $$"
ENDED_BY_RAY = "echo 'OutOfMemoryError: Memory on the node (IP: 10.9.0.7, ID: 5) was 3.9GB / 4GB'; exit 1"


@pytest.mark.parametrize(
    ("labels", "seconds", "script", "words"),
    [
        (HEAD, 60, KILLED, "(OOMKilled): raise head.memory in the chart's values"),
        (WORKER, 60, KILLED, "(OOMKilled): raise workerGroups.big.memory, or workers.memory, in the chart's values"),
        (HEAD, -60, ENDED_BY_RAY, "(Ray's OutOfMemoryError): raise head.memory in the chart's values"),
        (HEAD, -60, KILLED, ""),
        (HEAD, 60, "exit 1", ""),
    ],
)
def test_a_job_that_failed_for_want_of_memory_says_what_to_raise(
    labels: dict[str, str], seconds: int, script: str, words: str, run: Cli, head: Target, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text("")
    with a_cluster(head, killed_pod(labels, seconds)) as url:
        env = {"KUBECONFIG": str(config(tmp_path, url, {"token": "t"}))}
        done = run("submit", "--address", "kubernetes://far", "--", "sh", "-c", script, env=env)
    assert done.returncode == (137 if script == KILLED else 1), done.stderr
    last = done.stderr.decode().splitlines()[-2]
    assert last == f"ray-workload: pod ray-pod ran out of memory {words}" if words else " failed with exit " in last


def test_a_head_that_restarted_for_want_of_memory_says_what_to_raise(
    run: Cli, head: Target, jobs: RayJobs, tmp_path: Path
) -> None:
    jobs.submit_plain({"entrypoint": "sleep 60", "submission_id": "lost-with-head"})
    asked: list[str] = []

    def lose(path: str) -> bool:
        asked.append(path)
        return path == "/api/jobs/lost-with-head" and asked.count(path) > 4

    with a_cluster(head, killed_pod(HEAD, 60), lose) as url:
        env = {"KUBECONFIG": str(config(tmp_path, url, {"token": "t"}))}
        done = run("logs", "--address", "kubernetes://far", "--follow", "lost-with-head", env=env)
    jobs.stop("lost-with-head")
    assert done.returncode == 75
    assert done.stderr.decode().splitlines()[-1] == (
        "ray-workload: job lost-with-head was lost when the Ray head restarted: "
        "pod ray-pod ran out of memory (OOMKilled): raise head.memory in the chart's values"
    )
