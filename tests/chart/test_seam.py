"""The values that the chart computes for the upstream charts, and the user's own that are laid over them."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.conftest import CHART, Manifest, Render, RenderError, find, values_files
from tests.chart.test_conditions import nest
from tests.chart.test_secret_values import pods
from tests.conftest import ROOT

FILES = values_files()


def cluster(manifests: list[Manifest]) -> Any:
    return find(manifests, "RayCluster", "ray")["spec"]


def groups(manifests: list[Manifest]) -> dict[str, Any]:
    return {group["groupName"]: group for group in cluster(manifests)["workerGroupSpecs"]}


def containers(manifests: list[Manifest]) -> dict[str, Any]:
    """Return the Ray container of the head and of each group."""
    return {name: pod["containers"][0] for name, pod in pods(find(manifests, "RayCluster", "ray")).items()}


def test_a_helm_that_renders_in_another_order_installs_nothing(render: Render, editable: Path, helm: Path) -> None:
    chart = editable.with_name("flat")
    shutil.copytree(editable, chart, dirs_exist_ok=True)
    seam = chart / "templates" / "seam" / "upstream" / "ray-cluster.yaml"
    for where in ("seam.yaml", "seam/ray-cluster.yaml", "a.yaml"):
        seam = seam.rename(chart / "templates" / where)
        with pytest.raises(RenderError, match="the values of the RayCluster were not computed: use Helm 3 or 4"):
            render(chart=chart, helm=helm)


def test_the_upstream_chart_gets_only_computed_values_and_the_users_own(render: Render) -> None:
    """Nothing of its defaults, of which some are not secure."""
    for name, container in containers(render()).items():
        assert container["image"] == "rayproject/ray:2.60.0-py311", name
        assert container["resources"] == {part: {"cpu": "2", "memory": "4Gi"} for part in ("requests", "limits")}
        assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp/ray"]
    without = render(values=nest({"head.cpu": "", "workers.memory": "", "workers.cpu": ""}))
    assert containers(without)["head"]["resources"] == {p: {"memory": "4Gi"} for p in ("requests", "limits")}
    assert containers(without)["workergroup"]["resources"] == {"limits": {}, "requests": {}}


def snippets() -> dict[str, str]:
    text = (CHART / "README.md").read_text().partition("## GitOps")[0]
    return dict(re.findall(r"^\*\*(.+?)\*\*.*\n\n((?:    .*\n)+)", text, re.MULTILINE))


def of_claim(container: Any) -> bool:
    return {"name": "datasets", "mountPath": "/datasets"} in container["volumeMounts"]


SNIPPETS: dict[str, tuple[int, Callable[[Any], bool]]] = {
    "A Secret": (3, lambda c: "/home/ray/.cloudvolume/secrets" in {m["mountPath"] for m in c["volumeMounts"]}),
    "A volume claim": (4, of_claim),
    "A GPU group": (5, lambda c: True),
    "Your own token": (1, lambda c: "'name': 'my-token'" in str(c["env"])),
    "Ray Serve and Ray Client": (1, lambda c: True),  # see test_network
    "Your own image": (2, lambda c: c["image"].startswith("LOCATION-docker.pkg.dev/PROJECT/REPOSITORY/ray-workload:")),
}


@pytest.mark.parametrize("name", SNIPPETS)
def test_one_thing_is_a_few_lines(name: str, render: Render, helm: Path) -> None:
    """Each snippet of the README is enough for what it says, in all pods."""
    lines, done = SNIPPETS[name]
    assert snippets().keys() == SNIPPETS.keys() and snippets()[name].count("\n") <= lines
    values = yaml.safe_load(snippets()[name])
    for file in ("values-local.yaml", "values-gke.yaml"):
        if (name, file) != ("A GPU group", "values-local.yaml"):  # which names no spot nodes
            found = containers(render(*FILES[file], values=values, helm=helm))
            assert all(done(container) for container in found.values()), (file, found)


def test_a_gpu_group(render: Render) -> None:
    group = groups(render(*FILES["values-gke.yaml"], values=yaml.safe_load(snippets()["A GPU group"])))["gpu"]
    pod = group["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    assert {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"} in pod["tolerations"]
    (preferred,) = pod["affinity"]["nodeAffinity"].pop("preferredDuringSchedulingIgnoredDuringExecution")
    spot = {"key": "cloud.google.com/gke-spot", "operator": "In", "values": ["true"]}
    assert preferred["preference"] == {"matchExpressions": [spot]}
    assert pod["affinity"] == {"nodeAffinity": {}}  # nothing is required: tasks run where there are no spot nodes
    # Ray starts in a shell, with this as one word of JSON; the autoscaler drops the outer quotes and the backslashes.
    (word,) = shlex.split(group["rayStartParams"]["resources"])
    assert json.loads(word) == {"accelerator_type:L4": 1}
    assert json.loads(group["rayStartParams"]["resources"][1:-1].replace("\\", "")) == {"accelerator_type:L4": 1}


def test_a_group_has_what_all_workers_have_except_what_it_says_otherwise(render: Render) -> None:
    found = groups(render(*FILES["everything.yaml"]))
    assert list(found) == ["large", "workergroup"]  # the group `unused` is disabled
    usual, large = (found[name]["template"]["spec"]["containers"][0] for name in ("workergroup", "large"))
    assert usual["resources"]["limits"] == {
        "cpu": "5",
        "memory": "6Gi",
        "ephemeral-storage": "8Gi",
        "nvidia.com/gpu": "1",
    }
    assert large["resources"]["limits"] == {"cpu": "16", "memory": "6Gi", "ephemeral-storage": "8Gi"}
    assert (usual["imagePullPolicy"], large["imagePullPolicy"]) == ("Never", "Always")
    assert usual["env"] == large["env"] and {"name": "ROLE", "value": "worker"} in usual["env"]
    for name, metrics in {"workergroup": 8082, "large": 8090}.items():
        container = found[name]["template"]["spec"]["containers"][0]
        assert container["ports"] == [{"name": "metrics", "containerPort": metrics}]


def test_volumes_are_mounted_where_they_are_wanted(render: Render) -> None:
    found = containers(render(*FILES["everything.yaml"]))
    datasets = {"name": "datasets", "mountPath": "/datasets", "subPath": "team", "readOnly": True}
    assert {name for name, c in found.items() if datasets in c["volumeMounts"]} == {"head", "large"}
    results = {"name": "results", "mountPath": "/results"}
    assert all(results in container["volumeMounts"] for container in found.values())
    manifests = render(*FILES["gcs-bucket.yaml"])
    templates = [cluster(manifests)["headGroupSpec"]["template"], groups(manifests)["workergroup"]["template"]]
    for template in templates:
        assert template["metadata"]["annotations"] == {
            "gke-gcsfuse/volumes": "true",
            "gke-gcsfuse/ephemeral-storage-limit": "1Gi",
        }
        assert template["spec"]["volumes"][1]["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"


@pytest.mark.parametrize("url", ["gs://bucket/results", "s3://bucket"])
def test_outputs(url: str, render: Render) -> None:
    for container in containers(render(values={"outputs": url})).values():
        assert {"name": "RAY_WORKLOAD_OUTPUTS", "value": url} in container["env"]
    for container in containers(render(*FILES["volume-claim.yaml"])).values():
        assert {"name": "RAY_WORKLOAD_OUTPUTS", "value": "/datasets/results"} in container["env"]


SCALING: list[tuple[dict[str, Any], tuple[int, int, int]]] = [
    ({}, (1, 1, 5)),
    ({"replicas": 7}, (7, 7, 7)),
    ({"replicas": 0}, (0, 0, 5)),
    ({"replicas": 0, "maxReplicas": 0}, (0, 0, 0)),
    ({"maxReplicas": 2_000_000}, (1, 1, 2_000_000)),
    ({"replicas": 2, "minReplicas": 1}, (2, 2, 5)),
    ({"replicas": 2, "autoscaling": True}, (2, 2, 5)),
    ({"replicas": 2, "minReplicas": 0, "autoscaling": True}, (0, 0, 5)),
    ({"minReplicas": 3, "maxReplicas": 3, "autoscaling": True}, (3, 3, 3)),
]


@pytest.mark.parametrize(("given", "wanted"), SCALING)
def test_replicas(given: dict[str, Any], wanted: tuple[int, int, int], render: Render) -> None:
    workers = {key: value for key, value in given.items() if key != "autoscaling"}
    values = {"workers": workers, "autoscaling": {"enabled": "autoscaling" in given}}
    group = groups(render(values=values))["workergroup"]
    assert tuple(group[key] for key in ("replicas", "minReplicas", "maxReplicas")) == wanted


HATCH: dict[str, Any] = {
    "image": {"tag": "2.60.0-py313"},
    "imagePullSecrets": [{"name": "registry"}],
    "annotations": {"mine": "yes"},
    "common": {"containerEnv": [{"name": "A", "value": "common"}, {"name": "B", "value": "common"}]},
    "head": {
        "priorityClassName": "high",
        "containerEnv": [{"name": "B", "value": "head"}, {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "5"}],
        "ports": [{"name": "serve", "containerPort": 8001}],
        "resources": {"limits": {"memory": "9Gi"}},
        "podSecurityContext": {"runAsUser": 1001, "runAsNonRoot": False},
        "tolerations": [{"key": "a"}],
        "volumes": [{"name": "log-volume", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "more", "emptyDir": {}}],
        "volumeMounts": [{"name": "more", "mountPath": "/more"}],
        "autoscalerOptions": {"upscalingMode": "Aggressive", "env": [{"name": "A", "value": "b"}]},
        "sidecarContainers": [{"name": "sidecar", "image": "sidecar"}],
    },
    "worker": {"priorityClassName": "low", "containerEnv": [{"name": "A", "value": "worker"}]},
    "additionalWorkerGroups": {"workergroup": {"priority": 7, "containerEnv": [{"name": "B", "value": "group"}]}},
}


def test_upstream_values_are_laid_over_the_computed_ones(render: Render, helm: Path) -> None:
    values = {"ray-cluster": HATCH, "autoscaling": {"enabled": True}, "head": {"tolerations": [{"key": "b"}]}}
    manifests = render(values=values, helm=helm)
    spec = cluster(manifests)
    pod, worker = (pods({"spec": spec})[name] for name in ("head", "workergroup"))
    head = pod["containers"][0]
    assert (pod["priorityClassName"], worker["priorityClassName"], worker["priority"]) == ("high", "low", 7)
    env = {variable["name"]: variable.get("value", "from") for variable in head["env"]}
    stop = {"RAY_JOB_STOP_WAIT_TIME_S": "5"}
    assert env == {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "from", "A": "common", "B": "head", **stop}
    env = {variable["name"]: variable.get("value", "from") for variable in worker["containers"][0]["env"]}
    assert env == {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "from", "A": "worker", "B": "group"}
    ports = {port["name"]: port["containerPort"] for port in head["ports"]}
    assert (ports["serve"], ports["dashboard"], len(ports)) == (8001, 8265, 7)
    assert head["image"] == "rayproject/ray:2.60.0-py313"
    assert head["resources"]["limits"] == {"cpu": "2", "memory": "9Gi"}
    assert pod["securityContext"] | {"runAsGroup": 100} == pod["securityContext"]
    assert (pod["securityContext"]["runAsUser"], pod["securityContext"]["runAsNonRoot"]) == (1001, False)
    assert pod["tolerations"] == [{"key": "b"}, {"key": "a"}]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert list(volumes) == ["log-volume", "api-token", "more"]
    assert volumes["log-volume"]["emptyDir"] == {"sizeLimit": "1Gi"}
    assert [mount["mountPath"] for mount in head["volumeMounts"]] == ["/tmp/ray", "/more"]
    assert [v["name"] for v in spec["autoscalerOptions"]["env"]] == ["RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "A"]
    assert (spec["autoscalerOptions"]["upscalingMode"], spec["autoscalerOptions"]["version"]) == ("Aggressive", "v2")
    assert [container["name"] for container in pod["containers"]] == ["ray-head", "sidecar"]
    assert find(manifests, "RayCluster", "ray")["metadata"]["annotations"] == {"mine": "yes"}
    assert pod["imagePullSecrets"] == [{"name": "registry"}]


def test_an_empty_text_is_a_value(render: Render, helm: Path) -> None:
    own = {part: {"empty": ""} for part in ("env", "nodeSelector", "annotations", "labels")}
    values = {
        "env": {"empty": "no"},
        "head": own,
        "workers": own | {"accelerator": "L4", "memory": "1Gi", "image": {"tag": ""}},
        "workerGroups": {"g": {"accelerator": "", "memory": ""}},
        "acceleratorNodes": {"L4": {"kind": "l4"}},
        "ray-cluster": {"annotations": {"empty": ""}, "image": {"tag": ""}},
        "rayCluster": {"annotations": {"empty": "no"}},
    }
    manifests = render(values=values, helm=helm)
    found = {"head": cluster(manifests)["headGroupSpec"], **groups(manifests)}
    for name, node in found.items():
        metadata, pod = node["template"]["metadata"], node["template"]["spec"]
        assert (metadata["annotations"]["empty"], metadata["labels"]["empty"], pod["nodeSelector"]["empty"]) == (
            "",
        ) * 3
        assert {"name": "empty", "value": ""} in pod["containers"][0]["env"], name
        assert pod["containers"][0]["image"] == "rayproject/ray:2.60.0-py311"
    assert "resources" in found["workergroup"]["rayStartParams"] and found["g"]["rayStartParams"] == {}
    assert found["g"]["template"]["spec"]["containers"][0]["resources"]["limits"] == {"cpu": "2"}
    assert find(manifests, "RayCluster", "ray")["metadata"]["annotations"]["empty"] == ""


def test_zero_and_false_are_values(render: Render) -> None:
    values = {
        "env": {"A": "1", "B": "yes"},
        "head": {"env": {"A": 0, "B": False}, "requests": {"cpu": 0}, "rayStartParams": {"num-cpus": 3}},
        "ray-cluster": {"head": {"initArgs": {"num-cpus": 0}}},
    }
    head = cluster(render(values=values))["headGroupSpec"]
    container = head["template"]["spec"]["containers"][0]
    assert [v for v in container["env"] if v["name"] in "AB"] == [
        {"name": "A", "value": "0"},
        {"name": "B", "value": "false"},
    ]
    assert container["resources"]["requests"] == {"cpu": "0", "memory": "4Gi"}
    assert head["rayStartParams"] == {"num-cpus": "0"}


def test_numbers_keep_their_digits(render: Render, helm: Path) -> None:
    """The CRD does not take fractions as numbers, and Go writes a million as 1e+06."""
    values = {
        "env": {"BIG": 1_000_000, "HALF": 0.5},
        "head": {"memory": 8_000_000_000, "requests": {"cpu": 0.5}},
        "workers": {"cpu": 1.5},
        "autoscaling": {"enabled": True, "resources": {"requests": {"cpu": 0.25}}},
        "ray-cluster": {"worker": {"resources": {"requests": {"cpu": 0.75}, "limits": {"memory": 4_000_000_000}}}},
    }
    manifests = render(values=values, helm=helm)
    head, worker = (containers(manifests)[name] for name in ("head", "workergroup"))
    assert {"name": "BIG", "value": "1000000"} in head["env"] and {"name": "HALF", "value": "0.5"} in worker["env"]
    assert head["resources"] == {
        "limits": {"cpu": "2", "memory": "8000000000"},
        "requests": {"cpu": "0.5", "memory": "8000000000"},
    }
    assert worker["resources"] == {
        "limits": {"cpu": "1.5", "memory": "4000000000"},
        "requests": {"cpu": "0.75", "memory": "4Gi"},
    }
    assert cluster(manifests)["autoscalerOptions"]["resources"]["requests"] == {"cpu": "0.25", "memory": "512Mi"}


def test_more_ports_of_workers(render: Render) -> None:
    ports = [{"name": "app", "containerPort": 9000}]
    values = {"workers": {"rayStartParams": {"metrics-export-port": 8081}}, "ray-cluster": {"worker": {"ports": ports}}}
    expected = [{"name": "metrics", "containerPort": 8081}, *ports]
    assert containers(render(values=values))["workergroup"]["ports"] == expected


def test_fields_that_the_upstream_chart_does_not_have(render: Render, helm: Path) -> None:
    usual = cluster(render(helm=helm))
    assert usual["upgradeStrategy"] == {"type": "None"}
    assert usual["authOptions"] == {"mode": "token", "secretName": "ray-auth-token"}
    assert "gcsFaultToleranceOptions" not in usual and "suspend" not in usual
    assert cluster(render(values={"replacePodsOnUpgrade": True}))["upgradeStrategy"] == {"type": "Recreate"}
    storage = {"size": "2Gi", "storageClassName": "standard", "deletionPolicy": "Retain"}
    found = cluster(render(*FILES["head-recovery.yaml"], helm=helm))["gcsFaultToleranceOptions"]
    assert found == {"backend": "rocksdb", "storage": storage}
    found = cluster(render(*FILES["redis.yaml"]))["gcsFaultToleranceOptions"]
    assert found == {"redisAddress": "redis:6379"}
    queued = find(render(*FILES["queued.yaml"], helm=helm), "RayCluster", "ray")
    assert queued["spec"]["suspend"] is True
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    for pod in (
        queued["spec"]["headGroupSpec"],
        *queued["spec"]["workerGroupSpecs"],
    ):  # Kueue would queue the pods, too
        assert "kueue.x-k8s.io/queue-name" not in pod["template"]["metadata"]["labels"]


def test_pods_are_ready_as_soon_as_ray_is(render: Render, helm: Path) -> None:
    """The operator's own probe waits for 10 s. Earlier versions of Ray lack the path, so theirs stays."""
    for file, agents in {"values.yaml": {52365}, "custom-ports.yaml": {52367, 8503}}.items():
        found = [container["readinessProbe"] for container in containers(render(*FILES[file], helm=helm)).values()]
        assert {probe["httpGet"]["port"] for probe in found} == agents
        assert all((p["httpGet"]["path"], p["initialDelaySeconds"]) == ("/api/healthz", 1) for p in found)
    old = render(values={"image": {"tag": "2.52.1"}})
    assert not any("readinessProbe" in container for container in containers(old).values())
    assert {container["imagePullPolicy"] for container in containers(old).values()} == {"IfNotPresent"}


