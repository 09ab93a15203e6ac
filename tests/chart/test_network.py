"""The exact rules of the network policies, the ports of the Service, and the PodDisruptionBudget."""

import json
from typing import Any

from tests.chart.conftest import Manifest, Render, find, values_files

FILES = values_files()
PODS = {"podSelector": {"matchLabels": {"ray.io/cluster": "ray"}}}
JOBS = {"app.kubernetes.io/created-by": "kuberay-operator", "ray.io/originated-from-crd": "RayJob"}
OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}
CLIENTS = [
    {"podSelector": {"matchLabels": {"ray-workload/client": "true"}}},
    {"podSelector": {"matchLabels": JOBS}},
    {"namespaceSelector": {}, "podSelector": {"matchLabels": OPERATOR}},
]
API = {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}
PROMETHEUS = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
GATEWAY = {"from": [{"podSelector": {"matchLabels": {"app": "gateway"}}}], "ports": [{"port": 8000}]}
OPENED = {"apiServerFrom": [API], "metricsFrom": [PROMETHEUS], "headIngress": [GATEWAY]}


def ports(*numbers: int) -> list[Manifest]:
    return [{"port": number} for number in numbers]


def ingress(manifests: list[Manifest], node: str) -> list[Any]:
    """Return the ingress rules of a policy, and check the rest of it."""
    spec = find(manifests, "NetworkPolicy", f"ray-ray-{node}")["spec"]
    selector = {"matchLabels": {"ray.io/cluster": "ray", "ray.io/node-type": node}}
    assert spec == {"podSelector": selector, "policyTypes": ["Ingress"], "ingress": spec["ingress"]}
    rules: list[Any] = spec["ingress"]
    return rules


def test_closed(render: Render) -> None:
    manifests = render()
    assert ingress(manifests, "head") == [{"from": [PODS]}, {"from": CLIENTS, "ports": ports(8265, 52365)}]
    assert ingress(manifests, "worker") == [{"from": [PODS]}, {"from": CLIENTS, "ports": ports(52365)}]


def test_opened(render: Render) -> None:
    manifests = render(values={"networkPolicy": OPENED})
    assert ingress(manifests, "head") == [
        {"from": [PODS]},
        {"from": [*CLIENTS, API], "ports": ports(8265, 52365)},
        {"from": [PROMETHEUS], "ports": ports(8080, 44217, 44227)},
        GATEWAY,
    ]
    assert ingress(manifests, "worker") == [
        {"from": [PODS]},
        {"from": [*CLIENTS, API], "ports": ports(52365)},
        {"from": [PROMETHEUS], "ports": ports(8080)},
    ]


def test_without_worker_groups_only_the_cluster_is_admitted(render: Render) -> None:
    """An empty list of ports would admit all ports."""
    manifests = render(values={"networkPolicy": OPENED, "workerGroups": {"workergroup": None}})
    assert ingress(manifests, "worker") == [{"from": [PODS]}]


def test_custom_ports(render: Render) -> None:
    manifests = render(*FILES["custom-ports.yaml"], values={"networkPolicy": OPENED})
    assert ingress(manifests, "head") == [
        {"from": [PODS]},
        {"from": [*CLIENTS, API], "ports": ports(8266, 52367)},
        {"from": [PROMETHEUS], "ports": ports(8081, 44217, 44227)},
        GATEWAY,
    ]
    assert ingress(manifests, "worker") == [
        {"from": [PODS]},
        {"from": [*CLIENTS, API], "ports": ports(8503)},
        {"from": [PROMETHEUS], "ports": ports(8081)},
    ]


def test_the_metrics_of_autoscaler_and_dashboard_by_name(render: Render) -> None:
    head = {"ports": [{"name": n, "containerPort": p} for n, p in {"dashboard": 1, "as-metrics": 2}.items()]}
    head["ports"].append({"name": "dash-metrics", "containerPort": 3, "protocol": "TCP"})
    values = {"head": {**head, "rayStartParams": {"dashboard-port": 1}}}
    rules = ingress(render(values={"networkPolicy": OPENED, "ray-cluster": values}), "head")
    assert [rule.get("ports") for rule in rules[1:3]] == [ports(1, 52365), ports(8080, 2, 3)]


