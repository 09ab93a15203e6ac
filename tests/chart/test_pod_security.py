"""Every pod template of every values file complies with Pod Security `restricted`; the rules themselves are tested."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from tests.chart.conftest import Manifest, Render, values_files

FILES = values_files()
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}
VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"),
}
SELINUX = {None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
PROFILES = {"RuntimeDefault", "Localhost"}


def every(pod: Manifest) -> list[Manifest]:
    return [c for kind in ("initContainers", "containers", "ephemeralContainers") for c in pod.get(kind) or []]


def violations(pod: Manifest, annotations: Manifest | None = None) -> Iterator[str]:
    """Yield the violations of the level `restricted` (Kubernetes 1.34), which includes `baseline`, in a pod spec."""
    context = pod.get("securityContext") or {}
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(field):
            yield field
    for volume in pod.get("volumes") or []:
        if kinds := volume.keys() - {"name"} - VOLUMES:
            yield f"volume {volume['name']}: {sorted(kinds)}"
    if unsafe := {sysctl["name"] for sysctl in context.get("sysctls") or []} - SYSCTLS:
        yield f"sysctls {sorted(unsafe)}"
    for name, value in (annotations or {}).items():
        if name.startswith("container.apparmor.") and value != "runtime/default" and not value.startswith("localhost/"):
            yield f"{name}: {value}"
    yield from of_a_context("pod", context)
    for container in every(pod):
        own = container.get("securityContext") or {}
        yield from of_a_context(container["name"], own)
        yield from of_a_container(container, own)
        if own.get("runAsNonRoot", context.get("runAsNonRoot")) is not True:
            yield f"{container['name']}: runAsNonRoot"
        if not own.get("seccompProfile", context.get("seccompProfile")):
            yield f"{container['name']}: no seccompProfile"


def of_a_context(name: str, context: Manifest) -> Iterator[str]:
    """Check the security context fields that pods and containers share."""
    if context.get("runAsUser") == 0:
        yield f"{name}: runAsUser"
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield f"{name}: hostProcess"
    if (context.get("seccompProfile") or {"type": "Localhost"})["type"] not in PROFILES:
        yield f"{name}: seccompProfile"
    if (context.get("appArmorProfile") or {"type": "Localhost"})["type"] not in PROFILES:
        yield f"{name}: appArmorProfile"
    selinux = context.get("seLinuxOptions") or {}
    if selinux.get("type") not in SELINUX or selinux.get("user") or selinux.get("role"):
        yield f"{name}: seLinuxOptions"


def of_a_container(container: Manifest, context: Manifest) -> Iterator[str]:
    name = container["name"]
    if context.get("privileged"):
        yield f"{name}: privileged"
    if context.get("allowPrivilegeEscalation") is not False:
        yield f"{name}: allowPrivilegeEscalation"
    if context.get("procMount") not in (None, "Default"):
        yield f"{name}: procMount"
    capabilities = context.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or []):
        yield f"{name}: capabilities are not dropped"
    if set(capabilities.get("add") or []) - {"NET_BIND_SERVICE"}:
        yield f"{name}: capabilities are added"
    if any(port.get("hostPort") for port in container.get("ports") or []):
        yield f"{name}: hostPort"
    hooks = (container.get("lifecycle") or {}).values()
    for probe in [*hooks, *(container.get(f"{kind}Probe") or {} for kind in ("liveness", "readiness", "startup"))]:
        if any((probe.get(kind) or {}).get("host") for kind in ("httpGet", "tcpSocket")):
            yield f"{name}: the host of a probe"


def templates(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return every pod template. The operator adds the autoscaler to the head's pod."""
    found = {}
    for manifest in manifests:
        name, spec = f"{manifest['kind']} {manifest['metadata']['name']}", manifest.get("spec") or {}
        if manifest["kind"] == "RayCluster":
            head = copy.deepcopy(spec["headGroupSpec"]["template"])
            if options := spec.get("autoscalerOptions"):
                head["spec"]["containers"].append({"name": "autoscaler", **options})
            found[f"{name} head"] = head
            found |= {f"{name} {group['groupName']}": group["template"] for group in spec["workerGroupSpecs"]}
        elif manifest["kind"] == "Pod":
            found[name] = manifest
        elif "template" in spec:
            found[name] = spec["template"]
    return found


USUAL = ["Deployment kuberay-operator", "Job ray-cleanup", "Pod ray-test", "RayCluster ray head"]
ALONE = [*USUAL[1:], "RayCluster ray workergroup"]
PODS = {name: [*USUAL, "RayCluster ray workergroup"] for name in FILES} | {
    "second-cluster.yaml": ALONE,
    "compute-class.yaml": sorted([*USUAL, "RayCluster ray gpu", "RayCluster ray workergroup"]),
    "gpu-spot.yaml": sorted([*USUAL, "RayCluster ray gpu", "RayCluster ray workergroup"]),
    "values-gke.yaml": sorted([*USUAL, "RayCluster ray cpu", "RayCluster ray gpu-l4"]),
    "everything.yaml": [
        "Pod ray-test",
        "RayCluster ray head",
        "RayCluster ray large",
        "RayCluster ray workergroup",
    ],
}


