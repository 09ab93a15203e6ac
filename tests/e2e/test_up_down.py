"""`up local` and `down local` on a real cluster: what they wait for, what they refuse, and that nothing remains."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import on_terminal
from tests.e2e._cluster import SMALL
from tests.e2e.conftest import IMAGE, apply, get, helm, inventory, kubectl, remove, until, user_environment
from tests.e2e.test_upgrade import helm_of

Done = subprocess.CompletedProcess[str]
REPOSITORY, _, TAG = IMAGE.rpartition(":")
SETS = [*SMALL, f"image.repository={REPOSITORY}", f"image.tag={TAG}"]
NO_IMAGE = "image.repository=nowhere.invalid/ray"
INSTANCE = {"app.kubernetes.io/instance": "ray"}

pytestmark = pytest.mark.timeout(600)  # each goes through several starts of a cluster


class Here:
    """The client, for one namespace."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.namespace = folder, f"rwt-up-{secrets.token_hex(3)}"
        self.context = kubectl("config", "current-context").stdout.strip()
        self.where = ["--context", self.context, "--namespace", self.namespace]

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", "client", *args]

    def client(self, *args: str, **more: str) -> Done:
        env = {**user_environment(), **more}
        return subprocess.run(
            self.command(*args), cwd=self.folder, env=env, capture_output=True, text=True, timeout=280, check=False
        )

    def up_args(self, *sets: str, timeout: float = 200) -> list[str]:
        given = [part for item in (*SETS, *sets) for part in ("--set", item)]
        return ["up", "local", *self.where, *given, "--timeout", f"{timeout:g}"]

    def up(self, *sets: str, timeout: float = 200) -> Done:
        return self.client(*self.up_args(*sets, timeout=timeout))

    def down(self, *args: str) -> Done:
        return self.client("down", "local", "--yes", *self.where, *args)

    def started(self, *args: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command(*args), cwd=self.folder, env=user_environment(), stderr=subprocess.PIPE, text=True
        )

    def pods(self) -> dict[str, str]:
        """Return the UIDs of the cluster's pods, by name."""
        found = get("pods", "-n", self.namespace, "-l", "ray.io/cluster=ray")["items"]
        return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in found}

    def revisions(self) -> int:
        return len(helm("history", "ray", "-n", self.namespace).stdout.splitlines()) - 1


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    made = Here(tmp_path)
    try:
        yield made
    finally:
        helm("uninstall", "ray", "-n", made.namespace, "--no-hooks", "--ignore-not-found", check=False)
        remove(made.namespace)


def succeeded(done: Done, says: str = "") -> None:
    assert done.returncode == 0, done.stderr
    assert says in done.stderr


def ray_job(name: str, labels: dict[str, str], **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "labels": labels}
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": {"entrypoint": "true", **spec}}


def no_node() -> dict[str, Any]:
    """Return the spec of a RayCluster whose pods cannot be scheduled."""
    container = {"name": "ray", "image": IMAGE, "resources": {"requests": {"cpu": "10m"}}}
    template = {"spec": {"nodeSelector": {"nowhere": "true"}, "containers": [container]}}
    return {"rayVersion": "2.60.0", "headGroupSpec": {"rayStartParams": {}, "template": template}}


