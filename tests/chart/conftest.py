"""Fixtures that render the chart with each installed helm, and get its dependencies."""

import copy
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml

from tests.conftest import ROOT

sys.modules["tests.chart.conftest"] = sys.modules[__name__]  # imports from here get the same RenderError

CHART = ROOT / "charts" / "ray-workload"
KUBE_VERSION = "1.34.0"  # otherwise each helm renders for its own default version
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Manifest = dict[str, Any]
# The tests set HOME to a new folder, but these settings of the user are needed here.
UPSTREAM = Path(os.environ.get("RAY_WORKLOAD_UPSTREAM") or "~/.cache/ray-workload/upstream").expanduser()
USER = {"HOME": os.environ.get("HOME", ""), "RAY_WORKLOAD_UPSTREAM": str(UPSTREAM)}


class RenderError(Exception):
    """Helm refused to render; the message is what helm wrote to stderr."""


class Render(Protocol):
    """Render the chart. Results are cached by the arguments."""

    def __call__(
        self,
        *values_files: str | Path,
        values: Mapping[str, Any] | None = None,
        release: str = "ray",
        namespace: str = "ray",
        sets: Sequence[str] = (),
        show_only: str | Sequence[str] | None = None,
        kube_version: str | None = None,
        helm: Path | None = None,
        chart: Path = CHART,
        args: Sequence[str] = (),
    ) -> list[Manifest]: ...


def find(manifests: Sequence[Manifest], kind: str, name: str) -> Manifest:
    """Return the only object of this kind and name."""
    found = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    assert len(found) == 1, f"{len(found)} of {kind} {name} in {names(manifests)}"
    return found[0]


def names(manifests: Sequence[Manifest]) -> list[tuple[str, str]]:
    """Return the kind and name of each object."""
    return sorted((m["kind"], m["metadata"]["name"]) for m in manifests)


class Quoting(yaml.SafeDumper):
    """Quote every string: Go's YAML parser reads some unquoted strings, such as 1e3, as numbers."""


Quoting.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))


def as_yaml(values: Mapping[str, Any]) -> str:
    return yaml.dump(values, Dumper=Quoting, sort_keys=False, width=1_000_000)


def values_files() -> dict[str, list[Path]]:
    """Map names to values files: those of the chart, and those that only tests use."""
    more = [*sorted(CHART.glob("values-*.yaml")), *sorted((ROOT / "ci" / "values").glob("*.yaml"))]
    return {"values.yaml": []} | {path.name: [path] for path in more}


def environment_of_helm() -> dict[str, str]:
    """Return the environment without the user's helm settings. GOGC=off saves time, because helm runs only briefly."""
    return {k: v for k, v in os.environ.items() if not k.startswith("HELM_")} | {"GOGC": "off"}


