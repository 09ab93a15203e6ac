"""RayJobs on the chart's cluster, with its token and its network policies; and two clusters in one namespace."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.e2e._cluster import Cluster, new_cluster, of_image
from tests.e2e.conftest import CHART, IMAGE, Object, apply, get, helm, kubectl, until, user_environment

JOB = "python -c 'import ray; ray.init(); print(\"from the job:\", ray.get(ray.remote(lambda: 6 * 7).remote()))'"


@pytest.fixture(scope="module")
def ray() -> Iterator[Cluster]:
    with new_cluster("rayjobs") as cluster:
        cluster.wait()
        yield cluster


def ray_job(namespace: str, name: str, mode: str, selected: str = "ray") -> Object:
    spec = {"clusterSelector": {"ray.io/cluster": selected}, "submissionMode": mode, "entrypoint": JOB}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}


@pytest.mark.parametrize("mode", ["HTTPMode", "K8sJobMode"])
def test_a_ray_job_on_the_cluster(ray: Cluster, mode: str) -> None:
    name = mode.lower()
    apply(ray_job(ray.namespace, name, mode))

    def ended() -> str:
        status = get("rayjob", name, "-n", ray.namespace).get("status", {})
        return str(status.get("jobStatus")) if status.get("jobDeploymentStatus") in ("Complete", "Failed") else ""

    assert until(f"{name} has ended", ended, timeout=150, namespace=ray.namespace) == "SUCCEEDED"
    if mode == "K8sJobMode":
        (pod,) = get("pods", "-n", ray.namespace, "-l", f"job-name={name}")["items"]
        assert "from the job: 42" in kubectl("logs", pod["metadata"]["name"], "-n", ray.namespace).stdout
        policy = get("networkpolicy", "ray-ray-head", "-n", ray.namespace)["spec"]["ingress"][1]["from"]
        (admitted,) = (p["podSelector"]["matchLabels"] for p in policy if "created-by" in json.dumps(p))
        assert admitted.items() <= pod["metadata"]["labels"].items()
    kubectl("delete", "rayjob", name, "-n", ray.namespace, timeout=90)


def permit(namespace: str, user: str) -> None:
    """Give a user all permissions in one namespace, and none outside."""
    rbac, metadata = "rbac.authorization.k8s.io", {"name": user, "namespace": namespace}
    rule = {"apiGroups": ["ray.io"], "resources": ["*"], "verbs": ["*"]}
    role = {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": metadata, "rules": [rule]}
    subjects = [{"apiGroup": rbac, "kind": "User", "name": user}]
    bindings = [
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": namespace},
            "roleRef": {"apiGroup": rbac, "kind": kind, "name": name},
            "subjects": subjects,
        }
        for kind, name in (("Role", user), ("ClusterRole", "admin"))
    ]
    apply(role, *bindings)


def test_a_second_cluster_in_the_same_namespace(ray: Cluster, tmp_path: Path) -> None:
    """Its owner has permissions in this namespace only."""
    permit(ray.namespace, "ada")
    ada = ("-n", ray.namespace, "--kube-as-user", "ada")
    sets = "kuberay-operator.enabled=false,api.type=ClusterIP,api.nodePort=null,head.requests.cpu=100m"
    values = ("-f", f"{CHART}/values-local.yaml", "--set", f"{sets},workers.requests.cpu=100m", *of_image(IMAGE))
    refused = helm("install", "other-ray", CHART, *ada, *values, check=False)
    assert refused.returncode and 'cannot get resource "customresourcedefinitions"' in refused.stderr, refused.stderr
    helm("install", "other-ray", CHART, *ada, *values, "--set", "rayCluster.checkCRD=false")
    address = f"kubernetes:///{ray.namespace}/other-ray"
    env = {**user_environment(), "PYTHONPATH": str(ROOT), "RAY_WORKLOAD_ADDRESS": address}
    (tmp_path / "job.py").write_text("print('hello from the second')")
    command = [sys.executable, "-m", "client", "submit", "job.py"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=180, check=False)
    assert (done.returncode, "hello from the second\n" in done.stdout) == (0, True), done.stderr
    names = ("ray-auth-token", "other-ray-auth-token")
    one, two = (get("secret", name, "-n", ray.namespace)["data"]["auth_token"] for name in names)
    assert one != two
    helm("uninstall", "other-ray", *ada, "--wait")
    left = kubectl("get", "all,secrets,sa,networkpolicy", "-n", ray.namespace, "-o", "name").stdout
    assert "other-ray" not in left and "pod/ray-head" in left
