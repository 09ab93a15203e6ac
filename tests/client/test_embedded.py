"""client/targets/embedded: the embedded Ray is isolated from every other Ray and leaves nothing behind."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil
import pytest

from client.job import follow
from client.targets.embedded import folder as head_folder
from client.targets.embedded import target as embedded
from tests.conftest import Cli

WAITS = """
import os, signal, sys, time
def asked(*_):
    print("asked to end", flush=True)
    sys.exit(9)
signal.signal(signal.SIGTERM, asked)
print("head", os.environ["RAY_ADDRESS"], flush=True)
time.sleep(120)
"""
WHERE = (
    "import os; open('made-here', 'w').close(); print('head', os.environ['RAY_ADDRESS'])\n"
    "print('colours', os.environ.get('RAY_COLOR_PREFIX'))\n"
)


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    def script(text: str) -> str:
        (tmp_path / "script.py").write_text(text)
        return "script.py"

    return script


def heads() -> list[Path]:
    """Return the folders of the current heads, except the heads of the test session."""
    return [path for path in head_folder.base().iterdir() if not (path / "of-the-session").exists()]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    for path in head_folder.base().iterdir():
        (path / "of-the-session").touch()
    memory = set(os.listdir("/dev/shm"))
    yield
    until(lambda: not heads(), 30)
    until(lambda: not unused_memory() - memory, 5)


def unused_memory() -> set[str]:
    """Return the files in shared memory that no process uses; heads of parallel tests use theirs."""
    found = set(os.listdir("/dev/shm"))
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            found -= set(re.findall(r" /dev/shm/(.+)$", maps.read_text(), re.MULTILINE))
    return found


def until(true: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"the condition did not become true within {seconds:g} s"
        time.sleep(0.05)


@contextmanager
def started(
    *args: str, cwd: Path, env: Mapping[str, str] | None = None, client: Sequence[str] = ("-m", "client")
) -> Iterator["subprocess.Popen[bytes]"]:
    command, pipe, environment = [sys.executable, *client, *args], subprocess.PIPE, {**os.environ, **(env or {})}
    # Unbuffered: what a buffer had read ahead, `communicate` would not return.
    with subprocess.Popen(command, cwd=cwd, env=environment, stdout=pipe, stderr=pipe, bufsize=0) as process:
        try:
            yield process
        finally:
            process.kill()


def read_to(stream: IO[bytes] | None, mark: bytes) -> bytes:
    """Read on to the first line with a mark in it; all that was read."""
    assert stream
    read = b""
    for line in stream:
        read += line
        if mark in line:
            return read
    raise AssertionError(f"{mark!r} did not come after {read!r}")


def printed_head(process: "subprocess.Popen[bytes]") -> str:
    """Read until the line in which the job prints its head, and return the head."""
    assert process.stdout
    for line in process.stdout:
        if line.startswith(b"head "):
            return line.decode().split()[1]
    raise AssertionError(process.stderr.read() if process.stderr else "")


def test_a_script_and_its_tasks_run_where_its_files_are(run: Cli, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "data").write_text("of the folder")
    (tmp_path / "sub" / "beside.py").write_text("def read(): return open('data').read()")
    task = "print(ray.get(ray.remote(lambda: __import__('beside').read()).remote()))\n"
    task += "print('a task has', ray.get(ray.remote(lambda: os.environ.get('RAY_ADDRESS')).remote()))\n"
    (tmp_path / "sub" / "a.py").write_text(f"{WHERE}import beside, ray\nray.init()\n{task}")
    done = run("submit", "--num-cpus", "1", "sub/a.py")
    assert done.returncode == 0, done.stderr
    assert b"\nof the folder\n" in done.stdout
    assert done.stderr.count(b"ray-workload: starting Ray\n") == 1
    assert (tmp_path / "made-here").exists()
    (head,) = re.findall(rb"^head (127.0.0.1:\d+)$", done.stdout, re.MULTILINE)
    assert b"\na task has " + head + b"\n" in done.stdout
    assert b"address embedded (a Ray of its own; no other address is set)" in done.stderr
    assert b"\ncolours 0\n" in done.stdout
    assert not heads(), "the head still exists after the command"


def test_two_at_once_and_a_ray_of_the_users_do_not_meet(script: Callable[[str], str], tmp_path: Path) -> None:
    users = (
        "import ray, sys; print('head', ray.init().address_info['gcs_address'], flush=True); sys.stdin.read();"
        " print(ray.get(ray.remote(lambda: 'alive').remote()))"
    )
    command, pipe = [sys.executable, "-c", users], subprocess.PIPE
    home = {**os.environ, "HOME": str(tmp_path)}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=home) as ray:
        theirs = printed_head(ray)
        name = script(WHERE)
        with started("submit", name, cwd=tmp_path) as one, started("submit", name, cwd=tmp_path) as two:
            seen = {theirs, printed_head(one), printed_head(two)}
            assert (one.wait(60), two.wait(60)) == (0, 0)
        assert len(seen) == 3
        output, _ = ray.communicate(timeout=60)
        assert b"alive" in output, "the user's Ray did not survive"


def test_a_killed_client_leaves_nothing(script: Callable[[str], str], tmp_path: Path) -> None:
    with started("submit", script(WAITS), cwd=tmp_path) as client:
        printed_head(client)
        processes = psutil.Process(client.pid).children(recursive=True)
        names = " ".join(" ".join(p.cmdline()) for p in processes)
        assert "raylet" in names and "script.py" in names
        assert len(heads()) == 1
        client.kill()
        _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive


def test_the_next_client_sweeps_after_a_killed_head_and_is_named_where_no_other_is(
    run: Cli, script: Callable[[str], str], tmp_path: Path
) -> None:
    with started("submit", script(WAITS), cwd=tmp_path) as client:
        printed_head(client)
        (folder,) = heads()
        processes = [client_process := psutil.Process(client.pid), *client_process.children(recursive=True)]
        for process in processes:
            process.suspend()  # so that no process can clean up after another
        for process in processes:
            process.kill()
        psutil.wait_procs(processes[1:], timeout=30)
    assert folder.exists()
    os.utime(folder, (0, 0))  # as if it were old
    with started("submit", "--id", "theirs", script(WAITS), cwd=tmp_path) as client:
        printed_head(client)
        assert not folder.exists()
        done = run("logs", "theirs")
        assert done.returncode == 2
        said = done.stderr.decode()
        assert "there is no cluster except the Ray that another client started for itself (" in said
        assert f"process {client.pid} in {tmp_path}" in said and "): start one with `up embedded`" in said
        client.send_signal(signal.SIGTERM)
        client.communicate(timeout=60)


def test_ctrl_c_stops_the_job_and_ends_its_ray(script: Callable[[str], str], tmp_path: Path) -> None:
    with started("submit", script(WAITS), cwd=tmp_path) as client:
        printed_head(client)
        client.send_signal(signal.SIGINT)
        output, errors = client.communicate(timeout=60)
        assert client.returncode == 130, errors
    assert b"asked to end\n" in output, "the driver did not handle the signal, or its last line was lost"
    assert b"was stopped\n" in errors and b"Traceback" not in errors
    assert not heads()


def test_a_dead_head_is_told_as_lost(script: Callable[[str], str], tmp_path: Path) -> None:
    """Ray's agents keep all CPUs busy once their head is dead, so the client waits for less than its usual 20 s."""
    code = "from client.job import follow; follow._LOST_SECONDS_HERE = 3; from client.cli.main import main; main()"
    with started("submit", script(WAITS), cwd=tmp_path, client=["-c", code]) as client:
        printed_head(client)
        (gcs,) = [p for p in psutil.Process(client.pid).children(recursive=True) if "gcs_server" in p.name()]
        gcs.kill()
        begun = time.monotonic()
        _, errors = client.communicate(timeout=60)
        assert 2 < time.monotonic() - begun < 13 and follow._LOST_SECONDS_HERE <= 20
        assert client.returncode == 75, errors
    assert b"connection lost" in errors and b"may still be running" in errors and b"Traceback" not in errors


