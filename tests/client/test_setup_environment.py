"""jobs/setup_environment.py with uv and with pip, and with packages of a local index."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.client.server import Handler, serving
from tests.client.test_git_sync import kill, refused, wait_for_the_lock
from tests.client.test_packages import make_wheel
from tests.conftest import ROOT

JOB = (sys.executable, str(ROOT / "jobs" / "setup_environment.py"))
Done = subprocess.CompletedProcess[str]


class Index:
    """A package index. rw_needs requires numpy, whose wheel here is not the real one. Each wheel waits for `hold`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, list[str]()
        self.hold: Callable[[], object] = lambda: None

    def answer(self, request: Handler, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        self.asked.append(request.path)
        name = request.path.strip("/").rpartition("/")[2].replace("-", "_")
        if request.path.endswith(".whl"):
            self.hold()
            module, number = name.partition("_py3")[0].rsplit("_", 1)
            wheel = make_wheel(self.folder, module, number, "numpy>=2" if module == "rw_needs" else "")
            return 200, {}, wheel.read_bytes()
        number = version("numpy") if name == "numpy" else "1.0"
        file = f"{name}-{number}-py3-none-any.whl"
        return 200, {"Content-Type": "text/html"}, f'<a href="/files/{file}">{file}</a>'.encode()


@pytest.fixture
def index(tmp_path: Path) -> Index:
    (tmp_path / "index").mkdir()
    return Index(tmp_path / "index")


@pytest.fixture(params=["uv", "pip"])
def installer(request: pytest.FixtureRequest, index: Index, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each installer, with the index."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    if request.param == "pip":
        folders = os.environ["PATH"].split(os.pathsep)
        monkeypatch.setenv("PATH", os.pathsep.join(f for f in folders if not Path(f, "uv").exists()))
    assert bool(shutil.which("uv")) == (request.param == "uv")
    with serving(index.answer) as url:
        monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple")
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"{url}/simple")
        yield request.param


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "volume" / "environment"


@pytest.fixture
def requirements(tmp_path: Path) -> Path:
    file = tmp_path / "requirements.txt"
    file.write_text("rw-one\n")
    return file


def setup(requirements: Path, to: Path) -> Done:
    command = (*JOB, "--requirements", str(requirements), "--to", str(to))
    return subprocess.run(command, cwd=to.anchor, capture_output=True, text=True, timeout=120)


@contextmanager
def setting_up(requirements: Path, to: Path) -> "Iterator[subprocess.Popen[str]]":
    command = (*JOB, "--requirements", str(requirements), "--to", str(to))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        yield process


def succeeded(done: Done, to: Path, first: str) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(first) and lines[-1].startswith(f"all well: {to} has the packages of "), lines


def word(to: Path, module: str) -> str:
    """Return the WORD of a module in an environment, or the error that there is none."""
    code = f"import {module}; print({module}.WORD)"
    done = subprocess.run([to / "bin" / "python", "-c", code], capture_output=True, text=True, timeout=60)
    return done.stdout.strip() or done.stderr.splitlines()[-1]


def test_it_has_the_packages_of_the_file_and_those_of_the_image(
    installer: str, index: Index, requirements: Path, to: Path
) -> None:
    make_wheel(requirements.parent, "rw_local")
    requirements.write_text("rw-needs\n./rw_local-1.0-py3-none-any.whl\n")
    succeeded(setup(requirements, to), to, "making ")
    assert (word(to, "rw_needs"), word(to, "rw_local")) == ("rw_needs", "rw_local")
    code = "import sys, ray, numpy; print(sys.prefix, ray.__version__, numpy.__version__, numpy.arange(3).sum())"
    done = subprocess.run([to / "bin" / "python", "-c", code], capture_output=True, text=True, timeout=60)
    # That numpy is not the one of the index. The prefix can be that of the link.
    prefix, *rest = done.stdout.split()
    assert Path(prefix).resolve() == to.resolve() and rest == [version("ray"), version("numpy"), "3"], done.stderr


def test_it_is_made_once_for_each_content(installer: str, index: Index, requirements: Path, to: Path) -> None:
    succeeded(setup(requirements, to), to, "making ")
    first, count = to.resolve(), len(index.asked)
    succeeded(setup(requirements, to), to, f"{first} is complete")
    assert len(index.asked) == count and to.resolve() == first

    (requirements.parent / "more").mkdir()
    (requirements.parent / "more" / "base.txt").write_text("rw-two\n")
    requirements.write_text("rw-one\n-r more/base.txt\n")
    succeeded(setup(requirements, to), to, "making ")
    second = to.resolve()
    assert second != first and word(to, "rw_two") == "rw_two"
    assert word(first, "rw_one") == "rw_one" and "No module named 'rw_two'" in word(first, "rw_two")

    (requirements.parent / "more" / "base.txt").write_text("rw-three\n")
    succeeded(setup(requirements, to), to, "making ")
    assert to.resolve() not in (first, second) and word(to, "rw_three") == "rw_three"

    requirements.write_text("rw-one\n")
    succeeded(setup(requirements, to), to, f"{first} is complete")
    assert to.resolve() == first


def test_a_requirement_that_the_image_contradicts(installer: str, requirements: Path, to: Path) -> None:
    succeeded(setup(requirements, to), to, "making ")
    before = to.resolve()
    requirements.write_text("rw-one\nnumpy<2\n")
    done = setup(requirements, to)
    refused(Done((), done.returncode, done.stdout, done.stderr[done.stderr.rindex("wrong: ") :]), "its output is above")
    assert f"numpy=={version('numpy')}" in done.stdout + done.stderr
    assert to.resolve() == before and word(to, "rw_one") == "rw_one"


def test_a_job_that_was_killed(installer: str, index: Index, requirements: Path, to: Path) -> None:
    asked, over = threading.Event(), threading.Event()

    def hold() -> None:
        asked.set()
        over.wait(60)

    index.hold = hold
    with setting_up(requirements, to) as process:
        assert asked.wait(60)
        kill(process, children=True)
    over.set()
    (folder,) = to.parent.glob("environment-*")
    assert (folder / "bin" / "python").exists() and not to.is_symlink()
    (folder / "half-made").touch()
    succeeded(setup(requirements, to), to, f"making {folder}")
    assert to.resolve() == folder and word(to, "rw_one") == "rw_one" and not (folder / "half-made").exists()


@pytest.mark.parametrize("killed", [False, True], ids=["both end", "the first is killed, its installer is not"])
def test_two_jobs_at_once(installer: str, killed: bool, index: Index, requirements: Path, to: Path) -> None:
    asked, go = threading.Event(), threading.Event()

    def hold() -> None:
        asked.set()
        assert go.wait(60)

    index.hold = hold
    with setting_up(requirements, to) as first:
        assert asked.wait(60)
        with setting_up(requirements, to) as second:
            wait_for_the_lock(second)
            if killed:
                kill(first, children=False)
                wait_for_the_lock(second)
            go.set()
            said = second.communicate(timeout=100)[0]
    assert second.returncode == 0 and said.startswith("making " if killed else f"{to.resolve()} is complete"), said
    assert killed or first.returncode == 0
    assert word(to, "rw_one") == "rw_one"


def test_what_is_refused(requirements: Path, to: Path) -> None:
    refused(setup(requirements.with_name("no.txt"), to), "there is no file")
    to.mkdir(parents=True)
    (to / "mine").touch()
    refused(setup(requirements, to), "is not the link that this job makes")
    assert (to / "mine").exists()
