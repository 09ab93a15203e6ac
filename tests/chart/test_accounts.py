"""Service accounts and roles: which pods use them, which pods have an API token, and the exact permissions."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.conftest import Manifest, Render, find, values_files
from tests.chart.test_pod_security import every, templates

FILES = values_files()
API_TOKEN = {"name": "api-token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True}
VIEW = ["get", "list", "watch"]
SUBMITTER = [
    {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": VIEW},
    {"apiGroups": [""], "resources": ["services"], "resourceNames": ["ray-api"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["ray-auth-token"], "verbs": ["get"]},
    {
        "apiGroups": [""],
        "resources": ["services/proxy"],
        "resourceNames": ["http:ray-api:8265", "http:ray-api:52365"],
        "verbs": ["get", "create", "update", "delete"],
    },
    {"apiGroups": [""], "resources": ["pods", "events"], "verbs": VIEW},
]
POD_PROXY = {"apiGroups": [""], "resources": ["pods/proxy"], "verbs": ["get"]}
ROLES = {
    "ray-submitter": SUBMITTER,
    "ray-cleanup": [
        {
            "apiGroups": ["ray.io"],
            "resources": ["rayclusters"],
            "resourceNames": ["ray"],
            "verbs": ["get", "delete", "patch"],
        },
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["get", "list", "delete", "patch"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
    ],
}


def of_kind(manifests: list[Manifest], *kinds: str) -> dict[str, Manifest]:
    return {m["metadata"]["name"]: m for m in manifests if m["kind"] in kinds}


def ours(manifests: list[Manifest]) -> list[Manifest]:
    return [m for m in manifests if m["metadata"]["labels"]["helm.sh/chart"].startswith("ray-workload-")]


@pytest.mark.parametrize("file", FILES)
def test_accounts_exist_and_are_used(file: str, render: Render) -> None:
    manifests = render(*FILES[file])
    accounts = of_kind(manifests, "ServiceAccount")
    used = {p["spec"]["serviceAccountName"] for p in templates(manifests).values() if "serviceAccountName" in p["spec"]}
    given = {"driver", "compute"} if file == "everything.yaml" else set()  # these accounts exist already
    assert used - given == accounts.keys()
    pods = templates(manifests)
    assert pods["Pod ray-test"]["spec"].get("serviceAccountName") is None  # it needs no permissions
    for name, pod in pods.items():
        if name.startswith("Job"):
            assert pod["spec"]["serviceAccountName"] == name.removeprefix("Job ")
    for binding in of_kind(manifests, "RoleBinding", "ClusterRoleBinding").values():
        kind, name = binding["roleRef"]["kind"], binding["roleRef"]["name"]
        assert name in of_kind(manifests, kind)
        if binding["metadata"]["name"] != "ray-submitter":
            (subject,) = binding["subjects"]
            assert (subject["kind"], subject["namespace"]) == ("ServiceAccount", "ray")
            assert subject["name"] in accounts


def test_annotations_are_those_of_the_values(render: Render) -> None:
    values = {"serviceAccounts": {"head": {"annotations": {"a": "1"}}, "worker": {"annotations": {"b": "2"}}}}
    accounts = of_kind(render(values=values), "ServiceAccount")
    assert accounts["ray-head"]["metadata"]["annotations"] == {"a": "1"}
    assert accounts["ray-worker"]["metadata"]["annotations"] == {"b": "2"}


@pytest.mark.parametrize("file", FILES)
def test_only_hooks_and_the_autoscaler_have_an_api_token(file: str, render: Render) -> None:
    manifests = render(*FILES[file])
    for account in of_kind(ours(manifests), "ServiceAccount").values():
        assert account["automountServiceAccountToken"] is False
    having = set()
    autoscales = "autoscalerOptions" in find(manifests, "RayCluster", "ray")["spec"]
    for name, pod in templates(manifests).items():
        spec = pod["spec"]
        tokens = {volume["name"] for volume in spec.get("volumes") or [] if "serviceAccountToken" in str(volume)}
        assert tokens == ({"api-token"} if name == "RayCluster ray head" and autoscales else set())
        # Kubernetes mounts the token of the default account unless the pod disables it.
        if spec.get("automountServiceAccountToken", "serviceAccountName" not in spec):
            having.add(name)
        for container in every(spec):
            mounts = [m for m in container.get("volumeMounts") or [] if m["name"] in tokens]
            mounts += [m for m in container.get("volumeMounts") or [] if "serviceaccount" in m["mountPath"]]
            if mounts:
                assert mounts == [API_TOKEN, API_TOKEN]
                having.add(f"{name} {container['name']}")
    wanted = {"RayCluster ray head autoscaler": autoscales, "Job ray-cleanup": file != "everything.yaml"}
    assert having == {name for name, has in wanted.items() if has}


@pytest.mark.parametrize("file", FILES)
def test_roles_are_exactly_these(file: str, render: Render) -> None:
    manifests = render(*FILES[file])
    roles = {name: role["rules"] for name, role in of_kind(ours(manifests), "Role", "ClusterRole").items()}
    expected: dict[str, Any] = {"ray-submitter": SUBMITTER, "ray-cleanup": ROLES["ray-cleanup"]}
    if file == "everything.yaml":
        without_token = [rule for rule in SUBMITTER if rule["resources"] != ["secrets"]]
        expected = {"ray-submitter": [*without_token, POD_PROXY]}
    if file == "second-cluster.yaml":
        expected = yaml.safe_load(yaml.safe_dump(expected).replace("ray-auth-token", "token-of-the-team"))
    assert roles == expected
    assert of_kind(ours(manifests), "ClusterRole", "ClusterRoleBinding") == {}
    assert "*" not in {word for rules in roles.values() for rule in rules for words in rule.values() for word in words}


def test_rules_follow_the_names(render: Render) -> None:
    text = (
        yaml.safe_dump(ROLES)
        .replace("ray-api", "big-api")
        .replace("- ray\n", "- big\n")
        .replace("ray-auth", "big-auth")
    )
    expected = {name.replace("ray-", "big-"): rules for name, rules in yaml.safe_load(text).items()}
    manifests = render(values={"ray-cluster": {"fullnameOverride": "big"}})
    assert {name: role["rules"] for name, role in of_kind(ours(manifests), "Role").items()} == expected


def test_the_submitter_reads_the_token_that_is_in_use(render: Render) -> None:
    rules = find(render(values={"auth": {"existingSecret": "mine"}}), "Role", "ray-submitter")["rules"]
    assert [r["resourceNames"] for r in rules if r["resources"] == ["secrets"]] == [["mine"]]


def test_who_is_bound(render: Render) -> None:
    binding = find(render(*FILES["everything.yaml"]), "RoleBinding", "ray-submitter")
    group = "rbac.authorization.k8s.io"
    assert binding["roleRef"] == {"apiGroup": group, "kind": "Role", "name": "ray-submitter"}
    assert binding["subjects"] == [
        {"kind": "User", "name": "ada@example.com", "apiGroup": group},
        {"kind": "Group", "name": "researchers", "apiGroup": group},
        {"kind": "ServiceAccount", "name": "pipeline", "namespace": "ray"},
        {"kind": "ServiceAccount", "name": "runner", "namespace": "ci"},
    ]


@pytest.mark.parametrize("account", ["default", "of-the-team"])
def test_ray_pods_get_no_api_token_from_an_account_of_the_user(account: str, render: Render, helm: Path) -> None:
    existing = {"create": False, "name": account}
    for values in (
        {"serviceAccounts": {"head": existing, "worker": existing}},
        {"ray-cluster": {"head": {"serviceAccountName": account}, "worker": {"serviceAccountName": account}}},
    ):
        found = templates(render(values=values | {"workerGroups": {"gpu": {}}}, helm=helm))
        ray = [pod["spec"] for name, pod in found.items() if name.startswith("RayCluster")]
        expected = [(account, False)] * 3
        assert [(pod["serviceAccountName"], pod["automountServiceAccountToken"]) for pod in ray] == expected


def test_a_token_secret_of_any_name(render: Render) -> None:
    rules = find(render(values={"auth": {"existingSecret": "123"}}), "Role", "ray-submitter")["rules"]
    assert {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["123"], "verbs": ["get"]} in rules


def test_a_subject_of_any_name(render: Render) -> None:
    """Google service accounts can be bound by their numeric ID."""
    names = ["117283461029384756102", "system:masters", "CN=ada, O=team: x # 1", "- {a}", "true"]
    values = {"submitter": {"subjects": [{"kind": "User", "name": name} for name in names]}}
    subjects = find(render(values=values), "RoleBinding", "ray-submitter")["subjects"]
    assert [subject["name"] for subject in subjects] == names


def test_a_subject_of_any_namespace(render: Render) -> None:
    subject = {"kind": "ServiceAccount", "name": "runner", "namespace": "123"}
    assert find(render(values={"submitter": {"subjects": [subject]}}), "RoleBinding", "ray-submitter")["subjects"] == [
        subject
    ]
