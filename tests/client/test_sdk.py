"""client/ray_api/sdk.py: Ray's SDK is used for what only it can check; what is sent without it is the same."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from client.ray_api.jobs import RayJobs, needs_sdk
from client.ray_api.sdk import submit_job
from client.targets.url import UrlTarget
from tests.client.server import Handler, serving
from tests.client.test_errors import refusal
from tests.conftest import Cli

ARGUMENTS: dict[str, Any] = {
    "entrypoint": "exec python job.py 'ä b'",
    "submission_id": "job-1",
    "runtime_env": {
        "working_dir": "gcs://_ray_pkg_0123.zip",
        "py_modules": ["gcs://_ray_pkg_4567.zip", "gcs://module-1.0-0_89ab-py3-none-any.whl"],
        "env_vars": {"A": "1", "PYTHONPATH": "src:${PYTHONPATH}"},
    },
    "metadata": {"job_name": "a name", "spec_hash": "0123"},
    "entrypoint_num_cpus": 1,
    "entrypoint_num_gpus": 0.5,
    "entrypoint_memory": 1 << 30,
    "entrypoint_resources": {"accelerator_type:L4": 0.001},
    "entrypoint_label_selector": {"ray.io/zone": "a"},
}


@pytest.mark.parametrize(
    "arguments",
    [
        ARGUMENTS,
        ARGUMENTS | {"runtime_env": {}},
        ARGUMENTS | {"runtime_env": {"working_dir": "local:///home/me"}},
        ARGUMENTS
        | {"runtime_env": {"working_dir": "s3://bucket/a.zip", "py_modules": ["gs://bucket/b/a-1-py3-none-any.whl"]}},
        {key: ARGUMENTS[key] for key in ("entrypoint", "submission_id", "runtime_env", "metadata")},
    ],
    ids=["everything", "nothing", "in place", "in a bucket", "required"],
)
def test_a_request_without_the_sdk_is_the_sdks_own(arguments: Mapping[str, Any]) -> None:
    bodies = []

    def answer(asked: Handler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        bodies.append((asked.command, asked.path, asked.headers["Content-Type"], json.loads(body)))
        return 200, {}, json.dumps({"job_id": "job-1", "submission_id": "job-1"}).encode()

    with serving(answer) as url:
        jobs = RayJobs(UrlTarget(url, send_token=False))
        assert not needs_sdk(arguments["runtime_env"])
        jobs.submit(arguments)
        submit_job(jobs.submit_plain, arguments)
    plain, of_sdk = bodies
    assert plain == of_sdk and plain[:2] == ("POST", "/api/jobs/")


@pytest.mark.parametrize(
    "runtime_env",
    [
        {"pip": ["einops"]},
        {"working_dir": "s3://bucket/a.tar.bz2"},
        {"working_dir": "https://host/a.zip"},
        {"py_modules": ["https://host/a.zip"]},
        {"env_vars": {"A": 1}},
        {"env_vars": {1: "A"}},
    ],
    ids=str,
)
def test_a_runtime_env_that_the_sdk_must_check(runtime_env: Mapping[str, Any]) -> None:
    assert needs_sdk(runtime_env)


@pytest.mark.parametrize("job_file", ["{}", "{runtime_env: {config: {setup_timeout_seconds: 60}}}"])
def test_a_job_imports_ray_only_if_it_must(job_file: str, remote: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(job_file)
    command = [sys.executable, "-X", "importtime", "-m", "client", "submit", "-f", "job.yaml", "--", "true"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **remote}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "client.ray_api.jobs" in imported
    assert ("ray" in imported) == ("config" in job_file)


@pytest.mark.parametrize("key", ["metadata", "entrypoint_label_selector"])
@pytest.mark.parametrize("pairs", ["{day: 2026-01-01}", "{1: a}", "{a: null}"])
def test_what_must_be_text(key: str, pairs: str, run: Cli, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(f"entrypoint: 'true'\n{key}: {pairs}\n")
    done = run("submit", "-f", "job.yaml", "--address", "http://127.0.0.1:1")
    assert f"{key} must map each name to text" in refusal(done, 2)


def test_variables_are_checked_before_anything_is_packed(run: Cli, remote: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("runtime_env: {env_vars: {A: 1}}\n")
    (tmp_path / "big").write_bytes(os.urandom(1 << 20))
    done = run("submit", "-f", "job.yaml", "--", "true", env={**remote, "TMPDIR": "/nowhere"})
    assert "Ray does not accept this runtime_env" in refusal(done, 2)
