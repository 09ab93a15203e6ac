"""Packages: the client installed in a user's environment, and what its jobs find to import."""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PRINTS = """
import sys, ray
import {module}
ray.init()
print("driver", {module}.WORD, "task", ray.get(ray.remote(lambda: __import__("{module}").WORD).remote()))
"""
Installed = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def wheel(environment: Path) -> Path:
    """The client's own wheel."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-index", "--no-build-isolation", "--no-deps"]
    subprocess.run([*command, "--wheel-dir", str(environment / "dist"), str(ROOT)], check=True, timeout=100)
    (built,) = (environment / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def users_python(wheel: Path, environment: Path) -> Path:
    """The Python of a user's virtual environment with the client, which finds its dependencies in ours."""
    folder = environment / "user" / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    Path(paths["purelib"], "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*command, str(wheel)], check=True, timeout=100)
    return python


@pytest.fixture(scope="module")
def head_folder(users_python: Path) -> Iterator[Path]:
    """Keep a head of the user's environment, which no other test sees. Ray clones the environment for each package."""
    with tempfile.TemporaryDirectory(prefix="rwt", dir="/tmp") as folder:
        ray_workload, environment = str(users_python.with_name("ray-workload")), {**os.environ, "TMPDIR": folder}
        environment = {name: value for name, value in environment.items() if not name.startswith(("PIP_", "UV_"))}
        subprocess.run([ray_workload, "up", "embedded"], env=environment, check=True, timeout=100)
        yield Path(folder)
        subprocess.run([ray_workload, "down", "embedded"], env=environment, check=True, timeout=100)


@pytest.fixture
def installed(users_python: Path, head_folder: Path, tmp_path: Path) -> Installed:
    """Return a function that runs the user's `ray-workload` in an empty folder."""

    def run(*args: str) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "TMPDIR": str(head_folder)}
        command = [str(users_python.with_name("ray-workload")), *args]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)

    return run


def make_wheel(folder: Path, module: str) -> Path:
    """Write the wheel of a package with one module, whose WORD is its name."""
    path, info = folder / f"{module}-1.0-py3-none-any.whl", f"{module}-1.0.dist-info"
    files = {
        f"{module}.py": f"WORD = '{module}'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_the_driver_has_the_packages_of_the_runtime_env(installer: str, installed: Installed, tmp_path: Path) -> None:
    module = f"rw_{installer}"
    (tmp_path / "env.json").write_text(json.dumps({installer: [str(make_wheel(tmp_path, module))]}))
    (tmp_path / "job.py").write_text(PRINTS.format(module=module))
    done = installed("submit", "--runtime-env", "env.json", "job.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"\ndriver {module} task {module}\n" in done.stdout
