"""client/kube/login.py and kubeconfig.py: which context is used, and how each kind of user logs in.

These API servers are simulated. Logins to a real one are tested in tests/e2e/test_logins.py.
"""

import base64
import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.errors import Forbidden, NotAuthorised, Unreachable, UsageError
from client.kube import login as kube
from client.kube import stream
from client.kube.api import Api
from tests.client.server import serving
from tests.e2e._cutter import cutter

SERVER = "https://127.0.0.1:6443"
DECIMAL_LOOPBACK = "2130706433"  # 127.0.0.1 in a form that no rule for loopback addresses matches
MINIKUBE = [{"name": "cluster_info", "extension": {"provider": "minikube.sigs.k8s.io", "version": "v1.36.0"}}]


def config(folder: Path, server: str, user: dict[str, Any], context: str = "far", name: str = "config") -> Path:
    """Write a kubeconfig with one context, whose cluster has the same name."""
    path = folder / name
    data = {
        "current-context": context,
        "clusters": [{"name": context, "cluster": {"server": server}}],
        "contexts": [{"name": context, "context": {"cluster": context, "user": "u", "namespace": "team"}}],
        "users": [{"name": "u", "user": user}],
    }
    path.write_text(yaml.safe_dump(data))
    return path


def set_cluster(path: Path, **values: Any) -> None:
    """Change the cluster in a kubeconfig."""
    data = yaml.safe_load(path.read_text())
    data["clusters"][0]["cluster"] |= {name.replace("_", "-"): value for name, value in values.items()}
    path.write_text(yaml.safe_dump(data))


# Contexts


@pytest.mark.parametrize(
    ("context", "cluster", "server", "local"),
    [
        ("kind-x", "kind-x", "https://127.0.0.1:41237", True),
        ("kind-x", "kind-x", "https://[::1]:41237", True),
        ("k3d-x", "k3d-x", "https://0.0.0.0:39933", True),
        ("k3d-x", "k3d-x", "https://host.docker.internal:6445", True),
        ("docker-desktop", "docker-desktop", "https://kubernetes.docker.internal:6443", True),
        ("docker-desktop", "docker-desktop", "https://127.0.0.1:6443", True),
        ("rancher-desktop", "rancher-desktop", "https://127.0.0.1:6443", True),
        ("orbstack", "orbstack", "https://127.0.0.1:26443", True),
        ("production", "production", "https://127.0.0.1:6443", False),  # an SSH tunnel
        ("production", "production", "https://localhost:6443", False),
        ("kind-x", "production", "https://127.0.0.1:6443", False),
        ("kind-x", "kind-x", "https://34.1.2.3:6443", False),
        ("orbstack", "orbstack", "https://34.1.2.3", False),
        ("docker-desktop", "docker-desktop", "https://localhosts.example:6443", False),
        ("minikube", "minikube", "https://192.168.49.2:8443", False),  # without minikube's extension
        ("mankind-x", "mankind-x", "https://127.0.0.1:6443", False),
        ("gke_p_l_c", "gke_p_l_c", "https://34.1.2.3", False),
        ("kind-x", "kind-x", "https://[::1:6443", False),
    ],
)
def test_only_the_contexts_of_local_tools_are_local(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, context: str, cluster: str, server: str, local: bool
) -> None:
    path = config(tmp_path, server, {}, context)
    data = yaml.safe_load(path.read_text())
    data["clusters"][0]["name"] = data["contexts"][0]["context"]["cluster"] = cluster
    path.write_text(yaml.safe_dump(data))
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert kube.local_context() == (context if local else None)


def test_minikubes_own_mark_makes_a_profile_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = config(tmp_path, "https://192.168.49.2:8443", {}, "any-profile")
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert kube.local_context() is None
    set_cluster(path, extensions=MINIKUBE)
    assert kube.local_context() == "any-profile"