@pytest.fixture
def ended(run: Cli) -> Iterator[None]:
    """End the warm head after the test."""
    yield
    run("down", "embedded")


@pytest.fixture
def warm(run: Cli, ended: None) -> None:
    said = run("up", "embedded").stderr
    assert b"starting Ray\n" in said and b"is running:" in said


@pytest.mark.usefixtures("ended")
def test_two_ups_at_once_make_a_warm_head_that_is_found_kept_and_ended(
    run: Cli, script: Callable[[str], str], tmp_path: Path
) -> None:
    with started("up", "embedded", cwd=tmp_path) as one, started("up", "embedded", cwd=tmp_path) as two:
        said = sorted(re.findall(rb"is running:|was already running:", one.communicate()[1] + two.communicate()[1]))
    assert said == [b"is running:", b"was already running:"]
    (folder,) = heads()
    assert folder.parent.stat().st_mode & 0o077 == 0
    again = run("up", "embedded").stderr
    assert b"was already running:" in again and b"starting Ray" not in again
    seen = [run("submit", script(WHERE)) for _ in range(2)]
    assert [done.returncode for done in seen] == [0, 0]
    assert all(b"\ncolours 0\n" in done.stdout for done in seen)
    used = [re.findall(rb"^head (\S+)$", done.stdout, re.MULTILINE) for done in seen]
    assert used[0] == used[1] and len(used[0]) == 1
    listed = run("list", "-o", "json")
    assert listed.stdout.count(b'"SUCCEEDED"') == 2
    assert b"embedded Ray was stopped" in run("down", "embedded").stderr
    end = time.monotonic() + 10  # the head's keeper removes the folder after it has released the name
    while heads() and time.monotonic() < end:
        time.sleep(0.05)
    assert not heads()
    assert b"embedded Ray was not running" in run("down", "embedded").stderr
    assert run("list").returncode == 2


