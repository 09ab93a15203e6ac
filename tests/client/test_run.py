"""`run` on a real head: order, what is skipped and why, failures, logs, handles, and other clients beside."""

import csv
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from client.ray_api.jobs import RayJobs
from client.targets.target import Target
from tests.client.chains import Marks, Place, most_at_once, of_job, one, said, warm, without_ray
from tests.client.conftest import port
from tests.client.proxy import FaultProxy
from tests.client.test_embedded import read_to, started, until
from tests.conftest import Cli, on_terminal

numbers = itertools.count(1)


@pytest.fixture
def marks(tmp_path: Path) -> Marks:
    return Marks(tmp_path / "marks")


@pytest.fixture
def name() -> str:
    return f"chain{next(numbers)}"


@pytest.fixture
def remote_place(head: Target, run: Cli, remote: dict[str, str], tmp_path: Path) -> Place:
    """The head as a remote one: files are uploaded."""
    return Place(run, tmp_path / "project", remote, head)


@pytest.fixture
def warm_place(head: Target, run: Cli, tmp_path: Path) -> Iterator[Place]:
    """The head as the one that `up embedded` keeps: jobs run in their folder."""
    link = warm(head)
    yield Place(run, tmp_path / "project", {}, head)
    link.unlink()


@pytest.fixture(params=["remote", "embedded"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue({"remote": "remote_place", "embedded": "warm_place"}[request.param])
    return found


def test_jobs_run_in_their_order_and_side_by_side_and_are_skipped_when_they_have_succeeded(
    place: Place, marks: Marks, name: str
) -> None:
    both = marks.wait_for_starts("side", 2)
    file = place.write(
        name,
        {
            "last": {**marks.job("last", "echo of last"), "after": ["side1", "side2"]},
            "side1": {**marks.job("side1", both), "parent_job_key": "first"},
            "side2": {**marks.job("side2", both), "after": "first"},
            "first": marks.job("first", 'echo "of $A" > "$RAY_WORKLOAD_OUTPUTS/made"'),
        },
        defaults={"env": {"A": "b"}},
    )
    done = place.run("run", file)
    assert done.returncode == 0, done.stderr
    assert len(marks.all) == 8
    for side in ("side1", "side2"):
        assert marks.at("end first") < marks.at(f"start {side}") < marks.at(f"end {side}") < marks.at("start last")
    assert max(map(marks.at, ("start side1", "start side2"))) < min(map(marks.at, ("end side1", "end side2")))
    assert of_job(done.stdout, "last") == b"of last\n"
    jobs = place.records(name)
    assert [job.metadata["step"] for job in jobs[:1] + jobs[-1:]] == ["first", "last"]
    assert len({job.submission_id for job in jobs}) == 4

    again = place.run("run", file)
    assert again.returncode == 0, again.stderr
    assert len(marks.all) == 8, "a job ran again"
    for job in jobs:
        assert f"{job.metadata['step']}: skipped, because {job.submission_id} succeeded" in said(again)
    assert said(again)[-1] == f"{name}: 4 jobs, 4 skipped"
    shown = place.json("run", file)
    assert (shown["name"], shown["exit_code"]) == (name, 0)
    assert {job["job"]: (job["status"], job["exit_code"]) for job in shown["jobs"]} == {
        step: ("SKIPPED", None) for step in ("first", "side1", "side2", "last")
    }


def test_a_failure_stops_the_rest_or_what_waits_for_it(warm_place: Place, marks: Marks, name: str) -> None:
    place = warm_place
    fails = f"{{ [ -e {marks.folder}/fixed ] || exit 3; }}"
    file = place.write(
        name,
        {
            "bad": marks.job("bad", fails),
            "child": {**marks.job("child"), "after": "bad"},
            "grandchild": {**marks.job("grandchild"), "after": "child"},
            "other": marks.job("other"),
        },
    )
    first = place.json("run", file, "--max-parallel", "1")
    assert marks.all == ["start bad"]
    assert first["exit_code"] == 3
    states = {job["job"]: (job["status"], job["exit_code"]) for job in first["jobs"]}
    assert states.pop("bad") == ("FAILED", 3)
    assert set(states.values()) == {("NOT_STARTED", None)}

    second = place.run("run", file, "--keep-going", "--max-parallel", "1", "-o", "csv")
    assert second.returncode == 3
    assert marks.all == ["start bad", "start bad", "start other", "end other"]
    rows = {row["job"]: row for row in csv.DictReader(io.StringIO(second.stdout.decode()))}
    assert (rows["bad"]["status"], rows["bad"]["exit_code"], rows["bad"]["attempts"]) == ("FAILED", "3", "2")
    assert (rows["other"]["status"], rows["other"]["exit_code"]) == ("SUCCEEDED", "0")
    assert (rows["child"]["status"], rows["child"]["exit_code"], rows["child"]["submission_id"]) == (
        "NOT_STARTED",
        "",
        "",
    )
    assert float(rows["other"]["seconds"]) > 0

    plan = place.json("run", file, "--dry-run")["jobs"]
    assert {job["job"]: (job["decision"], job["why"]) for job in plan} == {
        "bad": ("run", "it failed before"),
        "child": ("run", "it is new"),
        "grandchild": ("run", "it is new"),
        "other": ("skip", f"{rows['other']['submission_id']} succeeded"),
    }
    marks.open("fixed")
    third = place.run("run", file)
    assert third.returncode == 0, third.stderr
    assert marks.all[4:] == [f"{what} {job}" for job in ("bad", "child", "grandchild") for what in ("start", "end")]
    assert said(third)[-1] == f"{name}: 4 jobs, 3 succeeded, 1 skipped"

    table = place.json("status", name)
    (bad,) = (job for job in table["jobs"] if job["job"] == "bad")
    assert (bad["status"], len(set(bad["attempts"])), bad["attempts"][-1]) == ("SUCCEEDED", 3, bad["submission_id"])
    assert (table["kind"], table["size"], table["exit_code"]) == ("chain", 4, 0)
    listed = {row["name"]: row for row in place.json("list", "--chain")}
    assert [job["job"] for job in listed[name]["jobs"]] == [job["job"] for job in table["jobs"]]
    header, *lines = place.run("list", "--chain").stdout.decode().splitlines()
    assert header.split("\t")[:5] == ["NAME", "KIND", "JOBS", "STATUS", "EXIT"]
    assert one(lines, name + "\t").split("\t")[1:5] == ["chain", "4", "4 SUCCEEDED", "0"]
    lines = place.run("status", name).stdout.decode().splitlines()
    assert one(lines, "bad\t").split("\t")[1:3] == ["SUCCEEDED", "0"]
    assert f"job {bad['submission_id']} ran on this machine" in one(said(place.run("fetch", f"{name}/bad")), "fetch")
    assert place.json("status", f"{name}/bad")["submission_id"] == bad["submission_id"]


def test_what_has_changed_runs_again_and_a_dry_run_sends_nothing(
    remote_place: Place, marks: Marks, name: str, head: Target
) -> None:
    place = remote_place
    (place.folder / "data").write_text("1")
    jobs = {
        "one": {**marks.job("one"), "env": {"A": "${VARIABLE:-}"}},
        "two": {**marks.job("two"), "args": ["${ARG:-x}"], "after": ["one", "${AFTER:-one}"]},
        "free": marks.job("free"),
    }
    file = place.write(name, jobs)
    remote = place.env["RAY_WORKLOAD_ADDRESS"]
    all_skipped, all_run = dict.fromkeys(jobs, "skip"), dict.fromkeys(jobs, "run")
    with FaultProxy(port(head.http.server.url)) as proxy:
        place.env["RAY_WORKLOAD_ADDRESS"] = proxy.url
        plan = place.json("run", file, "--dry-run")
        assert [(job["job"], job["after"], job["decision"]) for job in plan["jobs"]] == [
            ("one", [], "run"),
            ("free", [], "run"),
            ("two", ["one", "one"], "run"),
        ]
        (package,) = plan["packages"]
        assert f"{package} of {plan['packages'][package]} bytes would be uploaded once" in said(
            place.run("run", file, "--dry-run")
        )
        assert {method for method, _ in proxy.requests} == {"GET"}
        assert place.run("run", file, "--max-parallel", "3").returncode == 0
        sent = [method for method, path in proxy.requests if "/packages/" in path]
        assert sent.count("PUT") == 1 and sent.count("POST") == 0
        assert sum(method == "POST" for method, _ in proxy.requests) == 3
        proxy.requests.clear()
        assert place.decisions(file) == all_skipped
        assert place.decisions(file, force=True) == all_run
        assert place.decisions(file, start="one") == {"one": "run", "two": "run", "free": "leave"}
        assert place.decisions(file, only="two") == {"one": "leave", "two": "run", "free": "leave"}
        (place.folder / "data").write_text("2")
        assert place.decisions(file) == all_run
        (place.folder / "data").write_text("1")
        assert place.decisions(file) == all_skipped
        changes = {"ARG": {"two"}, "VARIABLE": {"one", "two"}, "AFTER": {"two"}}
        for change, runs in changes.items():
            expected = {step: "run" if step in runs else "skip" for step in jobs}
            assert place.decisions(file, env={change: "free"}) == expected, change
        assert {method for method, _ in proxy.requests} == {"GET"}, "a dry run sent something"
    place.env["RAY_WORKLOAD_ADDRESS"] = remote
    before = marks.all
    assert place.run("run", file, "--only", "two").returncode == 0
    assert marks.all == [*before, "start two", "end two"]
    assert place.run("run", file, "--from", "one", "--max-parallel", "1").returncode == 0
    assert marks.all[len(before) + 2 :] == ["start one", "end one", "start two", "end two"]
    for words, env in ((("--force",), {}), ((), {"FORCE_REBUILD": "true"})):
        forced = place.json("run", file, "--dry-run", *words, env=env)["jobs"]
        assert {job["why"] for job in forced} == {"forced, though it succeeded before"}
    wrong = place.run("run", file, "--only", "three")
    assert (wrong.returncode, said(wrong)[-1]) == (2, f"{name} has no job three: it has one, free, two")


def test_another_client_attaches_to_what_runs_and_runs_nothing_twice(place: Place, marks: Marks, name: str) -> None:
    gate = f"echo up; {marks.wait_for('gate')} && echo done"
    file = place.write(
        name,
        {
            "waits": marks.job("waits", gate),
            "beside": marks.job("beside", gate),
            "last": {**marks.job("last"), "after": ["waits", "beside"]},
        },
    )

    def client() -> AbstractContextManager["subprocess.Popen[bytes]"]:
        return started("run", file, cwd=place.folder, env=place.env)

    with client() as one_client, client() as other:  # which submit at the same time
        until(lambda: {"start waits", "start beside"} <= set(marks.all), 60)
        read_to(other.stdout, b"| up\n")
        one_client.kill()
        with client() as third:
            shown = read_to(third.stdout, b"| up\n")
            marks.open("gate")
            outputs = [process.communicate(timeout=90) for process in (other, third)]
            assert [other.returncode, third.returncode] == [0, 0], outputs
    assert sorted(marks.all) == sorted(
        f"{what} {job}" for job in ("waits", "beside", "last") for what in ("start", "end")
    )
    assert len(place.records(name)) == 3
    rest, errors = outputs[1]
    assert of_job(shown + rest, "waits") == of_job(shown + rest, "beside") == b"up\ndone\n", (
        "a part of the log is missing"
    )
    ids = {job.metadata["step"]: job.submission_id for job in place.records(name)}
    for step in ("waits", "beside"):
        assert f"{step}: attached to job {ids[step]}".encode() in errors
    assert said(place.run("run", file))[-1] == f"{name}: 3 jobs, 3 skipped"


LONG = b"x" * 5_000_000 + b"\nafter it\n"
NUMBERS = b"".join(b"line %d\n" % number for number in range(1, 20_001))


def test_logs_are_whole_and_in_order_each_line_with_its_job(remote_place: Place, name: str) -> None:
    place = remote_place
    long = f"import sys; sys.stdout.write('x' * {len(LONG) - 10} + '\\nafter it\\n')"
    file = place.write(
        name,
        {
            "long": {"command": [sys.executable, "-c", long]},
            "numbers": {"command": ["sh", "-c", "seq -f 'line %.0f' 1 20000"]},
            "no-end": {"command": ["sh", "-c", "echo first; printf 'no end'"]},
        },
    )
    done = place.run("run", file)
    assert done.returncode == 0, done.stderr
    assert {line.partition(b" | ")[0].strip() for line in done.stdout.splitlines()} == {b"long", b"numbers", b"no-end"}
    assert of_job(done.stdout, "long") == LONG
    assert of_job(done.stdout, "numbers") == NUMBERS
    assert of_job(done.stdout, "no-end").rstrip(b"\n") == b"first\nno end"
    assert done.stdout.endswith(b"\n")
    whole = place.run("logs", name)
    assert whole.returncode == 0, whole.stderr
    assert sorted(whole.stdout.splitlines()) == sorted(done.stdout.splitlines())
    for job, log in (("long", LONG), ("numbers", NUMBERS), ("no-end", b"first\nno end")):
        alone = place.run("logs", f"{name}/{job}")
        assert (alone.returncode, without_ray(alone.stdout)) == (0, log)
    assert b"line 20000" in place.run("logs", "-n", "2", f"{name}/numbers").stdout
    data = place.run("run", file, "--only", "no-end", "-o", "json")
    assert json.loads(data.stdout)["exit_code"] == 0 and of_job(data.stderr, "no-end").rstrip(b"\n") == b"first\nno end"
    missing = place.run("logs", f"{name}/nobody")
    assert missing.returncode and one(said(missing), "nobody").startswith(f"there is no job {name}/nobody: {name} has ")


def test_stop_ends_a_whole_chain_and_an_interrupt_leaves_it(warm_place: Place, marks: Marks, name: str) -> None:
    place = warm_place
    waits = f"echo up; {marks.wait_for('never')}"
    file = place.write(
        name,
        {
            "one": marks.job("one", waits),
            "two": marks.job("two", waits),
            "last": {**marks.job("last"), "after": ["one", "two"]},
            "free": marks.job("free"),
        },
    )
    with started("run", file, "--max-parallel", "2", cwd=place.folder, env=place.env) as client:
        read_to(client.stdout, b"| up\n")
        client.send_signal(signal.SIGINT)
        _, errors = client.communicate(timeout=60)
    assert client.returncode == 130, errors
    assert b"the jobs that run go on" in errors and f"stop {name}".encode() in errors and b"Traceback" not in errors
    with started("run", file, "--max-parallel", "2", cwd=place.folder, env=place.env) as client:
        until(lambda: {"start one", "start two"} <= set(marks.all), 60)
        followed = place.json("status", name)
        assert followed["exit_code"] is None and {job["status"] for job in followed["jobs"]} == {"RUNNING"}
        stopped = place.run("stop", name)
        assert stopped.returncode == 0, stopped.stderr
        assert said(stopped)[-1] == f"no job of {name} runs any more"
        _, errors = client.communicate(timeout=60)
    assert client.returncode == 143, errors
    assert b"free: not started" in errors and b"last: not started" in errors
    assert {job.metadata["step"]: job.status for job in place.records(name)} == {"one": "STOPPED", "two": "STOPPED"}
    assert place.json("status", name)["exit_code"] == 143
    assert said(place.run("stop", name))[-1] == f"no job of {name} runs any more"
    one_alone = place.run("stop", f"{name}/one")
    assert one_alone.returncode == 0 and one(said(one_alone), "was stopped")
    assert place.run("stop", "nobody").returncode == place.run("status", "nobody").returncode != 0
    assert sorted(marks.all) == ["start one", "start two"]


def test_the_cluster_is_asked_in_moderation(remote_place: Place, marks: Marks, name: str, head: Target) -> None:
    place = remote_place
    talks = f"({marks.wait_for('gate').replace('sleep 0.05', 'echo on; sleep 0.05')})"
    file = place.write(name, {f"job{number}": marks.job(f"job{number}", talks) for number in range(5)})
    with FaultProxy(port(head.http.server.url)) as proxy:
        options = ["run", file, "--max-parallel", "5", "--address", proxy.url]
        with started(*options, cwd=place.folder, env=place.env) as client:
            until(lambda: len(marks.all) == 5, 100)
            time.sleep(1)  # for the requests at the start of each
            before, began = len(proxy.requests), time.monotonic()
            time.sleep(3)
            rate = (len(proxy.requests) - before) / (time.monotonic() - began)
            marks.open("gate")
            _, errors = client.communicate(timeout=90)
        assert client.returncode == 0, errors
        assert 1 < rate < 26, "the records of five jobs; their logs come from the agent"
        proxy.requests.clear()
        assert said(place.run(*options))[-1] == f"{name}: 5 jobs, 5 skipped"
        assert len(proxy.requests) < 8, "of a chain that is skipped, each job was asked about"
    assert most_at_once(place.records(name)) == 5


def test_a_terminal_shows_a_table_and_no_logs(remote_place: Place, marks: Marks, name: str) -> None:
    place = remote_place
    both = marks.wait_for_starts("job", 2)
    file = place.write(
        name,
        {
            "good": marks.job("job1", f"echo first of good; {both}; echo the last line"),
            "bad": marks.job("job2", f"echo first of bad; {both}; exit 4"),
            "never": {**marks.job("job3"), "after": "bad"},
        },
    )
    command = [sys.executable, "-m", "client", "run", file, "--keep-going"]
    environment = {**os.environ, **place.env, "TERM": "xterm"}
    code, shown = on_terminal(command, "", all_output=True, cwd=place.folder, env=environment)
    assert code == 4, shown
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    lines = [line.split() for line in plain.replace("\r", "\n").split("\n")]
    assert ["JOB", "STATE", "SECONDS", "LAST", "LINE"] in lines
    states = [line[1] for line in lines if line[:1] == ["good"]]
    assert states[-1] == "succeeded" and {"waiting", "pending", "running"} & set(states)
    assert [line[1] for line in lines if line[:1] == ["bad"]][-1] == "failed"
    assert "bad: failed with exit code 4" in plain and f"`logs {name}/bad`" in plain
    assert f"{name}: 3 jobs, 1 succeeded, 1 failed, 1 not started" in plain
    assert " | " not in plain, "the logs are shown, too"


def test_what_the_cluster_does_not_have_is_reported_at_once(warm_place: Place, marks: Marks, name: str) -> None:
    place = warm_place
    file = place.write(
        name,
        {
            "fits": marks.job("fits"),
            "large": {**marks.job("large"), "num_cpus": 1000},
            "gpu": {**marks.job("gpu"), "num_gpus": 8},
        },
        cluster={"workers": 5, "gpus": 2, "accelerator": "L4"},
    )
    done = place.run("run", file)
    assert done.returncode == 2
    text = (place.folder / file).read_text().splitlines()
    where = {job: next(n for n, line in enumerate(text, 1) if f'"{job}"' in line) for job in ("large", "gpu")}
    first, *lines = [line.strip() for line in said(done)]
    assert first == f"{name} cannot run on this cluster:"
    assert len(lines) == 3, lines
    assert one(lines, "5 workers (there are at most 0), 2 GPU (there are at most 0), a GPU of the kind L4")
    assert one(lines, "the 1000 CPU that the driver asks for").startswith(f"line {where['large']}, large: ")
    assert one(lines, "the 8 GPU that the driver asks for").startswith(f"line {where['gpu']}, gpu: ")
    assert not place.records(name) and not marks.all


def test_a_job_that_writes_outputs_into_its_folder_has_not_changed(warm_place: Place, marks: Marks, name: str) -> None:
    place = warm_place
    file = place.write(name, {"writes": marks.job("writes", 'echo $$ > "$RAY_WORKLOAD_OUTPUTS/result"')})
    assert place.run("run", file).returncode == 0
    assert list(place.folder.glob("outputs/result"))
    assert place.decisions(file) == {"writes": "skip"}


def test_an_edit_of_one_job_changes_that_one_alone(place: Place, marks: Marks, name: str) -> None:
    (place.folder / "data").write_text("1")
    jobs = {"one": marks.job("one"), "two": marks.job("two")}
    file = place.write(name, jobs)
    assert place.run("run", file).returncode == 0
    place.write(name, {**jobs, "two": {**jobs["two"], "args": ["x"]}})
    assert place.decisions(file) == {"one": "skip", "two": "run"}


def test_gpu_hours_and_cpu_hours_are_those_reserved(jobs: RayJobs, warm_place: Place, marks: Marks, name: str) -> None:
    place = warm_place
    file = place.write(name, {"half": {**marks.job("half"), "num_cpus": 0.5}, "none": marks.job("none")})
    assert place.run("run", file).returncode == 0
    table = place.json("status", name)
    (half,) = (job for job in table["jobs"] if job["job"] == "half")
    seconds = (half["end_time"] - half["start_time"]) / 1000
    assert table["cpu_hours"] == pytest.approx(0.5 * seconds / 3600, abs=2e-6) and table["gpu_hours"] == 0
    assert half["seconds"] == pytest.approx(seconds)