@pytest.mark.parametrize("current", [None, "", "gone"])
def test_a_named_context_needs_no_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, current: str | None
) -> None:
    path = config(tmp_path, SERVER, {"token": "t"}, "kind-x")
    data = yaml.safe_load(path.read_text())
    data.pop("current-context")
    path.write_text(yaml.safe_dump(data if current is None else {**data, "current-context": current}))
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert (kube.login("kind-x").context, kube.local_context()) == ("kind-x", None)
    what = f"has no context {current}" if current else "sets no current context"
    with pytest.raises(UsageError, match=f"{what}: use one of its contexts: kind-x"):
        kube.login(None)


def test_several_kubeconfigs_are_merged_as_kubectl_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If several files define a name, the first definition is used; paths are relative to the file they are in."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "token").write_text(f"of-{folder}\n")
    first = {"clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1/", "tls-server-name": "a"}}]}
    (tmp_path / "a" / "config").write_text(yaml.safe_dump(first))
    second = {
        "current-context": "x",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:2", "proxy-url": "http://127.0.0.1:3"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"tokenFile": "token"}}],
    }
    (tmp_path / "b" / "config").write_text(yaml.safe_dump(second))
    third = {
        "current-context": "y",
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "third"}}],
        "users": [{"name": "u", "user": {"token": "of-c"}}, {"name": "v", "user": {}}],
    }
    (tmp_path / "third").write_text(yaml.safe_dump(third))
    (tmp_path / "empty").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", "missing:empty:a/config::b/config:third")
    login = kube.login(None)
    assert (login.context, login.namespace, kube.source()) == ("x", "default", "empty:a/config:b/config:third")
    server = login.server
    assert (server.url, server.server_name, server.proxy) == ("https://127.0.0.1:1", "a", None)
    assert header(login) == "Bearer of-b"


def test_a_cluster_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = config(tmp_path, SERVER, {})
    data = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**data, "clusters": []}))
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(UsageError, match="no server for cluster far of context far"):
        kube.login(None)


# Users


def header(login: kube.Login) -> str | None:
    """Return the Authorization header of a request with this login."""
    import requests

    prepared = requests.Request("GET", login.server.url, auth=login.server.auth).prepare()
    return prepared.headers.get("Authorization")


def plugin(folder: Path, script: str) -> dict[str, Any]:
    """Return a kubeconfig user whose plugin is this shell script; the plugin also counts its calls."""
    path = folder / "login"
    path.write_text(f"#!/bin/sh\ncd {folder}\necho >> calls\n{script}\n")
    path.chmod(0o700)
    return {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(path)}}


def gives(token: str) -> str:
    status = {"token": token}
    credential = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
    return f"printf '{json.dumps(credential)}' $(wc -l < calls)"


def id_token() -> str:
    """Return an OpenID Connect token that has not expired; its signature is not checked."""
    claims = json.dumps({"exp": int(time.time()) + 86_400, "sub": "somebody"}).encode()
    parts = (b'{"alg":"none"}', claims, b"x" * 9)
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


@pytest.mark.parametrize(
    ("user", "wanted"),
    [
        ({}, None),
        ({"token": "t0k3n"}, "Bearer t0k3n"),
        ({"tokenFile": "file"}, "Bearer of-file"),
        ({"tokenFile": "file", "token": "t0k3n"}, "Bearer of-file"),
        ({"username": "me", "password": "p:w"}, "Basic " + base64.b64encode(b"me:p:w").decode()),
        ({"token": "t0k3n", "exec": {"apiVersion": "v1", "command": "no-such-plugin"}}, "Bearer t0k3n"),
        ({"auth-provider": {"name": "oidc", "config": {"id-token": (oidc := id_token())}}}, f"Bearer {oidc}"),
    ],
    ids=["anonymous", "token", "token file", "both", "password", "token and plugin", "auth-provider"],
)
def test_every_kind_of_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: dict[str, Any], wanted: str | None
) -> None:
    (tmp_path / "file").write_text("of-file\n")
    monkeypatch.setenv("KUBECONFIG", str(config(tmp_path, SERVER, user)))
    assert header(kube.login(None)) == wanted


def test_an_auth_provider_that_gives_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for provider, hint in (
        ({"name": "azure"}, "log in with a plugin"),
        ({"name": "oidc", "config": {}}, "log in again"),
    ):
        monkeypatch.setenv("KUBECONFIG", str(config(tmp_path, SERVER, {"auth-provider": provider})))
        with pytest.raises(NotAuthorised, match=f"the auth-provider of context far returns no token.*: {hint}"):
            kube.login(None)


