"""The command line on a real head: exit codes, and the output of each command."""

import getpass
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import click
import pytest

from client.cli.main import cli
from client.cli.status import when
from tests.client.server import serving
from tests.client.test_embedded import read_to, started, until
from tests.conftest import ROOT, Cli

ENDS_WITH_7 = "import sys\nfor number in range(30):\n    print('line', number)\nsys.exit(7)\n"
LINES = b"".join(b"line %d\n" % number for number in range(30))
SHOWN = {
    "submission_id", "status", "exit_code", "driver_exit_code", "entrypoint", "message", "error_type", "submit_time",
    "start_time", "end_time", "metadata",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _something_to_upload(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(ENDS_WITH_7)


def test_a_detached_job_is_found_again(run: Cli, remote: dict[str, str]) -> None:
    given = ["submit", "--id", "found", "--name", "a name", "--tag", "team=a"]
    submitted = run(*given, "--detach", "script.py", "an arg", env=remote)
    assert (submitted.returncode, submitted.stdout) == (0, b"found\n")
    follow, status = "ray-workload logs -f found", "ray-workload status found"
    hint = f"ray-workload: follow it with {follow}; show its status with {status}"
    assert submitted.stderr.decode().splitlines()[-2:] == ["ray-workload: job found submitted", hint]

    followed = run(*follow.split()[1:], env=remote)
    assert followed.returncode == 7
    assert LINES in followed.stdout and b": exec python script.py 'an arg'\n" in followed.stdout
    assert b"job found failed with exit code 7" in followed.stderr
    assert run("logs", "found", env=remote).stdout == followed.stdout
    *_, before_last, last = followed.stdout.splitlines(keepends=True)  # Ray may write a line of its own there
    assert run("logs", "-n", "2", "found", env=remote).stdout == before_last + last
    assert run("logs", "--tail", "0", "found", env=remote).stdout == b""
    tailed = run("logs", "--tail", "1", "--follow", "found", env=remote)
    assert (tailed.returncode, tailed.stdout) == (7, last)

    again = run(*given, "script.py", "an arg", env=remote)
    assert (again.returncode, again.stdout) == (7, followed.stdout)
    assert b"job found ended " in again.stderr and b"s ago; nothing was run\n" in again.stderr
    other = run(*given, "--", "true", env=remote)
    assert other.returncode == 1
    assert b"another job, with a different entrypoint, has the id found: use another --id" in other.stderr
    announced = f"ray-workload: address {remote['RAY_WORKLOAD_ADDRESS']} (RAY_WORKLOAD_ADDRESS)\n".encode()
    stopped = run("stop", "found", env=remote)
    assert (stopped.returncode, stopped.stderr) == (
        0,
        announced + b"ray-workload: job found had already ended: FAILED\n",
    )

    status = json.loads(run("status", "-o", "json", "found", env=remote).stdout)
    assert status.keys() == SHOWN
    assert (status["status"], status["exit_code"], status["driver_exit_code"]) == ("FAILED", 7, 7)
    assert status["entrypoint"] == "exec python script.py 'an arg'"
    assert status["metadata"]["team"] == "a" and status["metadata"]["job_name"] == "a name"
    assert status["submit_time"] <= status["start_time"] < status["end_time"]
    lines = run("status", "found", env=remote).stdout.decode().splitlines()
    shown = dict(line.split(maxsplit=1) for line in lines if not line.startswith(" "))  # the message has several lines
    times = {"submitted": status["submit_time"], "started": status["start_time"], "ended": status["end_time"]}
    keys = {
        "id",
        "name",
        "status",
        "exit",
        "entrypoint",
        "message",
        "submitted",
        "started",
        "ended",
        "user",
        "tags",
        "outputs",
    }
    assert shown.keys() == keys
    assert (shown["id"], shown["status"], shown["exit"].split()) == ("found", "FAILED", ["code", "7"])
    assert (shown["name"], shown["tags"]) == ("a name", "team=a")
    for name, milliseconds in times.items():
        local = datetime.fromtimestamp(milliseconds / 1000).strftime("%Y-%m-%d %H:%M:%S")
        assert re.fullmatch(rf"{local} \(\d+ (s|min) ago\)", shown[name])

    listed = json.loads(run("list", "-o", "json", "--limit", "1000", env=remote).stdout)
    assert [job for job in listed if job["submission_id"] == "found"] == [status]
    submits = [job["submit_time"] for job in listed]
    assert submits == sorted(submits, reverse=True)
    header, *rows = run("list", "--limit", "1000", "--status", "failed", env=remote).stdout.decode().splitlines()
    assert header.split("\t") == [
        "SUBMISSION ID",
        "STATUS",
        "EXIT",
        "SUBMITTED",
        "WAITED",
        "SECONDS",
        "NAME",
        "ENTRYPOINT",
    ]
    (row,) = (row.split("\t") for row in rows if row.startswith("found\t"))
    assert row[1:3] + row[6:] == ["FAILED", "7", "a name", "exec python script.py 'an arg'"]
    assert {row.split("\t")[1] for row in rows} == {"FAILED"}


def test_the_cluster_in_use_is_shown_and_why(run: Cli, remote: dict[str, str]) -> None:
    shown = json.loads(run("status", "-o", "json", env=remote).stdout)
    assert shown.keys() == {"address", "url", "source", "ray_version", "session_name", "resources"}
    assert shown["address"] == shown["url"] == remote["RAY_WORKLOAD_ADDRESS"]
    assert (shown["source"], shown["ray_version"]) == ("RAY_WORKLOAD_ADDRESS", "2.60.0")
    assert shown["resources"]["CPU"] >= 1 and shown["resources"]["memory"] > 2**20

    def text() -> str:
        return run("status", env=remote).stdout.decode()

    assert "RAY_WORKLOAD_ADDRESS" in text() and shown["session_name"] not in text()
    run("submit", "--id", "uses-one", "--num-cpus", "1", "--detach", "--", "sleep", "120", env=remote)
    cpus = shown["resources"]["CPU"]
    until(lambda: re.search(rf" CPU  +1 used, {cpus - 1:g} free$", text(), re.MULTILINE), 30)
    memory = shown["resources"]["memory"] / 2**30
    assert re.search(rf" memory  +0.0 GiB used, {memory:.1f} GiB free$", text(), re.MULTILINE)
    run("stop", "uses-one", env=remote)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "59 min"), (7200, "2 h"), (200_000, "2 d")]
)
def test_how_long_ago(seconds: float, said: str) -> None:
    assert when((time.time() - seconds) * 1000).endswith(f" ({said} ago)")


