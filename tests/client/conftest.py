"""One real Ray head for all tests of the client."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from client.ray_api.jobs import RayJobs
from client.targets.embedded import target as embedded
from client.targets.target import Endpoint
from tests.client.proxy import FaultProxy

ViaProxy = Callable[..., AbstractContextManager[tuple[RayJobs, FaultProxy, FaultProxy]]]


@pytest.fixture(scope="session")
def head(environment: Path) -> Iterator[Endpoint]:
    with embedded.cold(environment) as endpoint:
        endpoint.ready(print, 60)
        yield endpoint


@pytest.fixture(scope="session")
def jobs(head: Endpoint) -> RayJobs:
    return RayJobs(head)


@pytest.fixture(scope="session")
def remote(head: Endpoint, environment: Path) -> dict[str, str]:
    """The environment in which the head is a remote one."""
    token = environment / "remote-token"
    token.write_text(head.headers["Authorization"].removeprefix("Bearer "))
    return {"RAY_WORKLOAD_ADDRESS": head.url, "RAY_AUTH_TOKEN_PATH": str(token)}


def port(url: str) -> tuple[str, int]:
    host, _, number = url.rpartition("/")[2].partition(":")
    return host, int(number)


@contextmanager
def via_proxy(head: Endpoint, agent_url: str | None) -> Iterator[tuple[RayJobs, FaultProxy, FaultProxy]]:
    """The head's jobs with one proxy before its dashboard and one before its agent, if there is a way to that."""
    with FaultProxy(port(head.url)) as dashboard, FaultProxy(port(agent_url or head.url)) as agent:
        through = replace(head, url=dashboard.url, agent=lambda _: agent.url if agent_url else None)
        yield RayJobs(through), dashboard, agent
