"""`up --config`: the values of the chart that a file stands for, the variables that override it, and its mistakes."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.chart.config import values_of
from tests.client.test_errors import refusal
from tests.conftest import ROOT, Cli

WHOLE = {
    "num_workers": 3,
    "head_cpu": 4,
    "head_memory": "8Gi",
    "worker_cpu": 2.5,
    "worker_memory": "512Mi",
    "worker_gpus": 2,
    "worker_accelerator": "T4",
}
HEAD = {"cpu": 4, "memory": "8Gi", "requests": {"memory": None}}
WORKERS = {
    "cpu": 2.5,
    "memory": "512Mi",
    "requests": {"memory": None},
    "gpus": 2,
    "accelerator": "T4",
    "replicas": 3,
    "maxReplicas": 3,
}


@pytest.mark.parametrize(
    ("target", "given", "values"),
    [
        ("local", WHOLE, {"head": HEAD, "workers": WORKERS}),
        ("gke", WHOLE, {"head": HEAD, "workerGroups": {"gpu-l4": WORKERS}}),
        (
            "gke",
            {"num_workers": 0, "worker_cpu": 8},
            {"workerGroups": {"cpu": {"cpu": 8, "replicas": 0, "maxReplicas": 0}}},
        ),
        ("gke", {"worker_gpus": 0}, {"workerGroups": {"cpu": {"gpus": 0}}}),
        ("gke", {"worker_gpus": 1}, {"workerGroups": {"gpu-l4": {"gpus": 1}}}),
        ("local", {"head_memory": "1.5Gi"}, {"head": {"memory": "1.5Gi", "requests": {"memory": None}}, "workers": {}}),
        ("local", {}, {"workers": {}}),
    ],
)
def test_the_values_of_a_config(target: str, given: dict[str, Any], values: dict[str, Any]) -> None:
    assert values_of("c.yaml", given, {"RAY_NUM_WORKERS": ""}, target, pytest.fail) == {"head": {}, **values}


def test_variables_override_the_file() -> None:
    said: list[str] = []
    environment = {"RAY_NUM_WORKERS": "5", "RAY_WORKER_GPUS": "1", "RAY_HEAD_CPU": "9"}
    values = values_of("c.yaml", {"num_workers": 2, "head_cpu": 2}, environment, "gke", said.append)
    assert values == {
        "head": {"cpu": 2},
        "workerGroups": {"gpu-l4": {"gpus": 1, "replicas": 5, "maxReplicas": 5}},
    }
    assert said == [
        "RAY_NUM_WORKERS=5 overrides num_workers of c.yaml",
        "RAY_WORKER_GPUS=1 overrides worker_gpus of c.yaml",
    ]


COUNT, CPU, MEMORY = "a whole number of at least 0", "a number of at least 1", "an amount with a unit, like 8Gi"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("num_worker: 2", "there is no key num_worker (did you mean num_workers?)"),
        ("workerGpus: 2", "there is no key workerGpus (did you mean worker_gpus?)"),
        ("1: 2", "there is no key 1 (did you mean "),
        ("token: hunter2", "there is no key token (did you mean "),
        *(
            (f"num_workers: {value}", f"num_workers must be {COUNT}")
            for value in ("-1", "1.5", "two", "true", "[1]", "")
        ),
        *((f"worker_gpus: {value}", f"worker_gpus must be {COUNT}") for value in ("-1", "0.5", "'1'")),
        *((f"head_cpu: {value}", f"head_cpu must be {CPU}") for value in ("0", "0.5", ".inf", ".nan", "500m", "true")),
        ("worker_cpu: {}", f"worker_cpu must be {CPU}"),
        *(
            (f"head_memory: {value}", f"head_memory must be {MEMORY}")
            for value in ("8", "0Gi", "8GB", "8 Gi", "-1Gi", "'8'", "Gi")
        ),
        ("worker_memory: 0.5", f"worker_memory must be {MEMORY}"),
        ("{worker_gpus: 1, worker_accelerator: 4}", "worker_accelerator must be a kind of GPU, like L4"),
        ("worker_accelerator: L4", "worker_accelerator needs worker_gpus of at least 1"),
        ("{worker_accelerator: L4, worker_gpus: 0}", "worker_accelerator needs worker_gpus of at least 1"),
        ("- num_workers", "c.yaml must contain names and values, not list"),
        ("num_workers: [", "c.yaml is not valid YAML at line "),
    ],
)
def test_a_mistake(run: Cli, tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    refused = refusal(run("up", "local", "--config", "c.yaml"), 2)
    assert said in refused and "hunter2" not in refused


def test_all_mistakes_at_once_in_one_line(run: Cli, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("{num_worker: 2, num_workers: two, head_memory: 8, worker_accelerator: L4}")
    refused = refusal(run("up", "gke", "--config", "c.yaml", env={"RAY_WORKER_GPUS": "-1"}), 2)
    assert refused.strip() == (
        "ray-workload: c.yaml: there is no key num_worker (did you mean num_workers?); "
        f"num_workers must be {COUNT}; head_memory must be {MEMORY}; the variable RAY_WORKER_GPUS must be {COUNT}; "
        "worker_accelerator needs worker_gpus of at least 1"
    )


def test_a_file_that_is_missing_and_a_target_without_a_config(run: Cli) -> None:
    assert "cannot read no.yaml: No such file" in refusal(run("up", "local", "--config", "no.yaml"), 2)
    assert "up embedded does not take --config" in refusal(run("up", "embedded", "--config", "no.yaml"), 2)


def test_the_example_has_every_key() -> None:
    text = (ROOT / "jobs" / "ray_cluster_config.yaml").read_text()
    given = yaml.safe_load(text)
    assert {*given, *re.findall("worker_accelerator", text)} == set(WHOLE)
    assert values_of("c.yaml", given, {}, "local", pytest.fail)["workers"]["replicas"] == given["num_workers"]
