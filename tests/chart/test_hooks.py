"""The pods of hooks and of `helm test`: what they run, and on which nodes."""

from typing import Any

from tests.chart.conftest import CHART, Manifest, Render, find, values_files
from tests.chart.test_conditions import nest

FILES = CHART / "files"
TOLERATIONS = [{"key": "heads", "operator": "Exists"}]
CUSTOM = {
    "image.pullSecrets": ["registry"],
    "head.image": {"repository": "mine/ray", "tag": "2.60.0-mine", "pullPolicy": "Always"},
    "head.nodeSelector": {"cloud.google.com/pool": "true"},
    "head.tolerations": TOLERATIONS,
}


def pod(manifests: list[Manifest], kind: str, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = find(manifests, kind, name)["spec"]
    return spec if kind == "Pod" else spec["template"]["spec"]


def test_the_job(render: Render) -> None:
    spec = find(render(values=nest({"cleanup.timeoutSeconds": 30})), "Job", "ray-cleanup")["spec"]
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"]) == (3, 90)
    (container,) = spec["template"]["spec"]["containers"]
    assert container["args"] == ["30"]
    assert container["command"] == ["python", "-c", (FILES / "hooks.py").read_text()]
    assert container["env"] == [{"name": "NAMESPACE", "value": "ray"}, {"name": "CLUSTER", "value": "ray"}]


def test_the_test(render: Render) -> None:
    manifests = render()
    (container,) = pod(manifests, "Pod", "ray-test")["containers"]
    assert (container["command"], container["args"]) == (["python", "-c", (FILES / "check.py").read_text()], [])
    assert [variable["name"] for variable in container["env"]] == ["NAMESPACE", "CLUSTER", "URL", "RAY_AUTH_TOKEN"]
    assert container["env"][2:] == [
        {"name": "URL", "value": "http://ray-api:8265"},
        {
            "name": "RAY_AUTH_TOKEN",
            "valueFrom": {"secretKeyRef": {"name": "ray-auth-token", "key": "auth_token"}},
        },
    ]
    # The network policies admit pods with this label.
    assert find(manifests, "Pod", "ray-test")["metadata"]["labels"]["ray-workload/client"] == "true"
    (container,) = pod(render(*values_files()["everything.yaml"]), "Pod", "ray-test")["containers"]
    assert [variable["name"] for variable in container["env"]] == ["NAMESPACE", "CLUSTER", "URL"]


def test_they_prefer_the_nodes_of_the_head(render: Render) -> None:
    usual, custom = render(), render(values=nest(CUSTOM))
    head = find(usual, "RayCluster", "ray")["spec"]["headGroupSpec"]["template"]["spec"]
    for kind, name in (("Job", "ray-cleanup"), ("Pod", "ray-test")):
        before, after = pod(usual, kind, name), pod(custom, kind, name)
        assert before["restartPolicy"] == "Never" and before["securityContext"] == head["securityContext"]
        (container,) = before["containers"]
        for key in ("image", "imagePullPolicy", "securityContext"):
            assert container[key] == head["containers"][0][key]
        assert container["resources"]["requests"].keys() == container["resources"]["limits"].keys() == {"cpu", "memory"}
        assert not {"imagePullSecrets", "affinity", "tolerations"} & before.keys()
        assert after["imagePullSecrets"] == [{"name": "registry"}]
        assert after["tolerations"] == TOLERATIONS
        # Preferred, not required: an uninstall must not wait for such a node.
        there = {"matchExpressions": [{"key": "cloud.google.com/pool", "operator": "In", "values": ["true"]}]}
        rather = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": there}]}
        assert (after["affinity"], "nodeSelector" in after) == ({"nodeAffinity": rather}, False)
        (container,) = after["containers"]
        assert (container["image"], container["imagePullPolicy"]) == ("mine/ray:2.60.0-mine", "Always")
