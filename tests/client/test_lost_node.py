"""A job whose node is gone is reported at once. The head is real; a proxy simulates the loss of the node."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from client.job.stop import stop
from client.ray_api.jobs import RayJobs
from client.targets.target import Target
from tests.client.conftest import Rerouted
from tests.client.server import Handler, forward, serving
from tests.client.test_embedded import read_to, started, until
from tests.conftest import Cli

CLOSED = "http://127.0.0.1:9"


class Gone:
    """The state that the head reports for its node once the node is gone; None: the node is not listed."""

    def __init__(self, state: str | None) -> None:
        self.state, self.is_gone = state, False
        self.asked: Counter[str] = Counter()


@contextmanager
def without_node(head: Target, gone: Gone) -> Iterator[str]:
    """Serve the head through a proxy that hides its agent and log once the node is gone."""

    def answer(asked: Handler, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        path = asked.path.partition("?")[0]
        gone.asked[path] += gone.is_gone
        if gone.is_gone and path == "/api/v0/logs/file":
            return 500, {"Content-Type": "text/plain"}, b"the agent of this node does not answer"
        status, headers, content = forward(head.http.server.url, asked, body)
        if path == "/api/v0/nodes" and gone.is_gone:
            return status, headers, json.dumps(_nodes(json.loads(content), gone.state)).encode()
        if path.startswith("/api/jobs/") and asked.command == "GET":
            job = json.loads(content)
            if isinstance(job, dict):  # so that the agent can only be reached through this proxy
                job["driver_agent_http_address"] = CLOSED
                content = json.dumps(job).encode()
        return status, headers, content

    with serving(answer) as url:
        yield url


def _nodes(found: Any, state: str | None) -> Any:
    result = found["data"]["result"]
    assert result["result"], "the head lists no node"
    result["result"] = [{**node, "state": state} for node in result["result"]] if state else []
    return found


@pytest.fixture(autouse=True)
def _something_to_upload(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("")


@pytest.mark.parametrize("state", ["DEAD", None])
def test_a_node_is_gone_when_the_head_says_so(state: str | None, head: Target, jobs: RayJobs) -> None:
    jobs.submit_plain({"entrypoint": "true", "submission_id": f"node-{state}"})
    until(lambda: jobs.get(f"node-{state}").finished, 30)
    node = jobs.get(f"node-{state}").node_id
    assert node
    gone = Gone(state)
    with without_node(head, gone) as url:
        seen = RayJobs(Rerouted(head, url=url))
        assert not seen.node_is_gone(node)
        assert not seen.node_is_gone(None), "a job that has not started has no node"
        gone.is_gone = True
        assert seen.node_is_gone(node)
    assert gone.asked["/api/v0/nodes"]


@pytest.mark.parametrize("state", ["DEAD", None])
@pytest.mark.parametrize("follow", [(), ("--follow",)], ids=["logs", "follow"])
def test_the_log_of_an_ended_job_is_told_as_gone_at_once(
    state: str | None, follow: tuple[str, ...], head: Target, jobs: RayJobs, run: Cli, remote: dict[str, str]
) -> None:
    name = f"ended-{state}-{len(follow)}"
    jobs.submit_plain({"entrypoint": "echo done", "submission_id": name})
    until(lambda: jobs.get(name).finished, 30)
    gone = Gone(state)
    gone.is_gone = True
    with without_node(head, gone) as url:
        began = time.monotonic()
        done = run("logs", "--address", url, *follow, name, env=remote)
    assert time.monotonic() - began < 15
    assert (done.returncode, done.stdout) == (75, b"")
    assert done.stderr.endswith(f"job {name} ended SUCCEEDED: its node is gone, and its log with it\n".encode())
    assert gone.asked["/api/v0/logs/file"] and gone.asked["/api/v0/nodes"]


def test_a_running_job_is_told_as_lost(head: Target, jobs: RayJobs, remote: dict[str, str], tmp_path: Path) -> None:
    gone = Gone("DEAD")
    with without_node(head, gone) as url:
        command = ["submit", "--address", url, "--id", "lost", "--", "sh", "-c", "echo up; exec sleep 120"]
        with started(*command, cwd=tmp_path, env=remote) as client:
            read_to(client.stdout, b"up\n")
            gone.is_gone = True
            began = time.monotonic()
            _, errors = client.communicate(timeout=60)
            assert client.returncode == 75, errors
    assert time.monotonic() - began < 30, "Ray itself detects it within ten seconds"
    assert errors.endswith(b"the node of job lost is gone, and the job is lost: submit it again\n")
    assert gone.asked["/api/v0/logs/file"] and gone.asked["/api/v0/nodes"]
    assert stop(head, jobs, "lost", 40).status == "STOPPED"


def test_the_log_of_a_running_job_is_told_as_lost_at_once(
    head: Target, jobs: RayJobs, run: Cli, remote: dict[str, str]
) -> None:
    jobs.submit_plain({"entrypoint": "echo up; exec sleep 120", "submission_id": "lost-log"})
    until(lambda: jobs.get("lost-log").status == "RUNNING", 30)
    gone = Gone("DEAD")
    gone.is_gone = True
    with without_node(head, gone) as url:
        began = time.monotonic()
        done = run("logs", "--address", url, "lost-log", env=remote)
    assert time.monotonic() - began < 15
    assert (done.returncode, done.stdout) == (75, b"")
    assert done.stderr.endswith(b"the node of job lost-log is gone, and the job is lost: submit it again\n")
    assert stop(head, jobs, "lost-log", 40).status == "STOPPED"
