"""A cluster in a few lines: the file of `up --config`, and the values of the chart that it stands for."""

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from client.errors import UsageError
from client.wait import Note


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


_COUNT = (lambda value: _is(int, value) and value >= 0, "a whole number of at least 0")
_CPU = (lambda value: (_is(int, value) or _is(float, value)) and 1 <= value < 1000, "a number of at least 1")
_MEMORY = (
    lambda value: isinstance(value, str) and re.fullmatch(r"[1-9]\d*(\.\d+)?[MGT]i?", value),
    "an amount with a unit, like 8Gi",
)
_KINDS: Mapping[str, tuple[Callable[[Any], Any], str]] = {
    "num_workers": _COUNT,
    "head_cpu": _CPU,
    "head_memory": _MEMORY,
    "worker_cpu": _CPU,
    "worker_memory": _MEMORY,
    "worker_gpus": _COUNT,
    "worker_accelerator": (lambda value: isinstance(value, str) and value, "a kind of GPU, like L4"),
}
_VARIABLES = {"RAY_NUM_WORKERS": "num_workers", "RAY_WORKER_GPUS": "worker_gpus"}


def values_of(
    path: str, given: Mapping[Any, Any], environment: Mapping[str, str], target: str, note: Note
) -> dict[str, Any]:
    """The values of the chart that the file of `--config` stands for.

    Args:
        path: of the file, for messages.
        given: what the file contains.
        environment: RAY_NUM_WORKERS and RAY_WORKER_GPUS in it override the file.
        target: selects the chart's values-TARGET.yaml, which these values override.
        note: takes a line for each variable that overrides the file.

    Raises:
        UsageError: keys or values are wrong; the message has all mistakes.
    """
    config, mistakes = dict(given), []
    for key, value in given.items():
        if key not in _KINDS:
            (nearest,) = get_close_matches(str(key), _KINDS, n=1, cutoff=0)
            mistakes.append(f"there is no key {key} (did you mean {nearest}?)")
        elif not _KINDS[key][0](value):
            mistakes.append(f"{key} must be {_KINDS[key][1]}")
    for name, key in _VARIABLES.items():
        if text := environment.get(name):
            if re.fullmatch(r"[0-9]+", text):
                config[key] = int(text)
                note(f"{name}={text} overrides {key} of {path}")
            else:
                mistakes.append(f"the variable {name} must be {_COUNT[1]}")
    if "worker_accelerator" in config and not config.get("worker_gpus"):
        mistakes.append("worker_accelerator needs worker_gpus of at least 1")
    if mistakes:
        raise UsageError(f"{path}: {'; '.join(mistakes)}")

    head, workers = _pod("head", config), _pod("worker", config)
    workers |= {key: config[f"worker_{key}"] for key in ("gpus", "accelerator") if f"worker_{key}" in config}
    if "num_workers" in config:
        workers |= {"replicas": config["num_workers"], "maxReplicas": config["num_workers"]}
    if target == "local":
        return {"head": head, "workers": workers}
    return {"head": head, "workerGroups": {"gpu-l4" if config.get("worker_gpus") else "cpu": workers}}


def _pod(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    pod = {key: config[f"{name}_{key}"] for key in ("cpu", "memory") if f"{name}_{key}" in config}
    # values-local.yaml requests an amount of its own, which can be more than this memory.
    return {**pod, "requests": {"memory": None}} if "memory" in pod else pod
