"""Measure the chart and its image on the cluster of the current kubeconfig: `make bench-cluster`.

    python ci/bench_cluster.py [--runs N] [--only NAME]...

Each side in turn in one go, each install in a fresh namespace that is deleted behind it, the images of `ci/kind images
--e2e` on both sides. Prints the medians and writes every time to build/bench-cluster.json. pip's own variables
(PIP_NO_INDEX, PIP_FIND_LINKS) let the comparison with pip run where there is no index.
"""

import argparse
import base64
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import requests
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "build" / "bench-cluster.json"
CHART = ROOT / "charts" / "ray-workload"
VALUES = CHART / "values-local.yaml"
IMAGE, PLAIN_IMAGE = "ray-workload:dev", "ray-workload:no-bytecode"
LIMIT_SECONDS = 300
POLL_SECONDS = 0.02
HELLO = "import ray; ray.init(); print(ray.get(ray.remote(lambda: 'hello').remote()))"
IMPORTS = "import click, kubernetes, numpy, pathspec, psutil, pyhelm3, ray, ray.job_submission, requests, rich, yaml"
# What fits two clusters on a small node. The limits, which are what slows a start, stay each side's own.
REQUESTS = [f"{group}.resources.requests.cpu=100m" for group in ("head", "worker")]


class Target(NamedTuple):
    """A row; `at_most` is our time divided by theirs, or in seconds where there is no other side."""

    name: str
    ours: str
    theirs: str | None
    at_most: float | None


TARGETS = (
    Target("install", "helm install, values-local, to ready", "upstream's two charts, the same image", 0.7),
    Target("hello", "hello job", "the same, image without bytecode", 0.65),
    Target("template", "helm template, values-local", None, 0.3),
    Target("imports", "container's start to the end of all imports", "venv + pip install + the imports", None),
)


def run(*command: str, **more: str) -> str:
    """Run a command, and return what it printed."""
    env = {**os.environ, **more}
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
    )
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode} from {' '.join(command)}:\n{done.stderr}")
    return done.stdout


def timed(act: Callable[[], object]) -> float:
    """How long something takes, in seconds."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


@contextmanager
def namespace() -> Iterator[str]:
    """A namespace of its own; the releases in it are removed, and then it."""
    name = f"bench-{secrets.token_hex(4)}"
    run("kubectl", "create", "namespace", name)
    try:
        yield name
    finally:
        for release in run("helm", "list", "-q", "-n", name).split()[::-1]:  # the cluster before the operator
            run("helm", "uninstall", release, "-n", name, "--wait")
        run("kubectl", "delete", "namespace", name)


def install(into: str, image: str = IMAGE) -> None:
    """Our chart, until the cluster is ready."""
    repository, tag = image.split(":")
    sets = [f"ray-cluster.{s}" for s in (*REQUESTS, f"image.repository={repository}", f"image.tag={tag}")]
    sets += ["api.type=ClusterIP", "api.nodePort=null"]  # two at once cannot have the same
    run(
        "helm",
        "install",
        "ray",
        str(CHART),
        "-n",
        into,
        "-f",
        str(CHART / "values-local.yaml"),
        "--set",
        ",".join(sets),
    )
    wait_ready(into)


def install_upstream(into: str) -> None:
    """Upstream's charts with their defaults but for the image, until the cluster is ready."""
    operator, cluster = (str(next(CHART.glob(f"charts/{name}-*.tgz"))) for name in ("kuberay-operator", "ray-cluster"))
    run("helm", "install", "operator", operator, "-n", into)
    repository, tag = IMAGE.split(":")
    sets = [*REQUESTS, f"image.repository={repository}", f"image.tag={tag}"]
    run("helm", "install", "ray", cluster, "-n", into, "--set", ",".join(sets))
    wait_ready(into)


def wait_ready(within: str) -> None:
    """Until the only RayCluster there is ready."""
    name = run("kubectl", "get", "raycluster", "-n", within, "-o", "name").strip()
    run("kubectl", "wait", "-n", within, name, "--for=jsonpath={.status.state}=ready", f"--timeout={LIMIT_SECONDS}s")


def measure_install(how: Callable[[str], None]) -> float:
    """One install in a fresh namespace."""
    with namespace() as name:
        return timed(lambda: how(name))


