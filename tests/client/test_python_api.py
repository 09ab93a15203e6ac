"""`import client`: what a notebook and a script use."""

import io
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

import client
from client.targets.embedded import folder as head_folder

# Prints many characters of two, three and four bytes, which chunks of any size split, and waits for a file in between.
SPEAKS = """
import sys, time, pathlib
print("first: é€😀", flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.02)
for number in range(300):
    sys.stdout.buffer.write(("é€😀" * 40 + "\\n").encode()[:-1 if number == 299 else None])
    sys.stdout.buffer.flush()
sys.exit(7)
"""
SPOKEN = ["first: é€😀", *["é€😀" * 40] * 300]


def spoken(lines: Iterable[str]) -> list[str]:
    """Return the lines without Ray's own, which may come before, between or after the job's."""
    text = re.sub(r"Running entrypoint for job .*\n|\n?Running entrypoint for job .*\Z", "", "\n".join(lines))
    return [line for line in text.split("\n") if "INFO job_manager.py" not in line]


class NotebookStdout(io.TextIOBase):
    """Takes text alone, as a notebook's stdout does; tells when a text has come."""

    def __init__(self, told: Callable[[str], object]) -> None:
        self.text, self._told = "", told

    def write(self, text: str) -> int:
        self.text += text
        self._told(self.text)
        return len(text)


@pytest.fixture
def speaks(as_remote: Path) -> Path:
    (as_remote / "speaks.py").write_text(SPEAKS)
    return as_remote / "go"


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, for jobs on a Ray of their own; afterwards, no Ray may be left."""
    monkeypatch.chdir(tmp_path)
    before = {*head_folder.base().iterdir()}
    yield tmp_path
    assert {*head_folder.base().iterdir()} == before


def in_a_notebook(monkeypatch: pytest.MonkeyPatch, go: Path) -> NotebookStdout:
    """Replace stdout; the job goes on only when its first line has been shown."""
    stdout = NotebookStdout(lambda text: go.touch() if "first: é€😀\n" in text else None)
    monkeypatch.setattr(sys, "stdout", stdout)
    return stdout


def test_a_log_is_shown_live_in_a_notebook(speaks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = in_a_notebook(monkeypatch, speaks)
    ended = client.submit("speaks.py", str(speaks)).wait(show=True, timeout=60)
    assert ended.exit_code == 7
    assert spoken(stdout.text.split("\n")) == SPOKEN


def test_a_shown_log_may_be_split_anywhere_and_end_inside_a_character(
    as_remote: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (as_remote / "a.py").write_text("import sys; sys.stdout.buffer.write('a€é\\xff😀'.encode()[:-1])")
    job = client.submit("a.py")
    job.wait()
    read = job.jobs.logs.read
    monkeypatch.setattr(job.jobs.logs, "read", lambda *of: (bytes([byte]) for chunk in read(*of) for byte in chunk))
    monkeypatch.setattr(sys, "stdout", stdout := NotebookStdout(lambda _: None))
    written = bytearray()
    job.wait(written.extend, show=True)
    assert "a€é\xff\ufffd" in stdout.text
    assert "a€é\xff😀".encode()[:-1] in written
    assert "a€é\xff\ufffd" in "".join(job.logs())


def test_lines_are_iterated_live(speaks: Path) -> None:
    job, seen = client.submit("speaks.py", str(speaks)), list[str]()
    for line in job.logs(follow=True):
        seen.append(line)
        if line == SPOKEN[0]:
            assert line in job.logs() and not job.status().finished
            speaks.touch()
    assert spoken(seen) == SPOKEN
    assert job.wait().exit_code == 7


def test_a_reader_that_leaves_does_not_end_the_job(speaks: Path) -> None:
    job = client.submit("speaks.py", str(speaks))
    assert SPOKEN[0] in (line for line in job.logs(follow=True))
    assert not job.status().finished
    speaks.touch()
    assert job.wait().exit_code == 7


def test_result_and_log_outlive_a_ray_of_its_own(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a log of many chunks, of which no copy is kept."""
    command = "import sys; print('é' * 3_000_000); print('end'); sys.exit(5)"
    before = {*head_folder.base().iterdir()}
    with client.submit(command=[sys.executable, "-c", command], address="embedded") as job:
        ended = job.wait(timeout=60)
        assert (ended.exit_code, job.target.ends_with_us) == (5, True)
        assert {*head_folder.base().iterdir()} == before, "its Ray has not ended"
        began = time.monotonic()
        assert job.wait() is ended
        assert (job.status(), job.stop()) == (ended.job, ended.job)
        whole = list(job.logs())
        assert spoken(whole) == ["é" * 3_000_000, "end"]
        assert list(job.logs(follow=True)) == whole
        monkeypatch.setattr(sys, "stdout", stdout := NotebookStdout(lambda _: None))
        assert job.wait(show=True) is ended
        assert stdout.text == "\n".join([*whole, ""])
        assert time.monotonic() - began < 10, "something was asked of a Ray that has ended"
    assert job.wait() is ended
    with pytest.raises(client.ClientError, match="is closed, and the Ray that was started for it has ended: wait for"):
        job.logs()


