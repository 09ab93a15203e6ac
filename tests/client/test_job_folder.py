"""A job with an upload runs in a folder of its own: no other job sees what it writes."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import client
from client.job.folder import outputs, started_in_folder
from tests.conftest import Cli

JOB = """
import os, sys, ray
ray.init()

def write_and_list():
    before = sorted(name for name in os.listdir() if name != "__pycache__")
    open(sys.argv[1] if __name__ == "__main__" else "of-a-task", "w").write("written")
    open("input.txt", "a").write("changed")
    return before, open("input.txt").read()

print("driver", *write_and_list())
import helper
print("task", *ray.get(ray.remote(helper.write_and_list).remote()))
"""
SHARED = """
import os
def write_and_list():
    before = sorted(name for name in os.listdir() if name != "__pycache__")
    open("of-a-task", "w").write("written")
    return before, open("input.txt").read()
"""


@pytest.fixture
def folder(remote: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use the head as a remote one, from a folder with a job."""
    for name, value in remote.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    for name, text in {"job.py": JOB, "helper.py": SHARED, "input.txt": "original "}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


SHOWS = "os.getcwd(), os.environ['PYTHONPATH'], sorted(os.listdir())"


def log_of(name: str, results: dict[str, list[str]]) -> None:
    job = client.submit("job.py", name)
    chunks: list[bytes] = []
    result = job.wait(chunks.append)
    lines = b"".join(chunks).decode().splitlines()
    results[name] = [line for line in lines if line.startswith(("driver", "task"))] or [str(result), *lines]


def test_jobs_do_not_see_what_other_jobs_wrote(folder: Path) -> None:
    """One after the other, and two at once, with the same upload."""
    found: dict[str, list[str]] = {}
    log_of("first", found)
    at_once = [threading.Thread(target=log_of, args=(name, found)) for name in ("second", "third")]
    for thread in at_once:
        thread.start()
    for thread in at_once:
        thread.join()
    for name, lines in found.items():
        driver = "driver ['helper.py', 'input.txt', 'job.py'] original changed"
        task = f"task {sorted(['helper.py', 'input.txt', 'job.py', name])} original changed"
        assert lines == [driver, task]
    assert (folder / "input.txt").read_text() == "original "


def start(
    unpacked: Path, name: str, *words: str, shows: str = SHOWS, copied: bool = True, **environment: str
) -> "subprocess.Popen[bytes]":
    """Start Python as Ray starts a process of the job `name` (ray/_private/runtime_env/context.py)."""
    command = started_in_folder(name, {}, copied=copied)["py_executable"]
    code = f"import json, os; print(json.dumps([{shows}]))"
    line = f"cd '{unpacked}' && exec {command} -c \"{code}\" {' '.join(words)}"
    env = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"/module:{unpacked}:/more",
        **environment,
    }
    return subprocess.Popen(["bash", "-c", line], env=env, stdout=subprocess.PIPE)


def said(process: "subprocess.Popen[bytes]") -> Any:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return json.loads(out)


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    path = tmp_path / "a session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    path.mkdir(parents=True)
    for number in range(200):
        (path / str(number)).write_text("text")
    return path


def test_the_processes_of_a_job_share_one_whole_copy(unpacked: Path) -> None:
    processes = [start(unpacked, "a-job") for _ in range(8)]
    jobs = unpacked.parents[2] / "jobs"
    for process in processes:
        assert said(process) == [f"{jobs}/a-job", f"/module:{jobs}/a-job:/more", sorted(map(str, range(200)))]
    assert sorted(path.name for path in jobs.iterdir()) == [".a-job", "a-job"]
    copied = (jobs / ".a-job").stat().st_ctime_ns
    assert all(path.stat().st_ctime_ns <= copied for path in (jobs / "a-job").iterdir())


def test_a_copy_that_fails_leaves_the_shared_folder_to_all_processes(unpacked: Path, tmp_path: Path) -> None:
    (tmp_path / "cp").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "cp").chmod(0o755)
    for _ in range(2):
        found = said(start(unpacked, "a-job", PATH=f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"))
        assert found[0] == str(unpacked) and len(found[2]) == 200


def test_without_room_the_job_runs_in_the_shared_folder(unpacked: Path) -> None:
    (unpacked.parents[2] / "jobs").write_text("not a folder")
    assert said(start(unpacked, "a-job"))[:2] == [str(unpacked), f"/module:{unpacked}:/more"]


def test_an_activated_environment_has_its_own_python(unpacked: Path, tmp_path: Path) -> None:
    """Ray activates the environment of `pip`, which puts its `python` first on PATH."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho '\"activated\"'\n")
    python.chmod(0o755)
    assert said(start(unpacked, "a-job", PATH=f"{tmp_path}:{os.environ['PATH']}", VIRTUAL_ENV="x")) == "activated"


@pytest.mark.parametrize("key", ["py_executable", "container", "image_uri"])
def test_a_job_that_starts_its_processes_in_another_way_keeps_it(key: str) -> None:
    assert started_in_folder("a-job", {key: "mine"}, copied=True) == {key: "mine"}
    assert outputs("a-job", {key: "mine"}, "/data") == "/data"


OUTPUTS = "os.environ['RAY_WORKLOAD_OUTPUTS'], os.path.isdir(os.environ['RAY_WORKLOAD_OUTPUTS'])"


@pytest.mark.parametrize("copied", [True, False])
def test_a_job_has_a_folder_for_its_results(unpacked: Path, tmp_path: Path, copied: bool) -> None:
    """By default its own; below the cluster's where that has one; a URL is passed on."""
    own, volume = str(unpacked.parents[2] / "jobs" / "a-job"), str(tmp_path / "a volume")
    assert said(start(unpacked, "a-job", shows=OUTPUTS, copied=copied)) == [own, True]
    given = start(unpacked, "a-job", shows=OUTPUTS, copied=copied, RAY_WORKLOAD_OUTPUTS=f"{volume}/")
    assert said(given) == [f"{volume}/a-job", True] and outputs("a-job", {}, f"{volume}/") == f"{volume}/a-job"
    given = start(unpacked, "a-job", shows=OUTPUTS, copied=copied, RAY_WORKLOAD_OUTPUTS="gs://bucket")
    assert said(given) == ["gs://bucket/a-job", False] and outputs("a-job", {}, "gs://bucket") == "gs://bucket/a-job"


def test_the_user_s_own_variable_is_left_as_it_is(unpacked: Path) -> None:
    env = {"env_vars": {"RAY_WORKLOAD_OUTPUTS": "/mine"}}
    assert "RAY_WORKLOAD_OUTPUTS" not in started_in_folder("a-job", env, copied=True)["py_executable"]
    assert outputs("a-job", env, "/data") == "/mine"


def test_a_large_upload_is_shared_which_the_client_says(folder: Path, run: Cli) -> None:
    for number in range(1000):
        (folder / str(number)).touch()
    done = run("submit", "--dry-run", "-o", "json", "job.py")
    assert "cp -a" not in json.loads(done.stdout)["runtime_env"]["py_executable"]
    done = run("submit", "--", "pwd")
    assert b"runtime_resources" in done.stdout and b"jobs with the same files share a folder" in done.stderr
    for number in range(3):
        (folder / str(number)).unlink()
    done = run("submit", "--", "pwd")
    assert b"runtime_resources" not in done.stdout and b"share" not in done.stderr