@pytest.mark.parametrize(
    ("arguments", "code", "status", "told"),
    [
        (["--", "true"], 0, "SUCCEEDED", " succeeded after "),
        (["--", "sh", "-c", "kill -9 $$"], 137, "FAILED", " failed with exit code 137 after "),
        (["--", "no-such-program"], 127, "FAILED", " failed with exit code 127 after "),
        (
            ["--timeout", "0.5", "--", "sleep", "60"],
            124,
            "FAILED",
            " was ended because it ran longer than its timeout of 0.5 s after ",
        ),
    ],
)
def test_the_exit_code_is_the_drivers(
    arguments: list[str], code: int, status: str, told: str, run: Cli, remote: dict[str, str]
) -> None:
    done = run("submit", "-o", "json", *arguments, env=remote)
    assert done.returncode == code
    assert told in done.stderr.decode().splitlines()[-2]
    shown = json.loads(done.stdout)
    assert shown.keys() == SHOWN
    assert (shown["status"], shown["exit_code"]) == (status, code)


def test_a_job_that_never_started_says_why_in_a_line(run: Cli, remote: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "env.yaml").write_text("py_modules: ['file:///no-such.zip']")
    done = run("submit", "--runtime-env", "env.yaml", "--", "true", env=remote)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.endswith(b": FileNotFoundError: [Errno 2] No such file or directory: '/no-such.zip'\n")
    assert b"Traceback" not in done.stderr


def test_a_stopped_job_exits_143(run: Cli, remote: dict[str, str], tmp_path: Path) -> None:
    command = ["submit", "--id", "stopped", "--", "sh", "-c", "echo up; exec sleep 60"]
    with started(*command, cwd=tmp_path, env=remote) as submit:
        read_to(submit.stdout, b"up\n")
        stop = run("stop", "-o", "json", "stopped", env=remote)
        assert submit.wait(30) == 143
    assert (stop.returncode, json.loads(stop.stdout)["status"]) == (0, "STOPPED")
    assert b"job stopped was stopped" in stop.stderr
    followed = run("logs", "--follow", "stopped", env=remote)
    assert followed.returncode == 143
    assert b"\nup\n" in followed.stdout
    assert b"job stopped was stopped after" in followed.stderr


