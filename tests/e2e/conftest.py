"""The chart on a real cluster: the one of the current context of the user's kubeconfig.

For the tests, all by `from tests.e2e.conftest import ...`:

- `IMAGE`, `NEXT_IMAGE` (the same content, to upgrade to), `REDIS_IMAGE`: from the environment variables of these names,
  else those of `ci/kind images --e2e`. `HELM4`: a second helm by the variable of this name, or None. `CHART`: its path.
- `kubectl(*args, input=None, check=True, timeout=60)`, `helm(*args, ..., tool="helm")`: a CompletedProcess with text;
  with `check`, an exit code other than 0 is a failure that shows what was said. They run in the project's folder.
- `get(*args)`: what `kubectl get` has, parsed. `apply(*manifests)`.
- `until(what, found, timeout=60, namespace=None)`: the first true answer of `found`, polled, else a failure that shows
  pods and events.
- `new_namespace(purpose, restricted=False)`: a context manager, for releases that are shared; the fixture `namespace`
  is one for a single test. Either way everything in it is gone at the end of all tests, and shown where a test fails.
- `inventory(namespace)`: all that is there, cluster-scoped objects that name it included.
- `unproved(what)`: skip, for what this cluster cannot prove; it stands in the summary. Where the environment has
  E2E_UNPROVED, a regular expression, only what it matches may be skipped.
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

sys.modules["tests.e2e.conftest"] = sys.modules[__name__]  # who imports from here meets the same namespaces

T = TypeVar("T")
Done = subprocess.CompletedProcess[str]
Object = dict[str, Any]
CHART = "charts/ray-workload"
TOOLS = ROOT / "build" / "tools"  # where `make` builds helm, if there is none
IMAGE = os.environ.get("IMAGE", "ray-workload:dev")
NEXT_IMAGE = os.environ.get("NEXT_IMAGE", "ray-workload:next")
REDIS_IMAGE = os.environ.get("REDIS_IMAGE", "ray-workload-redis:dev")
HELM4 = os.environ.get("HELM4") or None
# Read before the tests get a home of their own: kubeconfigs may run programs that look for a login in the user's home.
_HOME = str(Path.home())
_KUBECONFIG = os.environ.get("KUBECONFIG") or f"{_HOME}/.kube/config"
_UPSTREAM = os.environ.get("RAY_WORKLOAD_UPSTREAM") or f"{_HOME}/.cache/ray-workload/upstream"
_LABEL = "ray-workload/e2e"
_RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn", "audit")}
_END = float(os.environ.get("E2E_END", "inf"))  # in seconds since 1970
_REMOVERS = ThreadPoolExecutor()
_alive: list[str] = []
_removing: list[Future[None]] = []
_SLOW = ("events", "componentstatuses", "namespaces")  # or of no interest


def user_environment() -> dict[str, str]:
    """The tests' environment, but the user's home, where a kubeconfig's login may be; helm's own files do not."""
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
    """A command in the project's folder; `env` comes on top of the environment."""
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
    """What kubectl has of it."""
    return json.loads(kubectl("get", *args, "-o", "json").stdout)


def apply(*manifests: Object) -> None:
    kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}))


def state(namespace: str) -> str:
    """What is there, and what was said of it, for a failure's text."""
    all_ = kubectl("get", "all,raycluster,rayjob,job", "-n", namespace, "-o", "wide", check=False)
    events = kubectl("get", "events", "-n", namespace, "--sort-by=.lastTimestamp", check=False)
    return "\n".join(part.stdout or part.stderr for part in (all_, events))


def until(what: str, found: Callable[[], T | None], timeout: float = 60, namespace: str | None = None) -> T:
    """The first true answer."""
    end = time.monotonic() + timeout
    while not (answer := found()):
        if time.monotonic() > end:
            pytest.fail(f"not in {timeout:g} s: {what}\n{state(namespace) if namespace else ''}")
        time.sleep(0.25)
    return answer


def unproved(what: str) -> NoReturn:
    """Say that this cluster, or what is installed here, cannot prove it."""
    if re.search(os.environ.get("E2E_UNPROVED", ""), what):
        pytest.skip(f"NOT PROVED: {what}")
    pytest.fail(f"NOT PROVED: {what}", pytrace=False)


@contextlib.contextmanager
def new_namespace(purpose: str, restricted: bool = False) -> Iterator[str]:
    """One of the tests' own, deleted with all that is in it, releases first so that nothing waits for its operator."""
    name = f"rwt-{purpose}-{secrets.token_hex(3)}"
    labels = {_LABEL: "true", **(_RESTRICTED if restricted else {})}
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    _alive.append(name)
    try:
        yield name
    finally:
        _alive.remove(name)
        remove(name)