def test_the_operator_can_recover_a_head(render: Render) -> None:
    def gates(*files: Path) -> str:
        (container,) = find(render(*files), "Deployment", "kuberay-operator")["spec"]["template"]["spec"]["containers"]
        return next(str(word) for word in container["args"] if "feature-gates" in word)

    usual = gates()
    assert gates(*FILES["redis.yaml"]) == usual
    assert gates(*FILES["head-recovery.yaml"]) == f"{usual},GCSFaultToleranceEmbeddedStorage=true"


@pytest.mark.parametrize(
    ("values", "version"),
    [
        ({}, "2.60.0"),
        ({"image": {"tag": "2.61.3-py312-gpu"}}, "2.61.3"),
        ({"image": {"tag": "2.61.0rc0"}}, "2.61.0rc0"),
        ({"image": {"tag": "2.60.0@sha256:0123"}}, "2.60.0"),
        ({"image": {"tag": "nightly"}, "rayVersion": "3.0.0.dev0"}, "3.0.0.dev0"),
        ({"head": {"image": {"tag": "2.62.0"}}}, "2.62.0"),
        ({"ray-cluster": {"image": {"tag": "2.63.0"}}}, "2.63.0"),
    ],
)
def test_the_version_of_ray(values: dict[str, Any], version: str, render: Render) -> None:
    assert cluster(render(values=values))["rayVersion"] == version