def test_closing_a_job_that_goes_on_stops_nothing(speaks: Path) -> None:
    with client.submit("speaks.py", str(speaks), submission_id="goes-on") as job:
        assert not job.status().finished
    speaks.touch()
    again = client.attach("goes-on")
    assert again.wait().exit_code == 7
    assert spoken(again.logs()) == SPOKEN


def test_closing_a_job_on_a_ray_of_its_own_ends_both(alone: Path) -> None:
    with client.submit(command=["sleep", "60"], address="embedded") as job:
        next(job.logs(follow=True))
    began = time.monotonic()
    for method in (job.status, job.wait, job.stop, job.logs, lambda: list(job.logs(follow=True))):
        with pytest.raises(client.ClientError, match="is closed, and the Ray that was started for it has ended"):
            method()
    assert time.monotonic() - began < 5


def test_a_wait_that_runs_out_says_so_and_the_job_goes_on(alone: Path) -> None:
    job = client.submit(command=["sleep", "60"], address="embedded")
    with pytest.raises(client.TimedOut, match="has not ended after 0.5 s: it goes on"):
        job.wait(timeout=0.5)
    stopped = job.stop()
    assert (stopped.status, stopped.exit_code) == ("STOPPED", 143)
    assert (job.wait(timeout=30).exit_code, job.status().exit_code) == (143, 143)


def test_jobs_are_listed_with_their_ends(as_remote: Path) -> None:
    (as_remote / "a.py").write_text("")
    first = client.submit(command=["sh", "-c", "exit 3"], submission_id="listed-first", tags={"k": "v"})
    first.wait()
    with client.submit(command=["sleep", "60"], submission_id="listed-second") as second:
        listed = client.jobs()
        assert [job.submission_id for job in listed[:2]] == ["listed-second", "listed-first"]
        assert (listed[0].finished, listed[0].exit_code) == (False, None)
        assert (listed[1].status, listed[1].exit_code, listed[1].metadata["k"]) == ("FAILED", 3, "v")
        second.stop()
        assert [(job.status, job.exit_code) for job in client.jobs() if job.submission_id == "listed-second"] == [
            ("STOPPED", 143)
        ]


