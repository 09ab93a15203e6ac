"""platform_services.py on a cluster whose pods get the addresses and passwords of its servers from a Secret."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.e2e._cluster import Cluster, install, run_pods, tiny_pod
from tests.e2e.conftest import JOBS_IMAGE, SERVICES_IMAGE, apply, kubectl, new_namespace, until
from tests.e2e.test_pod_commands import client

PASSWORD = secrets.token_urlsafe()
SECRET = {
    "DATABASE_URL": f"postgresql://ray:{PASSWORD}@services/postgres",
    "REDIS_URL": f"redis://:{PASSWORD}@services",
    "KAFKA_SASL_PASSWORD": PASSWORD,
}
ENV = {
    "KAFKA_BOOTSTRAP_SERVERS": "services:9092",
    "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
    "KAFKA_SASL_MECHANISM": "PLAIN",
    "KAFKA_SASL_USERNAME": "ray",
    **{name: {"secret": "services", "key": name} for name in SECRET},
}
ROWS = """
import os, psycopg
with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
    print(*connection.execute("SELECT count(*), count(DISTINCT number), sum(cents) FROM ray_orders").fetchone())
"""


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose driver runs on the head and whose tasks run on the worker, beside a pod with the servers."""
    with new_namespace("services") as where:
        metadata = {"name": "services", "namespace": where}
        apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": SECRET})
        ports = [{"name": str(port), "port": port} for port in (5432, 6379, 9092)]
        spec = {"selector": {"app": "services"}, "ports": ports}
        apply({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
        pod = tiny_pod("services", where, labels={"app": "services"})
        (container,) = pod["spec"]["containers"]
        container.pop("command")
        password = {"secretKeyRef": {"name": "services", "key": "KAFKA_SASL_PASSWORD"}}
        container |= {
            "image": SERVICES_IMAGE,
            "env": [
                {"name": "SERVICES_HOST", "value": "services"},
                {"name": "SERVICES_PASSWORD", "valueFrom": password},
            ],
        }
        run_pods(pod)

        values = tmp_path_factory.mktemp("values") / "values.yaml"
        values.write_text(yaml.safe_dump({"env": ENV}))
        made = install(where, "head.runsTasks=false", values=[str(values)], image=JOBS_IMAGE)
        made.wait()
        until(
            "the servers are ready", lambda: "all servers are ready" in kubectl("logs", "-n", where, "services").stdout
        )
        yield made


def test_the_rows_are_there_once(ray: Cluster) -> None:
    job = ("--working-dir", str(ROOT / "jobs"), str(ROOT / "jobs" / "platform_services.py"))
    for run in ("first", "second"):
        done = client(ray, "submit", "--id", run, *job, timeout=100)
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
        assert b"all well: table and topic have each of the 20,000 orders once" in done.stdout
        assert ray.python(ray.name("head"), ROWS).split() == ["20000", "20000", "58557372"]
        status = client(ray, "status", run, "-o", "json")
        assert b"SUCCEEDED" in status.stdout
        for shown in (done.stdout, done.stderr, status.stdout):
            assert PASSWORD.encode() not in shown
    assert b"160 of 160 rates were in the cache" in done.stdout
    shown_by_kubernetes = kubectl("get", "raycluster,pods", "-n", ray.namespace, "-o", "yaml").stdout
    assert "KAFKA_SASL_PASSWORD" in shown_by_kubernetes and PASSWORD not in shown_by_kubernetes


def test_a_wrong_password_is_one_line(ray: Cluster, tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text('DATABASE_URL=${DATABASE_URL/"ray:"/"ray:x"} exec python platform_services.py\n')
    (tmp_path / "platform_services.py").write_bytes((ROOT / "jobs" / "platform_services.py").read_bytes())
    done = client(ray, "submit", "--working-dir", str(tmp_path), "--", "bash", "job.sh", timeout=100)
    assert done.returncode == 1
    assert b"wrong: PostgreSQL cannot be used: connection failed: " in done.stdout
    assert b'password authentication failed for user "ray"' in done.stdout
    assert PASSWORD.encode() not in done.stdout + done.stderr