def test_ctrl_c_before_a_job_has_started_ends_it(script: Callable[[str], str], tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("entrypoint_label_selector: {no-node: has-it}\n")
    with started("submit", "-f", "job.yaml", script(WHERE), cwd=tmp_path) as client:
        read_to(client.stderr, b"submitted")
        client.send_signal(signal.SIGINT)
        _, errors = client.communicate(timeout=30)
        assert client.returncode == 130
    assert b"was ended before it started" in errors
    assert not heads()


def test_a_reader_that_leaves_ends_it(tmp_path: Path) -> None:
    command = f"{sys.executable} -m client submit -- seq 1000000 | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, timeout=60)
    assert done.returncode == 141, done.stderr
    assert b"Traceback" not in done.stderr
    assert re.search(rb"ray-workload: job \S+ (ends with its Ray|succeeded)\n$", done.stderr)
    assert not heads()


@pytest.mark.usefixtures("warm")
def test_ctrl_c_leaves_a_warm_job_alone_and_the_second_stops_it(
    run: Cli, script: Callable[[str], str], tmp_path: Path
) -> None:
    with started("submit", "--id", "kept", script(WAITS), cwd=tmp_path) as client:
        printed_head(client)
        client.send_signal(signal.SIGINT)
        _, errors = client.communicate(timeout=30)
        assert client.returncode == 130
    assert b"logs -f kept" in errors and b"stop kept" in errors and b"Traceback" not in errors
    assert b'"RUNNING"' in run("status", "kept", "-o", "json").stdout
    with started("submit", "--id", "kept", script(WAITS), cwd=tmp_path) as client:
        printed_head(client)
        client.send_signal(signal.SIGINT)
        assert b"the job goes on" in read_to(client.stderr, b"press Ctrl-C again")
        client.send_signal(signal.SIGINT)
        output, _ = client.communicate(timeout=60)
        assert client.returncode == 130
    assert b"asked to end\n" in output
    assert b'"STOPPED"' in run("status", "kept", "-o", "json").stdout


def test_a_head_that_cannot_start_says_why(run: Cli, environment: Path) -> None:
    (environment / "sitecustomize.py").write_text("import sys\nif 'head.py' in sys.argv[0]: sys.exit('no room')\n")
    done = run("submit", "-o", "json", "--", "true", env={"PYTHONPATH": str(environment)})
    assert done.returncode == 69
    address, starting, error = done.stderr.decode().splitlines()
    assert address.startswith("ray-workload: address embedded (a Ray of its own; ")
    assert starting == "ray-workload: starting Ray"
    assert "the embedded Ray did not start: SystemExit: no room" in error
    assert json.loads(done.stdout)["exit_code"] == 69


def test_a_folder_that_others_may_read_is_refused(run: Cli) -> None:
    with tempfile.TemporaryDirectory(prefix="rwo", dir="/tmp") as tmp:
        folder = Path(tmp) / f"rw-{os.getuid()}"
        folder.mkdir()
        folder.chmod(0o755)
        done = run("submit", "--", "true", env={"TMPDIR": tmp})
    assert done.returncode == 1
    assert b"not a private folder" in done.stderr


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, int]]:
    """Create what remains of a killed warm head; its process ID now belongs to another process."""
    with tempfile.TemporaryDirectory(prefix="rwt", dir="/tmp") as folder, subprocess.Popen(["sleep", "60"]) as stranger:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        directory = head_folder.base() / "warm"
        directory.mkdir()
        (directory / "lock").write_text(str(stranger.pid))
        (directory / "token").write_text("t")
        (directory / "head.json").write_text(
            '{"dashboard_port": 1, "agent_port": 1, "python": "python", "folder": [1, 1]}'
        )
        yield directory, stranger.pid
        monkeypatch.undo()
        tempfile.tempdir = None
        stranger.kill()


