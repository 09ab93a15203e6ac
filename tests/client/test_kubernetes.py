"""The target `kubernetes`, as far as it goes without a cluster: addresses, kubeconfigs and logins. The rest is live, in
tests/e2e."""

import base64
import json
import os
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.errors import NotAuthorised, Unreachable, UsageError
from client.kube import login as kubeconfig
from client.kube.cluster import Api
from client.targets import kubernetes, resolve
from tests.client.server import serving
from tests.conftest import Cli


def config(folder: Path, server: str, user: dict[str, Any], context: str = "far", name: str = "config") -> Path:
    path = folder / name
    data = {
        "current-context": context,
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "contexts": [{"name": context, "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture
def closed() -> Iterator[str]:
    """It is kept, without listening, so that nothing else gets it."""
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


@pytest.mark.parametrize(
    ("context", "server", "local"),
    [
        ("kind-x", "https://10.1.2.3:6443", True),
        ("k3d-x", "https://10.1.2.3:6443", True),
        ("minikube", "https://192.168.49.2:8443", True),
        ("x", "https://127.0.0.1:6443", True),
        ("x", "https://localhost:6443", True),
        ("x", "https://[::1]:6443", True),
        ("gke_p_l_c", "https://34.1.2.3", False),
        ("mankind-x", "https://localhosts.example:6443", False),
        ("x", "https://[::1:6443", False),
    ],
)
def test_local_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: str, server: str, local: bool) -> None:
    monkeypatch.setenv("KUBECONFIG", str(config(tmp_path, server, {}, context)))
    assert kubeconfig.local_context() == (context if local else None)


def test_without_a_kubeconfig(run: Cli) -> None:
    done = run("list", "--address", "kubernetes")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"KUBECONFIG" in done.stderr


def test_an_unknown_context_names_the_known(run: Cli, tmp_path: Path, closed: str) -> None:
    done = run("list", "--address", "kubernetes://near", env={"KUBECONFIG": str(config(tmp_path, closed, {}))})
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"near" in done.stderr and b"far" in done.stderr


@pytest.mark.parametrize("current", [None, "", "gone"])
def test_a_named_context_needs_no_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str, current: str | None
) -> None:
    path = config(tmp_path, closed, {"token": "t"})
    data = yaml.safe_load(path.read_text())
    data.pop("current-context")
    path.write_text(yaml.safe_dump(data if current is None else {**data, "current-context": current}))
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert (kubeconfig.login("far").context, kubeconfig.local_context()) == ("far", None)
    with pytest.raises(UsageError, match=f"has no context {current or 'that is current'}: it has far"):
        kubeconfig.login(None)


def certificates(folder: Path) -> dict[str, Any]:
    """A CA without key identifiers, as old clusters have, a server's certificate by it, and the cluster of both."""
    request = "[req]\ndistinguished_name=name\ndefault_bits=2048\n[name]\n"
    (folder / "ca.conf").write_text(f"{request}[ca]\nbasicConstraints=critical,CA:true\n")
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=none\n")
    for command in (
        "openssl req -x509 -nodes -subj /CN=ca -config ca.conf -extensions ca -keyout ca.key -out ca.pem",
        "openssl req -new -nodes -subj /CN=server -config ca.conf -keyout key.pem -out request",
        "openssl x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -extfile san -out server.pem",
    ):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return {"certificate-authority-data": base64.b64encode((folder / "ca.pem").read_bytes()).decode()}


def test_an_old_clusters_ca_is_trusted_as_kubectl_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, create = certificates(tmp_path), ssl.create_default_context

    def as_of_python_3_13(*args: Any, **options: Any) -> ssl.SSLContext:
        made = create(*args, **options)
        made.verify_flags |= ssl.VERIFY_X509_STRICT
        return made

    monkeypatch.setattr(ssl, "create_default_context", as_of_python_3_13)
    with serving(lambda *_: (200, {}, b"{}"), tls=(tmp_path / "server.pem", tmp_path / "key.pem")) as url:
        path = config(tmp_path, url, {"token": "t"})
        data = yaml.safe_load(path.read_text())
        data["clusters"][0]["cluster"] |= cluster
        path.write_text(yaml.safe_dump(data))
        monkeypatch.setenv("KUBECONFIG", str(path))
        login = kubeconfig.login("far")
        assert Api(login).get("/version") == {}
        login.connection.tls.verify_flags |= ssl.VERIFY_X509_STRICT
        with pytest.raises(Unreachable, match="mend its cluster's certificate-authority in the kubeconfig"):
            Api(login).get("/version")


def test_a_notebooks_own_client_keeps_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str) -> None:
    from kubernetes import client
    from kubernetes import config as own

    path = config(tmp_path, closed, {"token": "t"})
    data = yaml.safe_load(path.read_text())
    data["clusters"][0]["cluster"] |= certificates(tmp_path)
    path.write_text(yaml.safe_dump(data))
    monkeypatch.setenv("KUBECONFIG", str(path))
    own.load_kube_config(str(path), client_configuration=(theirs := client.Configuration()))
    before = set(os.listdir(tempfile.gettempdir()))
    kubeconfig.login("far")
    assert Path(str(theirs.ssl_ca_cert)).read_bytes() == (tmp_path / "ca.pem").read_bytes()
    assert set(os.listdir(tempfile.gettempdir())) <= before


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


