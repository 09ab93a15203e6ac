"""client/job and client/ray_api/jobs.py: a job is submitted once, with its files only, and recorded correctly."""

import gc
import json
import os
import re
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import client
from client.errors import ClientError
from client.job.follow import follow, write_to_end
from client.job.job import Job
from client.job.request import Request
from client.job.submission import command_line, submission
from client.job.submit import send
from client.ray_api.jobs import RayJobs
from client.ray_api.record import JobRecord
from client.targets import Address
from client.targets.target import Target, same_host_agent
from tests.client.conftest import Rerouted, port, via_proxy
from tests.client.proxy import FaultProxy
from tests.client.server import Handler, forward, serving
from tests.conftest import Cli, on_terminal


def appends(file: Path) -> list[str]:
    """Return a command that appends to a file each time it runs."""
    return ["sh", "-c", f"echo ran >> {file}"]


def arguments_of(head: Target, file: Path, submission_id: str) -> Mapping[str, Any]:
    request = Request(command=appends(file), arguments={"submission_id": submission_id})
    entrypoint = command_line(request, head.runtime)
    return submission(request, entrypoint, head.runtime, working_dir=f"local://{file.parent}").arguments


def test_a_lost_reply_does_not_run_the_job_twice(head: Target, tmp_path: Path) -> None:
    with via_proxy(head, None) as (through, dashboard, _):
        dashboard.faults.lose_replies = 2
        assert RayJobs(through).submit(arguments_of(head, tmp_path / "ran", "lost-reply")), "not recognised as ours"
        assert dashboard.fired["lose_replies"] == 2
    assert Job("lost-reply", head, ExitStack()).wait().exit_code == 0
    assert (tmp_path / "ran").read_text() == "ran\n"


