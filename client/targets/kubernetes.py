"""The target `kubernetes[://CONTEXT/NAMESPACE/CLUSTER]`: a RayCluster, each part of its address optional.

Everything goes through the API server's proxy: no port-forward, no local port, each request stands alone. From inside
a pod, directly; by a port-forward only where the login may not use the proxy.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from urllib.parse import unquote

from client.errors import RUN_DOCTOR, ClientError, Forbidden, Unreachable, UsageError
from client.http import Http, Server
from client.kube import login
from client.kube.api import Api, Object, refusal
from client.kube.cluster import DASHBOARD, Cluster, clusters, find, token
from client.kube.container import Container, running
from client.kube.port_forward import PortForwards
from client.ray_api.http import token_refusal
from client.ray_api.jobs import RayJobs
from client.targets.resources import groups
from client.targets.target import OUTPUTS, NodeGroup, Runtime, Target
from client.wait import Note, wait

_ANSWER_SECONDS = 60.0
_KUBELET_SECONDS = 3.0  # until a pod's status shows that a container was killed


def parts(address: str) -> tuple[str | None, str | None, str | None]:
    """Context, namespace and cluster of an address."""
    parts = address.partition("://")[2].rstrip("/").split("/")
    if len(parts) > 3:
        raise UsageError(f"{address} has too many parts", "use kubernetes://CONTEXT/NAMESPACE/CLUSTER (write / as %2F)")
    context, namespace, cluster = (unquote(part) or None for part in [*parts, "", ""][:3])
    return context, namespace, cluster


def has_cluster(context: str | None) -> bool:
    """Whether a context has a RayCluster that can be seen; False where it does not answer."""
    try:
        return bool(clusters(Api(login.login(context)), None))
    except ClientError:
        return False


def find_cluster(address: str) -> Cluster:
    """The RayCluster at an address; its token is not read."""
    return Cluster(*_look_up(address))


def _look_up(address: str) -> tuple[Api, Object]:
    """The API server of an address, and the RayCluster there."""
    context, namespace, name = parts(address)
    api = Api(login.login(context))
    return api, find(api, namespace, name)


class KubernetesTarget(Target):
    """A RayCluster behind its API server, or beside the pod we run in."""

    def __init__(self, api: Api, found: Object) -> None:
        """Read the cluster's token; nothing is asked of Ray yet."""
        self.cluster, self._object = Cluster(api, found), found
        self.address = self.cluster.address
        head = found["spec"]["headGroupSpec"]["template"]["spec"]
        self.runtime = Runtime(secrets=_secrets(head), outputs=_outputs(head))
        secret, in_pod = token(api, found), api.login.context is None
        name = "Authorization" if in_pod else "X-Ray-Authorization"  # the API server keeps the other for itself
        self._headers = {name: f"Bearer {secret}"} if secret else {}
        self._forwards: PortForwards | None = None
        self._noted = False
        url = self.cluster.url(DASHBOARD)
        self._use(Server(url, proxy="") if in_pod else replace(api.login.server, url=url))

    def _use(self, server: Server) -> None:
        """Send requests there."""
        hint = "delete its pods, so that they read the token of its Secret again"
        if not self._headers:
            hint = "let the head read RAY_AUTH_TOKEN from a Secret, as in the chart"
        refusals = (refusal, token_refusal(sent=bool(self._headers), hint=hint))
        self.http = Http(replace(server, headers=self._headers), *refusals)

    def use(self, forwards: PortForwards) -> None:
        """Send requests by a port-forward, for a login that may not use the API server's proxy."""
        self._forwards = forwards
        self._use(Server(forwards.dashboard()))

    def agent(self, address: str) -> str | None:
        """The head's agent by the Service, a worker's by its pod where that is allowed; or any by a local port."""
        return (self._forwards or self.cluster).agent(address)

    def wait_ready(self, note: Note, seconds: float) -> None:
        """Wait until the operator says that the head is ready; before, say once that a port-forward is used."""
        if self._forwards and not self._noted:
            note("this login may not use the API server's proxy (services/proxy); using a port-forward instead")
            self._noted = True
        self.cluster.wait_ready(note, seconds)
        if self.ray_version is None:  # a head that was just replaced may be called ready before it answers
            wait(self._why_no_version, min(seconds, _ANSWER_SECONDS), note, poll=1.0)

    def _why_no_version(self) -> str:
        self.ray_version = RayJobs(self).version()["ray_version"]
        return ""

    def pods(self) -> Sequence[Container]:
        """The Ray containers, the head's first."""
        return running(self.cluster)

    def groups(self) -> Sequence[NodeGroup]:
        """The head and the worker groups."""
        return groups(self._object)

    def out_of_memory(self, since: float, said: str) -> str:
        """The pod that ran out of memory, by its kubelet or by Ray; the kubelet reports a moment late."""
        found = ""

        def why() -> str:
            nonlocal found
            found = self.cluster.out_of_memory(since, said)
            return "" if found else "no pod says so"

        with suppress(ClientError):
            wait(why, _KUBELET_SECONDS, poll=0.5)
        return found

    def facts(self) -> Mapping[str, object]:
        """The release, and how many pods are ready."""
        return self.cluster.facts()


@contextmanager
def connect(address: str) -> Iterator[Target]:
    """Yield the target at `kubernetes`, or kubernetes://CONTEXT/NAMESPACE/CLUSTER with any part left out."""
    api, found = _look_up(address)
    target = KubernetesTarget(api, found)
    with ExitStack() as stack:
        stack.enter_context(_explained(target.cluster))
        if api.login.context and (forbidden := _proxy_forbidden(target)):
            forwards = stack.enter_context(PortForwards(target.cluster))
            try:
                forwards.check()
            except Forbidden as error:
                raise forbidden from error
            target.use(forwards)
        yield target


def _secrets(pod: Object) -> dict[str, str]:
    """Where a pod's Ray container mounts Secrets, by their name."""
    folders = {m["name"]: m["mountPath"] for m in pod["containers"][0].get("volumeMounts") or ()}
    names = {v["name"]: (v.get("secret") or {}).get("secretName") for v in pod.get("volumes") or ()}
    return {secret: folders[volume] for volume, secret in names.items() if secret and volume in folders}


def _outputs(pod: Object) -> str:
    """Where the chart's value `outputs` has jobs leave their results; "" where it is not set."""
    environment = {variable["name"]: variable.get("value") for variable in pod["containers"][0].get("env") or ()}
    return environment.get(OUTPUTS) or ""


@contextmanager
def _explained(cluster: Cluster) -> Iterator[None]:
    """If nothing answers because the cluster is not ready, report that instead."""
    try:
        yield
    except Unreachable as error:
        try:
            why = cluster.why_not_ready()
        except ClientError:
            raise error from None
        if not why:
            raise
        raise Unreachable(f"{cluster} is not ready: {why}", RUN_DOCTOR) from error


def _proxy_forbidden(target: KubernetesTarget) -> Forbidden | None:
    """The API server's refusal to let this login use its proxy; None if it may."""
    try:
        target.ray_version = RayJobs(target).version()["ray_version"]
    except Forbidden as error:
        return error
    except ClientError:
        pass  # Ray is not there yet
    return None