@functools.cache
def at_hand() -> dict[str, Path]:
    """Map versions to installed helms: from PATH, `make helm`, `make helm4` and the variable HELM4."""
    folders = [*os.environ["PATH"].split(os.pathsep), str(ROOT / "build" / "tools")]
    candidates = [Path(folder, "helm") for folder in folders] + [ROOT / "build" / "tools" / "helm4"]
    candidates += [Path(os.environ["HELM4"])] if os.environ.get("HELM4") else []
    found: dict[str, Path] = {}
    for path in dict.fromkeys(c.absolute() for c in candidates if os.access(c, os.X_OK)):
        said = subprocess.run([path, "version", "--short"], capture_output=True, text=True, timeout=60, check=False)
        if re.match(r"v[34]\.", said.stdout):
            found.setdefault(said.stdout.strip().partition("+")[0], path)
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that uses the fixture `helm` with every installed helm."""
    if "helm" in metafunc.fixturenames:
        found = at_hand() or {"no helm": Path("helm")}
        metafunc.parametrize("helm", list(found.values()), ids=list(found), scope="session")


def pytest_collection_modifyitems() -> None:
    """Fail before the first test if no helm is installed."""
    if not at_hand():
        raise pytest.UsageError("tests/chart needs helm: run `make charts`, or leave tests/chart out")


@pytest.fixture(scope="session")
def helms() -> list[Path]:
    return list(at_hand().values())


@pytest.fixture(scope="session")
def dependencies(helms: list[Path]) -> Iterator[None]:
    """Get the dependencies of the chart."""
    env = {**os.environ, **USER, "PATH": f"{os.environ['PATH']}{os.pathsep}{helms[0].parent}"}
    done = subprocess.run(
        [sys.executable, "ci/charts.py"], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.exit(f"tests/chart needs the chart's dependencies: {done.stderr.strip()}", returncode=4)
    yield


@pytest.fixture(scope="session")
def render(helms: list[Path], dependencies: None) -> Render:
    """Render the chart with its hooks, but without CRDs. The default is the first installed helm."""
    done: dict[str, list[Manifest] | str] = {}

    def render(
        *values_files: str | Path,
        values: Mapping[str, Any] | None = None,
        release: str = "ray",
        namespace: str = "ray",
        sets: Sequence[str] = (),
        show_only: str | Sequence[str] | None = None,
        kube_version: str | None = None,
        helm: Path | None = None,
        chart: Path = CHART,
        args: Sequence[str] = (),
    ) -> list[Manifest]:
        command = [str(helm or helms[0]), "template", release, str(chart), "--namespace", namespace, *args]
        command += ["--kube-version", kube_version or KUBE_VERSION]
        for file in values_files:
            command += ["--values", str((ROOT / file).absolute())]
        command += ["--values", "-"]
        for item in sets:
            command += ["--set", item]
        for template in [show_only] if isinstance(show_only, str) else show_only or ():
            command += ["--show-only", template]
        # Without a cluster, the chart cannot check the CRD, and would refuse to generate a token.
        of_cluster = (values or {}).get("rayCluster", {})
        if isinstance(of_cluster, dict):
            values = {**(values or {}), "rayCluster": {"checkCRD": False, **of_cluster}}
        given = as_yaml(values or {})
        contents = [Path(ROOT, file).read_text() for file in values_files]
        key = json.dumps([command, given, contents])
        if key not in done:
            env = environment_of_helm()
            said = subprocess.run(
                command, input=given, env=env, capture_output=True, text=True, timeout=60, check=False
            )
            if said.returncode:
                done[key] = said.stderr.strip()
            else:
                done[key] = [m for m in yaml.load_all(said.stdout, LOADER) if m]
        result = done[key]
        if isinstance(result, str):
            raise RenderError(result)
        return copy.deepcopy(result)  # a test may change its copy

    return render


@pytest.fixture(scope="session")
def unpacked(dependencies: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the two upstream charts, each into its own folder."""
    folder = tmp_path_factory.mktemp("unpacked")
    for path in (CHART / "charts").iterdir():
        if path.is_dir():
            shutil.copytree(path, folder / path.name)
        else:
            with tarfile.open(path) as packed:
                packed.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def editable(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the chart for tests that change it. It has no operator templates, and renders NOTES.txt as a ConfigMap."""
    chart = tmp_path_factory.mktemp("editable") / "chart"
    shutil.copytree(CHART, chart, ignore=shutil.ignore_patterns("charts"))
    shutil.copytree(unpacked / "ray-cluster", chart / "charts" / "ray-cluster")
    rest = shutil.ignore_patterns("templates", "crds")
    shutil.copytree(unpacked / "kuberay-operator", chart / "charts" / "kuberay-operator", ignore=rest)
    notes = chart / "templates" / "NOTES.txt"
    (chart / "templates" / "_notes.tpl").write_text(f'{{{{ define "notes" }}}}{notes.read_text()}{{{{ end }}}}')
    notes.unlink()
    text = '{{ include "notes" . | toJson }}'
    config = f"apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: notes}}\ndata:\n  text: {text}\n"
    (chart / "templates" / "notes.yaml").write_text(config)
    return chart