def test_a_plugin_beside_the_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = plugin(tmp_path, gives("t0k3n"))
    user["exec"]["command"] = "./login"
    monkeypatch.setenv("KUBECONFIG", str(config(tmp_path, SERVER, user)))
    assert header(kube.login(None)) == "Bearer t0k3n"


def test_a_login_does_not_import_the_kubernetes_package(tmp_path: Path) -> None:
    code = "import sys; from client.kube.login import login; login(None); sys.exit('kubernetes' in sys.modules)"
    env = {**os.environ, "KUBECONFIG": str(config(tmp_path, SERVER, {"token": "t"}))}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


# Certificates


def certificates(folder: Path, name: str = "server") -> dict[str, Any]:
    """Create a CA without key identifiers, as old clusters have, and a server certificate; return cluster values."""
    request = "[req]\ndistinguished_name=name\ndefault_bits=2048\n[name]\n"
    (folder / "ca.conf").write_text(f"{request}[ca]\nbasicConstraints=critical,CA:true\n")
    (folder / "san").write_text(f"subjectAltName=IP:127.0.0.1,DNS:{name}\nauthorityKeyIdentifier=none\n")
    for command in (
        "openssl req -x509 -nodes -subj /CN=ca -config ca.conf -extensions ca -keyout ca.key -out ca.pem",
        "openssl req -new -nodes -subj /CN=server -config ca.conf -keyout key.pem -out request",
        "openssl x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -extfile san -out server.pem",
    ):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return {"certificate_authority_data": base64.b64encode((folder / "ca.pem").read_bytes()).decode()}


def test_an_old_clusters_ca_is_trusted_as_kubectl_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, create = certificates(tmp_path), ssl.create_default_context

    def as_of_python_3_13(*args: Any, **options: Any) -> ssl.SSLContext:
        made = create(*args, **options)
        made.verify_flags |= ssl.VERIFY_X509_STRICT
        return made

    monkeypatch.setattr(ssl, "create_default_context", as_of_python_3_13)
    with serving(lambda *_: (200, {}, b"{}"), tls=(tmp_path / "server.pem", tmp_path / "key.pem")) as url:
        set_cluster(path := config(tmp_path, url, {"token": "t"}), **cluster)
        monkeypatch.setenv("KUBECONFIG", str(path))
        login = kube.login("far")
        assert Api(login).get("/version") == {}
        assert login.server.tls
        login.server.tls.verify_flags |= ssl.VERIFY_X509_STRICT
        with pytest.raises(Unreachable, match="certificate-authority of its cluster in the kubeconfig"):
            Api(login).get("/version")


