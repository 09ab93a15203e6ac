"""`up` and `down` without a cluster: which context and chart they use, and which values they pass to helm. The tests
with a real cluster are in tests/e2e."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.chart.helm import Helm, find_chart
from client.errors import ClientError, UsageError
from tests.client.server import Handler, serving
from tests.client.test_login import config
from tests.conftest import ROOT, Cli, on_terminal

TOOL = shutil.which("helm") or shutil.which("helm", path=str(ROOT / "build" / "tools"))
FAR = "https://127.0.0.2:9"  # nothing listens there

# A stand-in for helm with a cluster: `upgrade` renders the chart with its arguments instead of installing it.
RENDERING = f"""#!{sys.executable}
import json, pathlib, subprocess, sys
real, given = {TOOL!r}, sys.argv[1:]
if given[0] != "upgrade":
    sys.exit(subprocess.run([real, *given]).returncode)
kept = given[1:3]
rest = iter(given[3:])
for word in rest:
    if word in ("--values", "--set"):
        kept += [word, next(rest)]
done = subprocess.run([real, "template", *kept], stdin=sys.stdin, capture_output=True, text=True)
sys.stderr.write(done.stderr)
pathlib.Path(__file__).with_name("rendered").write_text(done.stdout)
info = {{"status": "deployed", "last_deployed": "2026-01-01T00:00:00Z"}}
print(json.dumps({{"name": "ray", "namespace": "n", "version": 1, "info": info, "manifest": done.stdout}}))
sys.exit(done.returncode)
"""
TEMPLATE = "kind: RayCluster\nmetadata:\n  name: it\nvalues: {{ .Values | toJson }}\n"
NAMED = "name: x\nversion: 1.0.0\napiVersion: v2\n"
LOCAL = {"values-local.yaml": ""}
SETS = [
    "a=1,b=true,c=null,d=text,e=1.5,f=",
    "list={x,y,3}",
    "deep.er.key=5",
    r"dotted\.key.in=a\,b",
    "items[1].name=second",
    "gone=null",
    "big=12345678901",
    "zero=007",
    "text=with spaces 'and' \"quotes\" $HOME",
]


def chart(folder: Path, **files: str) -> Path:
    """Write a chart whose only object contains the chart's values."""
    path = folder / "some chart"
    (path / "templates").mkdir(parents=True)
    (path / "Chart.yaml").write_text("apiVersion: v2\nname: some\nversion: 1.0.0\n")
    (path / "values.yaml").write_text("gone: 1\nlist: [z]\nlayer: chart\n")
    (path / "values-local.yaml").write_text("layer: local\nlocal: true\n")
    (path / "templates" / "one.yaml").write_text(TEMPLATE)
    for name, text in files.items():
        (path / name).write_text(text)
    return path


@pytest.fixture
def helm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Helm:
    if not TOOL:
        pytest.skip("no helm: run `make charts`")
    tool = tmp_path / "bin" / "helm"
    tool.parent.mkdir()
    tool.write_text(RENDERING)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    return Helm("somewhere", "n")


