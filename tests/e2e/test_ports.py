"""A cluster with custom ports: it uses each of them and no default port; jobs, Serve and `helm test` work."""

import json
import shlex
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.e2e._cluster import LISTENING, Cluster, new_cluster, started
from tests.e2e.conftest import JOBS_IMAGE, get, helm, until

VALUES = "ci/values/custom-ports.yaml"
HEAD = {"gcs-server": 6380, "dashboard": 8266, "client": 10002, "metrics": 8081, "agent": 52367}
HEAD |= {"as-metrics": 44217, "dash-metrics": 44227}
SERVE = 8001
WORKER = {"metrics": 8081, "object manager": 8301, "node manager": 8401, "runtime_env agent": 8501}
WORKER |= {"the agent's gRPC": 8502, "agent": 8503}
PROCESSES = range(8600, 8700)
DEFAULTS = {6379, 8265, 10001, 8000, 8080, 52365}

# Runs on the head; its two actors run on the worker at the same time.
ON_THE_WORKER = f"""
import json, os, socket, ray
{LISTENING}
@ray.remote(num_cpus=1)
class Actor:
    def where(self):
        return socket.gethostname(), os.getpid(), listening()

ray.init(log_to_driver=False)
(worker,) = [n["NodeManagerAddress"] for n in ray.nodes() if "node:__internal_head__" not in n["Resources"]]
there = Actor.options(resources={{f"node:{{worker}}": 0.1}})
actors = [there.remote() for _ in range(2)]
ray.get([actor.__ray_ready__.remote() for actor in actors])
print("SAW", json.dumps(ray.get([actor.where.remote() for actor in actors])))
"""
APP = f"""
from ray import serve

@serve.deployment(ray_actor_options={{"num_cpus": 0.1}})
class App:
    def __call__(self, request):
        return "an app of Serve"

serve.start(http_options={{"host": "0.0.0.0", "port": {SERVE}}})
serve.run(App.bind())
"""
ASK = """
import sys, time, urllib.request
end = time.monotonic() + 30
while True:
    try:
        print(urllib.request.urlopen(sys.argv[1], timeout=5).read().decode())
        break
    except OSError:
        if time.monotonic() > end:
            raise
        time.sleep(0.2)
"""


@pytest.fixture(scope="module")
def ray() -> Iterator[Cluster]:
    with new_cluster("ports", values=[VALUES], image=JOBS_IMAGE) as made:
        made.wait()
        yield made


class Api:
    """The Job API of the Service `ray-api`, through the API server's proxy."""

    def __init__(self, address: str, ray: Cluster) -> None:
        self.url = f"{address}/api/v1/namespaces/{ray.namespace}/services/http:ray-api"
        secret = get("secret", "ray-auth-token", "-n", ray.namespace)
        self.token = b64decode(secret["data"]["auth_token"]).decode()

    def call(self, method: str, path: str, body: object = None) -> Any:
        # The API server does not forward `Authorization`.
        headers = {"X-Ray-Authorization": f"Bearer {self.token}"}
        answer = requests.request(method, self.url + path, headers=headers, json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def run(self, code: str) -> str:
        """Run a job, assert that it succeeds, and return its log."""
        job = self.call("POST", ":8265/proxy/api/jobs/", {"entrypoint": f"python -c {shlex.quote(code)}"})
        path = f":8265/proxy/api/jobs/{job['submission_id']}"

        def ended() -> dict[str, Any] | None:
            found: dict[str, Any] = self.call("GET", path)
            return found if found["status"] in ("SUCCEEDED", "FAILED", "STOPPED") else None

        found = until("the job's end", ended, timeout=120)
        log = str(self.call("GET", f"{path}/logs")["logs"])
        assert found["status"] == "SUCCEEDED", f"{found['message']}\n{log}"
        return log


@pytest.fixture(scope="module")
def api(ray: Cluster) -> Iterator[Api]:
    with started("kubectl", "proxy", "--port=0") as proxy:
        assert proxy.stdout
        said = proxy.stdout.readline().split()  # Starting to serve on 127.0.0.1:40123
        assert said, "kubectl proxy says nothing"
        yield Api(f"http://{said[-1]}", ray)


def test_each_port_is_the_chosen_one_and_no_default_is_left(ray: Cluster) -> None:
    head, worker = ray.listening(ray.name("head")), ray.listening(ray.name("worker"))
    assert not {name: port for name, port in HEAD.items() if port not in head}, head
    assert not {name: port for name, port in WORKER.items() if port not in worker}, worker
    assert not DEFAULTS & (head | worker)
    assert not set(HEAD.values()) & worker - {HEAD["metrics"]}
    assert not set(WORKER.values()) & head - {WORKER["metrics"]}


def test_what_the_pods_declare_is_what_they_listen_on(ray: Cluster) -> None:
    """Metrics scrapers and Services look up a pod's ports by name."""
    for pod in ray.pods():
        listening = ray.listening(pod["metadata"]["name"])
        declared = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
        head = pod["metadata"]["labels"]["ray.io/node-type"] == "head"
        assert declared.pop("serve", None) == (SERVE if head else None)
        wanted = HEAD if head else WORKER
        assert declared == {name: wanted[name] for name in declared}
        assert declared["metrics"] in listening


def test_a_job_uses_the_worker_whose_processes_keep_to_their_ports(ray: Cluster, api: Api) -> None:
    log = api.run(ON_THE_WORKER)
    (saw,) = [line.removeprefix("SAW ") for line in log.splitlines() if line.startswith("SAW ")]
    first, second = json.loads(saw)
    assert first[0] == second[0] == ray.name("worker")
    assert first[1] != second[1]
    processes = set(second[2]) - set(WORKER.values())
    assert len(processes) >= 2 and processes <= set(PROCESSES), second[2]


def test_the_agent_keeps_its_number_at_the_service(api: Api) -> None:
    address = api.url + ":52365/proxy/api/local_raylet_healthz"
    assert requests.get(address, timeout=30).text == "success"


def test_serve_answers_on_its_port(ray: Cluster, api: Api) -> None:
    api.run(APP)
    assert ray.python(ray.name("worker"), ASK, f"http://ray-head-svc:{SERVE}/").strip() == "an app of Serve"


def test_helm_test_passes(ray: Cluster) -> None:
    assert "Succeeded" in helm("test", "ray", "-n", ray.namespace, "--timeout", "3m").stdout