def plugin(folder: Path, script: str) -> dict[str, Any]:
    """A kubeconfig's user whose plugin is this shell script, which also counts its calls."""
    path = folder / "login"
    path.write_text(f"#!/bin/sh\ncd {folder}\necho >> calls\n{script}\n")
    path.chmod(0o700)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(path)}}


def gives(token: str) -> str:
    status = {"token": token}
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
    return f"printf '{json.dumps(credential)}' $(wc -l < calls)"


def test_a_login_that_is_refused_is_asked_for_again_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"t0k3n-2"}

    def answer(handler: Any, _: bytes) -> tuple[int, dict[str, str], bytes]:
        if handler.path == "/ray":
            return 401, {"Content-Type": "text/plain"}, b"Unauthorized: no token"
        good = handler.headers["Authorization"].removeprefix("Bearer ") in taken
        return 200 if good else 401, {"Content-Type": "application/json"}, b'{"kind": "Status", "message": "x"}'

    def calls() -> int:
        return (tmp_path / "calls").read_text().count("\n")

    with serving(answer) as url:
        monkeypatch.setenv("KUBECONFIG", str(config(tmp_path, url, plugin(tmp_path, gives("t0k3n-%s")))))
        api = Api(kubeconfig.login("far"))
        assert (calls(), api.get("/version") is not None, calls()) == (1, True, 2)
        with pytest.raises(NotAuthorised):
            api.get("/ray")  # Ray does not take its own token: that says nothing of the login
        assert calls() == 2
        taken.clear()
        with pytest.raises(NotAuthorised, match="log in again"):
            api.get("/version")
        assert calls() == 3
        (tmp_path / "login").unlink()
        with pytest.raises(Unreachable, match="login, which knows the login of context far"):
            api.get("/version")  # whoever follows a job tries on


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


def test_a_local_context_that_is_down_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(config(tmp_path, closed, {}, "kind-off")))
    assert resolve(None).value == "embedded"


def test_an_api_server_that_has_never_heard_of_ray(run: Cli, tmp_path: Path) -> None:
    """Of a group that nobody has defined it knows no path, and says so as any web server would."""

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
            assert said[-1].endswith("knows no RayCluster: install the chart there first (`helm install`)")
        done = run("doctor", "--address", "kubernetes", env=env)
        assert (done.returncode, done.stderr) == (1, b"")
        assert b"knows no RayCluster" in done.stdout.splitlines()[-1]
        done = run("list", env=env)  # unasked, it is passed over
        assert (done.returncode, done.stderr.count(b"\n")) == (2, 1), done.stderr