def test_a_job_that_does_not_end_in_time_is_told(run: Cli, remote: dict[str, str], tmp_path: Path) -> None:
    deaf = ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"]
    wait = ["--env", "RAY_JOB_STOP_WAIT_TIME_S=4"]  # seconds until Ray kills the driver
    with started("submit", "--id", "deaf", *wait, "--", *deaf, cwd=tmp_path, env=remote) as submit:
        read_to(submit.stdout, b"up")
        stop = run("stop", "-o", "json", "--grace", "1", "deaf", env=remote)
        assert submit.wait(30) == 143
    assert stop.returncode == 124
    error = json.loads(stop.stdout)
    assert error["exit_code"] == 124
    assert error["error"].startswith("job deaf was asked to end, and is still RUNNING: follow it with `logs -f ")
    assert stop.stderr.decode().splitlines()[-1] == f"ray-workload: {error['error']}"


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["list"], 74, "the output cannot be written (No space left on device): free space"),
        (["list", "-o", "json"], 74, "the output cannot be written (No space left on device): free space"),
        (["status"], 74, "the output cannot be written (No space left on device): free space"),
        (["doctor"], 74, "the output cannot be written (No space left on device): free space"),
        (
            ["submit", "--dry-run", "--", "true"],
            74,
            "the output cannot be written (No space left on device): free space",
        ),
        (
            ["submit", "--detach", "--", "true"],
            74,
            "the output cannot be written (No space left on device): free space",
        ),
        (["status", "none", "-o", "json"], 1, "there is no job none at "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_printed_is_said_in_a_line(
    command: list[str], code: int, said: str, remote: dict[str, str], tmp_path: Path
) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "client", *command],
            cwd=tmp_path,
            env={**os.environ, **remote},
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert done.returncode == code
    assert done.stderr.decode().splitlines()[-1].startswith(f"ray-workload: {said}")
    assert b"Traceback" not in done.stderr


def test_modules_in_the_current_folder_are_the_jobs_only(run: Cli, tmp_path: Path) -> None:
    (tmp_path / "client").mkdir()
    for name in ("queue", "yaml", "click", "typing"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of the current folder was imported')")
    assert run("submit", "--dry-run", "--address", "embedded", "script.py").returncode == 0
    for name in ("click", "typing"):  # Ray's own workers import these from the job's folder, as `python script.py` does
        (tmp_path / f"{name}.py").unlink()
    (tmp_path / "beside.py").write_text("WORD = 'imported'")
    (tmp_path / "script.py").write_text("import beside; print(beside.WORD)")
    done = run("submit", "--address", "embedded", "script.py")
    assert done.returncode == 0 and b"\nimported\n" in done.stdout, done.stderr


def test_help_names_the_command_that_no_file_can_hide(run: Cli) -> None:
    assert run("submit", "--help").stdout.startswith(b"Usage: ray-workload submit ")
    assert b"Try 'ray-workload submit --help'" in run("submit", "--no-such-option").stderr


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (
            ["ends.py", "2", "--detach"],
            2,
            "--detach was passed to the script, because it comes after the script's name",
        ),
        (["ends.py", "2", "--timeout=5"], 2, "if --timeout is meant for submit, put it before the script"),
        (["ends.py", "3", "--detach"], 3, ""),
        (["ends.py", "2", "--other"], 2, ""),
        (["--", "echo a && echo b"], 127, "for a line of shell, use -- bash -c 'echo a && echo b'"),
        (["--", "no-such-program"], 127, ""),
        (["--", "no-such-program", "a b"], 127, ""),
    ],
)
def test_a_job_that_fails_for_a_misplaced_word_gets_a_hint(
    words: list[str], code: int, hint: str, run: Cli, remote: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "ends.py").write_text("import sys; sys.exit(int(sys.argv[1]))")
    done = run("submit", *words, env=remote)
    *_, ended, last, _ = done.stderr.decode().splitlines()
    assert done.returncode == code
    assert f" failed with exit code {code} after " in (ended if hint else last)
    assert hint in last


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("seq 1 100000; exec sleep 60", "the job goes on; follow it with ray-workload logs -f "),
        ("seq 1 100000", "job left succeeded"),
    ],
    ids=["running", "ended"],
)
def test_a_reader_that_leaves_is_told_what_becomes_of_the_job(
    script: str, words: str, run: Cli, remote: dict[str, str], tmp_path: Path
) -> None:
    name = "left" if "sleep" not in script else "left-running"
    with started("submit", "--id", name, "--", "sh", "-c", script, cwd=tmp_path, env=remote) as submit:
        assert submit.stdout
        submit.stdout.read(1)
        if name == "left":
            until(lambda: b"SUCCEEDED" in run("status", name, env=remote).stdout, 30)
        submit.stdout.close()
        assert submit.wait(30) == 141
        assert submit.stderr and words in submit.stderr.read().decode().splitlines()[-1]
    run("stop", name, env=remote)


