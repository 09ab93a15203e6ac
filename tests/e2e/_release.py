"""Installs and upgrades the release `ray`, and runs jobs with Ray's own client through the API server's proxy."""

import base64
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partialmethod
from typing import Any
from unittest.mock import patch

import kubernetes
import requests
from ray.job_submission import JobSubmissionClient

from tests.e2e._cluster import SMALL, of_image
from tests.e2e.conftest import (
    CHART,
    IMAGE,
    Done,
    Object,
    get,
    helm,
    kubectl,
    new_namespace,
    state,
    until,
    user_environment,
)

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
# So that the cluster fits on a small node next to other clusters, and uses no node port.
VALUES = [f"{CHART}/values-local.yaml"]


def install_crds() -> None:
    """Install KubeRay's CRDs if there are none. They remain, as they always do."""
    if kubectl("get", "crd", "rayclusters.ray.io", check=False).returncode:
        with new_namespace("crds") as name:
            sets = "ray-cluster.enabled=false,kuberay-operator.singleNamespaceInstall=true"
            helm("install", "ray", CHART, "-n", name, "--set", sets)


def upgrade(
    namespace: str, *sets: str, image: str = IMAGE, values: Sequence[str] = (), tool: str = "helm", check: bool = True
) -> Done:
    """Install or upgrade a small cluster."""
    return helm(*upgrade_command(namespace, *sets, image=image, values=values), tool=tool, check=check)


def upgrade_command(namespace: str, *sets: str, image: str = IMAGE, values: Sequence[str] = ()) -> list[str]:
    files = [part for file in (*VALUES, *values) for part in ("--values", file)]
    given = [part for item in (*SMALL, *sets) for part in ("--set", item)]
    return ["upgrade", "--install", "ray", CHART, "-n", namespace, *files, *of_image(image), *given]


def pods(namespace: str) -> list[Object]:
    """Return the cluster's pods, except those that are being deleted."""
    found = get("pods", "-n", namespace, "-l", "ray.io/cluster=ray")["items"]
    return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]


def uids(namespace: str) -> dict[str, str]:
    """Return the UIDs of the pods, by name."""
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in pods(namespace)}


def images(namespace: str) -> set[str]:
    return {pod["spec"]["containers"][0]["image"] for pod in pods(namespace)}


def ray_cluster(namespace: str) -> Object:
    found: Object = get("raycluster", "ray", "-n", namespace)
    return found


def wait_ready(namespace: str, *, count: int = 2, without: Sequence[str] = (), timeout: float = 120) -> None:
    """Wait until `count` pods with UIDs not in `without` are ready, and the operator reports the cluster as ready."""

    def is_ready() -> bool:
        found = pods(namespace)
        conditions = [c for pod in found for c in pod["status"].get("conditions", ()) if c["type"] == "Ready"]
        fresh = not {pod["metadata"]["uid"] for pod in found} & set(without)
        all_ready = len(found) == len([c for c in conditions if c["status"] == "True"]) == count
        return fresh and all_ready and ray_cluster(namespace).get("status", {}).get("state") == "ready"

    until(f"{count} pods of Ray are ready", is_ready, timeout, namespace)


def stays(what: str, seen: Any, wanted: object, seconds: float = 5) -> None:
    """Assert that a value stays as wanted for `seconds`; the operator would change it within 2 s."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert (found := seen()) == wanted, f"{what}: {found}, and not {wanted}"
        time.sleep(0.5)


def token_of(namespace: str) -> str:
    secret = get("secret", "ray-auth-token", "-n", namespace)
    return base64.b64decode(secret["data"]["auth_token"]).decode()


@dataclass(frozen=True)
class Login:
    """A login to the API server: the kubeconfig's, or a service account's if there is a `bearer` token."""

    url: str
    ca: str | bool
    certificate: tuple[str, str] | None
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_kubeconfig(cls) -> "Login":
        with patch.dict(os.environ, user_environment()):
            found = kubernetes.config.new_client_from_config().configuration
        certificate = (found.cert_file, found.key_file) if found.cert_file else None
        bearer = found.get_api_key_with_prefix("authorization") or found.get_api_key_with_prefix("BearerToken")
        headers = {"Authorization": bearer} if bearer else {}
        return cls(found.host, found.ssl_ca_cert or found.verify_ssl, certificate, headers)

    def account(self, bearer: str) -> "Login":
        return Login(self.url, self.ca, None, {"Authorization": f"Bearer {bearer}"})

    def at(self, namespace: str, kind: str = "services", name: str = "http:ray-api:8265") -> str:
        """Return the URL of a Service or pod behind the API server's proxy."""
        return f"{self.url}/api/v1/namespaces/{namespace}/{kind}/{name}/proxy"

    def ask(self, method: str, url: str, ray_token: str = "", json: object = None) -> requests.Response:
        """Send a request to the API server, or through it to Ray."""
        headers = self.headers | ({"X-Ray-Authorization": f"Bearer {ray_token}"} if ray_token else {})
        url = url if "://" in url else self.url + url
        return requests.request(
            method, url, headers=headers, json=json, verify=self.ca, cert=self.certificate, timeout=30
        )

    def jobs(self, namespace: str, token: str) -> Any:
        """Return Ray's client; its requests use this login's certificate."""
        headers = {**self.headers, "X-Ray-Authorization": f"Bearer {token}"}
        send = partialmethod(JobSubmissionClient._do_request, cert=self.certificate)
        with_certificate = type("WithCertificate", (JobSubmissionClient,), {"_do_request": send})
        return with_certificate(self.at(namespace), headers=headers, verify=self.ca)


def submit(jobs: Any, code: str, **more: Any) -> str:
    return str(jobs.submit_job(entrypoint=f"python -c {shlex.quote(code)}", **more))


def wait_job(jobs: Any, job: str, namespace: str, wanted: str = "SUCCEEDED", timeout: float = 90) -> str:
    """Wait until a job has the wanted status, and return its log."""
    seen = until(
        f"job {job} is {wanted}",
        lambda: found if (found := str(jobs.get_job_status(job).value)) in (*ENDED, wanted) else None,
        timeout,
        namespace,
    )
    log = str(jobs.get_job_logs(job))
    assert seen == wanted, f"{seen}: {jobs.get_job_info(job).message}\n{log}\n{state(namespace)}"
    return log


def run_job(jobs: Any, code: str, namespace: str) -> str:
    return wait_job(jobs, submit(jobs, code), namespace)
