"""The target `kubernetes[://CONTEXT/NAMESPACE/CLUSTER]`: a RayCluster, each part of its address optional.

Everything goes through the API server's proxy: no port-forward, no local port, each request stands alone. From inside
a pod, directly; by a port-forward only where the login may not use the proxy.
"""

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from urllib.parse import unquote

from client.errors import ClientError, Unreachable, UsageError
from client.http import Forbidden
from client.kube import cluster as ray_cluster
from client.kube import login as kubeconfig
from client.kube.cluster import DASHBOARD, Api, Cluster, Object, clusters, find, token
from client.kube.port_forward import PortForwards
from client.targets.target import Endpoint

_PROBE_TIMEOUT = (5.0, 3.0)


def parts(address: str) -> tuple[str | None, str | None, str | None]:
    """Context, namespace and cluster of an address."""
    parts = address.partition("://")[2].rstrip("/").split("/")
    if len(parts) > 3:
        raise UsageError(f"{address}: give kubernetes://CONTEXT/NAMESPACE/CLUSTER (a slash in a name as %2F)")
    context, namespace, cluster = (unquote(part) or None for part in [*parts, "", ""][:3])
    return context, namespace, cluster


def _groups(cluster: Object) -> dict[str, Object]:
    """The groups of pods that the cluster may have, by name."""
    spec = cluster["spec"]
    most = "maxReplicas" if spec.get("enableInTreeAutoscaling") else "replicas"
    workers = {g["groupName"]: g for g in spec.get("workerGroupSpecs") or () if g.get(most, 1)}
    return {"head": spec["headGroupSpec"], **workers}


def _resources(group: Object) -> dict[str, float]:
    """The GPUs and accelerators of a group's pod, from where Ray's autoscaler has them.

    Every limit of the Ray container whose name ends in `gpu` counts, unless `rayStartParams` or, before them, the
    group's `resources` say how many (ray/autoscaler/_private/kuberay/autoscaling_config.py, 2.60).
    """
    start, limits = group.get("rayStartParams") or {}, group["template"]["spec"]["containers"][0].get("resources") or {}
    gpus = sum(float(amount) for name, amount in (limits.get("limits") or {}).items() if name.endswith("gpu"))
    custom = _custom_resources(start.get("resources", "")) | (group.get("resources") or {})
    kinds = {name: float(amount) for name, amount in custom.items() if name.startswith("accelerator_type:")}
    return {**kinds, "GPU": float(custom.get("GPU", start.get("num-gpus", gpus)))}


def _custom_resources(quoted: str) -> dict[str, float]:
    """Resources as `rayStartParams` have them: JSON, quoted for the shell that starts Ray."""
    try:
        found: dict[str, float] = json.loads("".join(shlex.split(quoted)) or "{}")
    except ValueError:
        return {}  # Ray does not start with them
    return found


def _secrets(pod: Object) -> dict[str, str]:
    """Where a pod's Ray container has Secrets, by their name."""
    folders = {m["name"]: m["mountPath"] for m in pod["containers"][0].get("volumeMounts") or ()}
    names = {v["name"]: (v.get("secret") or {}).get("secretName") for v in pod.get("volumes") or ()}
    return {secret: folders[volume] for volume, secret in names.items() if secret and volume in folders}


def has_cluster(context: str | None) -> bool:
    """Whether a context has a RayCluster that can be seen; not where it does not answer."""
    try:
        return bool(clusters(Api(kubeconfig.login(context)), None))
    except ClientError:
        return False


def cluster(address: str) -> Cluster:
    """The RayCluster at an address; its token is not asked for.

    Raises:
        UsageError: the address means none, or several.
        Unreachable: the API server does not answer, or there is no such cluster.
        NotAuthorised: the login is not good for it.
    """
    return Cluster(*_look_up(address))


def _look_up(address: str) -> tuple[Api, Object]:
    """The API server of an address, and the RayCluster there."""
    context, namespace, name = parts(address)
    api = Api(kubeconfig.login(context))
    return api, find(api, namespace, name)


@contextmanager
def connect(address: str) -> Iterator[Endpoint]:
    """Yield the endpoint of a RayCluster.

    Args:
        address: `kubernetes`, or kubernetes://CONTEXT/NAMESPACE/CLUSTER with any part empty or left out.

    Raises:
        UsageError: the address means none, or several.
        Unreachable: the API server does not answer, or there is no such cluster.
        NotAuthorised: the login is not good for it.
    """
    api, found = _look_up(address)
    ray, groups = Cluster(api, found), _groups(found)
    in_pod, secret = api.login.context is None, token(api, found)
    header = "Authorization" if in_pod else "X-Ray-Authorization"  # the API server keeps the other for itself
    endpoint = Endpoint(
        address=ray_cluster.address(api.login, ray.namespace, ray.name),
        url=ray.url(DASHBOARD),
        agent=ray.agent,
        headers={header: f"Bearer {secret}"} if secret else {},
        connection=None if in_pod else api.login.connection,
        auth=None if in_pod else api.login.auth,
        secrets=_secrets(groups["head"]["template"]["spec"]),
        facts=ray.facts,
        nodes={name: _resources(group) for name, group in groups.items()},
        ready=ray.ready,
    )
    with ExitStack() as stack:
        stack.enter_context(_saying_why(ray))
        if in_pod or not (refused := _proxy_refused(ray)):
            yield endpoint
            return
        forwards = stack.enter_context(PortForwards(ray))
        try:
            forwards.check()
        except Forbidden as error:
            raise refused from error

        once = iter(["this login may not use the API server's proxy (services/proxy): jobs go by a port-forward"])

        def ready(note: Callable[[str], object], seconds: float) -> None:
            for line in once:
                note(line)
            ray.ready(note, seconds)

        yield replace(endpoint, url=forwards.dashboard(), agent=forwards.agent, connection=None, auth=None, ready=ready)


@contextmanager
def _saying_why(ray: Cluster) -> Iterator[None]:
    """Where nothing answers because the cluster is not ready, that is what the user wants to know."""
    try:
        yield
    except Unreachable as error:
        try:
            why = ray.why()
        except ClientError:
            raise error from None
        if not why:
            raise
        raise Unreachable(f"{ray} is not ready: {why}; `doctor` looks closer") from error


def _proxy_refused(ray: Cluster) -> Forbidden | None:
    """What the API server says of its proxy to this login, where it refuses it; nothing of ours is sent to Ray."""
    try:
        ray.api.get(f"{ray.url(DASHBOARD)}/api/version", timeout=_PROBE_TIMEOUT)
    except Forbidden as error:
        return error
    except ClientError:
        pass  # Ray refuses it without the token, or is not there yet
    return None
