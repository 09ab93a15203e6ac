"""`doctor` without a cluster; the tests with a cluster are in tests/e2e."""

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from client.doctor.ray import examine
from client.doctor.report import Check, Report
from client.errors import ClientError
from client.targets.target import Target
from tests.client.conftest import token_of
from tests.client.server import Handler, serving
from tests.client.test_kubernetes import config
from tests.conftest import Cli


def lines(run: Cli, *args: str, code: int, env: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Return the checks that are printed as JSON; the text output must have the same checks."""
    done = run("doctor", "-o", "json", *args, env=env)
    assert (done.returncode, done.stderr) == (code, b"")
    checks: list[dict[str, Any]] = json.loads(done.stdout)
    assert all(check.keys() == {"check", "status", "found", "fix"} for check in checks)
    assert all(check["found"] and bool(check["fix"]) == (check["status"] != "ok") for check in checks)
    text = run("doctor", *args, env=env)
    assert (text.returncode, text.stderr) == (code, b"")
    assert [line.split(maxsplit=2)[:2] for line in text.stdout.decode().splitlines()] == [
        [check["status"], check["check"]] for check in checks
    ]
    assert (code == 1) == any(check["status"] == "FAIL" for check in checks)
    return {check["check"]: check for check in checks}


@pytest.fixture
def closed() -> Iterator[str]:
    """Yield a URL whose port stays bound but not listening, so that connections are refused."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def test_a_ray_that_is_well(run: Cli, remote: dict[str, str], head: Target) -> None:
    found = lines(run, code=0, env=remote)
    assert list(found) == ["address", "token", "dashboard", "auth", "ray", "python"]
    assert {check["status"] for check in found.values()} == {"ok"}
    assert "RAY_WORKLOAD_ADDRESS" in found["address"]["found"]
    assert "2.60.0" in found["dashboard"]["found"]
    assert "refused" in found["auth"]["found"]
    assert token_of(head) not in json.dumps(found)


def test_without_the_token(run: Cli, head: Target) -> None:
    found = lines(run, "--address", head.http.server.url, code=1)
    assert found["token"]["status"] == "warn"
    assert found["dashboard"]["status"] == "FAIL" and "RAY_AUTH_TOKEN_PATH" in found["dashboard"]["fix"]
    assert found["dashboard"]["found"] == "the cluster requires a token"


def test_a_wrong_token_is_not_shown(run: Cli, head: Target, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("wr0ngtoken")
    found = lines(run, "--address", head.http.server.url, code=1, env={"RAY_AUTH_TOKEN_PATH": "token"})
    assert found["dashboard"]["status"] == "FAIL" and "refused the token" in found["dashboard"]["found"]
    assert "wr0ngtoken" not in json.dumps(found)


def test_a_ray_of_another_version_without_authentication(run: Cli) -> None:
    answers = {
        "/api/version": {"version": "4", "ray_version": "2.9.3", "session_name": "x"},
        "/api/v0/cluster_metadata": {"data": {"pythonVersion": "3.8.1"}},
    }
    json_ = {"Content-Type": "application/json"}
    with serving(lambda handler, _: (200, json_, json.dumps(answers[handler.path]).encode())) as url:
        found = lines(run, "--address", url, code=0)
    assert {name: found[name]["status"] for name in ("dashboard", "auth", "ray", "python")} == {
        "dashboard": "ok", "auth": "warn", "ray": "warn", "python": "warn",
    }  # fmt: skip
    assert "2.9.3 on the cluster" in found["ray"]["found"] and "3.8.1" in found["python"]["found"]
    assert "2.9.3" not in found["ray"]["fix"] and f"an image with Ray {version('ray')}" in found["ray"]["fix"]


def test_an_address_from_a_file_gets_no_token(run: Cli, tmp_path: Path) -> None:
    received: list[str | None] = []

    def answer(handler: Handler, _: bytes) -> tuple[int, Mapping[str, str], bytes]:
        received.append(handler.headers["Authorization"])
        return 401, {}, b"Unauthorized: Missing authentication token"

    env, project = {"RAY_AUTH_TOKEN": "t0psecret"}, tmp_path / "pyproject.toml"
    with serving(answer) as url:
        project.write_text(f'[tool.ray-workload]\naddress = "{url}"\n')
        found = lines(run, code=1, env=env)
        assert received and set(received) == {None}
        assert found["token"]["status"] == "warn" and str(project) in found["token"]["found"]
        assert f"--address {url}" in found["token"]["fix"] and f"--address {url}" in found["dashboard"]["fix"]
        received.clear()
        assert lines(run, "--address", url, code=1, env=env)["token"]["status"] == "ok"
        assert received and set(received) == {"Bearer t0psecret"}


def test_a_closed_port(run: Cli, closed: str) -> None:
    found = lines(run, "--address", f"http://{closed}", code=1)
    assert list(found) == ["address", "token", "dashboard"]
    assert "Connection refused" in found["dashboard"]["found"]


def test_what_is_no_dashboard(run: Cli) -> None:
    with serving(lambda *_: (200, {}, b"hello")) as url:
        assert lines(run, "--address", url, code=1)["dashboard"]["status"] == "FAIL"


def test_nothing_at_all(run: Cli) -> None:
    found = lines(run, code=0)
    assert list(found) == ["address", "ray"]
    assert "embedded" in found["address"]["found"] and "submit" in found["ray"]["found"]


def test_a_context_that_is_not_used_is_told(run: Cli, tmp_path: Path, closed: str) -> None:
    found = lines(run, code=0, env={"KUBECONFIG": str(config(tmp_path, "https://34.1.2.3", {}))})
    assert list(found) == ["address", "kubeconfig", "ray"]
    assert found["kubeconfig"]["status"] == "ok"
    assert found["kubeconfig"]["found"] == (
        f"{tmp_path / 'config'}: context far is not used, because its cluster is not on this machine; "
        "to use it, add --address kubernetes://far"
    )
    found = lines(run, code=0, env={"KUBECONFIG": str(config(tmp_path, f"https://{closed}", {}, "kind-off"))})
    assert found["kubeconfig"]["status"] == "warn" and "--address kubernetes://kind-off" in found["kubeconfig"]["fix"]
    assert "context kind-off is not used, because no RayCluster" in found["kubeconfig"]["found"]
    assert list(lines(run, "--address", "embedded", code=0)) == ["address", "ray"]


def test_a_kubeconfig_that_cannot_be_read_is_told(run: Cli, tmp_path: Path) -> None:
    found = lines(run, code=0, env={"KUBECONFIG": "/nowhere"})
    assert found["kubeconfig"] == {
        "check": "kubeconfig",
        "status": "warn",
        "found": "KUBECONFIG names /nowhere, which is not a file",
        "fix": "correct or unset it",
    }
    (tmp_path / "config").write_text("clusters: 3")
    found = lines(run, code=0, env={"KUBECONFIG": str(tmp_path / "config")})
    assert found["kubeconfig"]["status"] == "warn" and "is not a kubeconfig" in found["kubeconfig"]["found"]


@pytest.mark.parametrize("address", ["nonsense", "ftp://x", "http://", "http://a:b@c", "kubernetes://a/b/c/d"])
def test_nonsense_for_an_address(run: Cli, address: str) -> None:
    assert any(check["status"] == "FAIL" for check in lines(run, "--address", address, code=1).values())


def test_no_kubeconfig(run: Cli) -> None:
    found = lines(run, "--address", "kubernetes", code=1)
    assert list(found) == ["address", "kubeconfig"]
    assert "KUBECONFIG" in found["kubeconfig"]["fix"]


def test_a_kubeconfig_of_nonsense(run: Cli, tmp_path: Path) -> None:
    for content in (b"\x00\xff", b"- a", b"{"):
        (tmp_path / "config").write_bytes(content)
        found = lines(run, "--address", "kubernetes", code=1, env={"KUBECONFIG": str(tmp_path / "config")})
        assert found["kubeconfig"]["status"] == "FAIL"


def test_an_unknown_context(run: Cli, tmp_path: Path, closed: str) -> None:
    env = {"KUBECONFIG": str(config(tmp_path, f"https://{closed}", {}))}
    found = lines(run, "--address", "kubernetes://near", code=1, env=env)
    assert "near" in found["kubeconfig"]["found"] and "far" in found["kubeconfig"]["fix"]


def test_an_api_server_that_does_not_answer(run: Cli, tmp_path: Path, closed: str) -> None:
    env = {"KUBECONFIG": str(config(tmp_path, f"https://{closed}", {"token": "t0psecret"}))}
    found = lines(run, "--address", "kubernetes", code=1, env=env)
    assert list(found) == ["address", "kubeconfig", "server"]
    assert closed in found["server"]["found"] and found["server"]["status"] == "FAIL"
    assert "t0psecret" not in json.dumps(found)


def test_a_server_that_is_no_api_server(run: Cli, tmp_path: Path) -> None:
    with serving(lambda *_: (200, {"Content-Type": "text/html"}, b"<html>")) as url:
        found = lines(run, "--address", "kubernetes", code=1, env={"KUBECONFIG": str(config(tmp_path, url, {}))})
    assert found["server"]["status"] == "FAIL"


@pytest.mark.parametrize(
    ("error", "fix", "check"),
    [
        (ClientError("a (b: c): d", "do e: f (g)"), "", Check("x", "FAIL", "a (b: c): d", "do e: f (g)")),
        (ClientError("two\nlines", "do\nthat"), "", Check("x", "FAIL", "two lines", "do that")),
        (ClientError("a", "do b"), "do c", Check("x", "FAIL", "a", "do c")),
    ],
)
def test_the_fix_is_the_hint_of_the_error(error: ClientError, fix: str, check: Check) -> None:
    report = Report(lambda _: None)
    with report.attempt("x", fix):
        raise error
    assert report.checks == [check]


@pytest.mark.parametrize("hint", ["", "run `doctor`"])
def test_doctor_is_not_its_own_fix(hint: str) -> None:
    report = Report(lambda _: None)
    with report.attempt("x"):
        raise ClientError("a", hint)
    (check,) = report.checks
    assert check.fix and "doctor" not in check.fix


SPEC = {"spec": {"containers": [{"name": "ray", "env": [{"name": "RAY_AUTH_TOKEN", "valueFrom": {}}]}]}}
SPEC["spec"]["containers"][0]["env"][0]["valueFrom"] = {"secretKeyRef": {"name": "t", "key": "auth_token"}}  # type: ignore[index]
RAY = "/apis/ray.io/v1"
CORE = "/api/v1/namespaces/team"


def ray_pod(name: str, kind: str, **status: Any) -> dict[str, Any]:
    labels = {"ray.io/node-type": kind}
    return {"metadata": {"name": name, "labels": labels}, "spec": SPEC["spec"], "status": status}


class Api:
    """The responses of an API server with a healthy cluster, by path. None is a 404, a number another status."""

    def __init__(self) -> None:
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        cluster = {
            "metadata": {"name": "ray", "namespace": "team"},
            "spec": {"rayVersion": "2.60.0", "headGroupSpec": {"template": SPEC}, "workerGroupSpecs": []},
            "status": {"conditions": [{"type": "HeadPodReady", "status": "True"}], "desiredWorkerReplicas": 1},
        }
        container = {"image": "x/operator:v1", "args": ["--watch-namespace", "team"]}
        self.cluster, self.container = cluster, container
        self.pods = [ray_pod("head", "head", **ready), ray_pod("worker", "worker", **ready)]
        self.deployment = {
            "metadata": {"name": "kuberay-operator", "namespace": "team"},
            "spec": {"replicas": 1, "template": {"spec": {"containers": [container]}}},
            "status": {"readyReplicas": 1},
        }
        self.refused: set[str] = set()
        self.answers: dict[str, Any] = {
            "/version": {"gitVersion": "v1.34"},
            "/apis/authentication.k8s.io/v1/selfsubjectreviews": {"status": {"userInfo": {"username": "me"}}},
            RAY: {"resources": [{"name": "rayclusters"}, {"name": "rayclusters/status"}]},
            "/apis/apps/v1/deployments": {"items": [self.deployment]},
            f"{RAY}/namespaces/team/rayclusters": {"items": [cluster]},
            f"{RAY}/namespaces/team/rayclusters/ray": cluster,
            f"{CORE}/pods": {"items": self.pods},
            f"{CORE}/events": {"items": [{"type": "Warning", "message": "quota is used up"}]},
            f"{CORE}/services/ray-api": {"spec": {"ports": [{"name": "agent", "port": 52365}]}},
            f"{CORE}/secrets/t": {"data": {"auth_token": "dDBwc2VjcmV0"}},
        }

    def __call__(self, handler: Any, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        path = handler.path.partition("?")[0]
        if path.endswith("/selfsubjectaccessreviews"):
            asked = json.loads(body)["spec"]["resourceAttributes"]
            kind = f"{asked['resource']}/{asked['subresource']}".rstrip("/")
            assert asked["group"] == ("ray.io" if kind == "rayclusters" else "")
            found: Any = {"status": {"allowed": not {kind, f"{asked['verb']} {kind}"} & self.refused}}
        elif path.startswith(f"{CORE}/services/http:"):
            token = handler.headers["X-Ray-Authorization"] == "Bearer t0psecret"
            data = {"version": "4", "ray_version": "2.60.0", "session_name": "x", "data": {"pythonVersion": "3.11.1"}}
            return (200, {}, json.dumps(data).encode()) if token else (401, {}, b"Unauthorized: no token")
        else:
            found = self.answers.get(path)
        status = found if isinstance(found, int) else 404 if found is None else 200
        if status != 200:
            found = {"kind": "Status", "message": f"{path} is not for you"}
        return status, {"Content-Type": "application/json"}, json.dumps(found).encode()


@pytest.fixture
def api() -> Api:
    return Api()


Seen = Callable[[int], dict[str, dict[str, Any]]]


@pytest.fixture
def seen(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """Run the checks on the cluster of this API server, without the command line."""
    with serving(api) as url:
        monkeypatch.setenv("KUBECONFIG", str(config(tmp_path, url, {"token": "l0gin"})))

        def look(code: int) -> dict[str, dict[str, Any]]:
            report = examine("kubernetes://far/team/ray", lambda _: None)
            assert report.failed == bool(code), report.checks
            assert all(bool(check.fix) == (check.status != "ok") for check in report.checks)
            assert "t0psecret" not in str(report) and "l0gin" not in str(report)
            return {check.check: asdict(check) for check in report.checks}

        yield look


def test_a_cluster_that_is_well(seen: Seen) -> None:
    found = seen(0)
    assert [check["status"] for name, check in found.items() if name != "python"] == ["ok"] * (len(found) - 1)
    assert list(found) == [
        "address", "kubeconfig", "server", "login", "crds", "operator", "cluster", "pods", "service", "secret",
        "permissions", "optional", "dashboard", "auth", "ray", "python",
    ]  # fmt: skip


def test_pods_that_are_not_ready_say_why(seen: Seen, api: Api) -> None:
    unscheduled = {"type": "PodScheduled", "status": "False", "message": "0/1 nodes:\n Insufficient cpu."}
    api.pods[0]["status"] = {"conditions": [unscheduled]}
    api.cluster["status"] = {"desiredWorkerReplicas": 1}
    found = seen(1)
    for check in ("cluster", "pods"):
        assert found[check]["status"] == "FAIL" and "0/1 nodes: Insufficient cpu." in found[check]["found"]
    assert found["dashboard"]["status"] == "ok"  # the later checks ran


def test_a_worker_that_is_not_ready_is_no_failure(seen: Seen, api: Api) -> None:
    pull = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    api.pods[1]["status"] = {"containerStatuses": [pull]}
    found = seen(0)
    assert found["pods"]["status"] == "warn" and "no such image" in found["pods"]["found"]


def test_a_service_named_like_the_charts_is_not_the_charts(seen: Seen, api: Api) -> None:
    """Only the chart's Service has a port for the node agent."""
    assert (seen(0)["service"]["status"], seen(0)["service"]["found"]) == ("ok", "ray-api, from the chart")
    ports = {"spec": {"ports": [{"name": "dashboard", "port": 8265}]}}
    api.answers |= {f"{CORE}/services/ray-api": ports, f"{CORE}/services/ray-head-svc": ports}
    found = seen(0)["service"]
    assert (found["status"], found["found"]) == ("warn", "ray-head-svc, from the operator")


def test_no_pods_at_all(seen: Seen, api: Api) -> None:
    api.pods.clear()
    api.cluster["status"] = {}
    found = seen(1)
    assert found["pods"]["status"] == "FAIL" and "quota is used up" in found["cluster"]["found"]


def test_an_operator_of_another_namespace_is_not_ours(seen: Seen, api: Api) -> None:
    api.container["args"] = ["--watch-namespace=other,third"]
    found = seen(0)
    assert (found["operator"]["status"], found["operator"]["found"]) == ("warn", "there is none")


def test_an_operator_for_all(seen: Seen, api: Api) -> None:
    api.container["args"] = []
    assert seen(0)["operator"]["status"] == "ok"
    api.deployment["status"] = {}
    found = seen(1)
    assert found["operator"]["status"] == "FAIL" and "describe pods" in found["operator"]["fix"]


@pytest.mark.parametrize(
    ("path", "answer", "check", "status"),
    [
        (RAY, None, "crds", "FAIL"),
        (f"{RAY}/namespaces/team/rayclusters", 403, "cluster", "FAIL"),
        (f"{CORE}/pods", 403, "pods", "FAIL"),
        (f"{CORE}/secrets/t", 403, "secret", "FAIL"),
        (f"{CORE}/secrets/t", None, "secret", "FAIL"),
        (f"{CORE}/secrets/t", {"data": {"auth_token": ""}}, "secret", "FAIL"),
        (f"{CORE}/services/ray-api", None, "service", "FAIL"),
        ("/version", 401, "server", "ok"),
        ("/apis/authentication.k8s.io/v1/selfsubjectreviews", 401, "login", "FAIL"),
        ("/apis/authentication.k8s.io/v1/selfsubjectreviews", None, "login", "ok"),
        ("/apis/apps/v1/deployments", 403, "operator", "warn"),
    ],
)
def test_each_thing_that_is_missing(seen: Seen, api: Api, path: str, answer: Any, check: str, status: str) -> None:
    api.answers[path] = answer
    assert seen(int(status == "FAIL"))[check]["status"] == status


@pytest.mark.parametrize(
    ("refused", "status"),
    [
        ({"services/proxy", "pods/portforward"}, "FAIL"),
        ({"update services/proxy", "pods/portforward"}, "FAIL"),
        ({"services/proxy"}, "warn"),
        ({"list pods"}, "FAIL"),
        ({"secrets"}, "FAIL"),
        ({"pods/exec"}, "ok"),
    ],
)
def test_each_permission(seen: Seen, api: Api, refused: set[str], status: str) -> None:
    api.refused = refused
    found = seen(int(status == "FAIL"))
    assert found["permissions"]["status"] == status
    assert found["optional"]["status"] == ("warn" if refused == {"pods/exec"} else "ok")
