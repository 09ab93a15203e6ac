"""The Role `ray-submitter`: an account with only this Role can use the Job API through the API server."""

import asyncio
import base64
import gc
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.e2e._cluster import Cluster
from tests.e2e._release import Login, submit, token_of, uids, upgrade, wait_job, wait_ready
from tests.e2e.conftest import get, kubectl, new_namespace, until

SUBJECT = ["submitter.subjects[0].kind=ServiceAccount", "submitter.subjects[0].name=submitter"]
LINES = "import time\nfor n in range(20): print('line', n, flush=True); time.sleep(0.2)"
SLEEP = "import time; print('sleeps', flush=True); time.sleep(600)"
API, AGENT = "http:ray-api:8265", "http:ray-api:52365"
ALLOWED = [
    *(("ray.io/rayclusters", verb, "ray") for verb in ("get", "list", "watch")),
    ("services", "get", "ray-api"),
    ("secrets", "get", "ray-auth-token"),
    *(("services/proxy", verb, API) for verb in ("get", "create", "update", "delete")),
    ("services/proxy", "get", AGENT),
    *(("pods", verb, "") for verb in ("get", "list", "watch")),
    *(("events", verb, "") for verb in ("list", "watch")),
]
REFUSED = [
    *(("ray.io/rayclusters", verb, "ray") for verb in ("create", "update", "patch", "delete")),
    *((f"ray.io/{kind}", verb, "") for kind in ("rayjobs", "rayservices") for verb in ("list", "create")),
    *(("secrets", verb, "") for verb in ("get", "list", "watch", "create")),
    *(("secrets", verb, "ray-auth-token") for verb in ("update", "patch", "delete")),
    ("secrets", "get", "sh.helm.release.v1.ray.v1"),
    ("services", "list", ""),
    ("services", "get", "ray-head-svc"),
    ("services", "patch", "ray-api"),
    ("services/proxy", "patch", API),
    *(("services/proxy", "get", name) for name in ("", "ray-api", "ray-api:8265", "https:ray-api:8265")),
    *(
        ("services/proxy", "get", f"http:{name}")
        for name in ("ray-api:6379", "ray-head-svc:8265", "kuberay-operator:8080")
    ),
    *(("pods", verb, "") for verb in ("create", "update", "patch", "delete")),
    *((f"pods/{part}", verb, "") for part in ("exec", "attach", "portforward") for verb in ("get", "create")),
    *(
        (f"pods/{part}", verb, "")
        for part, verb in (("log", "get"), ("ephemeralcontainers", "patch"), ("eviction", "create"))
    ),
    *(("pods/proxy", verb, "") for verb in ("create", "update", "delete")),
    *(("configmaps", verb, "") for verb in ("get", "list")),
    ("serviceaccounts/token", "create", "ray-head"),
    *(("rbac.authorization.k8s.io/rolebindings", verb, "") for verb in ("list", "create")),
    *(("apps/deployments", verb, "kuberay-operator") for verb in ("get", "patch")),
    ("batch/jobs", "create", ""),
]
POD_PROXY = ("pods/proxy", "get", "")


class Submitter(NamedTuple):
    """The account, and what it can read with its own token."""

    ray: Cluster
    login: Login
    token: str
    jobs: Any


@pytest.fixture(scope="module")
def ray() -> Iterator[Cluster]:
    with new_namespace("submitter", restricted=True) as namespace:
        upgrade(namespace, *SUBJECT)
        wait_ready(namespace)
        yield Cluster(namespace)


@pytest.fixture(scope="module")
def submitter(ray: Cluster) -> Submitter:
    kubectl("create", "serviceaccount", "submitter", "-n", ray.namespace)
    login = Login.of_kubeconfig().account(kubectl("create", "token", "submitter", "-n", ray.namespace).stdout.strip())
    secret = login.ask("GET", f"/api/v1/namespaces/{ray.namespace}/secrets/ray-auth-token").json()
    token = base64.b64decode(secret["data"]["auth_token"]).decode()
    assert token == token_of(ray.namespace)
    return Submitter(ray, login, token, login.jobs(ray.namespace, token))


