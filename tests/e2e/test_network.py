"""The NetworkPolicies: which pods can connect to which of Ray's ports, from the moment a pod has an address.

Connectors start before the chart is installed. Each gets every address as soon as it is known, and tries its ports many
times per second. They connect only to pods and Services in the tests' own namespaces, and end after a time limit.
"""

import contextlib
import json
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e._cluster import Cluster, install, run_pods, started, tiny_pod
from tests.e2e.conftest import Object, apply, get, kubectl, new_namespace, unproved, until

pytestmark = pytest.mark.alone
PORTS = (6379, 8265, 10001, 8080, 44217, 44227, 52365, 52366)
API = (8265, 52365)
OPEN = {"head": {6379, 8265, 10001, 8080, 44217, 44227, 52365}, "worker": {8080, 52365}}
STRANGERS = ("stranger-elsewhere", "stranger-here")
RATE = 10  # attempts per second on each port
ENOUGH = 20  # attempts per port
LAG = 1.0  # seconds: many controllers leave a pod open until they learn its address, as late as this test does
CONNECTOR = Path(__file__).with_name("_connector.py").read_text()
# Prints the addresses to which it can connect.
CONNECT = """
import json, socket, sys
def open_(address):
    try:
        socket.create_connection(address, 2).close()
        return True
    except OSError:
        return False
print(json.dumps([open_((host, int(port))) for host, _, port in (a.rpartition(" ") for a in sys.argv[1:])]))
"""
# Prints the ports of each node in the cluster's own list of nodes, by address.
TABLE = """
import json
from ray._raylet import GcsClient
fields = ("node_manager_port", "object_manager_port", "runtime_env_agent_port", "metrics_agent_port")
nodes = GcsClient(address="127.0.0.1:6379").get_all_node_info().values()
print(json.dumps({node.node_manager_address: [getattr(node, field) for field in fields] for node in nodes}))
"""


@dataclass
class Tried:
    """The results of the attempts on one address; times are by the pod's clock."""

    started: int
    ended: int
    first: float
    last: float
    connects: list[float]

    @property
    def after(self) -> list[float]:
        """Return the seconds from the first attempt to each successful one."""
        return [round(at - self.first, 2) for at in self.connects]

    @property
    def late(self) -> list[float]:
        return [seconds for seconds in self.after if seconds > LAG]


class Connector:
    """A pod that tries addresses until it is stopped."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.told: set[str] = set()
        self.enough: set[str] = set()
        self.tried: dict[str, Tried] = {}
        self.ready = threading.Event()
        self.lock = threading.Lock()
        self.process = process
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self) -> None:
        for line in self.process.stdout or ():
            what, _, rest = line.strip().partition(" ")
            if what == "READY":
                self.ready.set()
            elif what == "ENOUGH":
                self.enough.add(rest)
            elif what == "TRIED":
                self.tried = {address: Tried(**seen) for address, seen in json.loads(rest).items()}

    def tell(self, host: str, ports: Iterable[int]) -> None:
        with self.lock:
            assert self.process.stdin
            if not self.process.stdin.closed:
                self.told |= {f"{host} {port}" for port in ports}
                self.process.stdin.write("".join(f"{host} {port}\n" for port in ports))
                self.process.stdin.flush()

    def stop(self) -> None:
        """Stop the connector and read its results."""
        assert self.process.stdin
        with self.lock, contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
            self.reader.join()

    @property
    def connected(self) -> set[str]:
        return {address for address, seen in self.tried.items() if seen.late}


def is_enforced() -> bool:
    """Return whether a policy that denies all traffic is enforced, in a new namespace."""
    with new_namespace("probe") as where:
        run_pods(tiny_pod("server", where, "python", "-m", "http.server", "8080"), tiny_pod("client", where))
        address = f"{get('pod', 'server', '-n', where)['status']['podIP']} 8080"

        def connects() -> bool:
            said = kubectl("exec", "-n", where, "client", "--", "python", "-c", CONNECT, address)
            return bool(json.loads(said.stdout)[0])

        until("a connection without policies", connects)
        metadata = {"name": "deny-all", "namespace": where}
        spec = {"podSelector": {}, "policyTypes": ["Ingress"]}
        apply({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec})
        with contextlib.suppress(pytest.fail.Exception):
            return until("no connection", lambda: not connects() and not connects(), timeout=8)
        return False


@contextlib.contextmanager
def watched(where: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Call `tell` with the address of each pod of the cluster as soon as the API server knows it."""
    template = "jsonpath={.status.podIP}{'\\n'}"
    of_the_cluster = ("pods", "-n", where, "-l", "ray.io/cluster=ray")
    with started("kubectl", "get", *of_the_cluster, "--watch", "-o", template) as watch:

        def read() -> None:
            for line in watch.stdout or ():
                if address := line.strip():
                    tell(address)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield
        finally:
            watch.terminate()
            reader.join()


@dataclass
class Attack:
    """A cluster, and the results of the connectors while it was installed."""

    ray: Cluster
    by: dict[str, Connector]
    service: str
    head: str
    worker: str
    ports: dict[str, set[int]]  # the listening ports, by address of the head or worker

    @property
    def all(self) -> set[str]:
        return {f"{host} {port}" for host, ports in self.ports.items() for port in ports} | self.of_service

    @property
    def of_service(self) -> set[str]:
        return {f"{self.service} {port}" for port in API}


