"""Which address commands use, when they print it, and which requests carry the user's token."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.client.server import Handler, serving
from tests.client.test_login import config
from tests.client.test_ray_cluster import ray_cluster
from tests.conftest import Cli

TOKEN = "planted-71c2e0d9"
COMMANDS = [["submit", "--", "true"], ["list"], ["status"], ["status", "x"], ["logs", "x"], ["stop", "x"]]


@contextmanager
def recording() -> Iterator[tuple[str, list[str]]]:
    """Serve a Ray without jobs that refuses requests without a token; yield its URL and the tokens it received."""
    seen: list[str] = []

    def answer(asked: Handler, _: bytes) -> tuple[int, Mapping[str, str], bytes]:
        seen.append(str(asked.headers))
        if TOKEN not in str(asked.headers):
            return 401, {"Content-Type": "text/plain"}, b"Unauthorized: Missing authentication token"
        if asked.path == "/api/version":
            return 200, {}, json.dumps({"ray_version": version("ray"), "session_name": "s"}).encode()
        if asked.path == "/api/jobs/" and asked.command == "GET":
            return 200, {}, b"[]"
        return 404, {"Content-Type": "text/plain"}, b"no"

    with serving(answer) as url:
        yield url, seen


@pytest.fixture(params=["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token"])
def token(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of a user with a token in one of the places where Ray's own tools look."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text(TOKEN if request.param == "~/.ray/auth_token" else "")
    (home / "token").write_text(TOKEN)
    given = {"RAY_AUTH_TOKEN": TOKEN, "RAY_AUTH_TOKEN_PATH": str(home / "token")}
    return {"HOME": str(home), **{name: value for name, value in given.items() if name == request.param}}


def test_an_address_that_a_file_names_gets_no_token(run: Cli, token: dict[str, str], tmp_path: Path) -> None:
    """The file may come from a cloned repository."""
    with recording() as (url, seen):
        (tmp_path / "pyproject.toml").write_text(f'tool.ray-workload.address = "{url}"')
        for command in COMMANDS:
            seen.clear()
            done = run(*command, env=token)
            assert seen, "it was asked"
            assert not [headers for headers in seen if TOKEN in headers or "authorization" in headers.lower()]
            assert done.returncode == 77
            assert (
                "the cluster requires a token: your token is not sent to an address that a pyproject.toml names; to "
                f"send it, use --address {url}\n"
            ) in done.stderr.decode()
            assert f"ray-workload: address {url} ({tmp_path / 'pyproject.toml'})\n" in done.stderr.decode()
            assert TOKEN.encode() not in done.stdout + done.stderr


@pytest.mark.parametrize("source", ["--address", "RAY_WORKLOAD_ADDRESS", "RAY_ADDRESS"])
def test_an_address_that_the_user_gives_gets_the_token(source: str, run: Cli, token: dict[str, str]) -> None:
    with recording() as (url, seen):
        flag, given = (["--address", url], {}) if source == "--address" else ([], {source: url})
        done = run("list", *flag, env={**token, **given})
    assert done.returncode == 0, done.stderr
    assert seen and all(TOKEN in headers for headers in seen)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_where_a_command_goes_is_said_unless_it_was_given(command: list[str], run: Cli, tmp_path: Path) -> None:
    for source in ("RAY_WORKLOAD_ADDRESS", "RAY_ADDRESS"):
        done = run(*command, env={source: "http://127.0.0.1:9"})
        assert done.stderr.startswith(f"ray-workload: address http://127.0.0.1:9 ({source})\n".encode())
    (tmp_path / "pyproject.toml").write_text('tool.ray-workload.address = "http://127.0.0.1:9"')
    done = run(*command)
    assert done.stderr.startswith(b"ray-workload: address http://127.0.0.1:9 (/")
    done = run(command[0], "--address", "http://127.0.0.1:9", *command[1:])
    if command[0] != "submit":  # submit prints the address that it chose
        assert b"ray-workload: address" not in done.stderr


@contextmanager
def cluster() -> Iterator[str]:
    """Serve an API server with one RayCluster, whose Ray has no jobs."""

    def answer(asked: Handler, _: bytes) -> tuple[int, Mapping[str, str], bytes]:
        content: object = {"kind": "Status", "message": "not found"}
        for end, found in (
            ("/rayclusters", {"items": [ray_cluster({"state": "ready"})]}),
            ("/proxy/api/version", {"ray_version": version("ray"), "session_name": "s"}),
            ("/proxy/api/jobs/", []),
        ):
            if asked.path.partition("?")[0].endswith(end):
                return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()
        return 404, {"Content-Type": "application/json"}, json.dumps(content).encode()

    with serving(answer) as url:
        yield url


def test_the_cluster_is_named_and_not_its_url(run: Cli, tmp_path: Path) -> None:
    with cluster() as url:
        kubeconfig = {"KUBECONFIG": str(config(tmp_path, url, {"token": "t"}, "kind-x"))}
        service = f"{url}/api/v1/namespaces/team/services/http:ray-head-svc:8265/proxy"
        for given, source in (
            ({"RAY_WORKLOAD_ADDRESS": "kubernetes"}, "RAY_WORKLOAD_ADDRESS"),
            ({}, "the current context, a cluster on this machine"),
        ):
            line = f"ray-workload: address kubernetes://kind-x/team/ray ({source})\n"
            done = run("list", env={**kubeconfig, **given})
            assert (done.returncode, done.stderr.decode()) == (0, line)
            assert run("logs", "none", env={**kubeconfig, **given}).stderr.decode().startswith(line)
            done = run("--debug", "list", env={**kubeconfig, **given})
            assert done.stderr.decode() == f"{line}ray-workload: url {service}\n"
        done = run("list", env={"RAY_WORKLOAD_ADDRESS": service})
        assert done.returncode == 0, done.stderr
        (shown,) = done.stderr.decode().split()[2:-1]
        assert len(shown) <= 80 < len(service) and shown.startswith(url) and shown.endswith("ray-head-svc:8265/proxy")