@contextmanager
def api_server() -> Iterator[str]:
    """The API server on a free local port, with the kubeconfig's login."""
    with subprocess.Popen(["kubectl", "proxy", "--port=0"], stdout=subprocess.PIPE, text=True) as proxy:
        assert proxy.stdout
        yield f"http://{proxy.stdout.readline().split()[-1]}"
        proxy.terminate()


@contextmanager
def cluster(image: str) -> Iterator[Callable[[], float]]:
    """A cluster of an image. Yields what runs one job on it, and returns the seconds from its POST to its end."""
    with namespace() as name, api_server() as server, requests.Session() as session:
        install(name, image)
        secret = json.loads(run("kubectl", "get", "secret", "ray-auth-token", "-n", name, "-o", "json"))
        token = base64.b64decode(secret["data"]["auth_token"]).decode()
        session.headers["X-Ray-Authorization"] = f"Bearer {token}"
        jobs = f"{server}/api/v1/namespaces/{name}/services/http:ray-api:8265/proxy/api/jobs/"

        def job() -> float:
            began = time.perf_counter()
            sent = session.post(jobs, json={"entrypoint": f'python -c "{HELLO}"'}, timeout=30).json()
            status = ""
            while status not in ("SUCCEEDED", "FAILED", "STOPPED"):
                time.sleep(POLL_SECONDS)
                status = session.get(jobs + sent["submission_id"], timeout=30).json()["status"]
            if status != "SUCCEEDED":
                raise SystemExit(f"the job {sent['submission_id']} ended {status}")
            return time.perf_counter() - began

        job()  # the first of a head is slower
        yield job


def measure_imports() -> float:
    """In a pod of the image: from the start of its first process to the end of the imports."""
    script = f"import time; {IMPORTS}; print(time.time() - psutil.Process(1).create_time())"
    with namespace() as name:
        pod = [
            "kubectl",
            "run",
            "imports",
            "-n",
            name,
            f"--image={IMAGE}",
            "--image-pull-policy=Never",
            "--restart=Never",
        ]
        run(*pod, "--command", "--", "python", "-c", script)
        run("kubectl", "wait", "-n", name, "pod/imports", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
        return float(run("kubectl", "logs", "-n", name, "imports"))


def measure_pip() -> float:
    """What users do without an image: a virtual environment, the same lock, the same imports."""
    with tempfile.TemporaryDirectory() as folder:
        python = f"{folder}/bin/python"

        def all_of_it() -> None:
            run(sys.executable, "-m", "venv", folder)
            run(python, "-m", "pip", "install", "-q", "--no-cache-dir", "--require-hashes", "-r", "requirements.txt")
            run(python, "-c", IMPORTS)

        return timed(all_of_it)


def main() -> None:
    """Measure what was asked for, print and write it."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    parser = argparse.ArgumentParser(description="Measure the chart and its image")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", action="append", choices=[t.name for t in TARGETS])
    options = parser.parse_args()
    template = ["helm", "template", "ray", str(CHART), "-f", str(VALUES)]
    sides: dict[str, list[Callable[[], float]]] = {
        "install": [lambda: measure_install(install), lambda: measure_install(install_upstream)],
        "template": [lambda: timed(lambda: run(*template))],
        "imports": [measure_imports, measure_pip],
    }
    times: dict[str, list[list[float]]] = {}
    table = Table("what", "ours (s)", "theirs", "theirs (s)", "ratio", "target", "reached")
    for target in TARGETS:
        if options.only and target.name not in options.only:
            continue
        with ExitStack() as stack:
            if target.name == "hello":
                sides["hello"] = [stack.enter_context(cluster(image)) for image in (IMAGE, PLAIN_IMAGE)]
            runs = options.runs if target.name != "imports" else 1
            rounds = [[side() for side in sides[target.name]] for _ in range(runs)]
        times[target.name] = [list(side) for side in zip(*rounds, strict=True)]
        medians = [statistics.median(side) for side in times[target.name]]
        figure = medians[0] / medians[1] if len(medians) == 2 else medians[0]
        table.add_row(
            target.ours,
            f"{medians[0]:.2f}",
            target.theirs or "",
            f"{medians[1]:.2f}" if len(medians) == 2 else "",
            f"{figure:.2f}" if len(medians) == 2 else "",
            str(target.at_most or "for the record"),
            "" if target.at_most is None else "yes" if figure <= target.at_most else "NO",
        )
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(times, indent=1))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    main()
