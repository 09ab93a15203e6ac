"""client/kube/cluster.py on RayClusters that the installed operator does not create; the API server is simulated."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from client import wait
from client.errors import Unreachable, UsageError
from client.kube import login
from client.kube.api import Api, Object
from client.kube.cluster import Cluster, token
from tests.client.server import serving
from tests.client.test_login import config

CORE = "/api/v1/namespaces/team"
CLUSTER = "/apis/ray.io/v1/namespaces/team/rayclusters/ray"
API_SERVICE = {"spec": {"ports": [{"name": "agent", "port": 52365}]}}
OPERATORS_SERVICE = {"spec": {"ports": [{"name": "dashboard", "port": 8265}]}}  # for a cluster named ray-api
READY = [{"type": "Ready", "status": "True"}]
HEAD = {"name": "h", "labels": {"ray.io/node-type": "head"}}


def ray_cluster(status: Object) -> Object:
    head = {"template": {"spec": {"containers": [{"name": "ray-head", "image": "ray"}]}}}
    return {"metadata": {"namespace": "team", "name": "ray"}, "spec": {"headGroupSpec": head}, "status": status}


@contextmanager
def api(objects: dict[str, Object], monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[tuple[Api, list[str]]]:
    """Serve an API server with these objects, by path; yield an Api for it and the list of requested paths."""
    asked: list[str] = []

    def answer(handler: Any, _: bytes) -> tuple[int, dict[str, str], bytes]:
        path = handler.path.partition("?")[0]
        asked.append(path)
        missing = {"kind": "Status", "message": f"{path} not found"}
        found = objects.get(path, missing)
        return 404 if found is missing else 200, {"Content-Type": "application/json"}, json.dumps(found).encode()

    with serving(answer) as url:
        monkeypatch.setenv("KUBECONFIG", str(config(tmp_path, url, {"token": "t"})))
        yield Api(login.login("far")), asked


@pytest.mark.parametrize(("ready", "why"), [(READY, ""), ([], "pod h is starting")])
def test_an_operator_that_sets_no_conditions(
    ready: list[Object], why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    head = {"metadata": {**HEAD, "namespace": "team"}, "status": {"conditions": ready}}
    found = ray_cluster({"state": "ready"})
    with api({CLUSTER: found, f"{CORE}/pods": {"items": [head]}}, monkeypatch, tmp_path) as (server, _):
        assert Cluster(server, found).why_not_ready() == why


@pytest.mark.parametrize(
    ("services", "status", "name"),
    [
        ({f"{CORE}/services/ray-api": API_SERVICE}, {"serviceName": "other"}, "ray-api"),
        ({f"{CORE}/services/ray-api": OPERATORS_SERVICE}, {"serviceName": "ray-head-svc"}, "ray-head-svc"),
        ({}, {"serviceName": "rame-that-is-cut-head-svc"}, "rame-that-is-cut-head-svc"),
        ({}, {}, "ray-head-svc"),
    ],
)
def test_the_service_of_a_cluster(
    services: dict[str, Object], status: Object, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    found = ray_cluster({"head": status})
    with api({CLUSTER: found, **services}, monkeypatch, tmp_path) as (server, asked):
        assert Cluster(server, found).service == name
    assert asked.count(f"{CORE}/services/ray-api") == 1  # a missing Service is requested only once


@pytest.mark.parametrize("content", [b"SECRETPART1\nSECRETPART2", b"\xff\xfeSECRET", "SECRET\u00e4".encode()])
def test_a_secret_that_holds_no_token_is_not_said_aloud(
    content: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    found = ray_cluster({})
    found["spec"]["authOptions"] = {"mode": "token"}
    secret = {"data": {"auth_token": base64.b64encode(content).decode()}}
    with (
        api({f"{CORE}/secrets/ray": secret}, monkeypatch, tmp_path) as (server, _),
        pytest.raises(UsageError, match="the key auth_token of the Secret ray does not hold a token") as raised,
    ):
        token(server, found)
    assert "SECRET" not in str(raised.value)


def test_an_api_server_that_is_away_for_a_while_is_a_reason_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[str | Unreachable] = ["it is starting", Unreachable("no answer"), ""]

    def ask() -> str:
        if isinstance(answer := answers.pop(0), str):
            return answer
        raise answer

    notes: list[str] = []
    assert wait.wait(ask, 60, notes.append, poll=0) == ""
    assert notes == ["it is starting", "no answer"]
    answers.append(Unreachable("no answer"))
    monkeypatch.setattr(wait, "_AWAY_SECONDS", -1.0)
    with pytest.raises(Unreachable, match="no answer"):
        wait.wait(ask, 60, poll=0)