def test_two_that_look_for_a_killed_head_find_none(killed: tuple[Path, int]) -> None:
    assert (other := head_folder.lock(killed[0], fcntl.LOCK_SH)) is not None
    assert embedded.warm() is None
    os.close(other)


def test_a_killed_head_that_is_being_removed_is_neither_used_nor_ended(killed: tuple[Path, int]) -> None:
    directory, stranger = killed
    assert (lock := head_folder.lock(directory)) is not None
    head_folder.empty(directory, lock)
    assert (embedded.warm(), embedded.down()) == (None, False)
    os.close(lock)
    assert os.listdir(directory) == ["lock"] and not (directory / "lock").read_text()
    assert psutil.pid_exists(stranger) and psutil.Process(stranger).status() != psutil.STATUS_ZOMBIE


def test_a_kill_by_the_kernel_is_told(
    killed: tuple[Path, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count itself is a stand-in: a real kill would need a machine without memory."""
    assert re.search(r"^oom_kill \d+$", embedded._VMSTAT.read_text(), re.MULTILINE)
    monkeypatch.setattr(embedded, "_VMSTAT", tmp_path / "vmstat")
    (tmp_path / "vmstat").write_text("nr_free_pages 5\noom_kill 3\n")
    target = embedded.EmbeddedTarget(killed[0])
    assert target.out_of_memory(0, "") == ""
    (tmp_path / "vmstat").write_text("nr_free_pages 5\noom_kill 4\n")
    assert target.out_of_memory(0, "").startswith("this machine ran out of memory")


def test_no_room_for_a_head(run: Cli) -> None:
    with tempfile.TemporaryDirectory(prefix="rwt", dir="/tmp") as folder:
        (Path(folder) / f"rw-{os.getuid()}").touch()
        for command in (["submit", "--", "true"], ["up", "embedded"]):
            done = run(*command, env={"TMPDIR": folder})
            assert (done.returncode, done.stderr.count(b"\n")) == (1, 1), done.stderr
            assert b"is not a private folder of yours: remove it, or set TMPDIR" in done.stderr
