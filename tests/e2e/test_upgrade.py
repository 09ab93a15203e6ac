"""Upgrades: what they replace, what they keep, and how to recover when they are interrupted."""

import json
import signal
from collections.abc import Iterator

import pytest

from tests.e2e._cluster import started
from tests.e2e._release import images, pods, ray_cluster, stays, token_of, uids, upgrade, upgrade_command, wait_ready
from tests.e2e.conftest import HELM4, IMAGE, NEXT_IMAGE, helm, kubectl, new_namespace, unproved, until

REPLACE = "replacePodsOnUpgrade=true"
IN_PROGRESS = "another operation (install/upgrade/rollback) is in progress"


@pytest.fixture(scope="module")
def release() -> Iterator[str]:
    """Install the release that all tests except the last ones upgrade; each test leaves its pods up to date."""
    with new_namespace("upgrade", restricted=True) as namespace:
        upgrade(namespace)
        wait_ready(namespace)
        yield namespace


def wanted_image(namespace: str) -> str:
    return str(ray_cluster(namespace)["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["image"])


def other(image: str) -> str:
    return NEXT_IMAGE if image == IMAGE else IMAGE


def strategy(namespace: str) -> str | None:
    found: str | None = ray_cluster(namespace)["spec"].get("upgradeStrategy", {}).get("type")
    return found


def leaves_the_pods(namespace: str, *sets: str, image: str) -> None:
    before = uids(namespace)
    upgrade(namespace, *sets, image=image)
    assert wanted_image(namespace) == image
    stays("the pods", lambda: uids(namespace), before)


def replaces_the_pods(namespace: str, *sets: str, image: str) -> None:
    before = uids(namespace)
    upgrade(namespace, *sets, image=image)
    wait_ready(namespace, without=[*before.values()])
    assert images(namespace) == {image}
    assert not {*before.values()} & {*uids(namespace).values()}


def test_by_default_the_pods_stay_as_they_are(release: str) -> None:
    token = token_of(release)
    leaves_the_pods(release, image=NEXT_IMAGE)
    assert images(release) == {IMAGE}
    leaves_the_pods(release, image=IMAGE)
    assert token_of(release) == token


def test_on_request_it_replaces_head_and_worker_once(release: str) -> None:
    assert images(release) == {IMAGE}
    replaces_the_pods(release, REPLACE, image=NEXT_IMAGE)
    assert strategy(release) == "Recreate"
    leaves_the_pods(release, REPLACE, image=NEXT_IMAGE)


def armed(namespace: str) -> str:
    """Turn replacePodsOnUpgrade on, with pods that are up to date; return their image."""
    (image,) = images(namespace)
    upgrade(namespace, REPLACE, image=image)
    assert strategy(namespace) == "Recreate"
    wait_ready(namespace)
    return image


def test_switched_off_it_disarms(release: str) -> None:
    image = armed(release)
    leaves_the_pods(release, image=image)
    assert strategy(release) == "None"
    leaves_the_pods(release, image=other(image))


def test_switched_off_together_with_a_change_it_leaves_the_pods(release: str) -> None:
    """An upgrade that turns replacePodsOnUpgrade off must not end jobs."""
    image = armed(release)
    leaves_the_pods(release, image=other(image))
    assert strategy(release) == "None"


def test_killed_half_way_it_can_be_mended(release: str) -> None:
    """Helm leaves a lock; `helm rollback` removes it, and the same upgrade then succeeds."""
    (image,) = images(release)
    upgrade(release, image=image)
    token, before = token_of(release), uids(release)
    # Helm waits for the new operator, so it is killed in time.
    arguments = upgrade_command(release, REPLACE, "kuberay-operator.resources.requests.cpu=110m", image=other(image))
    arguments.append("--wait")
    with started("helm", *arguments) as process:
        until("it has changed the cluster", lambda: wanted_image(release) == other(image), 30, release)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert json.loads(helm("status", "ray", "-n", release, "-o", "json").stdout)["info"]["status"] == "pending-upgrade"
    refused = helm(*arguments, check=False)
    assert refused.returncode and IN_PROGRESS in refused.stderr
    helm("rollback", "ray", "-n", release)
    helm(*arguments)
    until("the pods are new", lambda: images(release) == {other(image)}, 120, release)
    wait_ready(release, without=[*before.values()])
    assert strategy(release) == "Recreate"
    assert json.loads(helm("status", "ray", "-n", release, "-o", "json").stdout)["info"]["status"] == "deployed"
    assert token_of(release) == token


def helm_of(major: str) -> str:
    """Return the helm of this major version: the one on PATH, or HELM4."""
    for tool in ("helm", *([HELM4] if HELM4 else [])):
        if helm("version", "--short", tool=tool).stdout.startswith(f"v{major}."):
            return tool
    unproved(f"scaling by hand with Helm {major}: name a Helm 4 in HELM4, and have Helm 3 on PATH")


def scaled_by_hand(namespace: str, tool: str) -> dict[str, str]:
    """Install a release and add one worker by hand; return its pods."""
    upgrade(namespace, "workers.maxReplicas=3", tool=tool)
    more = [{"op": "replace", "path": "/spec/workerGroupSpecs/0/replicas", "value": 2}]
    until("a worker", lambda: len(pods(namespace)) == 2, namespace=namespace)
    kubectl("patch", "raycluster", "ray", "-n", namespace, "--type=json", "-p", json.dumps(more))
    until("one worker more", lambda: len(pods(namespace)) == 3, namespace=namespace)
    return uids(namespace)


def replicas(namespace: str) -> int:
    return int(ray_cluster(namespace)["spec"]["workerGroupSpecs"][0]["replicas"])


def test_workers_scaled_by_hand_survive_with_helm_3(namespace: str) -> None:
    tool, sets = helm_of("3"), ["workers.maxReplicas=3"]
    before = scaled_by_hand(namespace, tool)
    upgrade(namespace, *sets, tool=tool)
    sets.append("head.labels.changed=head")  # and a change that does not affect the worker groups
    upgrade(namespace, *sets, tool=tool)
    stays("workers", lambda: (replicas(namespace), uids(namespace)), (2, before))
    sets.append("workers.labels.changed=group")  # as docs/scaling.md says
    upgrade(namespace, *sets, tool=tool)
    assert replicas(namespace) == 1


def test_workers_scaled_by_hand_are_a_conflict_with_helm_4(namespace: str) -> None:
    """Helm 4 uses server-side apply, where all groups are one value: it reports a conflict with the other change.

    After one upgrade with client-side apply, as in Helm 3, it continues with that, and the workers survive.
    """
    tool, sets = helm_of("4"), ["workers.maxReplicas=3"]
    before = scaled_by_hand(namespace, tool)
    refused = upgrade(namespace, *sets, tool=tool, check=False)
    assert refused.returncode and "conflict" in refused.stderr and ".spec.workerGroupSpecs" in refused.stderr
    stays("workers", lambda: (replicas(namespace), uids(namespace)), (2, before), 3)
    helm(*upgrade_command(namespace, *sets), "--server-side=false", tool=tool)
    upgrade(namespace, *sets, tool=tool)
    stays("workers", lambda: (replicas(namespace), uids(namespace)), (2, before))
    helm(*upgrade_command(namespace, *sets), "--server-side=true", "--force-conflicts", tool=tool)
    assert replicas(namespace) == 1