def test_each_group_has_ports_of_its_own(render: Render) -> None:
    def group(agent: object, metrics: object, **more: object) -> dict[str, object]:
        params = {"dashboard-agent-listen-port": agent, "metrics-export-port": metrics}
        return {"rayStartParams": params, **more}

    groups = {"a": group("52366", 8090), "b": group(52365, "8090"), "c": group(1, 2, enabled=False)}
    manifests = render(values={"networkPolicy": OPENED, "workerGroups": groups})
    rules = ingress(manifests, "worker")
    assert sorted(port["port"] for port in rules[1]["ports"]) == [52365, 52366]
    assert sorted(port["port"] for port in rules[2]["ports"]) == [8080, 8090]


def test_ports_from_init_args(render: Render) -> None:
    """The upstream chart also renders `initArgs`, the old name of rayStartParams."""
    params = {"dashboard-agent-listen-port": "52366", "metrics-export-port": 8090}
    head = {"rayStartParams": {"num-cpus": 1}, "initArgs": {"dashboard-agent-listen-port": "52366"}}
    values = {"head": head, "worker": {"initArgs": params}}
    manifests = render(values={"networkPolicy": OPENED, "ray-cluster": values})
    assert find(manifests, "Service", "ray-api")["spec"]["ports"][1]["targetPort"] == 52366
    assert ingress(manifests, "head")[1]["ports"] == ports(8265, 52366)
    assert [rule.get("ports") for rule in ingress(manifests, "worker")] == [None, ports(52366), ports(8090)]


def test_the_values_for_kind_and_gke_admit_their_proxies(render: Render) -> None:
    local = ingress(render(*FILES["values-local.yaml"]), "head")[1]["from"]
    assert local == [*CLIENTS, *({"ipBlock": {"cidr": cidr}} for cidr in ("172.16.0.0/12", "192.168.0.0/16"))]
    manifests = render(*FILES["values-gke.yaml"])
    konnectivity = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "konnectivity-agent"}},
    }
    collectors = [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
        for name in ("gmp-system", "gke-gmp-system")
    ]
    assert ingress(manifests, "head")[1:] == [
        {"from": [*CLIENTS, konnectivity], "ports": ports(8265, 52365)},
        {"from": collectors, "ports": ports(8080, 44217, 44227)},
    ]
    assert ingress(manifests, "worker")[1:] == [
        {"from": [*CLIENTS, konnectivity], "ports": ports(52365)},
        {"from": collectors, "ports": ports(8080)},
    ]


def test_the_service(render: Render) -> None:
    """Its port numbers are fixed, because the submitter Role refers to them."""
    for file, agent in {"values.yaml": 52365, "custom-ports.yaml": 52367}.items():
        assert find(render(*FILES[file]), "Service", "ray-api")["spec"] == {
            "type": "ClusterIP",
            "selector": {"ray.io/cluster": "ray", "ray.io/node-type": "head"},
            "ports": [
                {"name": "dashboard", "port": 8265, "targetPort": "dashboard"},
                {"name": "agent", "port": 52365, "targetPort": agent},
            ],
        }
    assert find(render(*FILES["values-local.yaml"]), "Service", "ray-api")["spec"]["ports"][0] == {
        "name": "dashboard",
        "port": 8265,
        "targetPort": "dashboard",
        "nodePort": 30265,
    }
    for kind in ("NodePort", "LoadBalancer"):
        service = find(render(values={"api": {"type": kind}}), "Service", "ray-api")
        assert (service["spec"]["type"], "nodePort" in str(service)) == (kind, False)


def test_serve_and_ray_client(render: Render) -> None:
    """Each has its port in the Service; only labelled pods, and the addresses of a load balancer, are admitted."""
    for file, serve, client in (("values.yaml", 8000, 10001), ("custom-ports.yaml", 8001, 10002)):
        for key, name, number, target in (("serve", "serve", 8000, serve), ("rayClient", "client", 10001, client)):
            before, after = (render(*FILES[file], values={"api": {key: on}}) for on in (False, True))
            of_before, of_after = (find(seen, "Service", "ray-api")["spec"]["ports"] for seen in (before, after))
            assert of_after == [*of_before, {"name": name, "port": number, "targetPort": name}]
            rule = {"from": CLIENTS[:1], "ports": ports(target)}
            assert ingress(after, "head") == [*ingress(before, "head"), rule]
            assert ingress(after, "worker") == ingress(before, "worker")
            variable = '"GRPC_ENABLE_FORK_SUPPORT"'  # for the server of Ray Client
            assert [json.dumps(seen).count(variable) for seen in (before, after)] == [0, int(key == "rayClient")]
    both: dict[str, object] = {"serve": True, "rayClient": True}
    assert ingress(render(values={"api": both}), "head")[2] == {"from": CLIENTS[:1], "ports": ports(8000, 10001)}
    balanced = {**both, "type": "LoadBalancer", "sourceRanges": ["10.20.0.0/16"]}
    addresses = {"ipBlock": {"cidr": "10.20.0.0/16"}}
    rules = ingress(render(values={"api": balanced}), "head")
    assert rules[2] == {"from": [*CLIENTS[:1], addresses], "ports": ports(8000, 10001)}


