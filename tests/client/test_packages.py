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

import client
from client.errors import UsageError
from client.job.request import Request
from tests.client.server import Handler, serving
from tests.client.test_errors import refusal
from tests.conftest import ROOT, Cli

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


def make_wheel(folder: Path, module: str, version: str = "1.0", requires: str = "") -> Path:
    """Write the wheel of a package with one module, whose WORD is its name."""
    path, info = folder / f"{module}-{version}-py3-none-any.whl", f"{module}-{version}.dist-info"
    required = f"Requires-Dist: {requires}\n" if requires else ""
    files = {
        f"{module}.py": f"WORD = '{module}'\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\n{required}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_the_client_runs_from_a_users_environment(
    wheel: Path, installed: Installed, users_python: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
    assert {"client/py.typed", "client/targets/embedded/head.py"} < files
    assert {name.partition("/")[0].partition("-")[0] for name in files} == {"client", "ray_workload"}
    assert installed("--version").stdout == f"ray-workload, version {client.__version__}\n"
    (tmp_path / "job.py").write_text("import client, sys; print(sys.executable, client.__file__)\n")
    done = installed("submit", "job.py")
    module = sysconfig.get_path("purelib", vars={"base": str(users_python.parents[1])})
    assert f"\n{users_python} {module}/client/__init__.py\n" in done.stdout, done.stderr
    up = installed("up", "local")
    where = "use --chart with a folder like charts/ray-workload of a clone, an archive (.tgz), or oci://HOST/PATH"
    assert (up.returncode, up.stderr) == (2, f"ray-workload: this client is not in a clone with a chart: {where}\n")


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_the_driver_has_the_packages_of_the_runtime_env(installer: str, installed: Installed, tmp_path: Path) -> None:
    module = f"rw_{installer}"
    (tmp_path / "env.json").write_text(json.dumps({installer: [str(make_wheel(tmp_path, module))]}))
    (tmp_path / "job.py").write_text(PRINTS.format(module=module))
    done = installed("submit", "--runtime-env", "env.json", "job.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"\ndriver {module} task {module}\n" in done.stdout


@pytest.fixture
def index(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a package index that has every package; yield its URL and the paths that were requested."""
    requested = []

    def answer(asked: Handler, _: bytes) -> tuple[int, dict[str, str], bytes]:
        requested.append(asked.path)
        name = asked.path.strip("/").rpartition("/")[2]
        if name.endswith(".whl"):
            return 200, {}, make_wheel(tmp_path, name.partition("-")[0]).read_bytes()
        file = f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
        return 200, {"Content-Type": "text/html"}, f'<a href="/files/{file}">{file}</a>'.encode()

    with serving(answer) as url:
        yield url, requested


def test_packages_of_options_are_installed_once(
    installed: Installed, users_python: Path, head_folder: Path, index: tuple[str, list[str]], tmp_path: Path
) -> None:
    url, requested = index
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "base.txt").write_text("rw-included\n")
    (tmp_path / "requirements.txt").write_text("# ours\nrw-listed \\\n  ==1.0  # a comment\n\n-r more/base.txt\n")
    modules = ("rw_named", "rw_listed", "rw_included")
    (tmp_path / "job.py").write_text("".join(f"import {name}; print({name}.WORD)\n" for name in modules))
    given = ["submit", "--env", f"PIP_INDEX_URL={url}/simple", "--pip", "rw-named", "--requirements"]
    done = installed(*given, "requirements.txt", "job.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\nrw_named\nrw_listed\nrw_included\n" in done.stdout
    assert {f"/simple/{name.replace('_', '-')}/" for name in modules} < set(requested)
    requested.clear()
    again = installed(*given, "requirements.txt", "job.py")
    assert again.returncode == 0 and not requested, again.stdout
    code = "import client; print(client.submit('job.py', pip=['rw-named'], requirements='requirements.txt').wait())"
    api = subprocess.run(
        [users_python, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(head_folder)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "status='SUCCEEDED'" in api.stdout and not requested, api.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--runtime-env", "requirements.txt"], "pass a list of packages with --requirements requirements.txt"),
        (["--requirements", "none.txt"], "cannot read none.txt: No such file or directory"),
        (["--requirements", "editable.txt"], "editable.txt: `-e .` names a file, which is not sent: list all packages"),
        (["--requirements", "constrained.txt"], "`--constraint=a.txt` names a file, which is not sent: list all"),
        (["--requirements", "circle.txt"], "circle.txt includes itself: remove one of the -r lines"),
        (["--requirements", "binary.txt"], "binary.txt is not a text file"),
        (["--requirements", "private.txt"], "the packages contain a password, and everyone who may list jobs can read"),
        *(
            (["--pip", "a", "--runtime-env", f"{name}.json"], f"the runtime_env has packages, too ({name}): list all")
            for name in ("pip", "uv", "conda")
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_packages_that_cannot_be_sent(options: list[str], said: str, run: Cli, tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("einops==0.8.0\nnumpy>=2 ; python_version > '3.8'\n")
    (tmp_path / "editable.txt").write_text("numpy\n-e .\n")
    (tmp_path / "constrained.txt").write_text("--constraint=a.txt\n")
    (tmp_path / "private.txt").write_text("--index-url https://me:hunter2@host/simple\na\n")
    (tmp_path / "circle.txt").write_text("a\n-r ./circle.txt\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe")
    for name in ("pip", "uv", "conda"):
        (tmp_path / f"{name}.json").write_text(json.dumps({name: ["a"]}))
    refused = refusal(run("submit", "--address", "embedded", *options, "--", "true"), 2)
    assert said in refused and "hunter2" not in refused


@pytest.mark.parametrize(
    ("line", "allow_plain"),
    [
        ("git+ssh://git@host/a.git", False),
        ("a @ https://me:${TOKEN}@host/a.whl", False),
        ("a @ https://me:hunter2@host/a.whl", True),
    ],
)
def test_packages_without_a_password_in_them(line: str, allow_plain: bool) -> None:
    request = Request(command=["true"], pip=[line], allow_plain=allow_plain)
    assert request.runtime_env == {"pip": [line]}


def test_pip_in_python_is_a_list() -> None:
    with pytest.raises(UsageError, match=r"pip must be a list: use pip=\['einops'\]"):
        Request(command=["true"], pip="einops")


@pytest.mark.parametrize("line", ["import no_such", "ray.get(ray.remote(lambda: __import__('no_such')).remote())"])
def test_a_missing_module_is_named_with_two_ways_on(
    line: str, installed: Installed, users_python: Path, tmp_path: Path
) -> None:
    (tmp_path / "job.py").write_text(f"import ray\n{line}\n")
    done = installed("submit", "job.py")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert f"there is no module no_such in {users_python.parents[1]}: submit again with --pip no_such" in last
    assert f"run `{users_python} -m pip install no_such` (" in last


def test_a_missing_module_of_an_image(run: Cli, remote: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("import no_such\n")
    last = run("submit", "job.py", env=remote).stderr.decode().splitlines()[-2]
    assert "there is no module no_such in the cluster's image: submit again with --pip no_such, or add it to " in last


@pytest.mark.parametrize("code", ["raise SystemExit(2)", "print('it went on'); exit(1)"])
def test_a_missing_module_that_was_not_the_end(code: str, run: Cli, remote: dict[str, str], tmp_path: Path) -> None:
    text = f"import traceback\ntry:\n    import no_such\nexcept ImportError:\n    traceback.print_exc()\n    {code}\n"
    (tmp_path / "job.py").write_text(text)
    done = run("submit", "job.py", env=remote)
    assert b"ModuleNotFoundError: No module named 'no_such'\n" in done.stdout
    assert b"there is no module" not in done.stderr


@pytest.mark.parametrize(
    ("options", "variable"),
    [
        (["--pip", "no-such", "--env", "PIP_RETRIES=1"], "PIP_INDEX_URL"),
        (["--runtime-env", "uv.json", "--env", "UV_HTTP_RETRIES=0"], "UV_DEFAULT_INDEX"),
    ],
    ids=["pip", "uv"],
)
def test_an_index_that_cannot_be_reached(
    options: list[str], variable: str, installed: Installed, tmp_path: Path
) -> None:
    (tmp_path / "uv.json").write_text('{"uv": ["no-such"]}')
    done = installed("submit", *options, "--env", f"{variable}=http://127.0.0.1:9/simple", "--", "true")
    assert done.returncode == 1
    *_, said, last = filter(None, done.stderr.splitlines())
    assert " failed with exit code 1: ERROR: No matching " in said or ": cause: Connection refused" in said
    assert "no package index could be reached from this machine: " in last and f"--env {variable}=URL" in last


def test_a_package_that_no_index_has(installed: Installed, tmp_path: Path) -> None:
    with serving(lambda *_: (404, {}, b"")) as url:
        done = installed("submit", "--pip", "not-there", "--env", f"PIP_INDEX_URL={url}/simple", "--", "true")
    assert done.returncode == 1
    assert "No matching distribution found for not-there" in done.stderr
    assert "could be reached" not in done.stderr


def test_an_environment_without_pip(installed: Installed, users_python: Path, tmp_path: Path) -> None:
    """Like one made by `uv venv`; here pip is hidden from the Python that Ray calls."""
    (tmp_path / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\nfind = PathFinder.find_spec\n"
        "PathFinder.find_spec = lambda name, *args: None if name == 'pip' else find(name, *args)\n"
    )
    done = installed("submit", "--pip", "any", "--env", f"PYTHONPATH={tmp_path}", "--", "true")
    assert done.returncode == 1
    *_, said, last = filter(None, done.stderr.splitlines())
    assert said.endswith(": No module named pip"), done.stderr
    assert f"Ray needs pip to install packages: install it in {users_python.parents[1]} (`uv pip install pip`)" in last
