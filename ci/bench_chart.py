"""What `ci/bench_cluster.py` measures of the chart and its image."""

import base64
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

Sides = list[Callable[[], float]]
ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "charts" / "ray-workload"
VALUES = CHART / "values-local.yaml"
IMAGE, PLAIN_IMAGE, JOBS_IMAGE = "ray-workload:dev", "ray-workload:no-bytecode", "ray-workload:jobs"
LIMIT_SECONDS = 300
POLL_SECONDS = 0.02
HELLO = "import ray; ray.init(); print(ray.get(ray.remote(lambda: 'hello').remote()))"
IMPORTS = "import click, kubernetes, numpy, psutil, pyhelm3, ray, ray.job_submission, requests, rich, yaml"
# So that two clusters fit on a small node. Each side keeps its own limits, which determine how fast it starts.
REQUESTS = [f"{group}.resources.requests.cpu=100m" for group in ("head", "worker")]


def run(*command: str, **more: str) -> str:
    """Run a command and return its stdout; `more` are additional environment variables."""
    env = {**os.environ, **more}
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
    )
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode} from {' '.join(command)}:\n{done.stderr}")
    return done.stdout


def timed(act: Callable[[], object]) -> float:
    """Return how many seconds a call takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


@contextmanager
def namespace() -> Iterator[str]:
    """Create a namespace; at the end, uninstall its releases and delete it."""
    name = f"bench-{secrets.token_hex(4)}"
    run("kubectl", "create", "namespace", name)
    try:
        yield name
    finally:
        for release in run("helm", "list", "-q", "-n", name).split()[::-1]:  # the cluster, then the operator
            run("helm", "uninstall", release, "-n", name, "--wait")
        run("kubectl", "delete", "namespace", name)


def install(into: str, image: str = IMAGE) -> None:
    """Install our chart and wait until the cluster is ready."""
    run("helm", "install", "ray", str(CHART), "-n", into, "-f", str(VALUES), "--set", ",".join(sets(image)))
    wait_ready(into)


def sets(image: str = IMAGE) -> list[str]:
    """Return the values that the measurement sets in our chart."""
    of_cluster = [f"ray-cluster.{s}" for s in cluster_sets(image)]
    return [*of_cluster, "api.type=ClusterIP", "api.nodePort=null"]  # two clusters cannot use the same node port


def cluster_sets(image: str) -> list[str]:
    """Return the values that upstream's ray-cluster chart accepts too."""
    repository, tag = image.split(":")
    return [*REQUESTS, f"image.repository={repository}", f"image.tag={tag}"]


def install_upstream(into: str) -> None:
    """Install upstream's charts with default values except the image and requests, and wait for the cluster."""
    operator, cluster = (str(next(CHART.glob(f"charts/{name}-*.tgz"))) for name in ("kuberay-operator", "ray-cluster"))
    run("helm", "install", "operator", operator, "-n", into)
    run("helm", "install", "ray", cluster, "-n", into, "--set", ",".join(cluster_sets(IMAGE)))
    wait_ready(into)


def wait_ready(within: str) -> None:
    """Wait until the only RayCluster in a namespace is ready."""
    name = run("kubectl", "get", "raycluster", "-n", within, "-o", "name").strip()
    run("kubectl", "wait", "-n", within, name, "--for=jsonpath={.status.state}=ready", f"--timeout={LIMIT_SECONDS}s")


def measure_install(how: Callable[[str], object]) -> float:
    """Measure one install in a new namespace."""
    with namespace() as name:
        return timed(lambda: how(name))


@contextmanager
def api_server() -> Iterator[str]:
    """Run `kubectl proxy` on a free port, with the kubeconfig's login; yield its URL."""
    with subprocess.Popen(["kubectl", "proxy", "--port=0"], stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout
        yield f"http://{proxy.stdout.readline().split()[-1]}"
        proxy.terminate()


@contextmanager
def cluster(image: str) -> Iterator[Callable[[], float]]:
    """Install a cluster with an image. Yields a function that runs a job and returns the seconds from POST to end."""
    with namespace() as name, api_server() as server, requests.Session() as session:
        install(name, image)
        session.headers["X-Ray-Authorization"] = f"Bearer {token(name)}"
        jobs = f"{server}/api/v1/namespaces/{name}/services/http:ray-api:8265/proxy/api/jobs/"

        def job() -> float:
            began = time.perf_counter()
            sent = session.post(jobs, json={"entrypoint": f'python -c "{HELLO}"'}, timeout=30).json()
            status = ""
            while status not in ("SUCCEEDED", "FAILED", "STOPPED"):
                time.sleep(POLL_SECONDS)
                status = session.get(jobs + sent["submission_id"], timeout=30).json()["status"]
            if status != "SUCCEEDED":
                raise SystemExit(f"job {sent['submission_id']} ended as {status}")
            return time.perf_counter() - began

        job()  # the first job on a head is slower
        yield job


def current_context() -> str:
    """Return the kubeconfig's current context."""
    return run("kubectl", "config", "current-context").strip()


def token(namespace: str) -> str:
    """Return the token of the cluster in a namespace."""
    secret = json.loads(run("kubectl", "get", "secret", "ray-auth-token", "-n", namespace, "-o", "json"))
    return base64.b64decode(secret["data"]["auth_token"]).decode()


def measure_imports() -> float:
    """Measure, in a pod of the image, the time from the start of its first process to the end of the imports."""
    script = f"import time; {IMPORTS}; print(time.time() - psutil.Process(1).create_time())"
    with namespace() as name:
        how = (f"--image={IMAGE}", "--image-pull-policy=Never", "--restart=Never")
        run("kubectl", "run", "imports", "-n", name, *how, "--command", "--", "python", "-c", script)
        run("kubectl", "wait", "-n", name, "pod/imports", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
        return float(run("kubectl", "logs", "-n", name, "imports"))


def measure_pip() -> float:
    """Measure the same without the image: create a virtual environment, install the lock file, import."""
    with tempfile.TemporaryDirectory() as folder:
        python = f"{folder}/bin/python"

        def all_of_it() -> None:
            run(sys.executable, "-m", "venv", folder)
            run(python, "-m", "pip", "install", "-q", "--no-cache-dir", "--require-hashes", "-r", "requirements.txt")
            run(python, "-c", IMPORTS)

        return timed(all_of_it)
