"""Each of the chart's own values is in the schema, is read by a template, changes the output and has a comment."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from tests.chart.conftest import CHART, Manifest, Render, names
from tests.chart.test_conditions import Values, nest

TEXT = (CHART / "values.yaml").read_text()
UPSTREAM = {"kuberay-operator", "ray-cluster"}
SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def leaves(values: Any, path: str = "") -> list[str]:
    """Return the dotted keys, without those of the upstream charts."""
    if not isinstance(values, dict) or not values:
        return [path]
    return [
        leaf
        for key, inner in values.items()
        if path or key not in UPSTREAM
        for leaf in leaves(inner, f"{path}.{key}".lstrip("."))
    ]


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = SCHEMA["$defs"][node["$ref"].removeprefix("#/$defs/")]
    return node


def of_the_schema(node: dict[str, Any], path: str = "") -> list[str]:
    inner = resolved(node).get("properties", {})
    if not inner:
        return [path]
    given = {key: value for key, value in inner.items() if path or key not in {*UPSTREAM, "global"}}
    return [leaf for key, value in given.items() for leaf in of_the_schema(value, f"{path}.{key}".lstrip("."))]


OWN = leaves(yaml.safe_load(TEXT))


def test_values_and_schema_have_the_same_keys() -> None:
    known = of_the_schema(SCHEMA)

    def same(one: str, other: str) -> bool:  # the map of one may be empty in the other
        return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")

    assert [path for path in OWN if not any(same(path, leaf) for leaf in known)] == []
    unused = "autoscaling.resources.claims"  # only of Kubernetes' resources
    assert [leaf for leaf in known if not any(same(path, leaf) for path in OWN)] == [unused]
    assert len(OWN) > 80


def test_the_schema_is_valid() -> None:
    assert SCHEMA["$schema"] == "http://json-schema.org/draft-07/schema#"
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    references = {line.removeprefix("#/$defs/") for line in re.findall(r'"\$ref": "(.*?)"', json.dumps(SCHEMA))}
    assert references == SCHEMA["$defs"].keys()
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(SCHEMA).validate({"auth": {"enabled": "yes"}})


def objects(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "properties" in node and path.rpartition("/")[2] != "properties":
            yield path, node
        for key, inner in node.items():
            yield from objects(inner, f"{path}/{key}")


def test_unknown_keys_are_refused() -> None:
    """Except in volumes, mounts and containers, which the API server validates."""
    source = "/properties/volumes/additionalProperties"
    found = {path for path, node in objects(SCHEMA) if node.get("additionalProperties") is not False}
    assert found == {"/$defs/named/items", "/$defs/mounts/items", source}


def test_templates_read_no_value_that_does_not_exist() -> None:
    """test_each_value_changes_what_is_rendered proves that they read all that do."""
    read: set[str] = set()
    for path in sorted((CHART / "templates").rglob("*.*")):
        read |= {found.lstrip(".") for found in re.findall(r"\.Values((?:\.\w+)+)", path.read_text())}
    read -= {"computedName", "objectLabels"}  # the seam sets these for the upstream chart
    assert [found for found in read if not any(f"{leaf}.".startswith(f"{found}.") for leaf in OWN)] == []


PEERS = [{"ipBlock": {"cidr": "10.0.0.0/8"}}]
# For each value: the new value, and the other values of that render.
PVC = {"mountPath": "/v", "persistentVolumeClaim": {"claimName": "v"}}
TOLERATION = [{"operator": "Exists"}]
NODE: dict[str, object] = {
    "cpu": 7,
    "memory": "7Gi",
    "ephemeralStorage": "7Gi",
    "requests": {"cpu": "10m"},
    "image": {"tag": "2.60.0-mine"},
    "env": {"A": "b"},
    "nodeSelector": {"a": "b"},
    "tolerations": TOLERATION,
    "affinity": {"podAffinity": {}},
    "annotations": {"a": "b"},
    "labels": {"a": "b"},
    "rayStartParams": {"num-cpus": "1"},
}
AUTOSCALING = {"autoscaling.enabled": True}
RECOVERY = {"headRecovery.enabled": True}
REDIS = {**RECOVERY, "headRecovery.redisAddress": "redis:6379"}
EGRESS = {"networkPolicy.egress.enabled": True}
CHANGES: dict[str, tuple[object, Values]] = {
    "image.repository": ("mine", {}),
    "image.tag": ("2.60.0-py312", {}),
    "image.pullPolicy": ("Always", {}),
    "image.pullSecrets": (["registry"], {}),
    "rayVersion": ("2.61.0", {"image.repository": "mine"}),
    "auth.enabled": (False, {}),
    "auth.token": ("another", {"auth.token": "one"}),
    "auth.existingSecret": ("mine", {}),
    "env": ({"A": {"secret": "s", "key": "k"}}, {}),
    "secrets": ({"s": {"data": {"key": "content"}}}, {}),
    "volumes": ({"v": PVC}, {}),
    "outputs": ("gs://bucket", {}),
    **{f"head.{key}": (value, {}) for key, value in NODE.items()},
    "head.runsTasks": (False, {}),
    **{f"workers.{key}": (value, {}) for key, value in NODE.items()},
    "workers.replicas": (2, {}),
    "workers.minReplicas": (2, AUTOSCALING),
    "workers.maxReplicas": (7, {}),
    "workers.numOfHosts": (2, {}),
    "workers.gpus": (1, {}),
    "workers.accelerator": ("L4", {}),
    "workers.spot": (True, {"spotNodes": {"spot": "true"}}),
    "workerGroups.workergroup": ({"enabled": False}, {}),
    "acceleratorNodes": ({"L4": {"gpu": "l4"}}, {"workers.accelerator": "L4"}),
    "spotNodes": ({"other": "yes"}, {"workers.spot": True, "spotNodes": {"spot": "true"}}),
    "autoscaling.enabled": (True, {}),
    "autoscaling.idleTimeoutSeconds": (5, AUTOSCALING),
    "autoscaling.resources.requests.cpu": ("1m", AUTOSCALING),
    "autoscaling.resources.requests.memory": ("1Mi", AUTOSCALING),
    "autoscaling.resources.limits.cpu": ("1", {**AUTOSCALING, "autoscaling.resources.limits.cpu": "2"}),
    "autoscaling.resources.limits.memory": ("2Gi", AUTOSCALING),
    "headRecovery.enabled": (True, {}),
    "headRecovery.size": ("9Gi", RECOVERY),
    "headRecovery.storageClassName": ("fast", RECOVERY),
    "headRecovery.redisAddress": ("redis:6379", RECOVERY),
    "headRecovery.redisPassword.secret": ("redis", REDIS),
    "headRecovery.redisPassword.key": ("other", {**REDIS, "headRecovery.redisPassword.secret": "redis"}),
    "replacePodsOnUpgrade": (True, {}),
    "rayCluster.labels": ({"a": "b"}, {}),
    "rayCluster.annotations": ({"a": "b"}, {}),
    "rayCluster.spec": ({"suspend": True}, {}),
    "serviceAccounts.head.create": (False, {}),
    "serviceAccounts.head.name": ("other", {}),
    "serviceAccounts.head.annotations": ({"a": "b"}, {}),
    "serviceAccounts.worker.create": (False, {}),
    "serviceAccounts.worker.name": ("other", {}),
    "serviceAccounts.worker.annotations": ({"a": "b"}, {}),
    "api.serve": (True, {}),
    "api.rayClient": (True, {}),
    "api.type": ("LoadBalancer", {}),
    "api.nodePort": (30265, {"api.type": "NodePort"}),
    "api.sourceRanges": (["10.0.0.0/8"], {"api.type": "LoadBalancer"}),
    "api.annotations": ({"a": "b"}, {}),
    "submitter.subjects": ([{"kind": "User", "name": "ada"}], {}),
    "submitter.podProxy": (True, {}),
    "networkPolicy.enabled": (False, {}),
    "networkPolicy.apiServerFrom": (PEERS, {}),
    "networkPolicy.metricsFrom": (PEERS, {}),
    "networkPolicy.headIngress": ([{"from": PEERS}], {}),
    "networkPolicy.egress.enabled": (True, {}),
    "networkPolicy.egress.rules": ([{"to": PEERS}], EGRESS),
    "networkPolicy.egress.apiServer": (PEERS, EGRESS),
    "networkPolicy.egress.cloudMetadata": (True, EGRESS),
    "podDisruptionBudget.enabled": (False, {}),
    "metrics.podMonitor.enabled": (True, {}),
    "metrics.podMonitor.interval": ("5m", {"metrics.podMonitor.enabled": True}),
    "metrics.podMonitor.labels": ({"a": "b"}, {"metrics.podMonitor.enabled": True}),
    "metrics.podMonitoring.enabled": (True, {}),
    "metrics.podMonitoring.interval": ("5m", {"metrics.podMonitoring.enabled": True}),
    "cleanup.enabled": (False, {}),
    "cleanup.timeoutSeconds": (5, {}),
}


def test_each_value_changes_what_is_rendered(render: Render) -> None:
    assert sorted([*CHANGES, "rayCluster.checkCRD"]) == sorted(OWN)  # that depends on the cluster: see tests/e2e

    def changed(path: str) -> bool:
        value, base = CHANGES[path]
        after = without_token(render(values=nest({**base, path: value})))
        return without_token(render(values=nest(base))) != after

    with ThreadPoolExecutor(2) as pool:
        assert [p for p, change in zip(CHANGES, pool.map(changed, CHANGES), strict=True) if not change] == []


def without_token(manifests: list[Manifest]) -> list[Manifest]:
    """Replace a random token, which differs in each render. A given token is shorter and stays."""
    for manifest in manifests:
        if len(str((manifest.get("data") or {}).get("auth_token", ""))) == 60:
            manifest["data"] = "random"
    return manifests


def explained(text: str) -> dict[str, bool]:
    """Return whether each key of the chart, or a parent of it, has a comment above it."""
    found: dict[str, bool] = {}
    path: list[str] = []
    above = ""
    for line in text.splitlines():
        if key := re.match(r"( *)([\w-]+):", line):
            path[len(key[1]) // 2 :] = [key[2]]
            if path[0] in UPSTREAM:
                break
            found[".".join(path)] = above.lstrip().startswith("# ") or found.get(".".join(path[:-1]), False)
        above = line
    return found


def test_each_value_is_explained() -> None:
    found = explained(TEXT)
    assert set(OWN) <= found.keys()
    assert [path for path in OWN if not found[path]] == []
    assert not explained(TEXT.replace("  # The token.", "  token:"))["metrics"]
    assert not explained(re.sub(r"(?m)^ *# .*\n", "", TEXT))["auth.token"]


def test_half_the_chart(render: Render) -> None:
    """The operator alone and the cluster alone render the same objects as the whole chart."""
    whole = {(m["kind"], m["metadata"]["name"]): m for m in without_token(render())}
    operator = without_token(render(values=nest({"ray-cluster.enabled": False})))
    cluster = without_token(render(values=nest({"kuberay-operator.enabled": False})))
    assert sorted(names(operator) + names(cluster)) == sorted(whole)
    for manifest in operator + cluster:
        assert manifest == whole[manifest["kind"], manifest["metadata"]["name"]]
    charts = [
        {m["metadata"]["labels"]["helm.sh/chart"].rpartition("-")[0] for m in part} for part in (operator, cluster)
    ]
    assert charts == [{"kuberay-operator"}, {"ray-cluster", "ray-workload"}]
    assert {m["kind"] for m in render(values=nest({"ray-cluster.enabled": False, "replacePodsOnUpgrade": True}))} == {
        m["kind"] for m in operator
    }
