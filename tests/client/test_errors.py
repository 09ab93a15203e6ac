"""Invalid input on the command line: one line that says what to do, the right exit code, and nothing is sent."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from client.errors import Unreachable
from client.http import Http, Server
from client.ray_api.http import token_refusal
from client.targets.target import Target
from tests.client.conftest import port
from tests.client.proxy import FaultProxy
from tests.client.server import Answer, Handler, forward, serving
from tests.client.test_package import obey_permission_bits
from tests.conftest import Cli

NOWHERE = {"RAY_WORKLOAD_ADDRESS": "http://127.0.0.1:9"}


@pytest.fixture(autouse=True)
def _something_to_upload(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("print('it ran')\n")


def refusal(done: "subprocess.CompletedProcess[bytes]", code: int) -> str:
    """Return the error, which must be one line; the line that names the address may precede it."""
    told = done.stderr.decode().splitlines()
    lines = [line for line in told if not line.startswith("ray-workload: address ")]
    assert len(told) - len(lines) <= 1, told
    assert done.returncode == code, lines
    if lines[0].startswith("Usage: "):
        assert lines[-1].startswith("Error: ")
        return lines[-1]
    assert len(lines) == 1, lines
    assert lines[0].startswith("ray-workload: ")
    assert "internal error" not in lines[0]
    return lines[0]


BAD: dict[str, tuple[list[str], dict[str, str], list[str]]] = {
    "no script": (["nope.py"], {}, ["there is no script nope.py: to run a command, "]),
    "a folder as script": (["."], {}, ["there is no script .: "]),
    "script outside": (["--working-dir", "sub", "a.py"], {"a.py": "", "sub/b": ""}, ["outside the", "--working-dir"]),
    "no such folder": (["--working-dir", "nope", "--", "true"], {}, ["there is no folder nope"]),
    "nothing": ([], {}, ["there is nothing to run: specify a SCRIPT, or -- and a COMMAND"]),
    "no command": (["--"], {}, ["the command after -- is empty"]),
    "empty command": (["--", ""], {}, ["the command after -- is empty"]),
    "--env without =": (["--env", "A", "--", "true"], {}, ["'A' is not NAME=VALUE"]),
    "--env without name": (["--env", "=x", "--", "true"], {}, ["'=x' is not NAME=VALUE"]),
    "--tag without =": (["--tag", "A", "--", "true"], {}, ["'A' is not NAME=VALUE"]),
    "--tag of ours": (["--tag", "user=x", "--", "true"], {}, ["the client itself records user", "another name"]),
    "--id": (["--id", "a/b", "--", "true"], {}, ["an id may contain only letters, digits"]),
    "--id of dots": (["--id", "..", "--", "true"], {}, ["an id may contain only letters, digits"]),
    "--timeout 0": (["--timeout", "0", "--", "true"], {}, ["a timeout must be more than 0 seconds"]),
    "--timeout nan": (["--timeout", "nan", "--", "true"], {}, ["--timeout", "'nan' is not a duration like"]),
    "--num-cpus nan": (["--num-cpus", "nan", "--", "true"], {}, ["num_cpus must be a number"]),
    "no job file": (["-f", "f"], {}, ["cannot read f: No such file"]),
    "job file no YAML": (["-f", "f"], {"f": "{a: ["}, ["f is not valid YAML at line 1"]),
    "job file no text": (["-f", "f"], {"f": "a: \x01"}, ["f is not valid YAML", "#x0001"]),
    "job file no date": (["-f", "f"], {"f": "a: 2026-13-01"}, ["f is not valid YAML", "month"]),
    "job file a list": (["-f", "f"], {"f": "- a"}, ["f must contain names and values, not list"]),
    "job file empty": (["-f", "f"], {"f": ""}, ["f must contain names and values"]),
    "job file unknown key": (["-f", "f"], {"f": "{1: a, entry: b}"}, ["a job has no argument 1: ", "_num_gpus"]),
    "entrypoint no text": (["-f", "f"], {"f": "entrypoint: 5"}, ["entrypoint must be text"]),
    "id no text": (["-f", "f", "--", "true"], {"f": "submission_id: 5"}, ["submission_id must be text"]),
    "metadata no mapping": (["-f", "f", "--", "true"], {"f": "metadata: 5"}, ["metadata must be names and values"]),
    "negative CPUs": (["-f", "f", "--", "true"], {"f": "entrypoint_num_cpus: -1"}, ["at least 0"]),
    "runtime_env no mapping": (["-f", "f", "--", "true"], {"f": "runtime_env: 5"}, ["runtime_env must be names"]),
    "no runtime_env": (["--runtime-env", "f", "--", "true"], {}, ["cannot read f: No such file"]),
    "runtime_env no YAML": (["--runtime-env", "f", "--", "true"], {"f": "\t"}, ["f is not valid YAML at line 1"]),
    "runtime_env a list": (["--runtime-env", "f", "--", "true"], {"f": "[]"}, ["f must contain names and values"]),
    "env_vars": (["--runtime-env", "f", "--", "true"], {"f": "env_vars: 5"}, ["env_vars must be names and values"]),
    "env_vars value": (["--runtime-env", "f", "--", "true"], {"f": "env_vars: {A: 5}"}, ["env_vars", "5"]),
    "excludes": (["--runtime-env", "f", "--", "true"], {"f": "excludes: 5"}, ["excludes must be a list"]),
    "working_dir": (["--runtime-env", "f", "--", "true"], {"f": "working_dir: 5"}, ["working_dir must be text"]),
    "pip": (["--runtime-env", "f", "--", "true"], {"f": '{"pip": 5}'}, ["runtime_env['pip'] must be of type str"]),
}  # fmt: skip


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize("case", BAD)
def test_a_bad_submit_is_refused(case: str, run: Cli, remote: dict[str, str], tmp_path: Path) -> None:
    arguments, files, words = BAD[case]
    write(tmp_path, files)
    done = run("submit", *arguments, env=remote)
    line = refusal(done, 2)
    assert [word for word in words if word not in line] == [], line
    assert done.stdout == b""


SECRETS = [
    (["--env", "DB_PASSWORD=x"], {}),
    (["--env", "token=x"], {}),
    (["--env", "PIP_INDEX_URL=https://user:word@host/simple"], {}),
    (["--runtime-env", "f"], {"f": "env_vars: {MY_API_KEY: x}"}),
    (["-f", "f"], {"f": "runtime_env: {env_vars: {AWS_SECRET: x}}"}),
]


@pytest.mark.parametrize(("arguments", "files"), SECRETS)
def test_a_secret_is_refused_unless_allowed(
    arguments: list[str], files: dict[str, str], run: Cli, tmp_path: Path
) -> None:
    write(tmp_path, files)
    line = refusal(run("submit", "--dry-run", *arguments, "--", "true"), 2)
    assert "looks like a secret" in line and "--allow-plain" in line
    assert run("submit", "--dry-run", "--allow-plain", *arguments, "--", "true").returncode == 0


# What cannot be uploaded


def test_an_upload_over_the_limit_is_not_sent(run: Cli, head: Target, remote: dict[str, str], tmp_path: Path) -> None:
    with open(tmp_path / "big.bin", "wb") as file:
        for _ in range(101):
            file.write(os.urandom(1024**2))
    with FaultProxy(port(head.http.server.url)) as proxy:
        line = refusal(run("submit", "--", "true", env={**remote, "RAY_WORKLOAD_ADDRESS": proxy.url}), 2)
    assert "100 MiB" in line and "big.bin (101.0 MiB)" in line and ".rayignore" in line and "--upload-to" in line
    assert [method for method, _ in proxy.requests if method != "GET"] == []


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"closed": "x"})
    (tmp_path / "closed").chmod(0)
    command = [sys.executable, "-m", "client", "submit", "--", "true"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **NOWHERE}, capture_output=True, preexec_fn=obey_permission_bits
    )
    assert "closed cannot be read (Permission denied): correct it or add it to .rayignore" in refusal(done, 2)


def test_a_link_loop_is_named(run: Cli, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(".")
    line = refusal(run("submit", "--", "true", env=NOWHERE), 2)
    assert "loop is a link loop: correct it or add it to .rayignore" in line


# Addresses and the servers there

COMMANDS = [["submit", "--", "true"], ["list"], ["status"], ["status", "x"], ["logs", "x"], ["stop", "x"]]


@pytest.mark.parametrize(
    ("address", "code", "words"),
    [
        (
            "127.0.0.1:8265",
            2,
            "127.0.0.1:8265 (--address) is not an address: use http://127.0.0.1:8265",
        ),
        ("ray.example:443/", 2, "is not an address: use http://ray.example:443/"),
        ("ray://127.0.0.1:10001", 2, "is not an address: use embedded, kubernetes"),
        ("http://127.0.0.1:99999", 2, "not a usable address: use one like http://127.0.0.1:8265"),
        ("http://127.0.0.1:port", 2, "not a usable address"),
        ("http://:8265", 2, "not a usable address"),
        ("http://127.0.0.1:8265/#/jobs", 2, "not a usable address"),
        (
            "http://user:hunter2@127.0.0.1:8265",
            2,
            "contains a password: put a token into the file that RAY_AUTH_TOKEN_PATH names",
        ),
        ("http://user:hunter2@127.0.0.1:99999", 2, "contains a password"),
        ("ftp://user:hunter2@127.0.0.1", 2, "contains a password"),
        ("http://127.0.0.1:9", 69, "http://127.0.0.1:9 does not answer (Connection refused): check the address"),
        ("http://no-such-host.invalid", 69, "does not answer ("),
    ],
)
def test_a_bad_address_is_refused(address: str, code: int, words: str, run: Cli) -> None:
    done = run("submit", "--address", address, "--", "true")
    assert words in refusal(done, code)
    assert b"hunter2" not in done.stdout + done.stderr


def only_the_version(asked: Handler, _: bytes) -> tuple[int, Mapping[str, str], bytes]:
    answer = json.dumps({"ray_version": version("ray"), "session_name": "s"}).encode()
    return (200, {}, answer) if asked.path == "/api/version" else (404, {}, b"404: Not Found")


STRANGERS: dict[str, tuple[Answer, int, str]] = {
    "nothing there": (lambda *_: (404, {}, b"<html>Not Found</html>"), 69, "port 8265"),
    "a page": (lambda *_: (200, {"Content-Type": "text/html"}, b"<html>Welcome</html>"), 69, " "),
    "another API": (lambda *_: (200, {"Content-Type": "application/json"}, b'{"hello": "world"}'), 69, " "),
    "another list": (lambda *_: (200, {"Content-Type": "application/json"}, b'["hello"]'), 69, " "),
    "no job API": (only_the_version, 69, "port 8265"),
    "a login page": (lambda *_: (302, {"Location": "https://login.invalid/?state=1"}, b""), 69, "https://login.invalid"),
    "a gateway": (lambda *_: (502, {}, b"Bad Gateway"), 69, "answers 502: try again in a moment"),
    "a guard": (lambda *_: (403, {}, b"<html>Forbidden</html>"), 77, "403, but it is not Ray: log in there first"),
}  # fmt: skip


@pytest.mark.parametrize("stranger", STRANGERS)
def test_a_server_that_is_not_ray_is_refused(stranger: str, run: Cli) -> None:
    answer, code, words = STRANGERS[stranger]
    with serving(answer) as url:
        for command in COMMANDS:
            if stranger == "no job API" and command[-1] in ("status", "x"):
                continue  # these commands see a Ray without the job
            line = refusal(run(*command, env={"RAY_WORKLOAD_ADDRESS": url}), code)
            assert url.removeprefix("http://") in line and words in line, (command, line)


def test_a_server_that_does_not_speak_http_is_refused(run: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"\x00\x00\x12\x04\x00 grpc\r\n")

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        done = run("list", "--address", f"http://127.0.0.1:{server.getsockname()[1]}")
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert "does not answer (it does not speak HTTP)" in refusal(done, 69)


def test_a_ca_file_that_is_not_there(run: Cli) -> None:
    done = run("list", "--address", "https://127.0.0.1:1", env={"REQUESTS_CA_BUNDLE": "/nowhere/ca.pem"})
    assert "REQUESTS_CA_BUNDLE names /nowhere/ca.pem, which does not exist" in refusal(done, 2)
    done = run("list", "--address", "http://127.0.0.1:1", env={"REQUESTS_CA_BUNDLE": "/nowhere/ca.pem"})
    assert "http://127.0.0.1:1 does not answer" in refusal(done, 69)


@pytest.mark.parametrize("resources", ['{"accelerator_type:L4": "1"}', "{1: 1}"])
def test_resources_of_a_job_file_that_are_none(resources: str, run: Cli, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(f"entrypoint: 'true'\nentrypoint_resources: {resources}\n")
    done = run("submit", "-f", "job.yaml", env=NOWHERE)
    assert "entrypoint_resources must map each name to a number of at least 0" in refusal(done, 2)


def test_a_silent_server_is_given_up(run: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        done = run("submit", "--address", f"http://127.0.0.1:{server.getsockname()[1]}", "--", "true")
    assert time.monotonic() - began < 30
    assert "does not answer (" in refusal(done, 69)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("token", "words"),
    [("wrong", "the cluster refused the token: put its token"), ("", "the cluster requires a token: put its token")],
)
def test_a_token_that_is_not_the_clusters_is_refused(
    token: str, words: str, command: list[str], run: Cli, head: Target
) -> None:
    done = run(*command, env={"RAY_WORKLOAD_ADDRESS": head.http.server.url, "RAY_AUTH_TOKEN": token})
    assert words in refusal(done, 77)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"one\ntwo", "does not hold a token"),
        (b"\xff\xfe", "not hold a token"),
    ],
)
def test_a_token_file_that_is_none_is_refused(content: bytes | None, words: str, run: Cli, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "secret").write_bytes(content)
    done = run("list", env={**NOWHERE, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "secret")})
    line = refusal(done, 2)
    assert words in line and "secret" in line
    assert "two" not in line


def test_a_server_of_another_ray_is_warned_of_once(
    run: Cli, head: Target, remote: dict[str, str], tmp_path: Path
) -> None:
    def another(asked: Handler, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        status, headers, content = forward(head.http.server.url, asked, body)
        if asked.path == "/api/version":
            content = json.dumps({**json.loads(content), "ray_version": "2.9.3"}).encode()
        return status, headers, content

    with serving(another) as url:
        done = run("submit", "script.py", env={**remote, "RAY_WORKLOAD_ADDRESS": url})
    assert done.returncode == 0
    assert b"\nit ran\n" in done.stdout
    warnings = [line for line in done.stderr.decode().splitlines() if "2.9.3" in line]
    assert len(warnings) == 1
    assert (
        f"runs Ray 2.9.3, this client Ray {version('ray')}: if a job fails, use an image with Ray {version('ray')}"
        in warnings[0]
    )


# Where the address comes from


@pytest.mark.parametrize("value", ["auto", "127.0.0.1:6379", "ray://127.0.0.1:10001"])
def test_a_ray_address_of_another_kind_is_passed_over(value: str, run: Cli, tmp_path: Path) -> None:
    for configured, working_dir in (("", f"local://{tmp_path}"), ("http://127.0.0.1:9", "gcs://")):
        write(tmp_path, {"pyproject.toml": f'tool.ray-workload.address = "{configured}"'})
        done = run("submit", "--dry-run", "-o", "json", "--", "true", env={"RAY_ADDRESS": value})
        assert f"RAY_ADDRESS={value} is ignored, because it is not an http address" in refusal(done, 0)
        assert json.loads(done.stdout)["runtime_env"]["working_dir"].startswith(working_dir)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_ray_address_that_is_used_is_named(command: list[str], run: Cli) -> None:
    done = run(*command, env={"RAY_ADDRESS": "http://127.0.0.1:9"})
    assert "http://127.0.0.1:9 does not answer" in refusal(done, 69)
    assert b"RAY_ADDRESS" in done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tool", "is not valid TOML"),
        ("tool.ray-workload = 5", "must be a table"),
        ("tool.ray-workload.address = 5", "5 ("),
    ],
)
def test_a_broken_pyproject_is_named(text: str, words: str, run: Cli, tmp_path: Path) -> None:
    write(tmp_path, {"pyproject.toml": text})
    for command in (["list"], ["submit", "--", "true"]):
        line = refusal(run(*command), 2)
        assert str(tmp_path / "pyproject.toml") in line and words in line


@pytest.mark.parametrize("command", [["submit", "--detach", "--", "true"], ["list"], ["logs", "x"]])
def test_without_a_cluster_there_is_nothing_to_detach_to(command: list[str], run: Cli) -> None:
    assert "`up embedded`, or use --address" in refusal(run(*command), 2)


# Unknown jobs and JSON output


@pytest.mark.parametrize("command", ["status", "logs", "stop"])
@pytest.mark.parametrize("submission_id", ["nope", "..", "?", "a/b#c"])
def test_an_unknown_job_is_named(command: str, submission_id: str, run: Cli, remote: dict[str, str]) -> None:
    line = refusal(run(command, submission_id, env=remote), 1)
    assert f"there is no job {submission_id} at " in line and "`list` shows all jobs" in line


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["submit", "-o", "json", "nope.py"], 2),
        (["submit", "--env", "A", "-o", "json", "--", "true"], 2),
        (["submit", "-o", "json", "--", "true"], 69),
        (["list", "-o", "json"], 69),
        (["list", "--limit", "0", "-o", "json"], 2),
        (["status", "-o", "json", "x"], 69),
        (["stop", "-o", "json", "x"], 69),
    ],
)
def test_an_error_is_one_json_object(arguments: list[str], code: int, run: Cli) -> None:
    done = run(*arguments, env=NOWHERE)
    line = refusal(done, code)
    shown: dict[str, Any] = json.loads(done.stdout)
    assert line.endswith(shown["error"])
    assert shown["exit_code"] == code


def test_debug_shows_the_traceback_and_keeps_the_exit_code(run: Cli) -> None:
    done = run("--debug", "submit", "-o", "json", "nope.py")
    assert done.returncode == 2
    assert b"Traceback (most recent call last)" in done.stderr
    assert "there is no script nope.py" in done.stderr.decode().splitlines()[-1]
    assert json.loads(done.stdout)["exit_code"] == 2


def test_a_refusal_that_breaks_off_is_a_lost_connection() -> None:
    """Its text is read to tell whose it is."""
    served = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            nonlocal served
            while served < 3:  # a GET is sent three times
                connection, _ = listener.accept()
                with connection:
                    connection.recv(10_000)
                    connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 100\r\n\r\nForbid")
                served += 1

        thread = threading.Thread(target=serve)
        thread.start()
        server = Server(f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(Unreachable, match="does not answer"):
            Http(server, token_refusal(sent=True, hint="")).request("GET", "/api/jobs/", stream=True)
        thread.join()
    assert served == 3