def test_many_submits_of_one_id_at_once_run_it_once(head: Target, tmp_path: Path) -> None:
    arguments = arguments_of(head, tmp_path / "ran", "at-once")
    new: list[bool] = []
    threads = [threading.Thread(target=lambda: new.append(RayJobs(head).submit(arguments))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(new) == [False] * 7 + [True]
    assert Job("at-once", head, ExitStack()).wait().exit_code == 0
    assert (tmp_path / "ran").read_text() == "ran\n"


def test_the_same_id_attaches_and_another_spec_is_refused(as_remote: Path, run: Cli) -> None:
    (as_remote / "a.py").write_text("print('once'); raise SystemExit(5)")
    first = run("submit", "--id", "same", "a.py")
    again = run("submit", "--id", "same", "a.py")
    assert (first.returncode, again.returncode) == (5, 5)
    assert first.stdout == again.stdout and first.stdout.count(b"once\n") == 1
    assert re.search(rb": job same ended \d+ s ago; nothing was run\n", again.stderr)
    assert b"nothing was run" not in first.stderr
    changes: dict[str, list[str]] = {
        "entrypoint": ["a.py", "more"],
        "runtime_env or resources": ["--num-cpus", "1", "a.py"],
        "runtime_env": ["--env", "A=b", "a.py"],
        "entrypoint and runtime_env": ["--env", "A=b", "a.py", "more"],
    }
    for what, change in changes.items():
        other = run("submit", "--id", "same", *change)
        assert other.returncode == 1
        assert f"another job, with a different {what}, has the id same: use another --id\n" in other.stderr.decode()
    (as_remote / "left.py").write_text("")
    os.utime(as_remote / "left.py", (0, 0))  # like a file that was moved here
    other = run("submit", "--id", "same", "a.py")
    assert b"another job, with a different folder, has the id same: use another --id" in other.stderr
    (as_remote / "a.py").write_text("print('changed')")
    other = run("submit", "--id", "same", "a.py")
    assert other.returncode == 1
    assert b"a different folder (changed since then: a.py), has the id same: " in other.stderr


def test_a_log_of_an_earlier_submit_is_named_as_the_difference(as_remote: Path) -> None:
    (as_remote / "a.py").write_text("")
    command = [sys.executable, "-m", "client", "submit", "--id", "logged", "--", "true"]
    for number, code in ((1, 0), (2, 1)):
        with open(as_remote / f"o{number}.log", "wb") as out:
            done = subprocess.run(command, cwd=as_remote, stdout=out, stderr=subprocess.PIPE, check=False)
        assert done.returncode == code, done.stderr
    assert b"with a different folder (changed since then: o1.log), has the id logged: " in done.stderr
    with open(as_remote / "o1.log", "ab") as out:
        (as_remote / "o2.log").unlink()
        done = subprocess.run(command, cwd=as_remote, stdout=out, stderr=out, check=False)
    assert done.returncode == 0, "our own output is no part of the upload"


def test_the_lines_of_tasks_have_no_colours_in_a_redirected_log_of_the_same_job(as_remote: Path, run: Cli) -> None:
    (as_remote / "a.py").write_text(
        "import ray\nray.init()\n@ray.remote\ndef task(): print('of a task')\nray.get(task.remote())\n"
    )

    def on_a_terminal(*options: str, **env: str) -> str:
        command = [sys.executable, "-m", "client", "submit", *options, "a.py"]
        code, shown = on_terminal(command, "", all_output=True, cwd=as_remote, env={**os.environ, **env})
        assert code == 0, shown
        return shown

    plain, coloured = b"\n(task pid=", "\n\x1b[36m(task pid="
    assert plain in run("submit", "--id", "piped", "a.py").stdout
    assert "nothing was run" in on_a_terminal("--id", "piped")
    assert coloured in on_a_terminal("--id", "on-a-terminal")
    assert b"nothing was run" in run("submit", "--id", "on-a-terminal", "a.py").stderr
    assert plain.decode() in on_a_terminal(NO_COLOR="1")
    assert coloured.encode() in run("submit", "--env", "RAY_COLOR_PREFIX=2", "a.py").stdout


def test_an_upload_holds_the_files_and_is_sent_once(as_remote: Path, head: Target, run: Cli) -> None:
    (as_remote / "a.py").write_text("import os; print(sorted(os.listdir())); print(os.access('run.sh', os.X_OK))")
    (as_remote / "run.sh").write_text("#!/bin/sh\n")
    (as_remote / "run.sh").chmod(0o755)
    (as_remote / ".env").write_text("PASSWORD=x")
    (as_remote / ".gitignore").write_text("*.tmp\n")
    (as_remote / "left.tmp").write_text("")
    with FaultProxy(port(head.http.server.url)) as proxy:
        runs = [run("submit", "--address", proxy.url, "a.py") for _ in range(2)]
        assert [method for method, path in proxy.requests if "/packages/" in path] == ["GET", "PUT", "GET"]
    for done in runs:
        assert done.returncode == 0, done.stderr
        assert b"['.gitignore', 'a.py', 'run.sh']\nTrue\n" in done.stdout
        assert done.stderr.count(b"looks like a secret: .env ") == 1


def test_a_task_runs_in_the_folder_and_imports_what_is_beside_the_script(as_remote: Path, run: Cli) -> None:
    (as_remote / "sub").mkdir()
    (as_remote / "data").write_text("of the folder")
    (as_remote / "sub" / "beside.py").write_text("def read(): return open('data').read()")
    (as_remote / "sub" / "a.py").write_text(
        "import beside, ray\nray.init()\nprint(ray.get(ray.remote(lambda: __import__('beside').read()).remote()))\n"
    )
    done = run("submit", "sub/a.py")
    assert done.returncode == 0, done.stdout
    assert b"\nof the folder\n" in done.stdout


def test_what_is_recorded(as_remote: Path, run: Cli, jobs: RayJobs) -> None:
    (as_remote / "a.py").write_text("")
    git = ["git", "-C", str(as_remote), "-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["add", "a.py"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    (as_remote / "a.py").write_text("pass")
    done = run("submit", "--id", "recorded", "--name", "shown", "--tag", "team=a=b", "-o", "json", "a.py", "x y")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    metadata = shown["metadata"]
    assert metadata.pop("spec_hash") and metadata.pop("user") and metadata.pop("host")
    assert metadata == {
        "job_name": "shown",
        "team": "a=b",
        "git_commit": commit,
        "git_dirty": "true",
        "client_version": client.__version__,
    }
    assert shown["entrypoint"] == "exec python a.py 'x y'"
    assert (shown["status"], shown["exit_code"]) == ("SUCCEEDED", 0)
    assert isinstance(jobs.get("recorded"), JobRecord)


def test_a_job_file_and_options_that_win(as_remote: Path, run: Cli) -> None:
    (as_remote / "job.yaml").write_text(
        "entrypoint: echo from-file $A $B && exit 3\nsubmission_id: from-file\nentrypoint_num_cpus: 1\n"
        "runtime_env: {env_vars: {A: a, B: b}}\n"
    )
    done = run("submit", "-f", "job.yaml", "--id", "from-options", "--env", "B=c", "-o", "json")
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["submission_id"] == "from-options"
    assert b"\nfrom-file a c\n" in done.stderr


def test_a_dry_run_asks_nobody(as_remote: Path, run: Cli) -> None:
    (as_remote / "a.py").write_text("x" * 1000)
    (as_remote / "k.pem").write_text("secret")
    options = ["--address", "http://127.0.0.1:9", "--dry-run", "--timeout", "60"]
    shown = run("submit", *options, "a.py", "b c")
    assert shown.returncode == 0, shown.stderr
    assert b"timeout -k 30 60 python a.py 'b c'" in shown.stdout
    assert b"1000 a.py" in shown.stdout and b"withheld k.pem" in shown.stdout
    data = json.loads(run("submit", *options, "-o", "json", "a.py").stdout)
    assert data["upload"] == [{"path": "a.py", "bytes": 1000}] and data["withheld"] == ["k.pem"]
    assert data["runtime_env"]["working_dir"].startswith("gcs://_ray_pkg_")


@pytest.mark.parametrize(
    ("files", "script", "path"),
    [
        (["work/a.py"], "a.py", "a.py"),
        (["work/a.py", "a.py"], "a.py", "a.py"),
        (["work/a.py", "work/work/a.py"], "work/a.py", "a.py"),
        (["work/sub/a.py"], "sub/a.py", "sub/a.py"),
    ],
)
def test_a_script_is_also_found_in_the_working_directory(
    files: list[str], script: str, path: str, as_remote: Path
) -> None:
    for file in files:
        (as_remote / file).parent.mkdir(parents=True, exist_ok=True)
        (as_remote / file).write_text("")
    assert Request(script=script, working_dir="work").script_path == path
    (as_remote / "work" / "left.py").mkdir()
    (as_remote / "left.py").write_text("")
    for outside, words in (("left.py", "is outside the working directory"), ("nope.py", "there is no script nope.py")):
        with pytest.raises(client.UsageError, match=words):
            Request(script=outside, working_dir="work")


def test_the_python_api(as_remote: Path, head: Target) -> None:
    (as_remote / "a.py").write_text("import sys; print('a', *sys.argv[1:]); print('b\\xff'); sys.exit(4)")
    submitted = client.submit("a.py", "1", "2 3", tags={"k": "v"}, submission_id="by-api")
    written = bytearray()
    ended = submitted.wait(written.extend)
    assert ended.exit_code == 4
    assert "a 1 2 3\nb\xff\n".encode() in written
    assert {"a 1 2 3", "b\xff"} < set(submitted.logs())
    assert submitted.status().metadata["k"] == "v"
    again = client.attach("by-api")
    assert again.attached and again.wait().exit_code == 4
    assert client.submit(command=["sleep", "60"]).stop().status == "STOPPED"
    with pytest.raises(client.JobNotFound):
        client.attach("nobody")


def test_the_python_api_in_a_running_event_loop_on_a_ray_of_its_own(tmp_path: Path) -> None:
    code = (
        "import asyncio, client\n"
        "async def main():\n"
        "    job = client.submit(command=['sh', '-c', 'echo hi; exit 6'], address='embedded')\n"
        "    print(job.target.ends_with_us, job.wait().exit_code)\n"
        "    client.submit(command=['sleep', '60'], address='embedded')\n"  # not waited for
        "asyncio.run(main())\n"
    )
    (tmp_path / "notebook.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "notebook.py"], cwd=tmp_path, capture_output=True, timeout=100, env=os.environ
    )
    assert done.stdout == b"True 6\n", done.stderr


def test_the_public_names() -> None:
    assert client.__all__ == sorted(client.__all__, key=lambda name: (name.islower(), name))
    for name in client.__all__:
        assert getattr(client, name).__doc__, name
    with pytest.raises(AttributeError):
        _ = client.nonsense
    assert issubclass(client.ContactLost, ClientError)


def test_reading_needs_no_ray(run: Cli, remote: dict[str, str]) -> None:
    for command in (["list"], ["status"], ["--help"], ["submit", "--help"]):
        done = run(*command, env={**remote, "PYTHONPROFILEIMPORTTIME": "1"})
        assert done.returncode == 0, done.stderr
        imported = {line.rpartition(b"|")[2].strip() for line in done.stderr.splitlines()}
        assert not imported & {b"ray", b"kubernetes", b"numpy", b"pyhelm3"}
        assert b"client.cli.main" in imported


def test_a_reply_that_never_comes_is_not_called_unreachable(
    head: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.ray_api.jobs._SUBMIT_TRIES", 3)
    arguments = arguments_of(head, tmp_path / "ran", "no-reply")
    with via_proxy(head, None) as (through, dashboard, _):
        dashboard.faults.lose_replies = 100
        dashboard.faults.status, dashboard.faults.match = 503, "/api/jobs/no-reply"
        with pytest.raises(client.ContactLost, match="`status no-reply` shows whether the job arrived"):
            RayJobs(through).submit(arguments)
        assert dashboard.fired["lose_replies"] == 3
    with pytest.raises(client.Unreachable, match="Connection refused"):
        RayJobs(through).submit(arguments)


def test_the_agent_is_used_on_the_dashboards_host_and_scheme_only() -> None:
    url = "https://10.0.0.5:8265"
    assert same_host_agent(url, "https://10.0.0.5:52365") == "https://10.0.0.5:52365"
    assert same_host_agent(url, "http://10.0.0.5:52365") is None, "the token would be sent in clear text"
    assert same_host_agent(url, "https://10.0.0.6:52365") is None, "the host may belong to someone else"


def test_a_closed_agent_leaves_the_dashboards_way(head: Target, jobs: RayJobs) -> None:
    arguments = {"entrypoint": "echo through the dashboard", "submission_id": "closed-agent", "metadata": {}}
    jobs.submit({**arguments, "metadata": {"spec_hash": "x"}})
    closed = Rerouted(head, agent=lambda _: "http://127.0.0.1:9")
    log = bytearray()
    assert write_to_end(follow(closed, RayJobs(closed), "closed-agent"), log.extend).exit_code == 0
    assert b"through the dashboard\n" in log


def test_strange_metadata_of_other_clients(head: Target, jobs: RayJobs, run: Cli, remote: dict[str, str]) -> None:
    metadata = {"spec_hash": "x", "timeout": "1h"}
    jobs.submit({"entrypoint": "exit 124", "submission_id": "strange", "metadata": metadata})
    assert Job("strange", head, ExitStack()).wait().exit_code == 124
    assert run("list", env=remote).returncode == 0


def test_an_unready_cluster_is_told(tmp_path: Path) -> None:
    with pytest.raises(client.UsageError, match="up embedded"):
        send(Request(command=["true"], working_dir=tmp_path), Address("embedded", "test"), detached=True)


def test_py_modules_are_listed_uploaded_and_imported(as_remote: Path, run: Cli) -> None:
    work, library = as_remote / "work", as_remote / "library"
    (library / "inner").mkdir(parents=True)
    work.mkdir()
    (library / "__init__.py").write_text("")
    (library / "inner" / "__init__.py").write_text("WORD = 'imported'")
    (library / ".env").write_text("PASSWORD=hunter2")
    (as_remote / "single.py").write_text("WORD = 'alone'")
    (work / "a.py").write_text(
        "import os, library, single, library.inner\n"
        "print(library.inner.WORD, single.WORD, os.listdir(os.path.dirname(library.__file__)))\n"
    )
    (work / "env.yaml").write_text("py_modules: [../library, ../single.py]")
    options = ["--runtime-env", "env.yaml"]
    shown = run("submit", "--dry-run", *options, "a.py", cwd=work)
    assert shown.returncode == 0, shown.stderr
    assert b" library/inner/__init__.py\n" in shown.stdout and b" single.py\n" in shown.stdout
    assert b"withheld library/.env\n" in shown.stdout
    data = json.loads(run("submit", "--dry-run", *options, "-o", "json", "a.py", cwd=work).stdout)
    assert [module.startswith("gcs://_ray_pkg_") for module in data["runtime_env"]["py_modules"]] == [True, True]
    done = run("submit", *options, "a.py", cwd=work)
    assert done.returncode == 0, done.stdout
    (line,) = (line for line in done.stdout.decode().splitlines() if line.startswith("imported "))
    assert line.startswith("imported alone [") and ".env" not in line
    assert done.stderr.count(b"looks like a secret: library/.env ") == 1


def test_a_loop_of_attaches_keeps_no_job(as_remote: Path, head: Target, jobs: RayJobs) -> None:
    jobs.submit_plain({"entrypoint": "true", "submission_id": "attached-to"})
    left = []
    for _ in range(3):
        job = client.attach("attached-to")
        assert job.status().submission_id == "attached-to"
        left.append(weakref.ref(job))
        del job
    gc.collect()
    assert [ref() for ref in left] == [None] * 3


def test_a_job_as_a_context_manager_and_a_wait_that_runs_out(as_remote: Path) -> None:
    (as_remote / "a.py").write_text("")
    with client.submit(command=["sleep", "60"], submission_id="in-context") as job:
        began = time.monotonic()
        with pytest.raises(client.TimedOut, match="job in-context has not ended after 0.5 s: it goes on"):
            job.wait(timeout=0.5)
        assert 0.5 <= time.monotonic() - began < 10
        assert job.status().status in ("PENDING", "RUNNING")
        assert job.stop().status == "STOPPED"
        assert job.wait(timeout=30).exit_code == 143


def test_the_python_api_changes_nothing_in_its_process(as_remote: Path) -> None:
    """Neither during a submit, in any thread, nor afterwards."""
    (as_remote / "a.py").write_text("")
    code = """
import gc, sys, warnings
import ray.job_submission
changed = []
def watched(module, name):
    real = getattr(module, name)
    def change(*args, **options):
        frame, modules = sys._getframe(1), []
        while frame:
            modules.append(frame.f_globals.get("__name__", ""))
            frame = frame.f_back
        if any(module.partition(".")[0] == "client" for module in modules[:4]):
            changed.append((name, modules))
        return real(*args, **options)
    setattr(module, name, change)
state = lambda: (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count(), list(warnings.filters))
before = state()
for name in ("disable", "enable", "freeze", "set_threshold"):
    watched(gc, name)
for name in ("simplefilter", "filterwarnings", "resetwarnings"):
    watched(warnings, name)
import client
print(client.submit(command=["true"]).wait().exit_code, changed, state() == before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=as_remote, capture_output=True, timeout=60, check=False)
    assert done.stdout == b"0 [] True\n", done.stderr


def test_whether_an_id_is_taken_is_asked_and_not_read_from_words(head: Target, jobs: RayJobs, tmp_path: Path) -> None:
    refused = 0

    def in_other_words(asked: Handler, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        nonlocal refused
        status, headers, content = forward(head.http.server.url, asked, body)
        if asked.command == "POST" and status >= 400:
            refused += 1
            return 500, {"Content-Type": "text/plain"}, b"Kennung vergeben"
        return status, headers, content

    arguments = arguments_of(head, tmp_path / "ran", "other-words")
    with serving(in_other_words) as url:
        through = RayJobs(Rerouted(head, url=url))
        assert [through.submit(arguments), through.submit(arguments)] == [True, False]
        other = arguments_of(head, tmp_path / "other", "other-words")
        with pytest.raises(client.ClientError, match="another job, .* has the id other-words: use another --id"):
            through.submit(other)
    assert refused == 2
    assert Job("other-words", head, ExitStack()).wait().exit_code == 0
    assert (tmp_path / "ran").read_text() == "ran\n" and not (tmp_path / "other").exists()


def test_an_invalid_runtime_env_is_refused_before_anything_is_packed(as_remote: Path) -> None:
    (as_remote / "big").write_bytes(os.urandom(1 << 20))
    (as_remote / "env.yaml").write_text("pip: 5")
    code = (
        "import sys\n"
        "told = lambda event, _: print(event, file=sys.stderr) if event.startswith('tempfile.') else None\n"
        "sys.addaudithook(told)\n"
        "from client.cli.main import main\n"
        "main()\n"
    )
    for options, exit_code in ((["--runtime-env", "env.yaml"], 2), ([], 0)):
        command = [sys.executable, "-c", code, "submit", *options, "--", "true"]
        done = subprocess.run(command, cwd=as_remote, capture_output=True, timeout=60, check=False)
        assert done.returncode == exit_code, done.stderr
        assert (b"tempfile." in done.stderr) == (exit_code == 0)
        assert (b"Ray does not accept this runtime_env" in done.stderr) == (exit_code == 2)
