"""The end-to-end tests use a real cluster: the current context of the user's kubeconfig.

Tests can import these from tests.e2e.conftest:

- `IMAGE`, `NEXT_IMAGE` (the same content, for upgrades), `JOBS_IMAGE` (with extras), `OWN_IMAGE` (of `ci/own-image`),
  `REDIS_IMAGE`, `SERVICES_IMAGE` (PostgreSQL, Redis and Kafka): the values of these environment variables, by default
  the images of `ci/kind images --e2e`. `HELM4`: a second helm from this variable, or None. `CHART`: the path.
- `kubectl(*args, input=None, check=True, timeout=60)`, `helm(*args, ..., tool="helm")`: run in the project's folder and
  return a CompletedProcess with text; with `check`, a non-zero exit code fails the test and shows the output.
- `get(*args)`: the parsed output of `kubectl get`. `apply(*manifests)`.
- `until(what, found, timeout=60, namespace=None)`: polls `found` and returns its first true result; at the timeout,
  fails with the pods and events of the namespace.
- `new_namespace(purpose, restricted=False)`: a context manager, for releases that tests share; the fixture `namespace`
  creates one for a single test. A failed test shows what is in the namespace; all are deleted after the last test.
- `inventory(namespace)`: the objects in a namespace, and the cluster-scoped objects that name it.
- If the environment variable E2E_OWN_CLUSTER is set, the tests first remove the namespaces of runs that were killed.
- `unproved(what)`: skips a test that this cluster cannot run; the summary lists it. If the environment variable
  E2E_UNPROVED is set, a regular expression, the test fails unless `what` matches it.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest

from tests.conftest import ROOT, own_environment

sys.modules["tests.e2e.conftest"] = sys.modules[__name__]  # so that imports share this module's namespaces

T = TypeVar("T")
Done = subprocess.CompletedProcess[str]
Object = dict[str, Any]
CHART = "charts/ray-workload"
TOOLS = ROOT / "build" / "tools"  # `make` builds helm there if none is installed
IMAGE = os.environ.get("IMAGE", "ray-workload:dev")
NEXT_IMAGE = os.environ.get("NEXT_IMAGE", "ray-workload:next")
JOBS_IMAGE = os.environ.get("JOBS_IMAGE", "ray-workload:jobs")
OWN_IMAGE = os.environ.get("OWN_IMAGE", "ray-workload:own")
SERVICES_IMAGE = os.environ.get("SERVICES_IMAGE", "ray-workload-services:dev")
REDIS_IMAGE = os.environ.get("REDIS_IMAGE", "ray-workload-redis:dev")
HELM4 = os.environ.get("HELM4") or None
# Read before the tests change HOME: the login programs of a kubeconfig may need the user's home.
_HOME = str(Path.home())
_KUBECONFIG = os.environ.get("KUBECONFIG") or f"{_HOME}/.kube/config"
_UPSTREAM = os.environ.get("RAY_WORKLOAD_UPSTREAM") or f"{_HOME}/.cache/ray-workload/upstream"
_PREFIX = "rwt-"  # of the names of what the tests create outside a namespace
_RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
_END = float(os.environ.get("E2E_END", "inf"))  # Unix time in seconds
_REMOVERS = ThreadPoolExecutor()
_alive: list[str] = []
_removing: list[Future[None]] = []
_SLOW = ("events", "componentstatuses", "namespaces")  # or not relevant


def user_environment() -> dict[str, str]:
    """Return the tests' environment with the user's home, which kubeconfig logins may need; helm does not use it."""
    folder = os.environ["HOME"]
    helm_homes = {f"HELM_{part}_HOME": f"{folder}/helm/{part.lower()}" for part in ("CACHE", "CONFIG", "DATA")}
    return {**os.environ, "HOME": _HOME, "KUBECACHEDIR": f"{folder}/kube", **helm_homes}


def run(
    *command: str,
    input: str | None = None,
    check: bool = True,
    timeout: float = 60,
    env: Mapping[str, str] | None = None,
) -> Done:
    """Run a command in the project's folder; `env` extends the environment."""
    env = user_environment() | dict(env or {})
    done = subprocess.run(
        command, cwd=ROOT, env=env, input=input, capture_output=True, text=True, timeout=timeout, check=False
    )
    if check and done.returncode:
        pytest.fail(f"exit code {done.returncode} from {' '.join(command)}:\n{done.stderr.strip()}\n{done.stdout}")
    return done