def test_a_detached_jobs_hint_has_the_address_that_was_given(run: Cli, remote: dict[str, str]) -> None:
    url, token = remote["RAY_WORKLOAD_ADDRESS"], {"RAY_AUTH_TOKEN_PATH": remote["RAY_AUTH_TOKEN_PATH"]}
    given = ["submit", "--address", url, "--id", "hinted", "--detach", "-o", "json", "--", "true"]
    submitted = run(*given, env=token)
    assert json.loads(submitted.stdout)["submission_id"] == "hinted"
    hint = submitted.stderr.decode().splitlines()[-1]
    follow = f"ray-workload logs --address {url} -f hinted"
    assert follow in hint and f"ray-workload status --address {url} hinted" in hint
    assert run(*follow.split()[1:], env=token).returncode == 0


def test_a_log_is_written_to_a_file_whole(run: Cli, remote: dict[str, str], tmp_path: Path) -> None:
    run("submit", "--id", "filed", "--detach", "script.py", env=remote)
    printed = run("logs", "-f", "filed", env=remote)
    for follow in ([], ["-f"]):
        done = run("logs", *follow, "--output-file", "log", "filed", env=remote)
        assert (done.returncode, done.stdout) == (7 if follow else 0, b""), done.stderr
        assert (tmp_path / "log").read_bytes() == printed.stdout
        assert not (tmp_path / "log.part").exists()
    (tmp_path / "link").symlink_to("log")
    assert run("logs", "-n", "1", "--output-file", "link", "filed", env=remote).returncode == 0
    last = printed.stdout.splitlines(keepends=True)[-1]  # Ray may write a line of its own there
    assert (tmp_path / "link").is_symlink() and (tmp_path / "log").read_bytes() == last


def test_a_log_that_is_not_whole_leaves_no_file(run: Cli, remote: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "log").write_text("from before")
    run("submit", "--id", "cut-off", "--detach", "--", "sh", "-c", "echo up; exec sleep 60", env=remote)
    with started("logs", "-f", "--output-file", "log", "cut-off", cwd=tmp_path, env=remote) as client:
        until(lambda: (tmp_path / "log.part").exists() and b"up\n" in (tmp_path / "log.part").read_bytes(), 30)
        client.send_signal(signal.SIGINT)
        _, errors = client.communicate(timeout=30)
    assert client.returncode == 130, errors
    assert ((tmp_path / "log").read_text(), (tmp_path / "log.part").exists()) == ("from before", False)
    run("stop", "cut-off", env=remote)
    for file, why in (
        ("none/log", "No such file or directory"),
        ("/dev/null", "not a regular file"),
        (".", "not a reg"),
    ):
        done = run("logs", "--output-file", file, "cut-off", env=remote)
        assert (done.returncode, done.stdout) == (2, b"")
        assert f"ray-workload: cannot write {file}: {why}" in done.stderr.decode().splitlines()[-1]