def test_a_notebooks_own_client_keeps_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kubernetes import client
    from kubernetes import config as own

    user = {"auth-provider": {"name": "oidc", "config": {"id-token": id_token()}}}  # uses the kubernetes package
    set_cluster(path := config(tmp_path, SERVER, user), **certificates(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(path))
    own.load_kube_config(str(path), client_configuration=(theirs := client.Configuration()))
    before = set(os.listdir(tempfile.gettempdir()))
    kube.login("far")
    assert Path(str(theirs.ssl_ca_cert)).read_bytes() == (tmp_path / "ca.pem").read_bytes()
    assert set(os.listdir(tempfile.gettempdir())) <= before


@contextmanager
def temporary(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Use an empty folder for temporary files."""
    (folder / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "tmp"))
    yield folder / "tmp"


@pytest.mark.parametrize("kind", ["data", "files"])
def test_a_client_certificate_is_used_and_never_has_a_name_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    cluster, load, links = certificates(tmp_path), ssl.SSLContext.load_cert_chain, list[int]()

    def record(self: ssl.SSLContext, *paths: str) -> None:
        links.extend(os.stat(path).st_nlink for path in paths)
        load(self, *paths)

    def answer(handler: Any, _: bytes) -> tuple[int, dict[str, str], bytes]:
        return 200, {}, json.dumps(handler.connection.getpeercert()).encode()

    user = {"client-certificate": "server.pem", "client-key": "key.pem"}
    if kind == "data":
        user = {f"{key}-data": base64.b64encode((tmp_path / file).read_bytes()).decode() for key, file in user.items()}
    tls = (tmp_path / "server.pem", tmp_path / "key.pem")
    with temporary(tmp_path, monkeypatch) as folder, serving(answer, tls, client_ca=tmp_path / "ca.pem") as url:
        monkeypatch.setenv("KUBECONFIG", str(path := config(tmp_path, url, user)))
        set_cluster(path, **cluster)
        monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", record)
        login = kube.login(None)
        monkeypatch.undo()
        peer = Api(login).get("/version")
        assert peer and peer["subject"] == [[["commonName", "server"]]]
        assert (links, os.listdir(folder)) == ([0, 0], [])


@pytest.mark.parametrize(
    "user",
    [
        {"client-certificate": "missing", "client-key": "missing"},
        {"client-certificate-data": "bm90IGEgY2VydGlmaWNhdGU=", "client-key-data": "bm90IGEga2V5"},
        {"client-certificate-data": "%", "client-key-data": "!"},
        {"client-certificate-data": "bm90IGEgY2VydGlmaWNhdGU="},
    ],
)
def test_a_certificate_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: dict[str, str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(config(tmp_path, SERVER, user)))
    with pytest.raises(UsageError, match="cannot be (read|used) .*: log in again"):
        kube.login(None)


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
        api = Api(kube.login("far"))
        assert (calls(), api.get("/version") is not None, calls()) == (1, True, 2)
        with pytest.raises(NotAuthorised):
            api.get("/ray")  # Ray refuses Ray's token: the login is still valid
        assert calls() == 2
        taken.clear()
        with pytest.raises(NotAuthorised, match="log in again"):
            api.get("/version")
        assert calls() == 3
        (tmp_path / "login").unlink()
        with pytest.raises(Unreachable, match="the login plugin .*/login of context far cannot be run"):
            api.get("/version")  # callers retry


# In a pod


def test_in_a_pod_the_api_server_is_reached_without_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = certificates(tmp_path, DECIMAL_LOOPBACK)
    (tmp_path / "ca.pem").rename(tmp_path / "ca.crt")
    (tmp_path / "token").write_text("t0k3n")
    (tmp_path / "namespace").write_text("team")

    def answer(handler: Any, _: bytes) -> tuple[int, dict[str, str], bytes]:
        assert handler.headers["Authorization"] == "Bearer t0k3n"
        status = 403 if "Upgrade" in handler.headers else 200
        return status, {"Content-Type": "application/json"}, json.dumps({"message": "no exec"}).encode()

    def ask(login: kube.Login) -> None:
        assert Api(login).get("/version") == {"message": "no exec"}
        with pytest.raises(Forbidden, match="no exec"):
            stream.connect(login, "/exec", [], ["v4.channel.k8s.io"])

    with serving(answer, (tmp_path / "server.pem", tmp_path / "key.pem")) as url:
        port = url.rpartition(":")[2]
        with cutter("127.0.0.1", int(port), is_proxy=True) as proxy:
            for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
                monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
                monkeypatch.setenv(name.lower(), f"http://127.0.0.1:{proxy.port}")
            for name in ("NO_PROXY", "no_proxy"):
                monkeypatch.delenv(name, raising=False)
            path = config(tmp_path, f"https://{DECIMAL_LOOPBACK}:{port}", {"token": "t0k3n"})
            set_cluster(path, **cluster)
            monkeypatch.setenv("KUBECONFIG", str(path))
            ask(kube.login("far"))
            assert proxy.asked == [f"CONNECT {DECIMAL_LOOPBACK}:{port}"] * 2  # proves that the proxy works
            proxy.asked.clear()
            monkeypatch.setattr(kube, "_ACCOUNT", tmp_path)
            monkeypatch.setenv("KUBERNETES_SERVICE_HOST", DECIMAL_LOOPBACK)
            monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
            login = kube.login(None)
            assert (login.context, login.namespace) == (None, "team")
            ask(login)
            assert proxy.asked == []
