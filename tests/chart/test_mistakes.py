"""The chart refuses wrong values, and reports all of them at once, each with its path.

mistakes.yaml has a case for each rule of _validate.tpl, which test_conditions.py renders. tests/e2e tests the rule
against a second operator, which needs a live cluster.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.chart.conftest import CHART, Render, RenderError
from tests.chart.test_conditions import CASES, nest

TYPE = {
    "auth.enabled": "yes",
    "auth.token": 12345,
    "auth.existingSecret": True,
    "serviceAccounts.head.create": "true",
    "serviceAccounts.worker.name": 7,
    "serviceAccounts.worker.annotations.number": 7,
    "api.nodePort": "30265",
    "api.annotations": [],
    "submitter.subjects": {},
    "submitter.podProxy": 1,
    "networkPolicy.enabled": "off",
    "networkPolicy.apiServerFrom": "10.0.0.0/8",
    "networkPolicy.metricsFrom.0": "prometheus",
    "networkPolicy.headIngress": {},
    "podDisruptionBudget.enabled": 1,
    "metrics.podMonitor.enabled": "true",
    "metrics.podMonitor.labels.release": 1,
    "metrics.podMonitoring.interval": 30,
    "replacePodsOnUpgrade": "Recreate",
    "image.pullSecrets": "registry",
    "head.cpu": [],
    "head.runsTasks": "no",
    "workers.replicas": "2",
    "workers.spot": "yes",
    "workerGroups.gpu.gpus": "1",
    "workerGroups.cpu": [],
    "volumes.a": "claim",
    "volumes.b.mountPath": 1,
    "autoscaling.enabled": "true",
    "headRecovery.redisAddress": 6379,
    "rayCluster.labels.a": 1,
    "networkPolicy.egress.cloudMetadata": 1,
    "cleanup.timeoutSeconds": "180",
    "secrets.a.data.key": 1,
    "secrets.b": "a file",
    "kuberay-operator.enabled": "false",
    "kuberay-operator.replicas": "1",
    "kuberay-operator.leaderElectionEnabled": "no",
    "kuberay-operator.watchNamespace": "ray",
    "kuberay-operator.image.tag": 1.7,
    "kuberay-operator.metrics.serviceMonitor.enabled": 0,
    "kuberay-operator.resources.requests.cpu": True,
    "ray-cluster.enabled": "false",
    "ray-cluster.fullnameOverride": 1,
    "ray-cluster.image.tag": 2.60,
    "ray-cluster.common.containerEnv": {},
    "ray-cluster.head.rayVersion": 2.60,
    "ray-cluster.head.enableInTreeAutoscaling": "true",
    "ray-cluster.head.autoscalerOptions.idleTimeoutSeconds": "60",
    "ray-cluster.head.ports": {"dashboard": 8265},
    "ray-cluster.head.containerEnv.0.value": 30,
    "ray-cluster.head.rayStartParams.num-cpus": [],
    "ray-cluster.head.tolerations": {},
    "ray-cluster.head.nodeSelector.spot": True,
    "ray-cluster.worker.replicas": "2",
    "ray-cluster.worker.maxReplicas": 2.5,
    "ray-cluster.worker.resources.limits": "4Gi",
    "ray-cluster.worker.volumes": {"log-volume": {}},
    "ray-cluster.worker.disabled": "true",
    "ray-cluster.gcsFaultTolerance.redisAddress": 6379,
    "ray-cluster.imagePullSecrets": "registry",
    "ray-cluster.additionalWorkerGroups.gpu.minReplicas": "0",
    "ray-cluster.additionalWorkerGroups.cpu": [],
}
TYPO = [
    "Auth",
    "auth.enable",
    "secrets.a.Data",
    "serviceAccounts.workers",
    "serviceAccounts.head.annotation",
    "api.nodeport",
    "submitter.subject",
    "submitter.subjects.0.nameSpace",
    "networkPolicy.apiserverFrom",
    "networkPolicy.headIngress.0.port",
    "networkPolicy.metricsFrom.0.ipblock",
    "podDisruptionBudget.minAvailable",
    "metrics.podmonitor",
    "metrics.podMonitor.scrapeInterval",
    "image.pullSecret",
    "head.replicas",
    "head.gpus",
    "workers.enabled",
    "workers.minreplicas",
    "workerGroups.gpu.groupName",
    "workerGroups.gpu.gpu",
    "env.A.value",
    "autoscaling.idleTimeout",
    "headRecovery.storageClass",
    "rayCluster.metadata",
    "networkPolicy.egress.to",
    "cleanup.timeout",
    "secrets.a.mountpath",
    "kuberay-operator.replica",
    "kuberay-operator.image.pullpolicy",
    "kuberay-operator.serviceAccount.annotations",
    "kuberay-operator.metrics.serviceMonitor.enable",
    "kuberay-operator.resources.request",
    "ray-cluster.heads",
    "ray-cluster.image.repo",
    "ray-cluster.common.env",
    "ray-cluster.head.enableInTreeAutoScaling",
    "ray-cluster.head.serviceAccount",
    "ray-cluster.head.autoscalerOptions.idleTimeout",
    "ray-cluster.head.ports.0.port",
    "ray-cluster.head.resources.limit",
    "ray-cluster.head.containerEnv.0.valuefrom",
    "ray-cluster.worker.maxReplica",
    "ray-cluster.worker.image.pullSecret",
    "ray-cluster.worker.rayVersion",
    "ray-cluster.gcsFaultTolerance.redis",
    "ray-cluster.additionalWorkerGroups.gpu.groupName",
    "ray-cluster.service.ports",
]
VALUE: dict[str, Any] = {
    "api.type": "Ingress",
    "metrics.podMonitor.interval": "half a minute",
    "serviceAccounts.head.name": "Ray_Head",
    "submitter.subjects.0.kind": "Robot",
    "submitter.subjects.0.name": "",
    "kuberay-operator.service.type": "ExternalName",
    "ray-cluster.image.pullPolicy": "Sometimes",
    "ray-cluster.head.restartPolicy": "No",
    "ray-cluster.head.autoscalerOptions.version": "v3",
    "ray-cluster.head.ports.0.containerPort": 70000,
    "ray-cluster.head.resources.requests.memory": "4 GB",
    "ray-cluster.head.rayStartParams.object-store-memory": 4_000_000_000,  # the upstream template renders 4e+09
    "ray-cluster.worker.minReplicas": -1,
    "head.memory": "4 GB",
    "workers.maxReplicas": -1,
    "workerGroups.gpu.numOfHosts": 0,
    "secrets.a.mountPath": "relative",
    "outputs": "relative",
}
MISSING: dict[str, dict[str, Any]] = {
    "volumes.v": {"emptyDir": {}},
    "env.A": {"secret": "s"},
    "ray-cluster.worker.volumeMounts.0": {"name": "log-volume"},
    "networkPolicy.metricsFrom.0.ipBlock": {"except": []},
}


def with_lists(value: Any) -> Any:
    """Replace the dicts that nest() made of an index by lists."""
    if not isinstance(value, dict):
        return value
    inner = {key: with_lists(v) for key, v in value.items()}
    return list(inner.values()) if inner.keys() == {"0"} else inner


def pointer(path: str) -> str:
    return f"/{path.replace('.', '/')}" if path else ""


def complaints(render: Render, values: dict[str, Any], helm: Path | None = None) -> dict[str, str]:
    """Return the message of the schema for each path."""
    with pytest.raises(RenderError, match="values don't meet the specifications of the schema") as error:
        render(values=with_lists(nest(values)), helm=helm)
    found = re.findall(r"^ *- at '(.*?)': (.*)", str(error.value), re.MULTILINE)
    return {place: text for place, text in found if not re.fullmatch(r"validation failed|'anyOf' failed.*", text)}


def test_wrong_types(render: Render, helm: Path) -> None:
    said = complaints(render, TYPE, helm)
    wrong = {place for place, text in said.items() if re.match(r"got \w+, want ", text)}
    assert wrong == {pointer(path) for path in TYPE}


def test_typos(render: Render, helm: Path) -> None:
    said = complaints(render, dict.fromkeys(TYPO, "x"), helm)
    for path in TYPO:
        parent, _, key = path.rpartition(".")
        found = re.search(r"additional propert(?:y|ies) (.*) not allowed", said[pointer(parent)])
        assert found and f"'{key}'" in found[1].split(", "), path


def test_wrong_values(render: Render, helm: Path) -> None:
    said = complaints(render, VALUE, helm)
    assert {place for place, text in said.items() if "missing propert" not in text} == {pointer(path) for path in VALUE}


def test_missing_keys(render: Render, helm: Path) -> None:
    said = complaints(render, MISSING, helm)
    assert {place for place, text in said.items() if "missing propert" in text} == {pointer(path) for path in MISSING}


@pytest.mark.parametrize("path", ["auth.enabled", "ray-cluster.head.rayVersion", "kuberay-operator.replica"])
def test_a_single_mistake_is_refused(path: str, render: Render, helm: Path) -> None:
    (place,) = complaints(render, {path: []}, helm)
    assert place == pointer(path if path in TYPE else path.rpartition(".")[0])


def test_a_disabled_subchart_is_validated(render: Render) -> None:
    """The schema also applies to the values of a disabled subchart."""
    for switch in ("kuberay-operator", "ray-cluster"):
        assert complaints(render, {f"{switch}.enabled": False, f"{switch}.typo": 1}).keys() == {f"/{switch}"}


def test_incomplete_values_of_a_disabled_subchart_are_accepted(render: Render) -> None:
    """Helm merges the upstream defaults only into enabled subcharts: an image may then have only a tag."""
    for enabled in (True, False):
        render(values=nest({"kuberay-operator.enabled": enabled, "kuberay-operator.image.tag": "v1.7.1"}))


ENV = [{"name": "RAY_AUTH_TOKEN", "value": "planted"}]
ALL = {
    "kuberay-operator": {"replicas": 2, "watchNamespace": ["elsewhere"]},
    "image.tag": "2.51.0",
    "auth": {"token": "two words", "existingSecret": "mine"},
    "env": {"RAY_AUTH_MODE": "disabled"},
    "serviceAccounts": {"head": {"name": "123"}, "worker": {"name": "123"}},
    "api.nodePort": 30265,
    "metrics.podMonitor.enabled": True,
    "metrics.podMonitoring.enabled": True,
    "autoscaling.enabled": True,
    "networkPolicy.egress.enabled": True,
    "secrets": {"both": {"data": {"key": "content"}, "existingSecret": "other"}, "one-name": {"existingSecret": "s"}},
    "volumes": {
        "one-name": {"mountPath": "/v", "emptyDir": {}},
        "api-token": {"mountPath": "/v", "emptyDir": {}, "groups": ["gpu", "workergroup"]},
        "none": {"mountPath": "/tmp/ray"},
    },
    "outputs": "/results",
    "workers.maxReplicas": 0,
    "workers.spot": True,
    "workerGroups.Big_": {},
    "rayCluster.spec": {"authOptions": {}, "headGroupSpec": {}},
    "ray-cluster": {
        "fullnameOverride": "9-lives",
        "gcsFaultTolerance": {"enabled": True, "redisPassword": {"value": "planted"}},
        "common": {"containerEnv": ENV},
        "head": {
            "rayVersion": "2.51.0",
            "ports": [{"name": "gcs-server", "containerPort": 1}],
            "rayStartParams": {"port": "6380"},
            "restartPolicy": "Always",
            "enableInTreeAutoscaling": True,
        },
        "worker": {"replicas": 2},
        "additionalWorkerGroups": {"gone": {"replicas": 3}, "workergroup": {"replicas": 3}},
    },
}
# Values and the number of their mistakes.
SAID: list[tuple[dict[str, Any], int]] = [
    (ALL, 38),
    ({"image.tag": "nightly", "spotNodes": {"a": "b"}, "workers": {"spot": True, "nodeSelector": {"a": "c"}}}, 2),
    ({"image.tag": "2.59.0", "rayVersion": "2.60.0"}, 1),
    ({"rayCluster.checkCRD": True}, 1),
    ({"kuberay-operator.enabled": False, "ray-cluster.enabled": False}, 1),
]


def bullets(render: Render, values: Mapping[str, Any], chart: Path) -> list[str]:
    with pytest.raises(RenderError, match=r"\d+ mistake\(s\) in the values:") as error:
        render(values=nest(values), chart=chart)
    found = re.findall(r"^  - (.*)", str(error.value), re.MULTILINE)
    assert f": {len(found)} mistake(s) in the values:" in str(error.value)
    return found


def formats() -> list[str]:
    """Return each message of _validate.tpl that the chart can report without a live cluster."""
    text = (CHART / "templates" / "_validate.tpl").read_text()
    found = re.findall(r'append \$found \(?(?:printf )?("(?:[^"\\]|\\.)*")', text)
    assert len(found) == text.count("append $found") > 25
    return [line.strip('"') for line in found if not re.search("is already running in|CRD of this", line)]


def unsaid(said: list[str]) -> list[str]:
    patterns = {line: re.sub("%[sqd]", ".*", re.escape(line)) for line in formats()}
    return [line for line, pattern in patterns.items() if not any(re.fullmatch(pattern, text) for text in said)]


def test_all_mistakes_are_reported_at_once(render: Render) -> None:
    said = [bullets(render, values, CHART) for values, _ in SAID]
    assert [len(set(lines)) for lines in said] == [count for _, count in SAID], "\n".join(map(str, said))
    assert unsaid(sum(said, [])) == []


def test_each_mistake_alone_has_its_case(render: Render, editable: Path) -> None:
    alone = [case.when for case in CASES if case.error and case.where == "_validate.tpl"]
    said = [bullets(render, values, editable) for values in alone]
    assert unsaid(sum(said, [])) == []
