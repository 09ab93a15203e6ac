"""The resources of a worker group's pod as Ray will have them, from its RayCluster.

Source: ray/autoscaler/_private/kuberay/autoscaling_config.py, 2.60. Every limit of the Ray container whose name ends in
`gpu` counts as GPUs; `rayStartParams` and, above them, the group's own `resources` say otherwise.
"""

import json
import math
import re
import shlex

from client.kube.api import Object
from client.targets.target import NodeGroup

_UNITS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_UNITS |= {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60}


def groups(cluster: Object) -> list[NodeGroup]:
    """The head and each worker group; a group that can have no pod is left out."""
    spec = cluster["spec"]
    most = "maxReplicas" if spec.get("enableInTreeAutoscaling") else "replicas"
    workers = [
        NodeGroup(g["groupName"], _resources(g), g.get(most, 1))
        for g in spec.get("workerGroupSpecs") or ()
        if g.get(most, 1)
    ]
    return [NodeGroup("head", _resources(spec["headGroupSpec"]), 1), *workers]


def _resources(group: Object) -> dict[str, float]:
    start = group.get("rayStartParams") or {}
    of_container = group["template"]["spec"]["containers"][0].get("resources") or {}
    limits = of_container.get("limits") or {}
    amounts = {**(of_container.get("requests") or {}), **limits}
    found = {"CPU": math.inf, "memory": math.inf}  # the node's own, where nothing says otherwise
    found["GPU"] = sum(_number(amount) for name, amount in limits.items() if name.endswith("gpu"))
    for name, of_kubernetes, of_ray in (("CPU", "cpu", "num-cpus"), ("memory", "memory", "memory")):
        if (amount := start.get(of_ray, amounts.get(of_kubernetes))) is not None:
            found[name] = _number(amount)
    if "num-gpus" in start:
        found["GPU"] = _number(start["num-gpus"])
    custom = _custom(start.get("resources", "")) | (group.get("resources") or {})
    return found | {name: _number(amount) for name, amount in custom.items()}


def _number(quantity: object) -> float:
    """A quantity of Kubernetes, such as 500m or 4Gi, rounded up as Ray does; infinite if it is not one."""
    read = re.fullmatch(r"([\d.]+(?:[eE][+-]?\d+)?)([a-zA-Z]*)", str(quantity))
    if not read or read[2] not in _UNITS:
        return math.inf
    amount = float(read[1]) * _UNITS[read[2]]
    return math.ceil(round(amount, 3)) if isinstance(quantity, str) else amount  # Ray's own numbers stay as they are


def _custom(quoted: str) -> dict[str, float]:
    """Resources as `rayStartParams` have them: JSON, quoted for the shell that starts Ray."""
    try:
        found: dict[str, float] = json.loads("".join(shlex.split(quoted)) or "{}")
    except ValueError:
        return {}  # Ray does not start with them
    return found