def kubectl(*args: str, input: str | None = None, check: bool = True, timeout: float = 60) -> Done:
    return run("kubectl", *args, input=input, check=check, timeout=timeout)


def helm(*args: str, input: str | None = None, check: bool = True, timeout: float = 240, tool: str = "helm") -> Done:
    return run(tool, *args, input=input, check=check, timeout=timeout)


def get(*args: str) -> Any:
    """Return the parsed output of `kubectl get`."""
    return json.loads(kubectl("get", *args, "-o", "json").stdout)


def releases(namespace: str) -> set[str]:
    """Return the names of the Helm releases in any state, which Helm 3 and 4 list with different flags."""
    return {s["metadata"]["labels"]["name"] for s in get("secrets", "-n", namespace, "-l", "owner=helm")["items"]}


def apply(*manifests: Object) -> None:
    kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}))


def state(namespace: str) -> str:
    """Return the objects and events of a namespace, for the message of a failure."""
    all_ = kubectl("get", "all,raycluster,rayjob,job", "-n", namespace, "-o", "wide", check=False)
    events = kubectl("get", "events", "-n", namespace, "--sort-by=.lastTimestamp", check=False)
    return "\n".join(part.stdout or part.stderr for part in (all_, events))


def until(what: str, found: Callable[[], T | None], timeout: float = 60, namespace: str | None = None) -> T:
    """Poll until `found` returns a true value, and return the value."""
    end = time.monotonic() + timeout
    while not (answer := found()):
        if time.monotonic() > end:
            pytest.fail(f"not within {timeout:g} s: {what}\n{state(namespace) if namespace else ''}")
        time.sleep(0.25)
    return answer


def unproved(what: str) -> NoReturn:
    """Skip or fail a test that needs something this cluster or its image does not have."""
    if re.search(os.environ.get("E2E_UNPROVED", ""), what):
        pytest.skip(f"NOT PROVED: {what}")
    pytest.fail(f"NOT PROVED: {what}", pytrace=False)


@contextlib.contextmanager
def new_namespace(purpose: str, restricted: bool = False) -> Iterator[str]:
    """Create a namespace; delete it at the end, releases first, so that no object waits for a deleted operator."""
    name = f"{_PREFIX}{purpose}-{secrets.token_hex(3)}"
    labels = _RESTRICTED if restricted else {}
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    _alive.append(name)
    try:
        yield name
    finally:
        _alive.remove(name)
        remove(name)


def remove(namespace: str) -> None:
    """Delete a namespace in the background: a head with a running job takes half a minute to end."""

    def go_on() -> None:
        for release in releases(namespace):
            helm("uninstall", release, "-n", namespace, "--wait", "--timeout", "2m", check=False)
        kubectl("delete", "namespace", namespace, "--ignore-not-found", "--timeout=2m", timeout=150)

    _removing.append(_REMOVERS.submit(go_on))


def _wait_removed() -> None:
    while _removing:
        _removing.pop().result()


def _remove_leftovers() -> None:
    """If the cluster is for these tests alone, remove what runs that were killed have left there."""
    if os.environ.get("E2E_OWN_CLUSTER"):
        for left in get("namespaces,nodes,persistentvolumes")["items"]:
            name = left["metadata"]["name"]
            if name.startswith(_PREFIX) and left["kind"] == "Namespace":
                remove(name)
            elif name.startswith(_PREFIX):
                kubectl("delete", left["kind"], name, "--wait=false")
        _wait_removed()
        if not kubectl("get", "crd", "rayclusters.ray.io", check=False).returncode:
            run("ci/upgrade-crds")  # the tests of older CRDs may have changed them


@pytest.fixture
def namespace() -> Iterator[str]:
    with new_namespace("test") as name:
        yield name


def _kinds(namespaced: bool) -> str:
    listed = kubectl("api-resources", "--verbs=list", f"--namespaced={str(namespaced).lower()}", "-o", "name").stdout
    return ",".join(kind for kind in listed.split() if kind.partition(".")[0] not in _SLOW and "metrics" not in kind)


def inventory(namespace: str) -> set[str]:
    """Return as Kind/name the objects in a namespace, except events and defaults, and its cluster-scoped objects.

    Every object of a release names the release's namespace in an annotation by Helm.
    """
    inside = get(_kinds(namespaced=True), "-n", namespace, "--ignore-not-found")["items"]
    outside = [o for o in get(_kinds(namespaced=False))["items"] if json.dumps(namespace) in json.dumps(o)]
    found = {f"{o['kind']}/{o['metadata']['name']}" for o in inside + outside}
    return found - {"ConfigMap/kube-root-ca.crt", "ServiceAccount/default"}


