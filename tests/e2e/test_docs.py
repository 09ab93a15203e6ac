"""The guide and the README: every command for a cluster runs, on a release as `ci/kind install` makes it."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.e2e._cluster import of_image
from tests.e2e.conftest import IMAGE, kubectl, state, user_environment
from tests.guide import copy_repository, pages, script

NAMESPACE, CONTEXT = "ray", "kind-ray-workload"
pytestmark = pytest.mark.alone  # the release has the namespace and the node port that the pages name


@pytest.fixture(scope="module")
def repository(environment: Path) -> Path:
    folder = environment / "repository"
    copy_repository(folder)
    return folder


@pytest.fixture(scope="module")
def kind(repository: Path) -> Iterator[dict[str, str]]:
    """The environment of a reader whose kubeconfig has a cluster of kind with the chart."""
    config = json.loads(kubectl("config", "view", "--raw", "--flatten", "--minify", "-o", "json").stdout)
    config["contexts"][0]["context"]["cluster"] = config["clusters"][0]["name"] = CONTEXT
    config["contexts"][0]["name"] = config["current-context"] = CONTEXT
    # As minikube writes it: the client then uses the cluster without an address, as it uses kind's.
    extension = {"provider": "minikube.sigs.k8s.io"}
    config["clusters"][0]["cluster"]["extensions"] = [{"name": "cluster_info", "extension": extension}]
    file = repository.parent / "kind.kubeconfig"
    file.touch(mode=0o600)
    file.write_text(json.dumps(config))
    env = user_environment() | {"KUBECONFIG": str(file), "HOME": os.environ["HOME"]}
    kubectl("create", "namespace", NAMESPACE)  # fails if it is there: it is not ours then
    try:
        bash(" ".join(["ci/kind install", *of_image(IMAGE)]), repository, env)
        # Ray is ready sooner than the operator's first probe. A reader types more slowly than this test.
        operator = ("deployment/kuberay-operator", "-n", NAMESPACE)
        kubectl("wait", *operator, "--for=condition=Available", "--timeout=1m", timeout=70)
        yield env
    finally:
        kubectl("delete", "namespace", NAMESPACE, timeout=240)


def bash(commands: str, folder: Path, env: dict[str, str]) -> str:
    done = subprocess.run(["bash", "-c", commands], cwd=folder, env=env, capture_output=True, text=True, timeout=280)
    if done.returncode:
        pytest.fail(f"exit code {done.returncode}:\n{done.stdout}\n{done.stderr}\n{state(NAMESPACE)}")
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("page", pages("run: cluster"), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_for_a_cluster_runs(page: Path, repository: Path, kind: dict[str, str]) -> None:
    bash(script(page, "run: cluster"), repository, kind)
