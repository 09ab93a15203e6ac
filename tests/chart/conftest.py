"""The chart as helm renders it, with each helm at hand, and its dependencies."""

import copy
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml

from tests.conftest import ROOT

sys.modules["tests.chart.conftest"] = sys.modules[__name__]  # who imports from here meets the same RenderError

CHART = ROOT / "charts" / "ray-workload"
KUBE_VERSION = "1.34.0"  # each helm renders for its own unless it is told
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Manifest = dict[str, Any]
# The tests have a home of their own, but what the user has in theirs is needed here.
UPSTREAM = Path(os.environ.get("RAY_WORKLOAD_UPSTREAM") or "~/.cache/ray-workload/upstream").expanduser()
USER = {"HOME": os.environ.get("HOME", ""), "RAY_WORKLOAD_UPSTREAM": str(UPSTREAM)}


class RenderError(Exception):
    """Helm refused; the text is what it said."""


class Render(Protocol):
    """Render the chart; the same arguments cost nothing the second time."""

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
    ) -> list[Manifest]: ...


def find(manifests: Sequence[Manifest], kind: str, name: str) -> Manifest:
    """The one of this kind and name."""
    found = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    assert len(found) == 1, f"{len(found)} of {kind} {name} in {names(manifests)}"
    return found[0]


def names(manifests: Sequence[Manifest]) -> list[tuple[str, str]]:
    """Kind and name of each."""
    return sorted((m["kind"], m["metadata"]["name"]) for m in manifests)


def environment_of_helm() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("HELM_")}


@functools.cache
def at_hand() -> dict[str, Path]:
    """Each helm by its version: PATH's, those that `make helm` and `make helm4` built, and HELM4's."""
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
    """Run a test of `helm` with each of them."""
    if "helm" in metafunc.fixturenames:
        found = at_hand() or {"no helm": Path("helm")}
        metafunc.parametrize("helm", list(found.values()), ids=list(found), scope="session")


def pytest_collection_modifyitems() -> None:
    """Without helm say so at once, and run nothing."""
    if not at_hand():
        raise pytest.UsageError("tests/chart needs helm: run `make charts`, or leave tests/chart out")


@pytest.fixture(scope="session")
def helms() -> list[Path]:
    return list(at_hand().values())


@pytest.fixture(scope="session")
def dependencies(helms: list[Path]) -> Iterator[None]:
    """The chart is complete."""
    env = {**os.environ, **USER, "PATH": f"{os.environ['PATH']}{os.pathsep}{helms[0].parent}"}
    done = subprocess.run(
        [sys.executable, "ci/charts.py"], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.exit(f"tests/chart needs the chart's dependencies: {done.stderr.strip()}", returncode=4)
    yield


@pytest.fixture(scope="session")
def render(helms: list[Path], dependencies: None) -> Render:
    """Render the chart, hooks included and CRDs not; helm: the first one at hand, if none is named."""
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
    ) -> list[Manifest]:
        command = [str(helm or helms[0]), "template", release, str(CHART), "--namespace", namespace]
        command += ["--kube-version", kube_version or KUBE_VERSION]
        for file in values_files:
            command += ["--values", str((ROOT / file).absolute())]
        command += ["--values", "-"] if values else []
        for item in sets:
            command += ["--set", item]
        for template in [show_only] if isinstance(show_only, str) else show_only or ():
            command += ["--show-only", template]
        given = json.dumps(values or {})
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
        return copy.deepcopy(result)  # a test may change its own

    return render
