"""The token and the values of `secrets`: their sources, the pods that get them, and that only Secrets contain them."""

import base64
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chart.conftest import CHART, Manifest, Render, RenderError, as_yaml, at_hand, find, names

PLANTED = "planted-3d51c2"
TOKEN = PLANTED + "'\"{{.Values}}\\$(X)#:&<>`%s!"
CONTENTS = {
    "quotes.json": PLANTED + ' "double" \'single\' `back` \\ {"a": ["b"]}',
    "lines": PLANTED + "\nsecond: line\r\n---\n\tthird # no comment\n\n",
    "unicode": PLANTED + " žluťoučký 机密 🔑 \u2028 \x7f",
    "template": PLANTED + "{{ fail .Values.auth.token }}{{ end }} $(TOKEN) ${TOKEN}",
    "large": PLANTED + "0123456789abcdef" * 6250,
    "blanks": f"   {PLANTED}   ",
    "a-number": "12345",
}


def pods(cluster: Manifest) -> dict[str, Any]:
    """Map `head` and the name of each group to the pod spec."""
    groups = {group["groupName"]: group["template"]["spec"] for group in cluster["spec"]["workerGroupSpecs"]}
    return {"head": cluster["spec"]["headGroupSpec"]["template"]["spec"], **groups}


def decoded(secret: Manifest) -> dict[str, str]:
    return {key: base64.b64decode(value, validate=True).decode() for key, value in secret["data"].items()}