def test_help_and_completion_need_no_ray(tmp_path: Path) -> None:
    code = (
        "import sys, client\n"
        "names = dir(client)\n"
        "assert set(client.__all__) < set(names), names\n"
        "assert not [name for name in names if name.startswith('_') and name != '__version__'], names\n"
        "help(client)\n"
        "assert not {'ray', 'kubernetes'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, timeout=60, text=True)
    assert done.returncode == 0, done.stderr
    for name in client.__all__:
        assert name in done.stdout, name
    assert "submit(script: " in done.stdout and "Submit a script or a command, once." in done.stdout
    assert "logs(self, " in done.stdout


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "unknown": (lambda: client.submit("a.py", nam="x"), r"submit\(\) has no argument nam: it has script, .* name, "),
    "nothing": (lambda: client.submit(), "there is nothing to run: specify a script or a command"),
    "both": (lambda: client.submit("a.py", command=["true"]), "runs a script or a command: specify one of them"),
    "no script": (lambda: client.submit("b.py"), r"there is no script b.py: to run a command, use command=\[...\]"),
    "outside": (lambda: client.submit("a.py", working_dir="sub"), "use a working_dir that contains it$"),
    "script": (lambda: client.submit(5), "script must be a str or a Path"),  # type: ignore[arg-type]
    "args": (lambda: client.submit("a.py", 5), "args must be str, like '4'"),  # type: ignore[arg-type]
    "command": (lambda: client.submit(command="echo hi"), r"command must be a list of str, like \['echo', 'hello'\]"),
    "words": (lambda: client.submit(command=["a", 5]), "command must be a list of str"),  # type: ignore[list-item]
    "env": (lambda: client.submit("a.py", env={"A": 5}), "env must be a dict of str to str"),  # type: ignore[dict-item]
    "tags": (lambda: client.submit("a.py", tags=["a"]), "tags must be a dict of str to str"),  # type: ignore[arg-type]
    "timeout": (lambda: client.submit("a.py", timeout="5"), "timeout must be a number"),  # type: ignore[arg-type]
    "no timeout": (lambda: client.submit("a.py", timeout=0), "a timeout must be more than 0 seconds"),
    "cpus": (lambda: client.submit("a.py", entrypoint_num_cpus="2"), "entrypoint_num_cpus must be a number"),
    "id": (lambda: client.submit("a.py", submission_id=5), "submission_id must be a str"),
    "secret": (lambda: client.submit("a.py", env={"A_TOKEN": "x"}), r"\(secret_env\), or allow_plain=True"),
    "secret_env": (lambda: client.submit("a.py", secret_env={"A": "b"}), "use secret_env={'A': 'SECRET/KEY'}"),
    "secret name": (lambda: client.submit("a.py", secret_env={"A-": None}), "use secret_env={'NAME': 'SECRET/KEY'}"),
    "address": (lambda: client.submit("a.py", address="nowhere"), r"nowhere \(address\) is not an address: use emb"),
    "no address": (lambda: client.jobs(5), "address must be a str"),  # type: ignore[arg-type]
    "attach": (lambda: client.attach(5), "submission_id must be a str"),  # type: ignore[arg-type]
    "no cluster": (lambda: client.jobs("embedded"), "start one with `ray-workload up embedded`, or use addr"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_told_in_pythons_words(case: str, as_remote: Path) -> None:
    (as_remote / "a.py").write_text("")
    (as_remote / "sub").mkdir()
    call, words = WRONG[case]
    with pytest.raises(client.UsageError, match=words) as told:
        call()
    assert "--" not in str(told.value) and "job file" not in str(told.value)
    assert told.value.args == (told.value.what, told.value.hint)


def test_an_id_that_is_taken_or_unknown_is_told_in_pythons_words(as_remote: Path) -> None:
    (as_remote / "a.py").write_text("")
    client.submit(command=["true"], submission_id="taken").wait()
    with pytest.raises(client.ClientError, match="has the id taken: use another submission_id$"):
        client.submit(command=["false"], submission_id="taken")
    with pytest.raises(client.JobNotFound, match=r"`client.jobs\(\)` shows all jobs"):
        client.attach("never-was")
    job = client.attach("taken")
    for call, words in (
        (lambda: job.wait(timeout="5"), "timeout must be a number"),  # type: ignore[arg-type]
        (lambda: job.wait(True), "write must be a function"),  # type: ignore[arg-type]
        (lambda: job.stop("5"), "seconds must be a number"),  # type: ignore[arg-type]
    ):
        with pytest.raises(client.UsageError, match=words):
            call()


USES = """
import client

def run(script: str) -> int:
    try:
        with client.submit(script, "4", env={"A": "b"}, timeout=60, entrypoint_num_cpus=1) as job:
            lines: list[str] = [line for line in job.logs(follow=True)]
            result: client.JobResult = job.wait(show=True, timeout=60, note=print)
            record: client.JobRecord = job.status()
            stopped: client.JobRecord = job.stop()
    except client.UsageError as error:
        hint: str = error.hint
    except (client.TimedOut, client.ContactLost, client.Detached, client.JobNotFound, client.NotAuthorised):
        pass
    except client.Unreachable as error:
        code: int = error.exit_code
    except client.ClientError:
        raise
    ended: list[int | None] = [listed.exit_code for listed in client.jobs("http://127.0.0.1:8265")]
    attached: client.Job = client.attach("id")
    return attached.wait().exit_code

def run_many(file: str) -> dict[str, str]:
    chain: client.BatchRun = client.chain(file, max_parallel=2, keep_going=True, start="train")
    sweep = client.sweep("a.py", "{lr}", matrix={"lr": [0.1, 0.01]}, array=range(3), retries=1, env={"A": "b"})
    try:
        for job in sweep.as_completed(timeout=60):
            done: client.BatchJob = job
    except client.JobLost as error:
        sweep.stop(error.exit_code)
    return {job.name: job.status for job in chain.wait()}
"""


def test_a_users_types_are_checked(tmp_path: Path) -> None:
    assert [name for name in client.__all__ if f"client.{name}" not in USES] == []
    (tmp_path / "right.py").write_text(USES)
    (tmp_path / "wrong.py").write_text('import client\n\nx: str = client.submit("a.py").wait().exit_code\n')
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", "cache", "right.py", "wrong.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=200, text=True)
    error, summary = done.stdout.splitlines()
    assert error.startswith('wrong.py:3: error: Incompatible types in assignment (expression has type "int"'), done
    assert summary.startswith("Found 1 error in 1 file")
