"""ci/charts.py gets the locked dependencies of the chart from each possible source; ci/helm.py finds or builds helm."""

import functools
import http.server
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from ci.charts import DOWNLOAD_SECONDS, digest
from tests.chart.conftest import CHART, USER
from tests.conftest import ROOT

REAL = "https://ray-project.github.io/kuberay-helm/"
CLOSED = "http://127.0.0.1:1/"
BOTH = ["kuberay-operator-1.7.0.tgz", "ray-cluster-1.7.0.tgz"]
HAS = "kuberay-operator 1.7.0, ray-cluster 1.7.0"
Done = subprocess.CompletedProcess[str]
MakeChart = Callable[[str], Path]
Charts = Callable[..., Done]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def call(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> Done:
    given = {k: v for k, v in os.environ.items() if not k.startswith("HELM_")} | (env or {})
    return subprocess.run(command, cwd=cwd, env=given, capture_output=True, text=True, timeout=120, check=False)


def listing(chart: Path) -> list[str]:
    """List the files of charts/, including hidden ones."""
    return sorted(str(p.relative_to(chart)) for p in (chart / "charts").rglob("*")) if chart.is_dir() else []


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


@pytest.fixture(scope="session")
def upstream(dependencies: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the two upstream charts."""
    folder = tmp_path_factory.mktemp("upstream")
    for archive in BOTH:
        with tarfile.open(CHART / "charts" / archive) as packed:
            packed.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def mirror(upstream: Path, helms: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a chart repository with both charts."""
    folder = tmp_path_factory.mktemp("mirror")
    for chart in ("kuberay-operator", "ray-cluster"):
        assert call(helms[0], "package", "-d", folder, upstream / chart).returncode == 0
    with serving(folder) as url:
        assert call(helms[0], "repo", "index", folder, "--url", url).returncode == 0
        yield url


@pytest.fixture
def at(tmp_path: Path) -> MakeChart:
    """Copy Chart.yaml with another repository, and write the matching Chart.lock."""

    def at(url: str) -> Path:
        folder = tmp_path / "copy"
        folder.mkdir()
        text = (CHART / "Chart.yaml").read_text().replace(REAL, url)
        (folder / "Chart.yaml").write_text(text)
        wanted = yaml.safe_load(text)["dependencies"]
        have = [{field: d[field] for field in ("name", "repository", "version")} for d in wanted]
        lock = {"dependencies": have, "digest": digest(wanted, have), "generated": "2026-01-01T00:00:00Z"}
        (folder / "Chart.lock").write_text(yaml.safe_dump(lock))
        return folder

    return at


def where_helm_is(helm: Path, folder: Path) -> dict[str, str]:
    (folder / "bin").mkdir()
    (folder / "bin" / "helm").symlink_to(helm)
    return {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder / "home")}


@pytest.fixture
def env(helm: Path, tmp_path: Path) -> dict[str, str]:
    """Return an environment in which PATH finds this helm first."""
    return where_helm_is(helm, tmp_path)


@pytest.fixture
def charts(env: dict[str, str]) -> Charts:
    """Run ci/charts.py."""

    def charts(chart: Path, folder: Path | str = "/nonexistent") -> Done:
        return call(sys.executable, "ci/charts.py", chart, env={**env, "RAY_WORKLOAD_UPSTREAM": str(folder)})

    return charts


def one_line(done: Done, code: int) -> str:
    """Return the single line that the command printed."""
    assert (done.returncode, done.stdout if code else done.stderr) == (code, "")
    said = done.stderr if code else done.stdout
    assert said.count("\n") == 1 and said.endswith("\n"), said
    return said.strip()


def test_helm_takes_the_lock_and_refuses_a_changed_one(helm: Path, charts: Charts, tmp_path: Path) -> None:
    chart = tmp_path / "chart"
    chart.mkdir()
    for name in ("Chart.yaml", "Chart.lock"):
        shutil.copy(CHART / name, chart)
    # Helm first checks the lock, then whether the repository is configured, and only then requests it.
    assert "no repository definition for " + REAL in call(helm, "dependency", "build", chart).stderr
    lock = (chart / "Chart.lock").read_text()
    manifest = (chart / "Chart.yaml").read_text()
    for name, changed in {
        "Chart.lock": re.sub("(digest: sha256:).", r"\1x", lock),
        "Chart.yaml": manifest.replace("1.7.0\n    repository", "1.6.1\n    repository"),
    }.items():
        (chart / "Chart.lock").write_text(lock)
        (chart / name).write_text(changed)
        assert (chart / name).read_text() != (CHART / name).read_text()
        assert "(Chart.lock) is out of sync" in call(helm, "dependency", "build", chart).stderr
        said = one_line(charts(chart), 2)
        assert said == f"{chart}: Chart.lock is out of sync with Chart.yaml: run `helm dependency update {chart}`"
    (chart / "Chart.lock").unlink()
    assert f"{chart}: Chart.yaml and Chart.lock cannot be read" in one_line(charts(chart), 2)


def test_the_digest_is_the_one_helm_writes(helm: Path, at: MakeChart, mirror: str, tmp_path: Path) -> None:
    chart = at(mirror)
    ours = yaml.safe_load((chart / "Chart.lock").read_text())
    (chart / "Chart.lock").unlink()
    updated = call(helm, "dependency", "update", chart, env={"HOME": str(tmp_path)})
    theirs = yaml.safe_load((chart / "Chart.lock").read_text())
    assert (updated.returncode, ours.pop("generated") != theirs.pop("generated"), ours) == (0, True, theirs)
    assert yaml.safe_load((CHART / "Chart.lock").read_text()).keys() == {"dependencies", "digest", "generated"}


def test_from_the_repository(at: MakeChart, charts: Charts, mirror: str, tmp_path: Path) -> None:
    config = tmp_path / "home" / ".config" / "helm" / "repositories.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("repositories: [{name: theirs, url: 'http://127.0.0.1:1/'}]\n")
    chart = at(mirror)
    assert one_line(charts(chart), 0) == f"{chart}/charts: {HAS} from {mirror}"
    assert listing(chart) == [f"charts/{name}" for name in BOTH]
    assert config.read_text().startswith("repositories: [{name: theirs")
    assert [p.name for p in (tmp_path / "home").rglob("*") if p.is_file()] == ["repositories.yaml"]


def test_a_repository_without_the_locked_version_is_an_error(
    at: MakeChart, charts: Charts, upstream: Path, helms: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "served"
    newer = call(helms[0], "package", "--version", "1.8.0", "-d", folder, upstream / "ray-cluster")
    assert (newer.returncode, call(helms[0], "repo", "index", folder).returncode) == (0, 0)
    with serving(folder) as url:
        chart = at(url)
        said = one_line(charts(chart, upstream), 2)
    assert f"{chart}: helm dependency build: " in said and "not found" in said
    assert listing(chart) == []


def test_from_the_folder(at: MakeChart, charts: Charts, upstream: Path, helm: Path) -> None:
    chart = at(CLOSED)
    said = one_line(charts(chart, upstream), 0)
    assert said.startswith(f"{chart}/charts: {HAS} from {upstream} ({CLOSED} cannot be reached: ")
    assert "connection refused" in said and listing(chart) == [f"charts/{name}" for name in BOTH]
    shown = call(helm, "dependency", "list", chart).stdout
    assert shown.count("\tok") == 2 and "WARNING" not in shown
    before = [(chart / name).stat().st_mtime_ns for name in listing(chart)]
    assert one_line(charts(chart), 0) == f"{chart}/charts: {HAS} are there"
    assert [(chart / name).stat().st_mtime_ns for name in listing(chart)] == before


def test_what_is_not_whole_or_not_locked_is_replaced(at: MakeChart, charts: Charts, upstream: Path) -> None:
    chart = at(CLOSED)
    charts(chart, upstream)
    cut = chart / "charts" / BOTH[0]
    whole = cut.read_bytes()
    for content in (whole[:5000], whole[: len(whole) // 2], whole[:-4], b"", b"not an archive"):
        cut.write_bytes(content)
        assert " from " in one_line(charts(chart, upstream), 0) and len(cut.read_bytes()) > 100_000
    stale = chart / "charts" / "ray-cluster-1.6.1.tgz"
    stale.write_bytes((chart / "charts" / BOTH[1]).read_bytes())
    shutil.copytree(upstream / "ray-cluster", chart / "charts" / "ray-cluster")
    (chart / "charts" / ".newkilled" / "charts").mkdir(parents=True)
    assert " from " in one_line(charts(chart, upstream), 0)
    assert listing(chart) == [f"charts/{name}" for name in BOTH]


def test_unpacked_ones_are_taken_as_they_are(at: MakeChart, charts: Charts, upstream: Path) -> None:
    chart = at(CLOSED)
    shutil.copytree(upstream, chart / "charts")
    assert one_line(charts(chart), 0) == f"{chart}/charts: {HAS} are there"


@pytest.mark.parametrize("case", ["none", "empty", "another version", "another name", "not yaml"])
def test_neither(case: str, at: MakeChart, charts: Charts, upstream: Path, tmp_path: Path) -> None:
    chart, folder = at(CLOSED), tmp_path / "upstream"
    if case == "empty":
        folder.mkdir()
    elif case != "none":
        shutil.copytree(upstream, folder)
        manifest = folder / "ray-cluster" / "Chart.yaml"
        text = manifest.read_text()
        change = {
            "another version": text.replace("version: 1.7.0", "version: 1.6.1"),
            "another name": text.replace("name: ray-cluster", "name: kuberay-apiserver"),
            "not yaml": "a: b: [",
        }
        manifest.write_text(change[case])
        assert manifest.read_text() != text
    (chart / "charts").mkdir()
    stale = chart / "charts" / "ray-cluster-1.6.1.tgz"
    stale.write_bytes(b"what was there stays")
    said = one_line(charts(chart, folder), 1)
    assert f"{CLOSED} cannot be reached: " in said and "RAY_WORKLOAD_UPSTREAM" in said
    why = {
        "none": f"{folder}/kuberay-operator is no unpacked chart",
        "empty": f"{folder}/kuberay-operator is no unpacked chart",
        "another version": f"{folder}/ray-cluster has ray-cluster 1.6.1, but Chart.lock ray-cluster 1.7.0",
        "another name": f"{folder}/ray-cluster has kuberay-apiserver 1.7.0, but Chart.lock ray-cluster 1.7.0",
        "not yaml": f"{folder}/ray-cluster is no unpacked chart",
    }
    assert why[case] in said
    assert listing(chart) == ["charts/ray-cluster-1.6.1.tgz"]


def test_two_at_once_get_them_once(at: MakeChart, charts: Charts, upstream: Path) -> None:
    chart, said = at(CLOSED), []
    threads = [threading.Thread(target=lambda: said.append(one_line(charts(chart, upstream), 0))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(" are there" in line for line in said) == [False, True, True]
    assert listing(chart) == [f"charts/{name}" for name in BOTH]


def test_archives_of_another_host_that_cannot_be_reached(
    at: MakeChart, charts: Charts, upstream: Path, helms: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "served"
    for name in ("kuberay-operator", "ray-cluster"):
        assert call(helms[0], "package", "-d", folder, upstream / name).returncode == 0
    assert call(helms[0], "repo", "index", folder, "--url", CLOSED).returncode == 0
    with serving(folder) as url:
        chart = at(url)
        said = one_line(charts(chart, upstream), 0)
    assert f"from {upstream} ({url} cannot be reached: Get " in said and CLOSED in said
    assert listing(chart) == [f"charts/{name}" for name in BOTH]


def test_a_killed_run_leaves_no_chart(at: MakeChart, charts: Charts, upstream: Path, env: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        chart = at(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        command = [sys.executable, str(ROOT / "ci" / "charts.py"), str(chart)]
        running = subprocess.Popen(command, env={**os.environ, **env}, start_new_session=True, text=True)
        connection, _ = silent.accept()  # helm has connected
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        connection.close()
    left = list((chart / "charts").iterdir())
    assert [path.name[:4] for path in left] == [".new"]  # helm ignores this folder
    assert " from " in one_line(charts(chart, upstream), 0)
    assert listing(chart) == [f"charts/{name}" for name in BOTH]


def test_a_silent_repository_is_left_in_time(at: MakeChart, upstream: Path, helms: list[Path], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        chart = at(f"http://127.0.0.1:{silent.getsockname()[1]}/")
        began = time.monotonic()
        env = {**where_helm_is(helms[0], tmp_path), "RAY_WORKLOAD_UPSTREAM": str(upstream)}
        code = "from ci import charts; charts.DOWNLOAD_SECONDS = 2; charts.main()"
        said = one_line(call(sys.executable, "-c", code, chart, env=env), 0)
    assert time.monotonic() - began < 12 and f"from {upstream} (" in said and "no answer in 2 s" in said
    assert DOWNLOAD_SECONDS <= 20
    assert listing(chart) == [f"charts/{name}" for name in BOTH]


def test_helm_pull_from_a_mirror_as_the_readme_says(
    helm: Path, at: MakeChart, charts: Charts, mirror: str, env: dict[str, str]
) -> None:
    chart = at(CLOSED)
    (chart / "charts").mkdir()
    for name in ("kuberay-operator", "ray-cluster"):
        where = ["--repo", mirror, "--version", "1.7.0", "--destination", str(chart / "charts")]
        pulled = call(helm, "pull", name, *where, env=env)
        assert pulled.returncode == 0, pulled.stderr
    assert one_line(charts(chart), 0) == f"{chart}/charts: {HAS} are there"


# ci/helm.py


def tool(*args: str, root: Path = ROOT, **env: str) -> Done:
    return call(sys.executable, root / "ci" / "helm.py", *args, env=env)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Make a project folder without a built helm."""
    (tmp_path / "ci").mkdir()
    shutil.copy(ROOT / "ci" / "helm.py", tmp_path / "ci")
    return tmp_path


def test_the_helm_on_path_wins(helm: Path, env: dict[str, str], tmp_path: Path, elsewhere: Path) -> None:
    assert one_line(tool(root=elsewhere, **env), 0) == str(tmp_path / "bin" / "helm")


def test_no_helm_and_no_go(elsewhere: Path) -> None:
    said = one_line(tool(root=elsewhere, PATH=str(elsewhere)), 1)
    assert "no chart and no tests" in said and "install Helm 3 or 4" in said and "Go" in said
    one_line(tool("4", root=elsewhere, PATH=str(elsewhere)), 1)


def test_a_helm_that_is_no_release_is_refused(elsewhere: Path) -> None:
    theirs = elsewhere / "helm"  # pyhelm3 requires a version of three numbers
    theirs.write_text("#!/bin/sh\necho v3.22+unreleased\n")
    theirs.chmod(0o755)
    assert f"{theirs} is no release of Helm 3 or 4" in one_line(tool(root=elsewhere, PATH=str(elsewhere)), 1)


@pytest.mark.skipif(not shutil.which("go"), reason="no Go")
def test_a_killed_build_leaves_no_helm(elsewhere: Path) -> None:
    folder = elsewhere / "build" / "tools"
    go = {name: call("go", "env", name, env=USER).stdout.strip() for name in ("GOPATH", "GOMODCACHE", "GOCACHE")}
    command = [sys.executable, str(elsewhere / "ci" / "helm.py"), "4"]
    building = subprocess.Popen(
        command, env={**os.environ, **go}, stderr=subprocess.PIPE, start_new_session=True, text=True
    )
    assert building.stderr and "building Helm v4." in building.stderr.readline()
    while not (left := list(folder.glob(".new*"))):
        time.sleep(0.01)
    os.killpg(building.pid, signal.SIGKILL)
    building.communicate()
    assert list(folder.iterdir()) == left
    # The next build removes the folder, even if it fails.
    refused = tool("4", root=elsewhere, **{**go, "GOFLAGS": "-mod=vendor", "HOME": str(elsewhere)})
    assert refused.returncode == 1 and "go install: " in refused.stderr.splitlines()[-1]
    assert list(folder.iterdir()) == []