def _what_is_missing() -> str | None:
    """Return one line that says what is missing and how to fix it, or None."""
    for tool, where in (("kubectl", "https://kubernetes.io/docs/tasks/tools"), ("helm", "run `make charts`")):
        if not shutil.which(tool):
            return f"{tool} is not on PATH: {where}"
    if not all(any(ROOT.glob(f"{CHART}/charts/{name}-*.tgz")) for name in ("kuberay-operator", "ray-cluster")):
        return "the chart has no dependencies: run `make charts`"
    try:
        reached = kubectl("get", "nodes", "--request-timeout=15s", check=False)
    except subprocess.TimeoutExpired:
        return f"the cluster of {_KUBECONFIG} does not answer: start it, or set KUBECONFIG to another one"
    if reached.returncode:
        said = reached.stderr.strip().splitlines() or ["nothing"]
        return f"no cluster: run `ci/kind create`, or set KUBECONFIG to yours ({_KUBECONFIG}: {said[-1]})"
    if missing := _missing_images():
        whose = "or set IMAGE, NEXT_IMAGE, JOBS_IMAGE, OWN_IMAGE, REDIS_IMAGE and SERVICES_IMAGE to yours"
        return f"the cluster cannot run {' '.join(sorted(missing))}: run `ci/kind images --e2e`, {whose}"
    return None


def _missing_images() -> set[str]:
    """Return the images that cannot be started in a pod."""
    images = {"image": IMAGE, "next": NEXT_IMAGE, "jobs": JOBS_IMAGE, "own": OWN_IMAGE}
    images |= {"redis": REDIS_IMAGE, "services": SERVICES_IMAGE}
    containers = [
        {"name": name, "image": image, "imagePullPolicy": "IfNotPresent", "command": ["true"]}
        for name, image in images.items()
    ]
    with new_namespace("images") as name:
        metadata = {"name": "images", "namespace": name}
        spec = {"containers": containers, "restartPolicy": "Never", "terminationGracePeriodSeconds": 0}
        until("a service account", lambda: not kubectl("get", "sa", "default", "-n", name, check=False).returncode)
        apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})

        def told() -> dict[str, bool] | None:
            """Return for each image whether it ran, or None until all are known."""
            seen = {}
            for status in get("pod", "images", "-n", name)["status"].get("containerStatuses", ()):
                waiting = status["state"].get("waiting", {}).get("reason", "")
                if "terminated" in status["state"] or "Image" in waiting:
                    seen[images[status["name"]]] = "terminated" in status["state"]
            return seen if set(seen) == set(images.values()) else None

        return {image for image, runs in until("the images", told, timeout=180, namespace=name).items() if not runs}


def _use_cluster() -> None:
    """Make the user's cluster available in the tests' environment."""
    separated = [str(Path(part).absolute()) for part in _KUBECONFIG.split(os.pathsep) if part]
    os.environ["KUBECONFIG"] = os.pathsep.join(separated)
    os.environ["RAY_WORKLOAD_UPSTREAM"] = _UPSTREAM
    os.environ["PATH"] += f"{os.pathsep}{TOOLS}"


def _check_cluster() -> None:
    """If the tests cannot run here, exit with one line; else remove what earlier runs have left."""
    if missing := _what_is_missing():
        pytest.exit(f"tests/e2e: {missing}", returncode=4)
    _remove_leftovers()


def pytest_sessionstart(session: pytest.Session) -> None:
    """If the tests run in several processes, check the cluster once, before they start."""
    if session.config.getoption("numprocesses", None):
        with own_environment():
            _use_cluster()
            _check_cluster()


@pytest.fixture(scope="session", autouse=True)
def environment(environment: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Use the tests' own environment, as all tests do, but with the user's cluster."""
    _use_cluster()
    if not hasattr(request.config, "workerinput"):
        _check_cluster()
    yield environment
    _wait_removed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """After E2E_END, fail the remaining tests at once, so that none is skipped silently."""
    if time.time() > _END:
        pytest.fail("not run: the time limit of the tests was reached (E2E_END)", pytrace=False)
    if item.get_closest_marker("alone"):
        _wait_removed()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    report = yield
    if report.failed and time.time() < _END:
        report.sections += [(f"namespace {name}", state(name)) for name in _alive]
    return report