def may(namespace: str, *asked: tuple[str, str, str], where: str | None = None) -> dict[tuple[str, str, str], bool]:
    """Return what `kubectl auth can-i` answers for each question, in one call."""
    reviews = []
    for kind, verb, name in asked:
        group, _, resource = (
            kind.rpartition("/") if "." in kind or kind.startswith(("apps/", "batch/")) else ("", "", kind)
        )
        resource, _, part = resource.partition("/")
        what = {"namespace": where or namespace, "verb": verb, "group": group, "resource": resource, "name": name}
        what["subresource"] = part
        groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
        spec = {"user": f"system:serviceaccount:{namespace}:submitter", "groups": groups, "resourceAttributes": what}
        reviews.append({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec})
    given = json.dumps({"apiVersion": "v1", "kind": "List", "items": reviews})
    said = kubectl("create", "-f", "-", "-o", "jsonpath={.status.allowed}{'\\n'}", input=given).stdout.split()
    assert len(said) == len(asked), said
    return {cell: answer == "true" for cell, answer in zip(asked, said, strict=True)}


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the SDK does not close its connection
def test_submits_follows_and_lists(submitter: Submitter) -> None:
    job = submit(submitter.jobs, LINES, submission_id="by-submitter")
    until(
        "the job runs",
        lambda: str(submitter.jobs.get_job_status(job).value) == "RUNNING",
        namespace=submitter.ray.namespace,
    )

    async def follow() -> str:
        return "".join([part async for part in submitter.jobs.tail_job_logs(job)])

    followed = asyncio.run(follow())
    assert wait_job(submitter.jobs, job, submitter.ray.namespace) == followed
    assert [line for line in followed.splitlines() if line.startswith("line")] == [f"line {n}" for n in range(20)]
    assert job in {found.submission_id for found in submitter.jobs.list_jobs()}
    gc.collect()


def test_stops_a_job(submitter: Submitter) -> None:
    """It may take 30 s: no process reaps the shell's children, and Ray waits for them."""
    job = submit(submitter.jobs, SLEEP)
    wait_job(submitter.jobs, job, submitter.ray.namespace, "RUNNING")
    submitter.jobs.stop_job(job)
    wait_job(submitter.jobs, job, submitter.ray.namespace, "STOPPED", timeout=60)


def test_uploads_a_working_directory(submitter: Submitter, tmp_path: Any) -> None:
    (tmp_path / "script.py").write_text("print('from the package')")
    job = submitter.jobs.submit_job(entrypoint="python script.py", runtime_env={"working_dir": str(tmp_path)})
    assert "from the package" in wait_job(submitter.jobs, job, submitter.ray.namespace)


def test_may_do_what_it_is_for_and_nothing_else(submitter: Submitter) -> None:
    namespace = submitter.ray.namespace
    assert [cell for cell, allowed in may(namespace, *ALLOWED).items() if not allowed] == []
    assert [cell for cell, allowed in may(namespace, *REFUSED, POD_PROXY).items() if allowed] == []
    assert [cell for cell, allowed in may(namespace, *ALLOWED, where="default").items() if allowed] == []


def test_is_refused_by_the_api_server(submitter: Submitter) -> None:
    """Checks some of the same permissions with real requests."""
    ray, login = submitter.ray, submitter.login
    core = f"/api/v1/namespaces/{ray.namespace}"
    cluster = f"/apis/ray.io/v1/namespaces/{ray.namespace}/rayclusters/ray"
    head = ray.name("head")
    refused = {
        ("GET", f"{core}/secrets"),
        ("GET", f"{core}/secrets/sh.helm.release.v1.ray.v1"),
        ("DELETE", cluster),
        ("PATCH", cluster),
        ("POST", f"{core}/pods/{head}/exec?command=id&stdout=1"),
        ("GET", f"{core}/services/http:ray-head-svc:8265/proxy/api/version"),
        ("GET", f"{core}/services/http:kuberay-operator:8080/proxy/metrics"),
        ("GET", f"{core}/pods/http:{head}:52365/proxy/api/healthz"),
        ("GET", "/api/v1/secrets"),
    }
    assert {
        (method, path) for method, path in refused if login.ask(method, path, submitter.token).status_code == 403
    } == refused
    assert (
        login.ask("GET", cluster).json()["metadata"]["uid"]
        == get("raycluster", "ray", "-n", ray.namespace)["metadata"]["uid"]
    )


def test_pod_proxy_lets_it_read_the_workers_agents(submitter: Submitter) -> None:
    ray, before = submitter.ray, uids(submitter.ray.namespace)
    path = f"/api/v1/namespaces/{ray.namespace}/pods/http:{ray.name('worker')}:52365/proxy/api/local_raylet_healthz"
    assert submitter.login.ask("GET", path).status_code == 403
    upgrade(ray.namespace, *SUBJECT, "submitter.podProxy=true")
    until("the Role is in force", lambda: submitter.login.ask("GET", path).text == "success")
    assert may(ray.namespace, POD_PROXY) == {POD_PROXY: True}
    assert [cell for cell, allowed in may(ray.namespace, *REFUSED).items() if allowed] == []
    assert uids(ray.namespace) == before
