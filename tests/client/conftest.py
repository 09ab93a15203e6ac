"""A real Ray head that the tests in a process share."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.http import Http, Server
from client.ray_api.http import token_refusal
from client.ray_api.jobs import RayJobs
from client.targets.embedded import target as embedded
from client.targets.target import Runtime, Target
from client.wait import Note
from tests.client.proxy import FaultProxy


@pytest.fixture(scope="session")
def head(environment: Path) -> Iterator[Target]:
    with embedded.cold(environment) as target:
        target.wait_ready(print, 60)
        yield target


@pytest.fixture(scope="session")
def jobs(head: Target) -> RayJobs:
    return RayJobs(head)


@pytest.fixture(scope="session")
def remote(head: Target, environment: Path) -> dict[str, str]:
    """The environment in which the client treats the head as a remote one."""
    token = environment / "remote-token"
    token.write_text(token_of(head))
    return {"RAY_WORKLOAD_ADDRESS": head.http.server.url, "RAY_AUTH_TOKEN_PATH": str(token)}


@pytest.fixture
def as_remote(remote: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use the head as a remote one, from an empty folder."""
    for name, value in remote.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def token_of(target: Target) -> str:
    return target.http.server.headers["Authorization"].removeprefix("Bearer ")


def port(url: str) -> tuple[str, int]:
    host, _, number = url.rpartition("/")[2].partition(":")
    return host, int(number)


class Rerouted(Target):
    """A target with a different URL, agent or runtime."""

    def __init__(
        self,
        target: Target,
        *,
        url: str | None = None,
        agent: Callable[[str], str | None] | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        """Use the target's values for everything that is not given."""
        server = Server(url or target.http.server.url, target.http.server.headers)
        self.address, self.runtime, self.ends_with_us = target.address, runtime or target.runtime, False
        self.http = Http(server, token_refusal(sent=True, hint="run `down embedded`"))
        self._agent = agent or target.agent

    def agent(self, address: str) -> str | None:
        return self._agent(address)

    def wait_ready(self, note: Note, seconds: float) -> None:
        """Do nothing: the head is ready."""


@contextmanager
def via_proxy(
    head: Target, agent_url: str | None, *, runtime: Runtime | None = None
) -> Iterator[tuple[Rerouted, FaultProxy, FaultProxy]]:
    """Put one proxy in front of the head's dashboard and one in front of its agent; no `agent_url` means no agent."""
    url = head.http.server.url
    with FaultProxy(port(url)) as dashboard, FaultProxy(port(agent_url or url)) as agent:
        agent_through = agent.url if agent_url else None
        yield Rerouted(head, url=dashboard.url, agent=lambda _: agent_through, runtime=runtime), dashboard, agent