def install(helm: Helm, where: Path | str, *sets: str, files: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the values that the chart was rendered with."""
    found = helm.install("local", find_chart(str(where), files), files, sets, 60, lambda: None)
    assert found and found["metadata"]["name"] == "it"
    values: dict[str, Any] = found["values"]
    return values


def test_values_are_those_of_helm(helm: Helm, tmp_path: Path) -> None:
    path = chart(tmp_path)
    own = tmp_path / "own.yaml"
    own.write_text("layer: own\nlist: [own]\nd: from the file\n")
    command = [str(TOOL), "template", "ray", str(path), "-f", str(path / "values-local.yaml"), "-f", str(own)]
    for item in SETS:
        command += ["--set", item]
    wanted = yaml.safe_load(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["values"]
    got = install(helm, path, *SETS, files=(str(own),))
    assert got == wanted
    assert got["a"] == 1 and got["b"] is True and got["e"] in (1.5, "1.5") and got["d"] == "text"
    assert got["list"] == ["x", "y", 3] and got["deep"] == {"er": {"key": 5}} and got["dotted.key"] == {"in": "a,b"}
    assert "gone" not in got and got["layer"] == "own" and got["local"] is True
    assert got["text"] == "with spaces 'and' \"quotes\" $HOME"


def test_a_config_is_between_the_targets_values_and_those_of_the_user(helm: Helm, run: Cli, tmp_path: Path) -> None:
    path = chart(tmp_path, **{"values-local.yaml": "workers: {cpu: 1, replicas: 1, spot: true}\nhead: {cpu: 1}\n"})
    (path / "templates" / "one.yaml").write_text(TEMPLATE.replace("RayCluster", "ConfigMap"))  # so `up` does not wait
    (tmp_path / "cluster.yaml").write_text("{num_workers: 2, worker_cpu: 2, head_cpu: 2}")
    (tmp_path / "own.yaml").write_text("workers: {cpu: 3}\n")
    with serving(lambda *_: (200, {}, b"{}")) as server:
        env = {"KUBECONFIG": str(config(tmp_path, server, {})), "RAY_NUM_WORKERS": "4"}
        given = ("--config", "cluster.yaml", "-f", "own.yaml", "--set", "head.cpu=5", "--timeout", "60")
        done = run("up", "local", "--context", "far", "--chart", str(path), *given, env=env)
    assert done.returncode == 0, done.stderr
    assert b"RAY_NUM_WORKERS=4 overrides num_workers of cluster.yaml\n" in done.stderr
    values = yaml.safe_load((tmp_path / "bin" / "rendered").read_text())["values"]
    assert values["head"] == {"cpu": 5}
    assert values["workers"] == {"cpu": 3, "replicas": 4, "maxReplicas": 4, "spot": True}
    assert not list(Path(os.environ["TMPDIR"]).glob("*.yaml"))


def test_a_chart_in_an_archive(helm: Helm, tmp_path: Path) -> None:
    archive = tmp_path / "some-1.0.0.tgz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(chart(tmp_path), "some")
    assert install(helm, archive, "a=1") == {"a": 1, "gone": 1, "layer": "local", "list": ["z"], "local": True}
    (tmp_path / "no.tgz").write_text("nothing")
    with pytest.raises(UsageError, match="not the archive of a chart"):
        install(helm, tmp_path / "no.tgz")


def test_several_mistakes_are_a_list(helm: Helm, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}}
    path = chart(tmp_path, **{"values.schema.json": json.dumps(schema)})
    with pytest.raises(UsageError) as two:
        install(helm, path, "a=1", "b=2")
    lines = str(two.value).splitlines()
    assert lines[0] == "helm refuses 2 of the values:"
    assert {line[:14] for line in lines[1:]} == {"  - some: at '"} and len(lines) == 3
    with pytest.raises(UsageError, match=r"^helm refuses the values: some: at '/a': .*string$"):
        install(helm, path, "a=1")
    with pytest.raises(
        UsageError, match=r'^helm refuses the values: failed parsing --set data: key "abc" has no value$'
    ):
        install(helm, path, "abc")
    (path / "templates" / "one.yaml").write_text('{{ fail "2 mistake(s) in the values:\\n  - one\\n  - two" }}')
    with pytest.raises(UsageError, match=r"^helm refuses 2 of the values:\n  - one\n  - two$"):
        install(helm, path)


@pytest.mark.parametrize(
    ("said", "kind", "part"),
    [
        ("Error: INSTALLATION FAILED: Kubernetes cluster unreachable: no", 69, "helm: Kubernetes cluster unreachable"),
        ('Error: UPGRADE FAILED: x is forbidden: User "me" cannot get secrets', 77, 'User "me" cannot'),
        ("Error: UPGRADE FAILED: post-upgrade hooks failed: timed out waiting for the condition", 124, "hooks failed"),
        ('Error: UPGRADE FAILED: "ray" has no deployed releases', 1, "run `down`"),
        ("WARNING: a file\nError: INSTALLATION FAILED: Service x exists and cannot be imported", 1, "helm: Service x"),
        ("", 1, "it failed without a message"),
    ],
)
def test_what_helm_says(helm: Helm, said: str, kind: int, part: str) -> None:
    error = helm._error(said)
    assert error.exit_code == kind and part in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("files", "given", "says"),
    [
        ({}, "nowhere", "nowhere is not a chart"),
        ({}, "https://charts.example/x", "oci://"),
        (
            {**LOCAL, "Chart.yaml": f"{NAMED}dependencies: [{{name: ray-cluster, version: 1.0.0}}]\n"},
            ".",
            "(ray-cluster): run `make charts`",
        ),
        ({**LOCAL, "Chart.yaml": "- 1\n"}, ".", "cannot be used: Error: cannot load Chart.yaml"),
        ({**LOCAL, "Chart.yaml": "name: x\n"}, ".", "cannot be used: Error: validation: chart.metadata"),
        ({"Chart.yaml": NAMED}, ".", "has no values-local.yaml"),
    ],
)
def test_charts_that_cannot_be_used(
    helm: Helm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], given: str, says: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as refused:
        install(helm, given)
    assert says in str(refused.value)


def test_the_clones_chart_without_its_dependencies(helm: Helm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "charts" / "ray-workload"
    shutil.copytree(ROOT / "charts" / "ray-workload", copy, ignore=shutil.ignore_patterns("*.tgz"))
    monkeypatch.setattr("client.chart.helm._CHART", copy)
    with pytest.raises(UsageError, match=r"\(kuberay-operator, ray-cluster\): run `make charts`"):
        helm.install("local", find_chart(None, ()), (), (), 60, lambda: None)
    shutil.rmtree(copy)
    with pytest.raises(UsageError, match="not in a clone with a chart: use --chart"):
        find_chart(None, ())


def test_without_helm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("client.chart.helm._CLONE", tmp_path)
    with pytest.raises(ClientError, match="helm is not on PATH: install Helm"):
        Helm("somewhere", "n")
    built = tmp_path / "build" / "tools" / "helm"
    built.parent.mkdir(parents=True)
    built.write_text("#!/bin/sh\necho no version\n")
    built.chmod(0o755)
    with pytest.raises(ClientError, match="does not report its version"):
        Helm("somewhere", "n").find()


@pytest.mark.parametrize("command", ["up", "down"])
@pytest.mark.parametrize(
    ("target", "context", "server", "args", "code", "says"),
    [
        ("local", "far", "https://203.0.113.1:9", (), 2, "current context far is not a local cluster"),
        ("local", "gke_p_l_c", "https://203.0.113.1:9", (), 2, "current context gke_p_l_c is not a local cluster"),
        ("local", "far", FAR, (), 2, "current context far is not a local cluster"),  # it may be a tunnel
        ("gke", "far", "https://203.0.113.1:9", (), 2, "far is not known to be on GKE"),
        ("gke", "kind-x", FAR, (), 2, "kind-x is not known to be on GKE"),
        ("local", "far", FAR, ("--context", "other"), 2, "has no context other"),
        # These contexts are used: the error is that their server cannot be reached.
        ("local", "kind-x", FAR, (), 69, "using the current context, kind-x"),
        ("local", "gke_p_l_c", FAR, ("--context", "gke_p_l_c"), 69, "127.0.0.2:9 does not answer"),
        ("gke", "gke_p_l_c", FAR, (), 69, "using the current context, gke_p_l_c"),
        ("gke", "far", FAR, ("--context", "far"), 69, "127.0.0.2:9 does not answer"),
    ],
)
def test_which_cluster_is_meant(
    run: Cli,
    helm: Helm,
    tmp_path: Path,
    command: str,
    target: str,
    context: str,
    server: str,
    args: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    path = chart(tmp_path)
    shutil.copy(path / "values-local.yaml", path / "values-gke.yaml")
    more = ("--chart", str(path)) if command == "up" else ("--yes",)
    done = run(command, target, *args, *more, env={"KUBECONFIG": str(config(tmp_path, server, {}, context))})
    assert (done.returncode, done.stdout) == (code, b""), done.stderr
    assert says in done.stderr.decode()


# A stand-in for helm with an installed release; it records all other commands.
KNOWING = f"""#!{sys.executable}
import json, pathlib, sys
if sys.argv[1] == "version":
    print("v3.22.0", end="")
elif sys.argv[1] == "status":
    info = {{"status": "deployed", "last_deployed": "2026-01-01T00:00:00Z"}}
    manifest = "kind: RayCluster\\nmetadata: {{name: it}}"
    print(json.dumps({{"name": "ray", "namespace": "ray", "version": 1, "info": info, "manifest": manifest}}))
else:
    with open(pathlib.Path(__file__).parent / "told", "a") as told:
        told.write(sys.argv[1] + "\\n")
"""
CLAIMS = "/api/v1/namespaces/ray/persistentvolumeclaims"
CLUSTER = {
    "metadata": {"namespace": "ray", "name": "it"},
    "spec": {"headGroupSpec": {"template": {"spec": {"containers": [{}]}}}},
}


class Cluster:
    """An API server with a RayCluster, a PersistentVolumeClaim, and a Ray dashboard with a running job."""

    def __init__(self, folder: Path) -> None:
        kind = {"resource": "persistentvolumeclaims", "responseKind": {"kind": "PersistentVolumeClaim"}}
        version = {"version": "v1", "resources": [{**kind, "scope": "Namespaced", "verbs": ["list"]}]}
        self.requests: list[tuple[str, str]] = []
        self.objects: dict[str, object] = {
            "/version": {},
            "/api": {"items": [{"versions": [version]}]},
            CLAIMS: {"items": [{"metadata": {"name": "data"}}]},
            f"{CLAIMS}/data": {},
            # The operator's claim for headRecovery has no label of the release.
            f"{CLAIMS}?labelSelector=ray.io%2Fcluster%3Dit": {"items": [{"metadata": {"name": "it-gcs-pvc"}}]},
            f"{CLAIMS}/it-gcs-pvc": {},
            "/apis/ray.io/v1/namespaces/ray/rayclusters": {"items": [CLUSTER]},
            "/api/v1/namespaces/ray/services/http:it-head-svc:8265/proxy/api/jobs/": [
                {"submission_id": "one", "status": "RUNNING"},
                {"submission_id": "two", "status": "SUCCEEDED"},
            ],
        }
        self.helm = folder / "knowing"
        self.helm.mkdir()
        (self.helm / "helm").write_text(KNOWING)
        (self.helm / "helm").chmod(0o755)

    def answer(self, request: Handler, _: bytes) -> tuple[int, Mapping[str, str], bytes]:
        path = request.path.partition("?")[0]
        self.requests.append((request.command, path))
        if request.command == "DELETE":
            self.objects.pop(path)
        found = self.objects.get(request.path, self.objects.get(path, {"items": []} if "?" in request.path else None))
        return 404 if found is None else 200, {"Content-Type": "application/json"}, json.dumps(found).encode()

    def removed(self) -> tuple[list[str], list[str]]:
        """Return the recorded helm commands and the deleted paths."""
        told = self.helm / "told"
        lines = told.read_text().split() if told.exists() else []
        return lines, [path for method, path in self.requests if method == "DELETE"]


def down(folder: Path, server: str, helm: Path, *args: str, answer: str | None = None) -> tuple[int, str]:
    """Run `down`, on a terminal if there is an answer to type. Returns its exit code and its stderr."""
    command = [sys.executable, "-m", "client", "down", "local", "--context", "far", *args]
    env = {**os.environ, "KUBECONFIG": str(config(folder, server, {})), "PATH": f"{helm}:{os.environ['PATH']}"}
    if answer is None:
        done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        return done.returncode, done.stderr
    return on_terminal(command, answer, env=env)


def test_down_asks_on_a_terminal(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    with serving(cluster.answer) as server:
        code, said = down(tmp_path, server, cluster.helm, "--purge", answer="n\n")
        assert code == 1 and "nothing was removed" in said, said
        question = (
            "This removes release ray in namespace ray of context far, where 1 job is running:\n"
            "  PersistentVolumeClaim/data and its data\n"
            "  PersistentVolumeClaim/it-gcs-pvc and its data\n"
            "Continue? [y/N]: "
        )
        assert question in said, said
        assert cluster.removed() == ([], [])

        code, said = down(tmp_path, server, cluster.helm, answer="\n")
        assert code == 1 and "running:\nContinue? [y/N]: " in said, said
        assert cluster.removed() == ([], [])

        code, said = down(tmp_path, server, cluster.helm, "--purge", answer="y\n")
        assert code == 0 and "is removed: only CRDs remain" in said, said
        assert cluster.removed() == (["uninstall"], [f"{CLAIMS}/data", f"{CLAIMS}/it-gcs-pvc"])


def test_down_without_a_terminal_needs_yes(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    with serving(cluster.answer) as server:
        code, said = down(tmp_path, server, cluster.helm, "--purge")
        assert code == 2 and said.endswith("there is no terminal: add --yes\n"), said
        assert (cluster.removed(), cluster.requests) == (([], []), [])

        code, said = down(tmp_path, server, cluster.helm, "--yes")
        assert code == 0 and "PersistentVolumeClaim/data is kept" in said and "This removes" not in said, said
        assert cluster.removed() == (["uninstall"], [])


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("up", "embedded", "--set", "a=1"), "up embedded does not take --set"),
        (("up", "embedded", "--timeout", "15m"), "up embedded does not take --timeout"),
        (("down", "embedded", "--purge", "--context", "x"), "down embedded does not take --context, --purge"),
        (("up", "local", "--timeout", "soon"), "'soon' is not a duration"),
        (("up", "local", "-f", "nope.yaml"), "-f nope.yaml: there is no such file"),
        (("up", "local", "-f", "-"), "-f -: there is no such file"),
        (("up", "local", "--chart", "nope"), "nope is not a chart"),
        (("up", "nowhere"), "'nowhere' is not one of"),
    ],
)
def test_options_that_are_wrong(run: Cli, args: tuple[str, ...], says: str) -> None:
    done = run(*args)
    assert (done.returncode, done.stdout) == (2, b"")
    assert says in done.stderr.decode() and b"internal error" not in done.stderr


def test_help_and_list_are_light(run: Cli) -> None:
    for command in (["--help"], ["up", "--help"], ["down", "--help"]):
        done = run(*command, env={"PYTHONPROFILEIMPORTTIME": "1"})
        imported = {line.rpartition(b"|")[2].strip() for line in done.stderr.splitlines()}
        assert b"client.cli.up" in imported
        assert not imported & {b"pyhelm3", b"asyncio", b"kubernetes", b"requests", b"client.chart.helm"}
