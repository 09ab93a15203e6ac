"""Each of the chart's own values is in the schema, is read by a template, changes the output and has a comment."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from tests.chart.conftest import CHART, Manifest, Render, RenderError, names
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
    assert sorted(OWN) == sorted(of_the_schema(SCHEMA)) and len(OWN) > 25


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
    found = {path for path, node in objects(SCHEMA) if node.get("additionalProperties") is not False}
    assert found == {"/$defs/named/items", "/$defs/mounts/items"}


def test_each_value_is_read_and_nothing_else_is() -> None:
    read: set[str] = set()
    for path in sorted((CHART / "templates").rglob("*.*")):
        text = path.read_text()
        for name, what in re.findall(r"\{\{- (\$\w+) := \.Values((?:\.\w+)+) \}\}", text):
            text = text.replace(f"{name}.", f".Values{what}.")
        read |= {found.lstrip(".") for found in re.findall(r"\.Values((?:\.\w+)+)", text)} - {"AsMap"}
    assert set(OWN) - read == set()
    assert [found for found in read if not any(f"{leaf}.".startswith(f"{found}.") for leaf in OWN)] == []


PEERS = [{"ipBlock": {"cidr": "10.0.0.0/8"}}]
ACCOUNTS = {"serviceAccounts.head.create": False, "serviceAccounts.worker.create": False}
MOUNTED = {
    "volumes": [{"name": "s", "secret": {"secretName": "s"}}],
    "volumeMounts": [{"name": "s", "mountPath": "/s"}],
}
# For each value: the new value, and the other values of that render.
CHANGES: dict[str, tuple[object, Values]] = {
    "auth.enabled": (False, {"ray-cluster.common.containerEnv": []}),
    "auth.token": ("another", {"auth.token": "one"}),
    "auth.existingSecret": ("ray-auth-token", {}),
    "secrets": ({"s": {"data": {"key": "content"}}}, {"ray-cluster.head": MOUNTED, "ray-cluster.worker": MOUNTED}),
    "serviceAccounts.head.create": (False, {}),
    "serviceAccounts.head.name": ("other", {"ray-cluster.head.serviceAccountName": "other"}),
    "serviceAccounts.head.annotations": ({"a": "b"}, {}),
    "serviceAccounts.worker.create": (False, {}),
    "serviceAccounts.worker.name": ("other", {"ray-cluster.worker.serviceAccountName": "other"}),
    "serviceAccounts.worker.annotations": ({"a": "b"}, {}),
    "api.type": ("LoadBalancer", {}),
    "api.nodePort": (30265, {"api.type": "NodePort"}),
    "api.annotations": ({"a": "b"}, {}),
    "submitter.subjects": ([{"kind": "User", "name": "ada"}], {}),
    "submitter.podProxy": (True, {}),
    "networkPolicy.enabled": (False, {}),
    "networkPolicy.apiServerFrom": (PEERS, {}),
    "networkPolicy.metricsFrom": (PEERS, {}),
    "networkPolicy.headIngress": ([{"from": PEERS}], {}),
    "podDisruptionBudget.enabled": (False, {}),
    "metrics.podMonitor.enabled": (True, {}),
    "metrics.podMonitor.interval": ("5m", {"metrics.podMonitor.enabled": True}),
    "metrics.podMonitor.labels": ({"a": "b"}, {"metrics.podMonitor.enabled": True}),
    "metrics.podMonitoring.enabled": (True, {}),
    "metrics.podMonitoring.interval": ("5m", {"metrics.podMonitoring.enabled": True}),
    "rollout.enabled": (True, {}),
    "cleanup.enabled": (False, {}),
    "cleanup.timeoutSeconds": (5, {}),
}
# The chart refuses these without the change, because the other values then contradict the default.
REFUSED = {"auth.enabled", "serviceAccounts.head.name", "serviceAccounts.worker.name"}


def test_each_value_changes_what_is_rendered(render: Render) -> None:
    assert sorted(CHANGES) == sorted(OWN)

    def changed(path: str) -> bool | None:
        value, base = CHANGES[path]
        after = without_token(render(values=nest({**base, path: value})))
        try:
            return without_token(render(values=nest(base))) != after
        except RenderError:
            return None

    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(CHANGES, pool.map(changed, CHANGES), strict=True))
    assert {path for path, change in found.items() if change is None} == REFUSED
    assert [path for path, change in found.items() if change is False] == []


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
    assert {m["kind"] for m in render(values=nest({"ray-cluster.enabled": False, "rollout.enabled": True}))} == {
        m["kind"] for m in operator
    }
