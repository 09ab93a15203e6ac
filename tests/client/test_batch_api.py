"""Chains and sweeps in Python: `client.chain` and `client.sweep`."""

import asyncio
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import client
from tests.client.chains import Marks


@pytest.fixture
def marks(tmp_path: Path, as_remote: Path) -> Marks:
    (as_remote / "file").write_text("")
    return Marks(tmp_path / "marks")


def test_a_chain_gives_its_jobs_as_they_end(marks: Marks, as_remote: Path) -> None:
    (as_remote / "data.rayignore").touch()
    (as_remote / ".rayignore").write_text("marks\n")
    jobs = {
        "slow": marks.job("slow", marks.wait_for("gate")),
        "quick": marks.job("quick"),
        "after": {**marks.job("after", "exit 6"), "after": "quick"},
        "never": {**marks.job("never"), "after": "after"},
    }
    spec = {"name": "in-python", "jobs": jobs}
    run = client.chain(spec, keep_going=True)
    assert (run.name, repr(run).startswith("<BatchRun in-python at http://")) == ("in-python", True)
    seen = []
    for job in run.as_completed(timeout=60):
        seen.append(job.name)
        if job.name == "after":
            assert (job.status, job.exit_code, run.exit_code) == ("FAILED", 6, 6)
            marks.open("gate")
    assert seen == ["quick", "after", "slow", "never"]
    assert [job.name for job in run.as_completed()] == seen, "those that have ended come again"
    found = {job.name: job for job in run.wait()}
    quick = found["quick"]
    assert (quick.status, quick.exit_code, quick.attempts) == ("SUCCEEDED", 0, (quick.submission_id,))
    assert quick.seconds and quick.seconds > 0 and quick.parameters == {}
    assert client.attach(quick.submission_id or "").wait().exit_code == 0
    assert (found["never"].exit_code, found["never"].submission_id, found["never"].attempts) == (None, None, ())
    assert run.exit_code == 6

    (as_remote / "chain.yaml").write_text("jobs: {}")
    again = client.chain(spec, start="after")
    states = {job.name: job.status for job in again.wait()}
    assert states["after"] == "FAILED" and again.exit_code == 6


def test_a_sweep_in_a_running_event_loop_and_again(marks: Marks, as_remote: Path) -> None:
    (as_remote / ".rayignore").write_text("marks\n")
    (as_remote / "job.py").write_text(
        "import os, sys\nprint(sys.argv[1:], os.environ['RAY_WORKLOAD_ARRAY_INDEX'])\nsys.exit(int(sys.argv[1]))\n"
    )

    async def main() -> list[client.BatchJob]:
        sweep = client.sweep("job.py", "{code}", matrix={"code": [0, 7]}, array=range(1), submission_id="in-a-loop")
        return [job for job in sweep.as_completed()]

    ended = {job.parameters["code"]: job for job in asyncio.run(main())}
    assert {code: (job.status, job.exit_code) for code, job in ended.items()} == {
        "0": ("SUCCEEDED", 0),
        "7": ("FAILED", 7),
    }
    assert ended["7"].parameters == {"code": "7", "index": "0"} and ended["7"].name == "code=7,index=0"
    assert "['7'] 0" in client.attach(ended["7"].submission_id or "").logs()
    again = client.sweep("job.py", "{code}", matrix={"code": [0, 7]}, array=range(1), submission_id="in-a-loop")
    first, second = again.wait()
    assert (first.status, first.exit_code, len(second.attempts), again.exit_code) == ("SKIPPED", None, 2, 7)


def test_stop_ends_all_jobs_and_starts_no_other(marks: Marks, as_remote: Path) -> None:
    (as_remote / ".rayignore").write_text("marks\n")
    waits = marks.wait_for("never")
    run = client.chain(
        {"name": "stopped", "jobs": {"one": marks.job("one", waits), "two": {**marks.job("two"), "after": "one"}}}
    )
    with pytest.raises(client.TimedOut, match=r"no other job of stopped has ended in 0.1 s: they continue$"):
        next(run.as_completed(timeout=0.1))
    deadline = time.monotonic() + 60
    while not marks.all:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.stop()
    assert [(job.name, job.exit_code) for job in run.wait()] == [("one", 143), ("two", None)]
    assert marks.all == ["start one"] and run.exit_code == 143
    run.stop()  # of a run that has ended


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "no file": (lambda: client.chain("none.yaml"), "cannot read none.yaml: No such file or directory"),
    "keys": (
        lambda: client.chain({"name": "c", "jobs": {"a": {"comand": ["x"]}}}),
        "there is no key comand; did you mean command?",
    ),
    "cycle": (
        lambda: client.chain({"name": "c", "jobs": {"a": {"command": ["x"], "after": "a"}}}),
        "jobs wait for each other: a",
    ),
    "start": (
        lambda: client.chain({"name": "c", "jobs": {"a": {"command": ["x"]}}}, start="b"),
        "c has no job b: it has a",
    ),
    "parallel": (lambda: client.chain({"name": "c", "jobs": {}}, max_parallel=0), "max_parallel must be at least 1"),
    "address": (
        lambda: client.chain({"name": "c", "jobs": {"a": {"command": ["x"]}}}, address="no"),
        "no (address) is not an addr",
    ),
    "unused": (
        lambda: client.sweep(command=["x"], matrix={"a": [1]}),
        "no argument uses the parameter a: put {a} into ",
    ),
    "unknown": (lambda: client.sweep(command=["{b}"], matrix={"a": [1]}), "there is no parameter b"),
    "argument": (lambda: client.sweep(command=["x"], comand=5, array=[1]), "submit() has no argument comand: it has "),
    "retry_on": (
        lambda: client.sweep(command=["x"], retry_on=["never"]),
        "retry_on has no kind never: use lost or exit",
    ),
    "both": (lambda: client.sweep("x", command=["x"], array=[1]), "a job runs a script or a command: specify one"),
    "env": (lambda: client.sweep(command=["x"], env={"A": 5}, array=[1]), "env must be a dict of str to str"),
    "secret": (lambda: client.sweep(command=["x"], env={"A_TOKEN": "x"}, array=[1]), "A_TOKEN looks like a secret"),
    "no script": (lambda: client.chain({"name": "c", "jobs": {"a": {"script": "no.py"}}}), "there is no script no.py"),
    "a chain of 5": (lambda: client.chain(5), "chain must be a str, a Path or a dict"),  # type: ignore[arg-type]
    "a parameter of 5": (lambda: client.sweep(command=["{a}"], matrix={"a": 5}), "matrix must be a dict of str to l"),  # type: ignore[dict-item]
    "values in a text": (
        lambda: client.sweep(command=["{a}"], matrix={"a": "1,2"}),
        "matrix must be a dict of str to ",
    ),
    "array of text": (lambda: client.sweep(command=["x"], array=["a"]), "array must be a list of int or"),  # type: ignore[list-item]
    "parallel text": (lambda: client.sweep(command=["x"], array=[1], max_parallel="2"), "max_parallel must be an int"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_told_in_pythons_words(case: str, as_remote: Path) -> None:
    call, words = WRONG[case]
    with pytest.raises(client.UsageError) as told:
        call()
    assert words in str(told.value)
    assert not re.search(r"(^|\s)--\w", str(told.value))


def test_the_names_are_public_and_documented() -> None:
    for name in ("chain", "sweep", "BatchRun", "BatchJob"):
        assert name in client.__all__ and getattr(client, name).__doc__
    assert "asyncio" not in sys.modules["client.batch.api"].__dict__