def test_ports_agree_with_the_parameters_of_ray_start(render: Render) -> None:
    """The policies, the Service and the operator use the ports that `ray start` gets."""
    cluster = find(render(*FILES["custom-ports.yaml"]), "RayCluster", "ray")["spec"]
    head = cluster["headGroupSpec"]
    named = {p["name"]: str(p["containerPort"]) for p in head["template"]["spec"]["containers"][0]["ports"]}
    params = {"gcs-server": "port", "dashboard": "dashboard-port", "client": "ray-client-server-port"}
    params["metrics"] = "metrics-export-port"
    assert {name: head["rayStartParams"][param] for name, param in params.items()} == {n: named[n] for n in params}
    assert named.keys() == {*params, "serve", "as-metrics", "dash-metrics"}
    usual = find(render(), "RayCluster", "ray")["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
    same = {p["name"] for p in usual if named[p["name"]] == str(p["containerPort"])}
    assert same == {"as-metrics", "dash-metrics"}


def test_egress(render: Render) -> None:
    spec = find(render(*FILES["egress.yaml"]), "NetworkPolicy", "ray-ray-egress")["spec"]
    assert (spec["podSelector"], spec["policyTypes"]) == (PODS["podSelector"], ["Egress"])

    def addresses(port: int) -> set[str]:
        rules = [rule for rule in spec["egress"] if port in {p["port"] for p in rule.get("ports", ())}]
        return {peer["ipBlock"]["cidr"] for rule in rules for peer in rule["to"] if "ipBlock" in peer}

    assert spec["egress"][0] == {"to": [PODS]}
    assert addresses(53) == {"169.254.20.10/32", "169.254.169.254/32"}
    assert (addresses(80), addresses(988)) == ({"169.254.169.254/32"}, {"169.254.169.252/32"})
    assert addresses(443) == {"10.0.0.0/8"}
    gke = find(render(*FILES["values-gke.yaml"]), "NetworkPolicy", "ray-ray-egress")["spec"]["egress"]
    assert {"to": [{"ipBlock": {"cidr": "169.254.169.254/32"}}], "ports": [{"port": 80, "protocol": "TCP"}]} in gke
    closed = {"networkPolicy": {"egress": {"enabled": True, "apiServer": [{"ipBlock": {"cidr": "10.9.0.1/32"}}]}}}
    rules = find(render(values={**closed, "autoscaling": {"enabled": True}}), "NetworkPolicy", "ray-ray-egress")
    assert "169.254.169.252" not in str(rules)  # the metadata server is closed by default
    assert {"to": [{"ipBlock": {"cidr": "10.9.0.1/32"}}]} in rules["spec"]["egress"]


def test_metrics_are_read_by_name(render: Render) -> None:
    wanted = ["metrics", "as-metrics", "dash-metrics"]
    monitor = find(render(*FILES["everything.yaml"]), "PodMonitor", "ray")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert monitor["spec"] == {
        "selector": {"matchLabels": {"ray.io/cluster": "ray"}},
        "podTargetLabels": ["ray.io/cluster", "ray.io/group"],
        "podMetricsEndpoints": [{"port": name, "interval": "15s"} for name in wanted],
    }
    assert find(render(*FILES["values-gke.yaml"]), "PodMonitoring", "ray")["spec"] == {
        "selector": {"matchLabels": {"ray.io/cluster": "ray"}},
        "targetLabels": {
            "fromPod": [
                {"from": "ray.io/cluster", "to": "ray_io_cluster"},
                {"from": "ray.io/group", "to": "ray_io_group"},
            ]
        },
        "endpoints": [{"port": name, "interval": "30s"} for name in wanted],
    }


def test_the_budget_is_a_number(render: Render) -> None:
    spec = find(render(), "PodDisruptionBudget", "ray-head")["spec"]
    selector = {"matchLabels": {"ray.io/cluster": "ray", "ray.io/node-type": "head"}}
    assert spec == {"minAvailable": 1, "selector": selector} and type(spec["minAvailable"]) is int
