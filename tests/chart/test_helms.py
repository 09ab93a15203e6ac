"""Every supported helm accepts the chart, and all render the same objects."""

import subprocess
from pathlib import Path

import pytest

from tests.chart.conftest import CHART, Manifest, Render, RenderError, environment_of_helm, values_files

FILES = values_files()


@pytest.mark.parametrize("file", FILES)
def test_lint(file: str, helm: Path, dependencies: None) -> None:
    values = [f"--values={path}" for path in FILES[file]]
    command = [str(helm), "lint", "--strict", str(CHART), *values]
    said = subprocess.run(command, env=environment_of_helm(), capture_output=True, text=True, timeout=60, check=False)
    assert (said.returncode, "0 chart(s) failed" in said.stdout) == (0, True), said.stdout
    findings = [line for line in said.stdout.splitlines() if line.startswith("[")]
    assert findings == ["[INFO] Chart.yaml: icon is recommended"]


def test_lint_finds_something(helm: Path, dependencies: None) -> None:
    command = [str(helm), "lint", "--strict", str(CHART), "--set=auth.typo=1"]
    said = subprocess.run(command, env=environment_of_helm(), capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 1 and "typo" in said.stdout + said.stderr


def comparable(manifests: list[Manifest]) -> list[Manifest]:
    """Return the manifests sorted, without the random token."""
    for manifest in manifests:
        if manifest["metadata"]["name"] == "ray-auth-token":
            assert len(manifest["data"].pop("auth_token")) == 60
    return sorted(manifests, key=lambda m: (m["kind"], m["metadata"]["name"]))


@pytest.mark.parametrize("file", FILES)
def test_all_render_the_same(file: str, helms: list[Path], render: Render) -> None:
    if len(helms) < 2:
        pytest.skip("only one helm is installed: `make helm4` builds another")
    first, *others = [comparable(render(*FILES[file], helm=helm)) for helm in helms]
    assert len(first) >= 7
    for other in others:
        assert other == first


@pytest.mark.parametrize("version", ["1.30.0", "1.34.0", "1.36.0"])
def test_the_version_of_kubernetes_does_not_matter(version: str, render: Render) -> None:
    assert comparable(render(kube_version=version)) == comparable(render())


def test_all_refuse_the_same(helms: list[Path], render: Render) -> None:
    said = []
    for helm in helms:
        with pytest.raises(RenderError) as error:
            render(values={"api": {"nodePort": 30265}, "auth": {"token": "a", "existingSecret": "b"}}, helm=helm)
        said.append([line for line in str(error.value).splitlines() if line.startswith("  - ")])
    assert len(said[0]) > 1 and all(lines == said[0] for lines in said)