def test_up_submit_up_again_and_down(here: Here) -> None:
    first = here.up()
    succeeded(first, "waiting for RayCluster")
    assert first.stdout == f"export RAY_WORKLOAD_ADDRESS=kubernetes://{here.context}/{here.namespace}/ray\n"
    address = first.stdout.split("=", 1)[1].strip()
    pods, namespace = here.pods(), here.namespace
    assert len(pods) == 2

    (here.folder / "script.py").write_text("import ray; ray.init(); print('nodes', len(ray.nodes()))")
    submitted = here.client("submit", "script.py", RAY_WORKLOAD_ADDRESS=address)
    succeeded(submitted)
    assert "nodes 2\n" in submitted.stdout

    again = here.up("replacePodsOnUpgrade=false")
    succeeded(again)
    assert (again.stdout, here.pods(), here.revisions()) == (first.stdout, pods, 2)

    before = inventory(namespace)
    refused = here.up("api.typ=x", "auth.enable=1")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "helm refuses 2 of the values:\n  - " in refused.stderr and "'typ' not allowed" in refused.stderr
    refused = here.up("api.nodePort=31000", "rayVersion=1.0.0")
    assert (
        refused.returncode == 2
        and "set api.type=NodePort\n" in refused.stderr
        and "Ray 1.0.0 does not support token authentication" in refused.stderr
    )
    assert (inventory(namespace), here.revisions()) == (before, 2)

    # A second worker that cannot be scheduled; then the previous values.
    memory = ["workers.memory=900Gi", "workers.requests.memory=900Gi"]
    late = here.up("workers.replicas=2", *memory, timeout=6)
    assert (late.returncode, late.stdout) == (124, "")
    assert "has no node: 0/1 nodes are available: 1 Insufficient memory" in late.stderr
    assert pods.items() <= here.pods().items() and len(here.pods()) == 3
    succeeded(here.up())

    command, revisions = here.command("down", "local", *here.where), here.revisions()
    code, said = on_terminal(command, "n\n", cwd=here.folder, env=user_environment())
    assert code == 1 and "nothing was removed" in said, said
    question = (
        f"namespace {namespace} of context {here.context}, where 0 jobs are running:\n  RayCluster/ray\nContinue?"
    )
    assert question in said, said
    assert here.revisions() == revisions
    assert "deletionTimestamp" not in get("raycluster", "ray", "-n", namespace)["metadata"]

    ours, others = "has-the-label", "has-none"
    service = {"apiVersion": "ray.io/v1", "kind": "RayService", "spec": {"rayClusterConfig": no_node()}}
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}, "storageClassName": ""}
    objects = [
        {**service, "metadata": {"name": ours, "labels": INSTANCE}},
        {**service, "metadata": {"name": others}},
        ray_job(ours, INSTANCE, rayClusterSpec=no_node()),
        ray_job("selects", {}, clusterSelector={"ray.io/cluster": "ray"}),
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data", "labels": INSTANCE},
         "spec": claim},
    ]  # fmt: skip
    for made in objects:
        made["metadata"]["namespace"] = namespace
    apply(*objects)

    def finalizers() -> bool:
        return all("finalizers" in o["metadata"] for o in get("rayjob", "-n", namespace)["items"])

    until("the operator knows the RayJobs", finalizers, namespace=namespace)
    ended = here.down()
    succeeded(ended, "PersistentVolumeClaim/data is kept: `--purge` deletes it")
    assert "is removed: only CRDs remain" in ended.stderr and ended.stdout == ""
    left = f"RayService/{others}"  # it has no operator now, but belongs to the user

    def theirs() -> set[str]:
        return {name for name in inventory(namespace) if others not in name and not name.startswith("Pod/selects-")}

    assert theirs() == {"PersistentVolumeClaim/data"}
    assert left in inventory(namespace)

    twice = here.down("--purge")
    succeeded(twice, "is removed: only CRDs remain")
    assert not theirs()
    succeeded(here.down("--purge"), "does not exist")
    kubectl("patch", "rayservice", others, "-n", namespace, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')


def test_up_again_with_helm_4_keeps_a_worker_that_was_added(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """The autoscaler also adds workers. A plain `helm upgrade` is refused in this state, see test_upgrade."""
    (here.folder / "bin").mkdir()
    (here.folder / "bin" / "helm").symlink_to(str(shutil.which(helm_of("4"))))
    monkeypatch.setenv("PATH", str(here.folder / "bin"), prepend=os.pathsep)
    three = "workers.maxReplicas=3"
    succeeded(here.up(three))
    more = '[{"op":"replace","path":"/spec/workerGroupSpecs/0/replicas","value":2}]'
    kubectl("patch", "raycluster", "ray", "-n", here.namespace, "--type=json", "-p", more)
    until("one worker more", lambda: len(here.pods()) == 3, namespace=here.namespace)
    ready = ("--for=condition=Ready", "pod", "-l", "ray.io/cluster=ray", "--timeout=2m")
    kubectl("wait", "-n", here.namespace, *ready, timeout=150)  # `up` recreates pods that have not started
    pods = here.pods()
    succeeded(here.up(three, "head.labels.changed=head"))
    changed = get("raycluster", "ray", "-n", here.namespace)["spec"]
    assert changed["headGroupSpec"]["template"]["metadata"]["labels"]["changed"] == "head"
    assert (changed["workerGroupSpecs"][0]["replicas"], here.pods(), here.revisions()) == (2, pods, 2)


def test_an_image_that_cannot_be_pulled_and_a_down_that_is_killed(here: Here) -> None:
    began, seen = time.monotonic(), 0.0
    with here.started(*here.up_args(NO_IMAGE, timeout=40)) as process:
        assert process.stderr
        said = []
        for line in process.stderr:
            said.append(line)
            if "ErrImagePull" in line and not seen:
                seen = time.monotonic() - began
    assert process.returncode == 124, said
    assert 0 < seen < 30, said  # includes the start of the operator
    assert "nothing was removed" in said[-1] and "nowhere.invalid/ray" in said[-1]
    stuck = here.pods()
    assert len(stuck) == 2 and here.revisions() == 1

    succeeded(here.up())
    assert len(here.pods()) == 2 and not stuck.items() & here.pods().items()

    with here.started("down", "local", "--yes", *here.where) as process:
        until("the release is being removed", lambda: "uninstalling" in status(here), namespace=here.namespace)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    refused = here.up(timeout=10)  # refused now, or later if helm could continue
    if refused.returncode:
        assert "`down`" in refused.stderr or refused.returncode in (1, 124), refused.stderr
    succeeded(here.down(), "release ray in")
    assert not inventory(here.namespace)


def status(here: Here) -> str:
    """Return the state of the release. Helm 3 and 4 list releases in any state with different flags."""
    secrets = get("secrets", "-n", here.namespace, "-l", "owner=helm")["items"]
    return " ".join(secret["metadata"]["labels"]["status"] for secret in secrets)


def test_down_where_the_hook_has_no_image(here: Here) -> None:
    assert here.up(NO_IMAGE, timeout=8).returncode == 124
    began = time.monotonic()
    ended = here.down()
    succeeded(ended, "the chart's cleanup failed (pod ray-cleanup-")
    assert time.monotonic() - began < 60
    assert not inventory(here.namespace)


def test_a_quota_is_the_reason(here: Here) -> None:
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": here.namespace}})
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few", "namespace": here.namespace}}
    apply({**quota, "spec": {"hard": {"pods": "1"}}})  # the operator's pod uses it up

    def counted() -> bool:
        return "hard" in get("quota", "few", "-n", here.namespace).get("status", {})

    until("the quota is in force", counted)
    late = here.up(timeout=20)
    assert late.returncode == 124 and "exceeded quota: few" in late.stderr, late.stderr
    kubectl("delete", "quota", "few", "-n", here.namespace)
    succeeded(here.down())
    assert not inventory(here.namespace)
