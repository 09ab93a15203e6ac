"""The schema accepts exactly the values that the upstream charts read."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.conftest import CHART, LOADER

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
CHARTS = ["kuberay-operator", "ray-cluster"]
GROUPS = "additionalWorkerGroups.*"
Node = dict[str, Any]


def used(texts: list[str]) -> str:
    """Return the templates without comments and without definitions that are never included."""
    texts = [re.sub(r"\{\{-? ?/\*.*?\*/ ?-?\}\}", "", text, flags=re.DOTALL) for text in texts]
    parts = [part for text in texts for part in re.split(r'(?=\{\{-? define ")', text)]
    included = set(re.findall(r'(?:include|template) "(.*?)"', "".join(texts)))
    defined = [re.match(r'\{\{-? define "(.*?)"', part) for part in parts]
    return "".join(part for part, name in zip(parts, defined, strict=True) if not name or name[1] in included)


def read(chart: Path) -> set[str]:
    """Return the values that the templates of a chart read."""
    text = used([path.read_text() for path in sorted((chart / "templates").iterdir())])
    assert not re.search(r"index \$?\.Values|\.Values\[|pluck|\bget \$?\.Values", text), "values read in an unknown way"
    found = {path.lstrip(".") for path in re.findall(r"\.Values((?:\.\w+)+)", text)}
    found |= {f"{p}.{key}".lstrip(".") for p, key in re.findall(r'hasKey \$?\.Values((?:\.\w+)*) "(\w+)"', text)}
    return found | {f"{GROUPS}{path}" for path in re.findall(r"\$values((?:\.\w+)+)", text)}


def given(values: Any, path: str = "") -> set[str]:
    """Return the keys of values.yaml, with `*` for the name of each group."""
    if not isinstance(values, dict):
        return {path}
    inner = {
        re.sub(r"^(additionalWorkerGroups)\.\w+", r"\1.*", f"{path}.{k}".lstrip(".")): v for k, v in values.items()
    }
    return ({path} - {""}).union(*(given(value, key) for key, value in inner.items()))


def resolved(node: Node) -> Node:
    return SCHEMA["$defs"][node["$ref"].removeprefix("#/$defs/")] if "$ref" in node else node


def takes(node: Node, path: str) -> bool:
    """Return whether the schema accepts a key."""
    for key in path.split("."):
        node = resolved(node)
        rest = node.get("additionalProperties", "properties" not in node)
        if key in node.get("properties", {}):
            node = node["properties"][key]
        elif isinstance(rest, dict):
            node = rest
        else:
            return bool(rest)
    return True


def missed(schema: Node, name: str, unpacked: Path) -> list[str]:
    values = yaml.load((unpacked / name / "values.yaml").read_text(), LOADER)
    wanted = read(unpacked / name) | given(values)
    assert len(wanted) > 60
    return sorted(path for path in wanted if not takes(schema["properties"][name], path))


@pytest.mark.parametrize("name", CHARTS)
def test_the_schema_accepts_what_upstream_reads(name: str, unpacked: Path) -> None:
    assert missed(SCHEMA, name, unpacked) == []


@pytest.mark.parametrize(
    "path",
    [
        "ray-cluster.head.runtimeClassName",
        "ray-cluster.worker.numOfHosts",
        "ray-cluster.gcsFaultTolerance.redisUsername",
        "ray-cluster.service.type",
        "kuberay-operator.useKubernetesProxy",
        "kuberay-operator.metrics.serviceMonitor.honorLabels",
    ],
)
def test_a_key_that_the_schema_lacks_is_found(path: str, unpacked: Path) -> None:
    schema = copy.deepcopy(SCHEMA)
    name, *parents, last = path.split(".")
    node = schema["properties"][name]
    for key in parents:
        node = node["properties"][key]
    del node["properties"][last]
    assert missed(schema, name, unpacked) == [path.removeprefix(f"{name}.")]


def test_a_key_that_groups_lack_is_found(unpacked: Path) -> None:
    schema = copy.deepcopy(SCHEMA)
    group = schema["properties"]["ray-cluster"]["properties"]["additionalWorkerGroups"]["additionalProperties"]
    del group["properties"]["resourceClaims"]
    assert missed(schema, "ray-cluster", unpacked) == [f"{GROUPS}.resourceClaims"]


def named(node: Node, path: str = "") -> set[str]:
    """Return the keys that the schema names, except those inside fields that are copied unchanged."""
    inner = resolved(node).get("properties", {})
    more = resolved(node).get("additionalProperties")
    if path == "additionalWorkerGroups":
        inner = {"*": more}
    own = {path} - {"", "additionalWorkerGroups.*"}
    return own.union(*(named(value, f"{path}.{key}".lstrip(".")) for key, value in inner.items()))


@pytest.mark.parametrize("name", CHARTS)
def test_the_schema_accepts_nothing_that_upstream_ignores(name: str, unpacked: Path) -> None:
    known = read(unpacked / name)
    ignored = set(named(SCHEMA["properties"][name]))
    for key in known:
        ignored -= {path for path in ignored if f"{key}.".startswith(f"{path}.") or path.startswith(f"{key}.")}
    assert ignored == {"enabled", "global"}  # Helm reads these itself


def test_fields_that_are_copied_unchanged_have_the_keys_of_the_crd(unpacked: Path) -> None:
    text = (unpacked / "kuberay-operator" / "crds" / "ray.io_rayclusters.yaml").read_text()
    (version,) = [v for v in yaml.load(text, LOADER)["spec"]["versions"] if v["name"] == "v1"]
    crd = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    ours = SCHEMA["properties"]["ray-cluster"]["properties"]
    options, theirs = (
        ours["head"]["properties"]["autoscalerOptions"]["properties"],
        crd["autoscalerOptions"]["properties"],
    )
    assert options.keys() == theirs.keys()
    for key in ("version", "upscalingMode"):
        assert options[key]["enum"] == theirs[key]["enum"]
    redis = crd["gcsFaultToleranceOptions"]["properties"]
    for key in ("redisPassword", "redisUsername"):
        assert ours["gcsFaultTolerance"]["properties"][key]["properties"].keys() == redis[key]["properties"].keys()


def test_groups_accept_the_keys_of_the_worker() -> None:
    """The head accepts the same keys for its pod."""
    ours = SCHEMA["properties"]["ray-cluster"]["properties"]
    head, worker = ours["head"]["properties"], dict(ours["worker"]["properties"])
    group = ours["additionalWorkerGroups"]["additionalProperties"]["properties"]
    del worker["groupName"]
    assert worker == group
    assert worker.keys() - head.keys() == {"disabled", "replicas", "minReplicas", "maxReplicas", "numOfHosts"}
    assert {key: head[key] for key in head.keys() & worker.keys()} == {
        key: worker[key] for key in head.keys() & worker.keys()
    }