def strings(value: Any) -> Iterator[str]:
    """Yield every key and value as a string."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    else:
        yield str(value)


def shows(text: str) -> bool:
    """Return whether the text contains the planted word, in plain text or in base64 at any offset."""
    middles = [base64.b64encode(b"x" * shift + PLANTED.encode())[4:-4].decode() for shift in range(3)]
    return any(word in text for word in (PLANTED, *middles))


def everything_planted() -> dict[str, Any]:
    values: dict[str, Any] = {"auth": {"token": TOKEN}, "env": {"KEY": {"secret": "theirs", "key": "lines"}}}
    values["secrets"] = {"theirs": {"mountPath": "/theirs", "data": CONTENTS}}
    values["submitter"] = {"subjects": [{"kind": "Group", "name": "all"}], "podProxy": True}
    values["metrics"] = {"podMonitor": {"enabled": True}}
    values["kuberay-operator"] = {"configuration": {"enabled": True}}
    return {**values, "autoscaling": {"enabled": True}, "headRecovery": {"enabled": True}}


def test_a_given_token(render: Render, helm: Path) -> None:
    for token in ("simple", TOKEN, "x" * 10_000, "0", "null", "true"):
        secret = find(render(values={"auth": {"token": token}}, helm=helm), "Secret", "ray-auth-token")
        assert (decoded(secret), secret["type"]) == ({"auth_token": token}, "Opaque")


def test_a_random_token_is_another_each_time(render: Render, helm: Path) -> None:
    def token(*args: str) -> str:
        (value,) = decoded(find(render(helm=helm, args=args), "Secret", "ray-auth-token")).values()
        return value

    tokens = {token(), token("--skip-crds"), token("--skip-tests")}  # different arguments, because renders are cached
    assert len(tokens) == 3 and all(len(token) == 43 and token.isalnum() for token in tokens)


def test_an_existing_token(render: Render) -> None:
    manifests = render(values={"auth": {"existingSecret": "of-mine"}})
    assert "Secret" not in {m["kind"] for m in manifests}
    assert "ray-auth-token" not in json.dumps(manifests)
    assert set(manifests_using(manifests, "of-mine")) == {"Pod ray-test", "RayCluster ray", "Role ray-submitter"}


def manifests_using(manifests: list[Manifest], word: str) -> list[str]:
    return [f"{m['kind']} {m['metadata']['name']}" for m in manifests if word in set(strings(m))]


def test_without_authentication_there_is_no_token(render: Render) -> None:
    manifests = render(values={"auth": {"enabled": False, "token": TOKEN}, "autoscaling": {"enabled": True}})
    assert "Secret" not in {m["kind"] for m in manifests}
    assert '"RAY_AUTH_TOKEN"' not in json.dumps(manifests) and "authOptions" not in json.dumps(manifests)
    spec = find(manifests, "RayCluster", "ray")["spec"]
    for env in [pod["containers"][0]["env"] for pod in pods({"spec": spec}).values()] + [
        spec["autoscalerOptions"]["env"]
    ]:
        assert {"name": "RAY_AUTH_MODE", "value": "disabled"} in env
    assert not any(shows(text) for text in strings(manifests))


def test_who_has_the_token(render: Render) -> None:
    """The Ray containers, the autoscaler, the test pod and the submitter have it; the hooks and the operator do not."""
    manifests = render(values={"autoscaling": {"enabled": True}})
    assert set(manifests_using(manifests, "ray-auth-token")) == {
        "Secret ray-auth-token",
        "RayCluster ray",
        "Role ray-submitter",
        "Pod ray-test",
    }
    cluster = find(manifests, "RayCluster", "ray")
    lists = [pod["containers"][0]["env"] for pod in pods(cluster).values()]
    for env in [*lists, cluster["spec"]["autoscalerOptions"]["env"]]:
        given = {variable["name"]: variable for variable in env}
        reference = {"secretKeyRef": {"name": "ray-auth-token", "key": "auth_token"}}
        assert given["RAY_AUTH_TOKEN"] == {"name": "RAY_AUTH_TOKEN", "valueFrom": reference}
        assert given["RAY_AUTH_MODE"]["value"] == "token"


def test_secrets_from_values(render: Render, helm: Path) -> None:
    manifests = render(values=everything_planted(), helm=helm)
    secret = find(manifests, "Secret", "theirs")
    assert (decoded(secret), secret["type"]) == (CONTENTS, "Opaque")


def test_secrets_from_files(render: Render, helm: Path, tmp_path: Path) -> None:
    """--set-file works as values.yaml documents it."""
    shown = "--set-file 'secrets.cloudvolume.data.google-secret\\.json=FILE'"
    assert shown in (CHART / "values.yaml").read_text()
    key = shown.split("'")[1].removesuffix("FILE")
    for name, content in CONTENTS.items():
        file = tmp_path / name
        file.write_bytes(content.encode())
        args = ["--set-file", f"{key}{file}"]
        manifests = render(helm=helm, args=args)
        assert decoded(find(manifests, "Secret", "cloudvolume")) == {"google-secret.json": content}


def test_existing_secrets(render: Render) -> None:
    secrets = {"wandb": {"mountPath": "/w", "existingSecret": "of-the-team"}, "own": {"data": {"key": "value"}}}
    manifests = render(values={"secrets": secrets})
    assert [name for kind, name in names(manifests) if kind == "Secret"] == ["own", "ray-auth-token"]
    assert manifests_using(manifests, "of-the-team") == ["RayCluster ray"]


def test_secrets_are_mounted_in_every_ray_pod(render: Render) -> None:
    values = {
        "secrets": {"s": {"mountPath": "/home/ray/s", "data": {"key": "value"}}, "a.b": {"existingSecret": "c"}},
        "workerGroups": {"gpu": {"gpus": 1}},
        "ray-cluster": {"worker": {"volumes": [{"name": "more", "emptyDir": {}}]}},
    }
    found = pods(find(render(values=values), "RayCluster", "ray"))
    assert list(found) == ["head", "gpu", "workergroup"]
    for pod in found.values():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["s"] == {"name": "s", "secret": {"secretName": "s", "defaultMode": 0o440}}
        mounts = pod["containers"][0]["volumeMounts"]
        assert {"name": "s", "mountPath": "/home/ray/s", "readOnly": True} in mounts
        assert {mount["name"] for mount in mounts} == {"log-volume", "s"}  # a.b has no mountPath


def test_the_volume_of_a_secret_has_a_valid_name(render: Render) -> None:
    """A Secret's name can have dots and 253 characters, the name of a volume cannot."""
    secrets = ["a.b", "a-b", "a.b.c", "a.b-c", "s" * 63, "s" * 64, "s" * 253]
    given = {name: {"mountPath": f"/{index}", "existingSecret": name} for index, name in enumerate(secrets)}
    for pod in pods(find(render(values={"secrets": given}), "RayCluster", "ray")).values():
        volumes = {v["name"]: v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v}
        assert sorted(volumes.values()) == sorted(secrets)
        assert all(re.fullmatch("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name) for name in volumes)
        mounted = {m["mountPath"]: volumes[m["name"]] for m in pod["containers"][0]["volumeMounts"][1:]}
        assert mounted == {f"/{index}": name for index, name in enumerate(secrets)}


def test_the_values_are_in_secrets_only(render: Render, helm: Path) -> None:
    manifests = render(values=everything_planted(), helm=helm)
    showing = [m for m in manifests if any(shows(text) for text in strings(m))]
    assert names(showing) == [("Secret", "ray-auth-token"), ("Secret", "theirs")]
    for secret in showing:
        assert not any(PLANTED in text for text in strings(secret))
        assert not any(shows(text) for text in strings({k: v for k, v in secret.items() if k != "data"}))


def test_the_values_are_not_in_the_notes(helm: Path, render: Render, editable: Path) -> None:
    """These are the notes of `helm install`, which only Helm 4 prints without a cluster."""
    values = everything_planted()
    notes = find(render(values=values, helm=helm, chart=editable), "ConfigMap", "notes")["data"]["text"]
    assert "RayCluster ray/ray is starting" in notes and not shows(notes)
    if not next(version for version, path in at_hand().items() if path == helm).startswith("v3"):
        command = [str(helm), "install", "ray", str(CHART), "--namespace=ray", "--values=-", "--dry-run=client"]
        given = as_yaml(values)
        said = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60, check=True).stdout
        assert said.partition("\nNOTES:\n")[2].strip() == notes.strip()


def test_a_token_from_a_file(render: Render, tmp_path: Path) -> None:
    """The final newline is removed. The error for an invalid token does not contain the token."""

    def rendered(name: str, content: str) -> list[Manifest]:
        (tmp_path / name).write_text(content)
        return render(args=["--set-file", f"auth.token={tmp_path / name}"])

    assert decoded(find(rendered("right", f"{TOKEN}\n"), "Secret", "ray-auth-token")) == {"auth_token": TOKEN}
    wrong = {"a blank": f"{PLANTED} x", "lines": f"{PLANTED}\n{PLANTED}\n", "unicode": f"{PLANTED}\u00e9"}
    for name, content in wrong.items():
        with pytest.raises(RenderError, match=r"auth\.token contains characters that are not allowed") as error:
            rendered(name, content)
        assert not shows(str(error.value))


def test_a_token_among_the_variables_is_not_in_the_error(render: Render) -> None:
    env = [{"name": "RAY_AUTH_TOKEN", "value": TOKEN}]
    with pytest.raises(RenderError, match='ray-cluster.common contains "RAY_AUTH_TOKEN"') as error:
        render(values={"ray-cluster": {"common": {"containerEnv": env}}})
    assert not shows(str(error.value))


def test_names_and_keys_that_yaml_reads_as_other_types(render: Render) -> None:
    data = {key: "content" for key in ("123", "0755", "1.10", "1e3", "true", "null", "-", "---", ".a", "2026-01-01")}
    manifests = render(values={"secrets": {"123": {"mountPath": "/s", "data": data}}})
    assert decoded(find(manifests, "Secret", "123")) == data
