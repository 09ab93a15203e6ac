"""RAY_WORKLOAD_OUTPUTS on an embedded Ray: a folder beside the script's files, which exists while it is of use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from client.targets.embedded import keeper
from tests.conftest import Cli

JOB = """
import os, sys, ray
folder = os.environ["RAY_WORKLOAD_OUTPUTS"]
seen = ray.get(ray.remote(lambda: (os.environ["RAY_WORKLOAD_OUTPUTS"], os.path.isdir(folder))).remote())
assert seen == (folder, True), seen
print("in", folder)
for name in sys.argv[1:]:
    open(f"{folder}/{name}", "w").write("result")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job.py").write_text(JOB)
    return tmp_path


def last_line(done: "subprocess.CompletedProcess[bytes]") -> str:
    assert done.returncode == 0, done.stderr
    return done.stderr.decode().splitlines()[-1]


def uploaded(folder: Path, run: Cli) -> set[str]:
    """Return what a submit to a cluster would upload."""
    done = run("submit", "--dry-run", "-o", "json", "--address", "http://127.0.0.1:1", "job.py")
    return {entry["path"] for entry in json.loads(done.stdout)["upload"]}


def test_results_stay_beside_the_script_and_are_not_uploaded(folder: Path, run: Cli) -> None:
    """`--fetch` has nothing to do here: the same command works without a cluster."""
    done = run("submit", "--fetch", "outputs/**", "job.py", "model.txt")
    assert b"nothing to fetch: job" in done.stderr and b"ran on this machine" in done.stderr
    assert last_line(done) == f"ray-workload: outputs: {folder}/outputs"
    assert (folder / "outputs" / "model.txt").read_text() == "result"
    assert sorted(os.listdir(folder / "outputs")) == [".gitignore", "model.txt"]
    assert uploaded(folder, run) == {"job.py"}


def test_a_place_of_the_user_s_without_results_does_not_remain(folder: Path, run: Cli) -> None:
    done = run("submit", "job.py", env={"RAY_WORKLOAD_OUTPUTS": f"{folder}/mine"})
    assert "succeeded" in last_line(done) and f"in {folder}/mine\n".encode() in done.stdout
    assert os.listdir(folder) == ["job.py"]


def test_a_kept_ray_says_where_results_are(folder: Path, run: Cli) -> None:
    """Also for a job from another folder than the Ray's."""
    other = folder / "other"
    other.mkdir()
    (other / "job.py").write_text(JOB)
    try:
        assert run("up", "embedded").returncode == 0
        assert last_line(run("submit", "--id", "here", "job.py", "a.txt")) == f"ray-workload: outputs: {folder}/outputs"
        done = run("submit", "--id", "there", "job.py", "b.txt", cwd=other)
        assert last_line(done) == f"ray-workload: outputs: {other}/outputs"
        assert f"outputs     {other}/outputs\n".encode() in run("status", "there").stdout
        assert last_line(run("fetch", "there")).endswith(f"its files are in {other}/outputs")
    finally:
        run("down", "embedded")
    assert (other / "outputs" / "b.txt").exists() and (other / "outputs" / ".gitignore").exists()
    assert sorted(os.listdir(folder / "outputs")) == [".gitignore", "a.txt"]


HOLD = "import sys; from pathlib import Path; from client.targets.embedded import keeper; keeper._hold(Path('outputs'))"


def test_a_folder_that_another_head_holds_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outputs = Path("outputs")
    keeper._hold(outputs)
    subprocess.run([sys.executable, "-c", HOLD], check=True)
    keeper._release(outputs)
    (other,) = set(os.listdir(outputs)) - {".gitignore"}
    other_path = outputs / other
    other_path.rename(outputs / f".{os.getpid()}")
    keeper._release(outputs)
    assert not outputs.exists()


@pytest.mark.parametrize("ignored", [None, "*\n", "*\n!.gitignore\n"])
def test_a_folder_of_the_user_s_is_left_as_it_was(tmp_path: Path, ignored: str | None) -> None:
    if ignored:
        (tmp_path / ".gitignore").write_text(ignored)
    before = os.listdir(tmp_path)
    keeper._hold(tmp_path)
    keeper._release(tmp_path)
    assert tmp_path.exists() and os.listdir(tmp_path) == before


def test_a_link_to_nowhere_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "outputs").symlink_to("/nowhere")
    keeper._hold(tmp_path / "outputs")
    keeper._release(tmp_path / "outputs")
    assert os.listdir(tmp_path) == ["outputs"]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--address", "http://127.0.0.1:1"], "--fetch needs a RayCluster, and the address is http://127.0.0.1:1"),
        (["--detach"], "--fetch waits for the job's end, and --detach does not: use `fetch ID` later"),
    ],
)
def test_a_fetch_that_cannot_be_is_refused_before_anything_is_sent(
    folder: Path, run: Cli, options: list[str], what: str
) -> None:
    done = run("submit", "--fetch", "x", *options, "job.py")
    assert done.returncode == 2 and what in done.stderr.decode(), done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.mark.usefixtures("folder")
def test_fetch_needs_a_cluster(run: Cli, remote: dict[str, str]) -> None:
    run("submit", "--id", "to-fetch", "--", "true", env=remote)
    done = run("fetch", "to-fetch", env=remote)
    assert done.returncode == 2 and b"can only be fetched from a RayCluster" in done.stderr
    done = run("fetch", "unknown", env=remote)
    assert done.returncode == 1 and b"there is no job unknown" in done.stderr