def test_the_readme_lists_all_images(render: Render) -> None:
    text, found = (CHART / "README.md").read_text(), set()
    for file in ("values.yaml", "values-gke.yaml"):
        found |= set(re.findall(r'"image": "(.*?)"', json.dumps(render(*FILES[file]))))
    usual = {"rayproject/ray:2.60.0-py311", "quay.io/kuberay/operator:v1.7.0"}
    assert found == {*usual, "rayproject/ray:2.60.0-py311-gpu"} and all(f"`{image}`" in text for image in usual)


def test_the_readme_is_in_the_chart(helm: Path) -> None:
    said = subprocess.run([helm, "show", "readme", str(CHART)], capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout.strip() == (CHART / "README.md").read_text().strip()


def test_the_examples_of_the_readme_are_yaml() -> None:
    found = re.findall(r"(?m)^\n((?:    .*\n)+)", (CHART / "README.md").read_text().partition("## GitOps")[2])
    kinds = [yaml.safe_load(example)["kind"] for example in found]
    assert kinds == ["Application", "HelmRelease"]


def test_the_gallery_is_in_the_readme() -> None:
    named = re.findall(r"^\| `([\w-]+\.yaml)` \|", (CHART / "README.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(path.name for path in (ROOT / "ci" / "values").iterdir())


def lines(file: str) -> int:
    return sum(bool(line.partition("#")[0].strip()) for line in (CHART / file).read_text().splitlines())


def test_the_values_files_are_short() -> None:
    assert (lines("values-local.yaml") <= 15, lines("values-gke.yaml") <= 60) == (True, True)