def remove(namespace: str) -> None:
    """Beside the tests that follow: a head whose job runs takes half a minute to end."""

    def go_on() -> None:
        for release in helm("list", "-aq", "-n", namespace).stdout.split():
            helm("uninstall", release, "-n", namespace, "--wait", "--timeout", "2m", check=False)
        kubectl("delete", "namespace", namespace, "--ignore-not-found", "--timeout=2m", timeout=150)

    _removing.append(_REMOVERS.submit(go_on))


def _wait_removed() -> None:
    while _removing:
        _removing.pop().result()


@pytest.fixture
def namespace() -> Iterator[str]:
    with new_namespace("test") as name:
        yield name


def _kinds(namespaced: bool) -> str:
    listed = kubectl("api-resources", "--verbs=list", f"--namespaced={str(namespaced).lower()}", "-o", "name").stdout
    return ",".join(kind for kind in listed.split() if kind.partition(".")[0] not in _SLOW and "metrics" not in kind)


def inventory(namespace: str) -> set[str]:
    """Every object in it as Kind/name, but events and what Kubernetes puts into each, and cluster-scoped ones of it.

    Whatever a release owns names its namespace: Helm writes it into an annotation.
    """
    inside = get(_kinds(namespaced=True), "-n", namespace, "--ignore-not-found")["items"]
    outside = [o for o in get(_kinds(namespaced=False))["items"] if json.dumps(namespace) in json.dumps(o)]
    found = {f"{o['kind']}/{o['metadata']['name']}" for o in inside + outside}
    return found - {"ConfigMap/kube-root-ca.crt", "ServiceAccount/default"}


def _what_is_missing() -> str | None:
    """One line that says what to do."""
    for tool, where in (("kubectl", "https://kubernetes.io/docs/tasks/tools"), ("helm", "run `make charts`")):
        if not shutil.which(tool):
            return f"{tool} is not on PATH: {where}"
    if not all(any(ROOT.glob(f"{CHART}/charts/{name}-*.tgz")) for name in ("kuberay-operator", "ray-cluster")):
        return "the chart has no dependencies: run `make charts`"
    try:
        reached = kubectl("get", "nodes", "--request-timeout=15s", check=False)
    except subprocess.TimeoutExpired:
        return f"the cluster of {_KUBECONFIG} does not answer: start it, or name another in KUBECONFIG"
    if reached.returncode:
        said = reached.stderr.strip().splitlines() or ["nothing"]
        return f"no cluster: run `ci/kind create`, or name yours in KUBECONFIG ({_KUBECONFIG} gives: {said[-1]})"
    if missing := _missing_images():
        whose = "or name yours in IMAGE, NEXT_IMAGE, REDIS_IMAGE"
        return f"the cluster cannot run {' '.join(sorted(missing))}: run `ci/kind images --e2e`, {whose}"
    return None


def _missing_images() -> set[str]:
    """Those that a pod does not start from."""
    images = {"image": IMAGE, "next": NEXT_IMAGE, "redis": REDIS_IMAGE}
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
            """Which could be run, once it is known of each."""
            seen = {}
            for status in get("pod", "images", "-n", name)["status"].get("containerStatuses", ()):
                waiting = status["state"].get("waiting", {}).get("reason", "")
                if "terminated" in status["state"] or "Image" in waiting:
                    seen[images[status["name"]]] = "terminated" in status["state"]
            return seen if set(seen) == set(images.values()) else None

        return {image for image, runs in until("the images", told, timeout=180, namespace=name).items() if not runs}


def _use_cluster() -> None:
    """The user's cluster, in an environment of the tests' own."""
    separated = [str(Path(part).absolute()) for part in _KUBECONFIG.split(os.pathsep) if part]
    os.environ["KUBECONFIG"] = os.pathsep.join(separated)
    os.environ["RAY_WORKLOAD_UPSTREAM"] = _UPSTREAM
    os.environ["PATH"] += f"{os.pathsep}{TOOLS}"


def _check_cluster() -> None:
    """Where tests cannot run, one line, and no test."""
    if missing := _what_is_missing():
        pytest.exit(f"tests/e2e: {missing}", returncode=4)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Where tests run in several processes, check the cluster once, before there are any."""
    if session.config.getoption("numprocesses", None):
        with own_environment():
            _use_cluster()
            _check_cluster()


@pytest.fixture(scope="session", autouse=True)
def environment(environment: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A home of the tests' own as everywhere, but the user's cluster."""
    _use_cluster()
    if not hasattr(request.config, "workerinput"):
        _check_cluster()
    yield environment
    _wait_removed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Past E2E_END what is left fails at once: nothing is left out in silence."""
    if time.time() > _END:
        pytest.fail("not reached: the time for these tests was over (E2E_END)", pytrace=False)
    if item.get_closest_marker("alone"):
        _wait_removed()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    report = yield
    if report.failed and time.time() < _END:
        report.sections += [(f"namespace {name}", state(name)) for name in _alive]
    return report