@contextlib.contextmanager
def attack(*sets: str) -> Iterator[Attack]:
    """Install a cluster while connectors try its addresses, until they have tried every listening port."""
    with contextlib.ExitStack() as stack:
        elsewhere, here = (stack.enter_context(new_namespace(purpose)) for purpose in ("strangers", "network"))
        where = {"stranger-elsewhere": elsewhere, "stranger-here": here, "client": here}
        label = {"client": {"ray-workload/client": "true"}}
        run_pods(*(tiny_pod(name, where[name], labels=label.get(name)) for name in where))
        by = {}
        for name in where:
            command = ("exec", "-i", "-n", where[name], name, "--", "python", "-c", CONNECTOR, str(ENOUGH))
            by[name] = Connector(stack.enter_context(started("kubectl", *command)))
            stack.callback(by[name].stop)
            assert by[name].ready.wait(30), f"{name} does not start"

        def tell(host: str, ports: Iterable[int] = PORTS) -> None:
            for connector in by.values():
                connector.tell(host, ports)

        stack.enter_context(watched(here, tell))
        ray = install(here, *sets)
        service = get("service", "ray-api", "-n", here)["spec"]["clusterIP"]
        tell(service, API)
        ray.wait()
        names = {kind: ray.name(kind) for kind in ("head", "worker")}
        addresses = {kind: get("pod", name, "-n", here)["status"]["podIP"] for kind, name in names.items()}
        table = json.loads(ray.python(names["head"], TABLE))
        ports = {addresses[kind]: ray.listening(name) for kind, name in names.items()}
        for kind, host in addresses.items():
            assert OPEN[kind] | set(table[host]) <= ports[host]
            tell(host, ports[host])
        until("every port has been tried", lambda: all(c.told <= c.enough for c in by.values()))
        for connector in by.values():
            connector.stop()
        yield Attack(ray, by, service, addresses["head"], addresses["worker"], ports)


def test_without_policies_strangers_reach_every_port() -> None:
    """Proves that the other tests can fail: the connectors can connect, and start before any port is open."""
    with attack("networkPolicy.enabled=false") as seen:
        for name in STRANGERS:
            assert seen.all <= seen.by[name].connected
            for address in (f"{seen.head} 8265", *seen.of_service):
                tried = seen.by[name].tried[address]
                assert tried.first < tried.connects[0] - 1 / RATE, "the connector started after the port was open"


@pytest.fixture(scope="module")
def attacked() -> Iterator[Attack]:
    if not is_enforced():
        unproved("no NetworkPolicy controller enforces here: proved nothing")
    with attack() as seen:
        yield seen


def created(thing: Object) -> str:
    return str(thing["metadata"]["creationTimestamp"])


def test_strangers_reach_nothing_from_the_first_second_on(attacked: Attack) -> None:
    policies = get("networkpolicies", "-n", attacked.ray.namespace)["items"]
    assert max(map(created, policies)) <= min(map(created, attacked.ray.pods()))
    client = attacked.by["client"].tried
    for name in STRANGERS:
        tried = attacked.by[name].tried
        assert not {address: seen.late for address, seen in tried.items() if seen.late}, name
        assert attacked.all <= set(tried)
        for address, seen in tried.items():
            assert seen.ended >= ENOUGH, address
            assert (seen.started - 1) / (seen.last - seen.first) >= RATE, address
        # The port was tried before it was open.
        for address in (f"{attacked.head} 8265", *attacked.of_service):
            assert tried[address].first < client[address].connects[0] - 1 / RATE
    early = [seconds for name in STRANGERS for seen in attacked.by[name].tried.values() for seconds in seen.after]
    if early:
        unproved(f"the controller here leaves a new pod open, {max(early)} s after its address is known at the longest")


def test_clients_reach_the_dashboard_and_the_agents_alone(attacked: Attack) -> None:
    pods = {f"{attacked.head} {port}" for port in API} | {f"{attacked.worker} {API[1]}"}
    assert attacked.by["client"].connected == pods | attacked.of_service


def test_pods_of_the_cluster_reach_every_port(attacked: Attack) -> None:
    for name in (attacked.ray.name("head"), attacked.ray.name("worker")):
        wanted = sorted(attacked.all)
        said = json.loads(attacked.ray.python(name, CONNECT, *wanted))
        assert not {address for address, connects in zip(wanted, said, strict=True) if not connects}


def test_the_api_server_reaches_dashboard_and_agents(attacked: Attack) -> None:
    ray, worker = attacked.ray, attacked.ray.name("worker")
    for path in (
        "services/http:ray-api:8265/proxy/api/gcs_healthz",
        "services/http:ray-api:52365/proxy/api/local_raylet_healthz",
        f"pods/http:{worker}:52365/proxy/api/local_raylet_healthz",
    ):
        assert kubectl("get", "--raw", f"/api/v1/namespaces/{ray.namespace}/{path}").stdout == "success"
