"""Sweeps: a job for each combination of parameters, under one id."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from client.batch import sweep
from client.batch.batch import Batch
from client.cli.main import cli
from client.errors import UsageError
from client.job.request import Request
from client.targets.target import Target
from tests.client.chains import Marks, Place, most_at_once, of_job, one, said
from tests.client.conftest import port
from tests.client.proxy import FaultProxy
from tests.conftest import Cli

VALUES = {
    "1e-3,1e-4": ["1e-3", "1e-4"],
    "0-3": ["0", "1", "2", "3"],
    "08-11": ["08", "09", "10", "11"],
    "7-7": ["7"],
    "a-b,adam": ["a-b", "adam"],
    "0-1,5,x": ["0", "1", "5", "x"],
    "3-1": ["3-1"],
    "-1,2": ["-1", "2"],
    "a,": ["a", ""],
}


@pytest.mark.parametrize("text", VALUES)
def test_values_of_a_parameter(text: str) -> None:
    assert sweep.matrix([f"name={text}"]) == {"name": VALUES[text]}


def test_a_parameter_may_be_given_in_parts() -> None:
    assert sweep.matrix(["a=1-2", "b=x=y", "a=5"]) == {"a": ["1", "2", "5"], "b": ["x=y"]}
    assert sweep.array("0-2,7") == ["0", "1", "2", "7"]


def made(
    command: Sequence[str], parameters: Mapping[str, Sequence[str]], indexes: Sequence[str] = (), **given: object
) -> Batch:
    return sweep.make_sweep(Request(command=command, **given), parameters, indexes)  # type: ignore[arg-type]


def test_each_combination_is_a_job_with_its_values() -> None:
    words = ["train", "--lr={lr}", "{seed}-{seed}", "{{lr}}", "{}", "{lr", "$HOME", '{"a": 1}']
    batch = made(words, {"lr": ["1e-3", "{seed}"], "seed": ["0", "1"]}, env={"NAME": "run-{seed}", "PLAIN": "x"})
    assert batch.kind == "sweep" and batch.wish.workers == 0
    assert [step.name for step in batch.steps] == [
        "lr=1e-3,seed=0", "lr=1e-3,seed=1", "lr={seed},seed=0", "lr={seed},seed=1",
    ]  # fmt: skip
    second, third = batch.steps[1].request, batch.steps[2].request
    rest = ["{lr}", "{}", "{lr", "$HOME", '{"a": 1}']
    assert list(second.command) == ["train", "--lr=1e-3", "1-1", *rest]
    assert list(third.command) == ["train", "--lr={seed}", "0-0", *rest], "a value was filled in again"
    assert (second.env, batch.steps[1].parameters) == (
        {"NAME": "run-1", "PLAIN": "x"},
        {"lr": "1e-3", "seed": "1"},
    )


def test_an_array_has_its_index_in_the_environment_and_as_a_parameter() -> None:
    batch = made(["job", "{index}"], {}, ["3", "4"], env={"A": "b"})
    assert [step.name for step in batch.steps] == ["index=3", "index=4"]
    assert list(batch.steps[1].request.command) == ["job", "4"]
    assert batch.steps[1].request.env == {"A": "b", "RAY_WORKLOAD_ARRAY_INDEX": "4"}
    both = made(["job", "{a}"], {"a": ["x", "y"]}, ["0", "1"])
    assert [step.name for step in both.steps] == ["a=x,index=0", "a=x,index=1", "a=y,index=0", "a=y,index=1"]


def test_the_name_is_that_of_the_command_so_that_the_next_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("")

    def name(*words: str, script: str | None = "train.py", values: Sequence[str] = ("1", "2"), **given: object) -> str:
        request = Request(script=script, command=[*words, "{a}"], **given)  # type: ignore[arg-type]
        return sweep.make_sweep(request, {"a": list(values)}).name

    usual = name()
    assert usual == name() and usual.startswith("train-")
    assert usual == name(values=["1", "2", "3"]), "more values are more jobs of the same sweep"
    assert usual != name("--fast")
    assert name("/usr/bin/env", script=None).startswith("env-")
    assert name(arguments={"submission_id": "mine"}) == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.py").write_text("")
    assert usual != name(working_dir="other")


WRONG: dict[str, tuple[list[str], str]] = {
    "no values": (["--matrix", "lr"], "--matrix lr is not NAME=VALUE,VALUE or NAME=FIRST-LAST: "),
    "empty": (["--matrix", "lr="], "--matrix lr= is not NAME=VALUE,VALUE or NAME=FIRST-LAST: "),
    "name": (["--matrix", "l r=1"], "--matrix l r=1 is not NAME=VALUE,VALUE or NAME=FIRST-LAST: "),
    "no array": (["--array", "a-b"], "--array a-b is not FIRST-LAST: use whole numbers, for example 0-99 or 0-9,20"),
    "typing error": (["--matrix", "learn=1", "{lear}"], "there is no parameter lear: did you mean {learn}?"),
    "unknown": (
        ["--matrix", "a=1", "{a}", "{xyz}"],
        "there is no parameter xyz: add --matrix xyz=VALUES, or write {{xyz}} for the te",
    ),
    "unused": (
        ["--matrix", "a=1", "--matrix", "b=1", "{a}"],
        "no argument uses the parameter b: put {b} into an argum",
    ),
    "twice": (["--matrix", "a=1,2,1", "{a}"], "a=1 is there twice: specify each value once"),
    "too many": (
        ["--matrix", "a=0-999", "--matrix", "b=0-10", "{a}{b}"],
        "the sweep has 11000 jobs, more than 10000: use fewer values",
    ),
    "a large range": (["--matrix", "a=0-99999999999", "{a}"], "0-99999999999 has more than 10000 values: use fewer"),
    "retry": (["--retries", "1", "--retry-on", "exit,never", "x"], "--retry-on has no kind never: use lost or exit, "),
    "index": (
        ["--array", "0-1", "--matrix", "index=5", "{index}"],
        "an array has the parameter index already: give the other one another name",
    ),
    "fetch": (
        ["--array", "0-1", "--fetch", "x", "x"],
        "--fetch takes the files of one attempt: use `fetch NAME/JOB` later",
    ),
    "csv": (["-o", "csv", "x"], "-o csv is for sweeps: use -o json"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_reported_before_anything_is_asked(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, words = WRONG[case]
    monkeypatch.chdir(tmp_path)
    options = [word for word in given if "{" not in word and word != "x"]
    rest = [word for word in given if word not in options]
    command = ["submit", "--address", "http://127.0.0.1:9", *options, "--", "echo", *rest]
    with pytest.raises(UsageError) as told:
        cli.main(command, obj={}, standalone_mode=False)
    assert str(told.value).startswith(words)


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    return Marks(tmp_path / "marks")


def test_a_sweep(head: Target, run: Cli, remote: dict[str, str], marks: Marks, tmp_path: Path) -> None:
    place = Place(run, tmp_path / "project", remote, head)
    both = marks.wait_for_starts("", 2)
    text = f"echo start $1.$2 >> {marks.file}; {both}; echo $1 $2 $A $RAY_WORKLOAD_ARRAY_INDEX; "
    (place.folder / "job.sh").write_text(text + f"[ -e {marks.folder}/fixed ] || [ $1 != b ] || exit $2$2\n")
    line = ["--env", "A=env-{name}", "--", "sh", "job.sh", "{name}", "{index}"]
    with FaultProxy(port(head.http.server.url)) as proxy:
        given = ["submit", "--address", proxy.url, "--id", "swept", "--max-parallel", "2"]
        given += ["--matrix", "name=a,b", "--array", "1-2"]
        plan = place.json(*given, "--dry-run", *line)
        assert [job["parameters"] for job in plan["jobs"]] == [
            {"name": name, "index": index} for name in "ab" for index in "12"
        ]
        assert not place.records("swept") and {method for method, _ in proxy.requests} == {"GET"}
        done = place.run(*given, "-o", "csv", *line)
        assert [method for method, path in proxy.requests if "/packages/" in path].count("PUT") == 1
    assert done.returncode == 22, "the worst exit code"
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode())))
    assert [(row["job"], row["name"], row["index"], row["status"], row["exit_code"]) for row in rows] == [
        ("name=a,index=1", "a", "1", "SUCCEEDED", "0"),
        ("name=a,index=2", "a", "2", "SUCCEEDED", "0"),
        ("name=b,index=1", "b", "1", "FAILED", "11"),
        ("name=b,index=2", "b", "2", "FAILED", "22"),
    ]
    records = place.records("swept")
    assert len({job.submission_id for job in records}) == 4 and most_at_once(records) == 2
    assert {row["submission_id"] for row in rows} == {job.submission_id for job in records}
    assert of_job(done.stderr, "name=a,index=2") == b"a 2 env-a 2\n", "not the values of the job"

    table = list(csv.DictReader(io.StringIO(place.run("status", "swept", "-o", "csv").stdout.decode())))
    assert sorted((row["name"], row["index"], row["exit_code"]) for row in table) == [
        ("a", "1", "0"), ("a", "2", "0"), ("b", "1", "11"), ("b", "2", "22"),
    ]  # fmt: skip
    assert all(float(row["seconds"]) >= 0 for row in table)
    log = place.run("logs", "swept/name=b,index=2")
    assert (log.returncode, b"b 2 env-b 2\n" in log.stdout) == (0, True)
    marks.open("fixed")
    given[2] = remote["RAY_WORKLOAD_ADDRESS"]
    again = place.json(*given, *line)
    assert {job["job"]: (job["status"], len(job["attempts"])) for job in again["jobs"]} == {
        "name=a,index=1": ("SKIPPED", 1),
        "name=a,index=2": ("SKIPPED", 1),
        "name=b,index=1": ("SUCCEEDED", 2),
        "name=b,index=2": ("SUCCEEDED", 2),
    }
    assert again["exit_code"] == 0 and len(marks.all) == 6
    given[given.index("1-2")] = "1-3"
    more = place.run(*given, "--dry-run", *line)
    decisions = [row.split("\t")[2] for row in more.stdout.decode().splitlines()[1:]]
    assert decisions == ["skip", "skip", "run", "skip", "skip", "run"], "a larger sweep goes on with what is there"
    stopped = place.run("stop", "swept")
    assert (stopped.returncode, said(stopped)[-1]) == (0, "no job of swept runs any more")
    assert one(place.run("list", "--chain").stdout.decode().splitlines(), "swept\tsweep\t4\t4 SUCCEEDED\t0")
