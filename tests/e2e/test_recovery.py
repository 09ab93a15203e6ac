"""headRecovery without a Redis: the cluster's state is on a volume, and survives the head's pod and the release."""

import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.e2e._cluster import Cluster
from tests.e2e.conftest import CHART, IMAGE, Object, apply, get, helm, inventory, kubectl, new_namespace, until
from tests.e2e.test_client import VALUES
from tests.e2e.test_faults import Followed, gone, replace_head
from tests.e2e.test_faults import on_worker as on_worker

CLAIM = "ray-gcs-pvc"
# Runs on the head: prints the ids of the jobs that it knows.
KNOWN = """
import asyncio, json
from ray._raylet import GcsClient
from ray.dashboard.modules.job.common import JobInfoStorageClient
print(json.dumps(sorted(asyncio.run(JobInfoStorageClient(GcsClient("127.0.0.1:6379")).get_all_jobs()))))
"""
HEAD_SECONDS = 40.0  # for a new head to start; the client may take 10 s more to notice


def volume(name: str) -> Object:
    """Return a volume in a folder of the node, of a storage class with the same name."""
    path = {"path": f"/var/tmp/{name}", "type": "DirectoryOrCreate"}
    spec = {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": path}
    spec |= {"storageClassName": name, "persistentVolumeReclaimPolicy": "Retain"}
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}


def on_the_node(namespace: str, name: str, command: str) -> None:
    """Run a shell command as root in a pod that mounts the node's /var/tmp."""
    container = {
        "name": "main",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", command],
        "securityContext": {"runAsUser": 0},
        "volumeMounts": [{"name": "tmp", "mountPath": "/var/tmp"}],
    }
    spec = {"restartPolicy": "Never", "containers": [container], "terminationGracePeriodSeconds": 0}
    spec["volumes"] = [{"name": "tmp", "hostPath": {"path": "/var/tmp"}}]
    until("an account", lambda: not kubectl("get", "sa", "default", "-n", namespace, check=False).returncode)
    apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": spec})
    done = "--for=jsonpath={.status.phase}=Succeeded"
    kubectl("wait", "-n", namespace, f"pod/{name}", done, "--timeout=60s", timeout=70)


@pytest.fixture(scope="module")
def store() -> Iterator[tuple[str, str]]:
    """Yield a namespace and the name of a storage class with one volume."""
    name = f"rwt-store-{secrets.token_hex(3)}"
    with new_namespace("recovery") as namespace:
        on_the_node(namespace, "make", f"mkdir -p /var/tmp/{name} && chmod 777 /var/tmp/{name}")
        apply(volume(name))
        try:
            yield namespace, name
        finally:
            on_the_node(namespace, "clean", f"rm -rf /var/tmp/{name}")
            kubectl("delete", "pv", name, "--wait=false")


def install(namespace: str, name: str, folder: Path) -> None:
    recovery = {"enabled": True, "storageClassName": name}
    (folder / "values.yaml").write_text(yaml.safe_dump({**VALUES, "headRecovery": recovery}))
    files = (f"{CHART}/values-local.yaml", str(folder / "values.yaml"))
    helm("upgrade", "--install", "ray", CHART, "-n", namespace, *(part for file in files for part in ("-f", file)))
    Cluster(namespace).wait()


@pytest.fixture(scope="module")
def cluster(store: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    namespace, name = store
    submitter = {"kind": "ServiceAccount", "metadata": {"name": "submitter", "namespace": namespace}}
    apply({"apiVersion": "v1", **submitter})
    install(namespace, name, tmp_path_factory.mktemp("values"))
    options = get("raycluster", "ray", "-n", namespace)["spec"]["gcsFaultToleranceOptions"]
    assert options["backend"] == "rocksdb" and get("pvc", CLAIM, "-n", namespace)["status"]["phase"] == "Bound"
    return namespace


def test_a_job_whose_driver_is_on_a_worker_goes_on(cluster: str, tmp_path: Path, on_worker: tuple[str, str]) -> None:
    with Followed(cluster, tmp_path, *on_worker) as job:
        job.more()
        began = time.monotonic()
        replace_head(cluster)
        until("it was missed", lambda: "connection lost, retrying" in job.err.read_text())
        seen = job.lines()
        job.more(1)
        assert time.monotonic() - began < HEAD_SECONDS + 10, f"{seen} lines\n{job.err.read_text()}"
        job.ends_well("worker")


def test_a_job_whose_driver_was_on_the_head_is_lost(cluster: str, tmp_path: Path) -> None:
    """The client says so once the new head answers; Ray goes on to report such a job as running."""
    with Followed(cluster, tmp_path) as job:
        job.more()
        replace_head(cluster)
        assert job.process.wait(HEAD_SECONDS + 20) == 75
        assert job.err.read_text().splitlines()[-1] in gone(job.id)


def test_the_state_outlives_the_release(cluster: str, store: tuple[str, str], tmp_path: Path) -> None:
    """An uninstall keeps the claim, and a second install takes it over."""
    before = get("pvc", CLAIM, "-n", cluster)["metadata"]["uid"]
    helm("uninstall", "ray", "-n", cluster, "--wait")
    ours = {"ServiceAccount/submitter", "Pod/make"}

    def left() -> set[str]:
        return {name for name in inventory(cluster) if not name.startswith("PersistentVolume/")} - ours

    until("only the claim is left", lambda: left() == {f"PersistentVolumeClaim/{CLAIM}"}, namespace=cluster)
    install(*store, tmp_path)
    assert get("pvc", CLAIM, "-n", cluster)["metadata"]["uid"] == before
    jobs = json.loads(Cluster(cluster).python(Cluster(cluster).name("head"), KNOWN))
    assert jobs, "the jobs of the first release are not known"
