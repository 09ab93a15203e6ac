"""The jobs of `jobs/` on a cluster, in the image with extras: what they print, and what they leave."""

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.e2e._cluster import Cluster, new_cluster, run_pods, tiny_pod
from tests.e2e.conftest import JOBS_IMAGE, Done, kubectl, until
from tests.e2e.test_pod_commands import client

STORE = 100_000_000  # bytes of the object store in each pod: small, so that little data fills it
STORES = {group: {"rayStartParams": {"object-store-memory": str(STORE)}} for group in ("head", "workers")}
# Runs on the head: the ids of the rows in the files that a job left, in order.
SORTED = """
import glob, sys, pyarrow.parquet as pq
(folder,) = glob.glob(f"/tmp/ray/session_latest/jobs/{sys.argv[1]}/**/sorted", recursive=True)
print(pq.read_table(folder)["id"].to_pylist())
"""
TOKEN = {"name": "token", "mountPath": "/token", "readOnly": True}
WITH_TOKEN = ("RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH=/token/auth_token")
ASK = "import urllib.request, sys; print(urllib.request.urlopen(sys.argv[1], timeout=10).read().decode())"


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    values = tmp_path_factory.mktemp("values") / "values.yaml"
    values.write_text(yaml.safe_dump({**STORES, "api": {"serve": True, "rayClient": True}}))
    with new_cluster("gallery", values=[str(values)], image=JOBS_IMAGE) as made:
        made.wait()
        yield made


@pytest.fixture(scope="module")
def pod(ray: Cluster) -> None:
    """A pod of a user, with the token: the policies admit it."""
    made = tiny_pod("user", ray.namespace, labels={"ray-workload/client": "true"}, image=JOBS_IMAGE)
    made["spec"]["containers"][0]["volumeMounts"] = [TOKEN]
    made["spec"]["volumes"] = [{"name": "token", "secret": {"secretName": "ray-auth-token"}}]
    run_pods(made)


def in_pod(ray: Cluster, *command: str) -> Done:
    return kubectl("exec", "-n", ray.namespace, "user", "--", *command, check=False, timeout=120)


def submit(ray: Cluster, *args: str) -> str:
    """Run a job of jobs/ to its end and return its log."""
    done = client(ray, "submit", "--working-dir", str(ROOT / "jobs"), *args, timeout=180)
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
    return done.stdout.decode()


def test_tune_finds_the_best_and_leaves_a_picture(
    ray: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    log = submit(ray, "--id", "tune", "--fetch", "tune_sweep.png", "tune_sweep.py")
    assert "\nall well: the best degree is 5, that of the curve\n" in log
    assert len(re.findall(r"^degree +\d+: error", log, re.MULTILINE)) == 12
    (picture,) = (tmp_path / "outputs" / "tune").rglob("tune_sweep.png")
    assert struct.unpack(">8s8xII", picture.read_bytes()[:24]) == (b"\x89PNG\r\n\x1a\n", 800, 500)


def test_data_sorts_more_than_the_object_stores_hold(ray: Cluster) -> None:
    log = submit(ray, "--id", "data", "data_files.py")
    assert "the object store has 200 MB, the data 300 MB" in log
    (spilled,) = re.findall(r"Ray spilled (\d+) MB", log)
    assert int(spilled) > 0
    rows = 3 * STORE // 10_000
    total = sum(n % 251 * 10_000 for n in range(rows))
    assert f"all well: {rows:,} sorted rows with the sum {total:,} are in " in log
    ids = json.loads(ray.python(ray.name("head"), SORTED, "data"))
    assert sorted(ids) == list(range(rows)) and [i * 7919 % 10007 for i in ids] == sorted(i * 7919 % 10007 for i in ids)


def test_an_application_of_serve_answers_at_the_service_until_it_is_stopped(ray: Cluster, pod: None) -> None:
    url = "http://ray-api:8000/primes?n=97"
    assert "Connection refused" in in_pod(ray, "python", "-c", ASK, url).stderr
    submit(ray, "--detach", "--id", "app", "serve_app.py", "--keep")
    until("it serves", lambda: b"serving until" in client(ray, "logs", "app").stdout, timeout=120)
    answer = in_pod(ray, "python", "-c", ASK, url)
    assert '"n":97,"prime":true' in answer.stdout, answer
    log = client(ray, "logs", "app").stdout.decode()
    first, two = (re.findall(line, log) for line in (r"one replica answers at .*: (\S+)\n", r"two do: (\S+), (\S+)\n"))
    assert len(first) == 1 and first[0] in two[0] and len({*two[0]}) == 2, log
    assert client(ray, "stop", "app").returncode == 0
    until("it is removed", lambda: "urllib.error" in in_pod(ray, "python", "-c", ASK, url).stderr)


def test_ray_client_from_a_pod_needs_the_token(ray: Cluster, pod: None) -> None:
    script = ("python", "/app/jobs/ray_client.py", "--address", "ray://ray-api:10001")
    done = in_pod(ray, "env", *WITH_TOKEN, *script)
    assert done.returncode == 0, done
    names = [name for name in (ray.name("head"), ray.name("worker")) if name in done.stdout]
    assert names and "this client is on user" in done.stdout
    assert done.stdout.rstrip().endswith("elements is 499,877,311, here and in the cluster"), done.stdout
    refused = in_pod(ray, *script)
    assert refused.returncode == 1 and "all well" not in refused.stdout, refused
    assert "wrong: no connection to ray://ray-api:10001" in refused.stderr