def test_jobs_are_listed_by_user_name_and_age(run: Cli) -> None:
    now, me = time.time() * 1000, getpass.getuser()
    jobs = [
        {"submission_id": name, "status": "PENDING", "metadata": {"user": user, "job_name": job}, "start_time": at}
        for name, user, job, at in (
            ("mine", me, "train", now - 1_800_000),
            ("theirs", f"{me}-2", "train", now - 1_800_000),
            ("evaluation", me, "evaluate", now - 1_800_000),
            ("old", me, "train", now - 7_200_000),
        )
    ]
    with serving(lambda *_: (200, {}, json.dumps(jobs).encode())) as url:

        def listed(*options: str) -> set[str]:
            done = run("list", "--address", url, "-o", "json", *options)
            assert done.returncode == 0, done.stderr
            return {job["submission_id"] for job in json.loads(done.stdout)}

        assert listed() == {"mine", "theirs", "evaluation", "old"}
        assert listed("--mine") == {"mine", "evaluation", "old"}
        assert listed("--name", "train") == {"mine", "theirs", "old"}
        assert listed("--since", "1h") == {"mine", "theirs", "evaluation"}
        assert listed("--mine", "--name", "train", "--since", "1h") == {"mine"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands_options_and_files(shell: str) -> None:
    def complete(*words: str) -> str:
        typed = words[-1] if shell == "fish" else str(len(words) - 1)
        asked = {"COMP_WORDS": " ".join(words), "COMP_CWORD": typed, "_RAY_WORKLOAD_COMPLETE": f"{shell}_complete"}
        done = subprocess.run(
            ["ray-workload"], env={**os.environ, **asked}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stderr == ""
        return done.stdout

    assert "submit" in re.split(r"[,\s]", complete("ray-workload", "su"))
    assert "--detach" in re.split(r"[,\s]", complete("ray-workload", "submit", "--det"))
    for words in (["submit", "scr"], ["submit", "-f", "scr"], ["submit", "--working-dir", "scr"], ["up", "-f", "scr"]):
        kind = "dir" if "--working-dir" in words else "file"
        assert kind in re.split(r"[,\s]", complete("ray-workload", *words)), words


def test_the_line_for_the_shells_startup_file_works(run: Cli) -> None:
    lines = dict(line.split(maxsplit=1) for line in run("--help").stdout.decode().splitlines() if "_source " in line)
    assert lines.keys() == {"bash", "zsh", "fish"}
    typed = "COMP_WORDS=(ray-workload su); COMP_CWORD=1; _ray_workload_completion ray-workload; echo ${COMPREPLY[@]}"
    done = subprocess.run(["bash", "-c", f"{lines['bash']}\n{typed}"], capture_output=True, timeout=60, check=False)
    assert done.stdout == b"submit\n", done.stderr


def sections(help_text: str) -> dict[str, str]:
    """Return the text below each heading of a help page."""
    parts = re.split(r"^(\S.*):\n", help_text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_help_has_groups_and_says_where_jobs_go(run: Cli) -> None:
    shown = sections(run("submit", "--help").stdout.decode())
    wanted = {
        "What runs": (
            "--working-dir --upload-to --env --secret-env --allow-plain --pip --requirements --runtime-env -f".split()
        ),
        "Where": ["--address", "--wait-cluster"],
        "Resources": ["--num-cpus", "--num-gpus", "--accelerator"],
        "Identity": ["--name", "--tag", "--id"],
        "Sweeps": ["--matrix", "--array", "--max-parallel", "--force"],
        "How it ends": ["--detach", "--timeout", "--on-interrupt", "--retries", "--retry-on"],
        "Output": ["--fetch", "--dry-run", "-o, --output"],
        "Options": ["-h, --help"],
    }
    options = {title: re.findall(r"^  (-[\w-]+(?:, --\w+)?)", text, re.MULTILINE) for title, text in shown.items()}
    assert {title: found for title, found in options.items() if found} == wanted
    for command in ("submit", "run", "list", "doctor", "exec"):
        where = " ".join(sections(run(command, "--help").stdout.decode())["Where"].split())
        order = (
            "RAY_WORKLOAD_ADDRESS",
            " RAY_ADDRESS",
            "pyproject.toml",
            "`up embedded`",
            "on this machine",
            "a new Ray",
        )
        places = [where.index(source) for source in order]
        assert places == sorted(places), command


@pytest.mark.parametrize("name", ["", *(name for name, command in cli.commands.items() if not command.hidden)])
def test_each_help_has_valid_examples(name: str, run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    examples = sections(run(*filter(None, [name]), "--help").stdout.decode())["Examples"].strip().splitlines()
    assert len(examples) in (2, 3)
    for example in examples:
        program, command, *rest = shlex.split(example.strip())
        assert program == "ray-workload" and command in ([name] if name else cli.commands)
        root = click.Context(cli, obj={})
        cli.commands[command].make_context(command, rest, parent=root)
