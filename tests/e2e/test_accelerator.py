"""A job requests a type of GPU from a group without pods: Ray's autoscaler creates a pod.

The GPU exists only in Ray's resource accounting (`num-gpus`), which is enough for this test.
"""

import json
from pathlib import Path

import yaml

from tests.e2e._cluster import new_cluster
from tests.e2e.conftest import until
from tests.e2e.test_client import client, driver

SMALL = {"memory": "1Gi", "requests": {"cpu": "100m", "memory": "512Mi"}}
VALUES = {
    "head": {**SMALL, "cpu": 1, "runsTasks": False},
    "workers": {**SMALL, "cpu": "", "replicas": 0, "maxReplicas": 1},  # Ray rounds what is requested up to 1 CPU
    "workerGroups": {"workergroup": None, "l4": {"accelerator": "L4", "rayStartParams": {"num-gpus": "1"}}},
    "autoscaling": {"enabled": True, "idleTimeoutSeconds": 5, "resources": {"requests": {"cpu": "100m"}}},
}
WHERE = "import os; print(os.uname().nodename, os.environ['CUDA_VISIBLE_DEVICES'])"


def test_an_accelerator_of_a_group_without_pods(tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(VALUES))
    with new_cluster("accelerator", values=[str(values)]) as ray:
        until("the head", lambda: ray.pods("head"), namespace=ray.namespace)
        refused = client(ray.namespace, "submit", "--accelerator", "A100", "--", "true")
        assert refused.returncode == 2, refused.stderr
        known = b"(head has 0 GPU; l4 has 1 GPU L4; a live node has 0 GPU)"
        assert b"no node of the cluster has the 1 GPU A100 that the driver asks for " + known in refused.stderr
        assert not ray.pods("worker")

        options = ["--accelerator", "L4", "--num-cpus", "1"]
        done = client(ray.namespace, "submit", *options, "--", "python", "-c", WHERE, timeout=240)
        assert done.returncode == 0, done.stderr
        host, gpu = driver(done).decode().split()
        assert host.startswith("ray-l4-worker-") and gpu == "0"
        assert len(json.loads(client(ray.namespace, "list", "-o", "json").stdout)) == 1
        until("the pod ends when it is idle", lambda: not ray.pods("worker"), timeout=120, namespace=ray.namespace)