@pytest.mark.parametrize("file", FILES)
def test_every_pod_is_restricted(file: str, render: Render) -> None:
    pods = templates(render(*FILES[file]))
    assert sorted(pods) == PODS[file]
    found = {name: list(violations(pod["spec"], pod["metadata"].get("annotations"))) for name, pod in pods.items()}
    forbidden = ["volume home: ['nfs']"] if file == "nfs.yaml" else []
    assert found == {name: forbidden if name.startswith("RayCluster") else [] for name in pods}


def test_the_rules_accept_valid_pods() -> None:
    assert list(violations(good())) == []
    assert list(violations(good(), {"container.apparmor.security.beta.kubernetes.io/c": "runtime/default"})) == []
    in_the_container = good()
    in_the_container["containers"][0]["securityContext"] |= in_the_container.pop("securityContext")
    in_the_container["volumes"] = [{"name": kind, kind: {}} for kind in VOLUMES]
    in_the_container["containers"][0]["securityContext"]["capabilities"]["add"] = ["NET_BIND_SERVICE"]
    assert list(violations(in_the_container)) == []


def good() -> Manifest:
    container = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "c", "securityContext": container, "ports": [{"containerPort": 1}]}],
    }


BAD: list[tuple[str, Any, str]] = [
    ("hostNetwork", True, "hostNetwork"),
    ("hostPID", True, "hostPID"),
    ("hostIPC", True, "hostIPC"),
    ("volumes", [{"name": "v", "hostPath": {"path": "/"}}], "volume v: ['hostPath']"),
    ("volumes", [{"name": "v", "nfs": {}}], "volume v: ['nfs']"),
    ("securityContext", None, "c: runAsNonRoot"),
    ("securityContext.runAsNonRoot", False, "c: runAsNonRoot"),
    ("securityContext.runAsUser", 0, "pod: runAsUser"),
    ("securityContext.seccompProfile", None, "c: no seccompProfile"),
    ("securityContext.seccompProfile", {"type": "Unconfined"}, "pod: seccompProfile"),
    ("securityContext.appArmorProfile", {"type": "Unconfined"}, "pod: appArmorProfile"),
    ("securityContext.seLinuxOptions", {"type": "spc_t"}, "pod: seLinuxOptions"),
    ("securityContext.seLinuxOptions", {"user": "u"}, "pod: seLinuxOptions"),
    ("securityContext.windowsOptions", {"hostProcess": True}, "pod: hostProcess"),
    ("securityContext.sysctls", [{"name": "kernel.msgmax", "value": "1"}], "sysctls ['kernel.msgmax']"),
    ("containers.0.securityContext", None, "c: allowPrivilegeEscalation"),
    ("containers.0.securityContext.privileged", True, "c: privileged"),
    ("containers.0.securityContext.allowPrivilegeEscalation", True, "c: allowPrivilegeEscalation"),
    ("containers.0.securityContext.allowPrivilegeEscalation", None, "c: allowPrivilegeEscalation"),
    ("containers.0.securityContext.capabilities", {"drop": ["NET_RAW"]}, "c: capabilities are not dropped"),
    ("containers.0.securityContext.capabilities.add", ["SYS_PTRACE"], "c: capabilities are added"),
    ("containers.0.securityContext.runAsUser", 0, "c: runAsUser"),
    ("containers.0.securityContext.runAsNonRoot", False, "c: runAsNonRoot"),
    ("containers.0.securityContext.seccompProfile", {"type": "Unconfined"}, "c: seccompProfile"),
    ("containers.0.securityContext.appArmorProfile", {"type": "Unconfined"}, "c: appArmorProfile"),
    ("containers.0.securityContext.seLinuxOptions", {"role": "r"}, "c: seLinuxOptions"),
    ("containers.0.securityContext.windowsOptions", {"hostProcess": True}, "c: hostProcess"),
    ("containers.0.securityContext.procMount", "Unmasked", "c: procMount"),
    ("containers.0.ports.0.hostPort", 80, "c: hostPort"),
    ("containers.0.livenessProbe", {"httpGet": {"host": "h"}}, "c: the host of a probe"),
    ("containers.0.lifecycle", {"preStop": {"tcpSocket": {"host": "h"}}}, "c: the host of a probe"),
    ("initContainers", [{"name": "i"}], "i: allowPrivilegeEscalation"),
    ("ephemeralContainers", [{"name": "e"}], "e: capabilities are not dropped"),
]


@pytest.mark.parametrize(("path", "value", "said"), BAD, ids=[f"{path}={value}" for path, value, _ in BAD])
def test_the_rules_refuse_invalid_pods(path: str, value: object, said: str) -> None:
    pod: Any = good()
    *parents, last = path.split(".")
    inner = pod
    for key in parents:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    inner[last] = value
    assert said in list(violations(pod))


def test_the_rules_read_annotations() -> None:
    name = "container.apparmor.security.beta.kubernetes.io/c"
    assert list(violations(good(), {name: "unconfined"})) == [f"{name}: unconfined"]
