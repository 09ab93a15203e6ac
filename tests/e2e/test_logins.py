"""The logins of a kubeconfig on a real API server: plugins, files, and logins that expire while a job runs."""

import base64
import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e._cluster import Cluster, install
from tests.e2e._cutter import Cutter, cutter
from tests.e2e.conftest import apply, kubectl, new_namespace, unproved, until
from tests.e2e.test_client import driver
from tests.e2e.test_pod_commands import account, api_server, begun, checks, client

ACCOUNT = "person"
SECONDS = 20
LOG = "".join(f"{n}\n" for n in range(SECONDS * 20)).encode()
NUMBERS = "for n in range(30_000): print(n)"
VERSION = "client.authentication.k8s.io/v1"
CREDENTIAL = f'"apiVersion":"{VERSION}","kind":"ExecCredential","status"'
EXPIRES = (
    f"""printf '{{{CREDENTIAL}:{{"token":"%s","expirationTimestamp":"%s"}}}}' """
    """"$(cat token)" "$(date -u -d '+8 seconds' +%FT%TZ)" """
)
EXEC = {"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["get", "create"]}
SUBJECT = ("submitter.subjects[0].kind=ServiceAccount", f"submitter.subjects[0].name={ACCOUNT}")
REFUSED = [
    ["list"],
    ["submit", "--", "true"],
    ["exec", "--", "true"],
    ["doctor"],
    ["up", "local"],
    ["down", "local", "--yes"],
]
PARTS = {"clientCertificateData": "client-certificate-data", "clientKeyData": "client-key-data"}


@pytest.fixture(scope="module")
def ray() -> Iterator[Cluster]:
    with new_namespace("logins") as where:
        apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": where}})
        made = install(where, *SUBJECT)
        made.wait()
        yield made


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """Write a script that runs long enough for a login to expire."""
    (tmp_path / "work").mkdir()
    path = tmp_path / "work" / "slow.py"
    path.write_text(f"import time\nfor n in range({SECONDS * 20}):\n    print(n, flush=True)\n    time.sleep(0.05)\n")
    return path


def token(ray: Cluster, *args: str) -> str:
    return kubectl("create", "token", ACCOUNT, "-n", ray.namespace, *args).stdout.strip()


def private(path: Path, content: str, mode: int = 0o600) -> Path:
    """Write a file for this user only, atomically."""
    new = path.with_name(f"{path.name}.new")
    new.touch(mode)
    new.write_text(content)
    return new.rename(path)


def kubeconfig(folder: Path, user: Mapping[str, Any]) -> Path:
    """Write the current kubeconfig with another user."""
    data = json.loads(kubectl("config", "view", "--raw", "--minify", "-o", "json").stdout)
    data["users"][0]["user"] = user
    return private(folder / "kubeconfig", json.dumps(data))


def plugin(folder: Path, script: str) -> Path:
    """Write a kubeconfig whose plugin is this shell script; the plugin also counts its calls."""
    path = folder / "login"
    private(path, f'#!/bin/sh\ncd "{folder}"\necho $$ >> calls\n{script}\n', 0o700)
    return kubeconfig(folder, {"exec": {"apiVersion": VERSION, "command": str(path), "interactiveMode": "Never"}})


def calls(folder: Path) -> list[int]:
    """Return the process IDs of all calls of a plugin so far."""
    path = folder / "calls"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def answer(folder: Path, name: str = "answer", /, **status: str) -> Path:
    """Write the output of a plugin to a file."""
    return private(folder / name, json.dumps({"apiVersion": VERSION, "kind": "ExecCredential", "status": status}))


def own_certificate() -> dict[str, str]:
    """Return the kubeconfig's own certificate as a plugin would print it."""
    user = json.loads(kubectl("config", "view", "--raw", "--minify", "-o", "json").stdout)["users"][0]["user"]
    if not user.get("client-certificate-data") or not user.get("client-key-data"):
        unproved("a login by certificate: the current kubeconfig has none")
    return {ours: base64.b64decode(user[theirs]).decode() for ours, theirs in PARTS.items()}


def foreign_certificate(folder: Path) -> dict[str, str]:
    """Create a self-signed certificate that has expired."""
    make = "openssl req -newkey rsa:2048 -nodes -subj /CN=x -keyout key -out request"
    for command in (make, "openssl x509 -req -in request -signkey key -days -1 -out certificate"):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return dict(zip(PARTS, ((folder / name).read_text() for name in ("certificate", "key")), strict=True))


def taken(login: str) -> bool:
    """Return whether the API server accepts a token."""
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": login}}
    done = kubectl("create", "-f", "-", "-o", "json", input=json.dumps(review))
    return bool(json.loads(done.stdout)["status"].get("authenticated"))


def one_line(done: "subprocess.CompletedProcess[bytes]", code: int, *words: str) -> None:
    assert (done.returncode, done.stderr.count(b"\n")) == (code, 1), done.stderr
    assert all(word in done.stderr.decode() for word in words), done.stderr


# Valid logins


def test_a_plugin_with_a_token(ray: Cluster, tmp_path: Path) -> None:
    login = token(ray)
    answer(tmp_path, token=login)
    path = plugin(tmp_path, 'echo "$KUBERNETES_EXEC_INFO" > info; echo "$OWN $1" > own; cat answer')
    data = json.loads(path.read_text())
    more = {"args": ["word"], "env": [{"name": "OWN", "value": "here"}], "provideClusterInfo": True}
    data["users"][0]["user"]["exec"] |= {"command": "./login", **more}  # in the kubeconfig's folder
    private(path, json.dumps(data))
    done = client(ray, "submit", "--", "python", "-c", NUMBERS, kubeconfig=path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert driver(done) == "".join(f"{n}\n" for n in range(30_000)).encode()
    assert len(calls(tmp_path)) == 1 and login.encode() not in done.stderr + done.stdout
    info = json.loads((tmp_path / "info").read_text())
    assert (info["apiVersion"], info["kind"], info["spec"]["interactive"]) == (VERSION, "ExecCredential", False)
    assert info["spec"]["cluster"]["server"] == data["clusters"][0]["cluster"]["server"]
    assert (tmp_path / "own").read_text() == "here word\n"


def keys() -> set[Path]:
    """Return the private keys among the temporary files."""
    return {p for p in Path(os.environ["TMPDIR"]).iterdir() if p.is_file() and b"PRIVATE KEY" in p.read_bytes()}


def test_a_plugin_with_a_certificate(ray: Cluster, tmp_path: Path) -> None:
    before = keys()  # of other tests
    answer(tmp_path, **own_certificate())
    done = client(ray, "submit", "--", "echo", "hello", kubeconfig=plugin(tmp_path, "cat answer"), timeout=120)
    assert (done.returncode, driver(done)) == (0, b"hello\n"), done.stderr
    assert (len(calls(tmp_path)), keys() - before) == (1, set())


def test_a_plugin_does_not_read_what_is_meant_for_a_pod(ray: Cluster, tmp_path: Path) -> None:
    account(ray, ACCOUNT, [EXEC], tmp_path)
    answer(tmp_path, token=token(ray))
    data = bytes(range(256)) * 1000
    done = client(ray, "exec", "--", "cat", stdin=data, kubeconfig=plugin(tmp_path, "cat > stolen; cat answer"))
    assert (done.returncode, done.stdout == data) == (0, True), done.stderr
    assert (tmp_path / "stolen").read_bytes() == b""


def test_a_token_in_a_file(ray: Cluster, tmp_path: Path) -> None:
    path = private(tmp_path / "token", token(ray) + "\n")  # with the newline that editors add
    done = client(ray, "submit", "--", "echo", "hello", kubeconfig=kubeconfig(tmp_path, {"tokenFile": str(path)}))
    assert (done.returncode, driver(done)) == (0, b"hello\n"), done.stderr


@pytest.mark.parametrize("named_by", ["kubeconfig", "environment"])
def test_an_api_server_behind_a_proxy_under_another_name(
    ray: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named_by: str
) -> None:
    data = json.loads(kubectl("config", "view", "--raw", "--minify", "-o", "json").stdout)

    def known_as(name: str, proxy: Cutter) -> Path:
        there = {"server": "https://api.invalid", "tls-server-name": name}
        if named_by == "kubeconfig":
            there["proxy-url"] = f"http://127.0.0.1:{proxy.port}"
            monkeypatch.setenv("NO_PROXY", "api.invalid")  # applies only to proxies from the environment
        else:
            monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        data["clusters"][0]["cluster"] |= there
        return private(tmp_path / "kubeconfig", json.dumps(data))

    with cutter(*api_server(), is_proxy=True) as proxy:
        by = known_as("kubernetes.default", proxy)
        done = client(ray, "submit", "--", "echo", "hello", kubeconfig=by)
        assert (done.returncode, driver(done)) == (0, b"hello\n"), done.stderr
        done = client(ray, "exec", "--", "cat", stdin=b"hello", kubeconfig=by)
        assert (done.returncode, done.stdout) == (0, b"hello"), done.stderr
        code, found = checks(ray, kubeconfig=by)
        assert code == 0, found
        by = known_as("api.invalid", proxy)
        one_line(
            client(ray, "list", kubeconfig=by),
            69,
            "the certificate of https://api.invalid is not trusted",
            "kubeconfig",
        )
    assert set(proxy.asked) == {"CONNECT api.invalid:443"}


# Logins that expire while a job runs


def test_a_plugin_is_asked_again_when_its_token_expires(ray: Cluster, slow: Path, tmp_path: Path) -> None:
    private(tmp_path / "token", token(ray))
    args = ("submit", "--working-dir", str(slow.parent), str(slow))
    done = client(ray, *args, kubeconfig=plugin(tmp_path, EXPIRES), timeout=120)
    assert done.returncode == 0 and done.stdout.endswith(b"\n" + LOG), done.stderr
    assert b"connection lost" not in done.stderr
    assert 2 <= len(calls(tmp_path)) <= 8, "the plugin must run every 8 s, not for each request"


@pytest.mark.parametrize("kind", ["plugin", "file", "kubeconfig"])
def test_a_token_that_is_refused_under_a_job_is_asked_for_again(
    ray: Cluster, slow: Path, tmp_path: Path, kind: str
) -> None:
    bound = f"bound-{kind}"
    kubectl("create", "secret", "generic", bound, "-n", ray.namespace)
    old, new = token(ray, "--bound-object-kind=Secret", f"--bound-object-name={bound}"), token(ray)

    def know(token: str) -> Path:
        if kind == "plugin":
            answer(tmp_path, token=token)
            return plugin(tmp_path, "cat answer")
        if kind == "kubeconfig":
            return kubeconfig(tmp_path, {"token": token})
        return kubeconfig(tmp_path, {"tokenFile": str(private(tmp_path / "token", token))})

    args = ("submit", "--working-dir", str(slow.parent), str(slow))
    with begun(ray, *args, kubeconfig=know(old), stdin=subprocess.DEVNULL) as process:
        assert process.stdout and process.stderr
        read = b""
        while b"\n20\n" not in read:
            assert (line := process.stdout.readline()), process.stderr.read()
            read += line
        know(new)
        kubectl("delete", "secret", bound, "-n", ray.namespace)
        until("the old token is refused", lambda: not taken(old), timeout=15)
        assert process.poll() is None, "the job ended too early"
        read, err = read + process.stdout.read(), process.stderr.read()
        assert process.wait(60) == 0, err
    assert read.endswith(b"\n" + LOG) and b"connection lost" not in err, (read, err)
    assert len(calls(tmp_path)) == (2 if kind == "plugin" else 0)
    one_line(client(ray, "list", kubeconfig=kubeconfig(tmp_path, {"token": old})), 77, "log in again")


def test_a_certificate_that_is_refused_is_asked_for_again(ray: Cluster, tmp_path: Path) -> None:
    answer(tmp_path, "first", **foreign_certificate(tmp_path))
    answer(tmp_path, "second", **own_certificate())
    by = plugin(tmp_path, "if [ -f first ]; then cat first; rm first; else cat second; fi")
    done = client(ray, "submit", "--", "echo", "hello", kubeconfig=by)
    assert (done.returncode, driver(done)) == (0, b"hello\n"), done.stderr
    assert len(calls(tmp_path)) == 2


def test_a_plugin_that_fails_for_a_while_under_a_job(ray: Cluster, slow: Path, tmp_path: Path) -> None:
    private(tmp_path / "token", token(ray))
    script = f'n=$(wc -l < calls); if [ $n -gt 1 ] && [ $n -lt 5 ]; then echo "no network" >&2; exit 3; fi; {EXPIRES}'
    args = ("submit", "--working-dir", str(slow.parent), str(slow))
    done = client(ray, *args, kubeconfig=plugin(tmp_path, script), timeout=120)
    assert done.returncode == 0 and done.stdout.endswith(b"\n" + LOG), done.stderr
    assert len(calls(tmp_path)) >= 5
    assert done.stderr.count(b"connection lost") == 1 and b"no network" in done.stderr, done.stderr


# Invalid logins


@pytest.mark.parametrize("args", REFUSED, ids=" ".join)
@pytest.mark.parametrize("kind", ["token", "certificate"])
def test_a_login_that_is_refused(ray: Cluster, tmp_path: Path, args: list[str], kind: str) -> None:
    user = {"token": "n0tatoken"}
    if kind == "certificate":
        foreign = foreign_certificate(tmp_path)
        user = {theirs: base64.b64encode(foreign[ours].encode()).decode() for ours, theirs in PARTS.items()}
    here = kubectl("config", "current-context").stdout.strip()
    on = ["--namespace", ray.namespace, "--context", here] if args[0] in ("up", "down") else []
    done = client(ray, *args, *on, kubeconfig=kubeconfig(tmp_path, user))
    if args == ["doctor"]:
        assert (done.returncode, done.stderr) == (1, b"") and b"log in again" in done.stdout, done.stdout
    else:
        assert done.returncode == 77 and b"log in again" in done.stderr, done.stderr
        assert done.stderr.count(b"\n") == 1, done.stderr
    assert b"n0tatoken" not in done.stdout + done.stderr
    assert len(ray.pods()) == 2


def running(process_id: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_ctrl_c_ends_a_plugin_that_hangs(ray: Cluster, tmp_path: Path) -> None:
    by = plugin(tmp_path, "exec sleep 300")
    with begun(ray, "list", kubeconfig=by, stdin=subprocess.DEVNULL) as process:
        (there,) = until("the plugin runs", lambda: calls(tmp_path))
        assert running(there)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert (process.returncode, err.strip()) == (130, b"ray-workload: interrupted")
    until("the plugin has ended", lambda: not running(there), timeout=5)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo hello", "no ExecCredential"),
        ("echo '[]'", "no ExecCredential"),
        (f"echo '{{{CREDENTIAL}:{{}}}}'", "no ExecCredential"),
        ("""echo '{"apiVersion":"other/v1","kind":"ExecCredential","status":{"token":"t"}}'""", VERSION),
        ("echo first >&2; echo 'you are logged out' >&2; exit 5", "exit code 5, you are logged out"),
    ],
)
def test_a_plugin_that_does_not_know_the_login(ray: Cluster, tmp_path: Path, script: str, words: str) -> None:
    by = plugin(tmp_path, script)
    one_line(client(ray, "list", kubeconfig=by), 77, f"{tmp_path}/login", words, "log in again")
    code, found = checks(ray, kubeconfig=by)
    assert (code, list(found)[-1]) == (1, "kubeconfig") and "log in again" in found["kubeconfig"]["fix"]


def test_a_plugin_that_is_not_installed(ray: Cluster, tmp_path: Path) -> None:
    missing = {"apiVersion": VERSION, "command": "no-such-plugin", "interactiveMode": "Never"}
    for more, words in (({}, "log in"), ({"installHint": "get it\nfrom example.org"}, "get it from example.org")):
        by = kubeconfig(tmp_path, {"exec": missing | more})
        one_line(client(ray, "list", kubeconfig=by), 77, "no-such-plugin", words)


def test_a_context_that_does_not_exist(ray: Cluster) -> None:
    here, wrong = kubectl("config", "current-context").stdout.strip(), "no-such-context"
    for args in (["list"], ["exec", "--", "true"]):
        done = client(ray, args[0], "--address", f"kubernetes://{wrong}/{ray.namespace}/ray", *args[1:])
        one_line(done, 2, wrong, here)
    for command in (["up", "local"], ["down", "local", "--yes"]):
        done = client(ray, *command, "--context", wrong, "--namespace", ray.namespace)
        one_line(done, 2, wrong, here)
