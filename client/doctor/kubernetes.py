"""What `doctor` looks at in Kubernetes, from the kubeconfig to what the login may do."""

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from client.doctor.report import FAIL, OK, WARN, Report
from client.errors import ClientError, NotAuthorised, Unreachable
from client.http import Forbidden, NotFound
from client.kube import login as kubeconfig
from client.kube.cluster import (
    DASHBOARD,
    RAY,
    Api,
    Cluster,
    Object,
    find,
    head_ready,
    is_ready,
    node_type,
    token,
    token_ref,
)
from client.targets import kubernetes

_OPERATOR = "app.kubernetes.io%2Fname%3Dkuberay-operator"
_INSTALL = "install the chart: `helm install ray charts/ray-workload -n NAMESPACE --create-namespace`"


def examine(report: Report, address: str, dashboard: Callable[[], None]) -> None:
    """Look at a RayCluster and all that leads to it.

    Args:
        report: takes the lines.
        address: of the cluster.
        dashboard: looks at the Ray behind it.
    """
    context, namespace, name = kubernetes.parts(address)
    with report.attempt("kubeconfig"):
        login = kubeconfig.login(context)
        where = f"{kubeconfig.source()}: context {login.context}" if login.context else "this pod's account"
        report.add("kubeconfig", OK, f"{where}, namespace {login.namespace}")
        api = Api(login)
        if not (_server(report, api) and _login(report, api)):
            return
        if not _kinds(report, api):
            return
        try:
            found = find(api, namespace, name)
        except ClientError as error:
            _operator(report, api, namespace)
            report.error("cluster", error)
            return
        _operator(report, api, found["metadata"]["namespace"])
        _cluster(report, api, found)
        dashboard()


def _server(report: Report, api: Api) -> bool:
    try:
        version = (api.get("/version") or {}).get("gitVersion", "of an unknown version")
        report.add("server", OK, f"{api.login.url} answers: Kubernetes {version}")
    except NotAuthorised:
        report.add("server", OK, f"{api.login.url} answers")
    except (ClientError, ValueError) as error:
        said = error if isinstance(error, ClientError) else Unreachable(f"{api.login.url} is no Kubernetes")
        report.error("server", said, "is the cluster up, the VPN on, and the context the right one?")
        return False
    return True


def _login(report: Report, api: Api) -> bool:
    kind = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    try:
        user = api.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", kind)
        report.add("login", OK, f"accepted, as {user['status']['userInfo']['username']}")
    except (NotFound, Forbidden, KeyError):
        report.add("login", OK, "accepted")  # an API server that does not say whose it is
    except ClientError as error:
        report.error("login", error)
        return False
    return True


def _kinds(report: Report, api: Api) -> bool:
    with report.attempt("crds"):
        kinds = [r["name"] for r in (api.get(RAY) or {}).get("resources", ()) if "/" not in r["name"]]
        if "rayclusters" in kinds:
            report.add("crds", OK, f"{RAY.removeprefix('/apis/')}: {', '.join(sorted(kinds))}")
            return True
        report.add("crds", FAIL, f"{api.login.url} knows no RayCluster", _INSTALL)
    return False


def _operator(report: Report, api: Api, namespace: str | None) -> None:
    """The operator that watches a namespace, or any."""
    with report.attempt("operator"):
        found = None
        for scope in ("", f"/namespaces/{namespace or api.login.namespace}"):
            with suppress(Forbidden):
                found = api.list(f"/apis/apps/v1{scope}/deployments?labelSelector={_OPERATOR}")
                break
        if deployments := [d for d in found or () if _watches(d, namespace)]:
            _deployment(report, max(deployments, key=_ready_replicas))
            return
        seen = "none is seen" if found is not None else "not seen: this login may not list Deployments"
        report.add("operator", WARN, seen, f"right where the platform runs it (GKE's add-on), else {_INSTALL}")


def _watches(deployment: Object, namespace: str | None) -> bool:
    """Whether an operator is responsible for a namespace: one without `--watch-namespace` is for all."""
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    words = " ".join([*container.get("command", ()), *container.get("args", ())])
    named = re.search(r"-watch-namespace[= ](\S+)", words)
    return not named or namespace is None or namespace in named[1].split(",")


def _deployment(report: Report, deployment: Object) -> None:
    metadata, wanted = deployment["metadata"], deployment["spec"].get("replicas", 1)
    where, ready = f"{metadata['namespace']}/{metadata['name']}", _ready_replicas(deployment)
    image = deployment["spec"]["template"]["spec"]["containers"][0]["image"].rpartition("/")[2]
    look = f"look at it: `kubectl -n {metadata['namespace']} describe pods -l app.kubernetes.io/name=kuberay-operator`"
    start = f"start it: `kubectl -n {metadata['namespace']} scale deployment/{metadata['name']} --replicas=1`"
    if ready:
        report.add("operator", OK, f"Deployment {where} runs {image}")
    else:
        fix = look if wanted else start
        report.add("operator", FAIL, f"Deployment {where} has no replica that is ready, of {wanted}", fix)


def _ready_replicas(deployment: Object) -> int:
    return int(deployment.get("status", {}).get("readyReplicas", 0))


def _cluster(report: Report, api: Api, found: Object) -> None:
    ray, name = Cluster(api, found), f"{found['metadata']['namespace']}/{found['metadata']['name']}"
    with report.attempt("cluster"):
        describe = f"look at it: `kubectl -n {ray.namespace} describe raycluster {ray.name}`"
        if why := ray.why():
            report.add("cluster", FAIL, f"RayCluster {name} takes no jobs: {why}", describe)
        else:
            asks = found["spec"].get("rayVersion", "of an unknown version")
            report.add("cluster", OK, f"RayCluster {name} is ready, Ray {asks}")
    with report.attempt("pods"):
        _pods(report, ray, found)
    with report.attempt("service"):
        _service(report, ray)
    ref = token_ref(found)
    with report.attempt("secret", f"ask for `get` on it: the chart's Role {ray.name}-submitter has it"):
        if not ref:
            report.add("secret", WARN, "the cluster has no token", "set auth.enabled=true in the chart")
        elif token(api, found):
            report.add("secret", OK, f"the token can be read from the Secret {ref[0]}")
        else:
            report.add("secret", FAIL, f"the Secret {ref[0]} has an empty {ref[1]}", "put a token into it")
    with report.attempt("permissions"):
        _permissions(report, ray, ref[0] if ref else None)


def _pods(report: Report, ray: Cluster, found: Object) -> None:
    pods = sorted(ray.pods(), key=lambda pod: str(pod["metadata"]["name"]))
    waiting = [pod for pod in pods if not _pod_ready(pod)]
    wanted = 1 + (found.get("status", {}).get("desiredWorkerReplicas") or 0)
    for pod in waiting:
        head = node_type(pod) == "head"
        status = FAIL if head and not head_ready(ray.read()) else WARN
        look = f"look at it: `kubectl -n {ray.namespace} describe pod {pod['metadata']['name']}`"
        report.add("pods", status, ray.api.why(pod), look)
    ready = len(pods) - len(waiting)
    if ready >= wanted:
        report.add("pods", OK, f"{ready} ready")
    elif not waiting:
        fix = f"see what the operator says: `kubectl -n {ray.namespace} describe raycluster {ray.name}`"
        report.add("pods", WARN if ready else FAIL, f"{ready} ready of {wanted}, and no other is there", fix)


def _pod_ready(pod: Object) -> bool:
    return is_ready(pod) and "deletionTimestamp" not in pod["metadata"]


def _service(report: Report, ray: Cluster) -> None:
    try:
        service = ray.api.get(f"{ray.core}/services/{ray.service}")
    except Forbidden:
        fix = f"ask for the chart's Role {ray.name}-submitter"
        report.add("service", WARN, f"this login may not see the Services of namespace {ray.namespace}", fix)
        return
    if not service:
        report.add("service", FAIL, f"there is neither {ray.name}-api nor {ray.service}", _INSTALL)
    elif ray.service == f"{ray.name}-api":
        ports = ", ".join(f"{p.get('name', '')} {p['port']}" for p in service["spec"]["ports"])
        report.add("service", OK, f"{ray.service}: {ports}")
    else:
        fix = "install the cluster with the chart: it adds one that reaches the logs, too"
        report.add("service", WARN, f"{ray.service}, the operator's own", fix)


def _permissions(report: Report, ray: Cluster, secret: str | None) -> None:
    """What the login may do. A proxy's resource is named as its URL spells it."""
    name = f"http:{ray.service}:{DASHBOARD}"
    needed = [("list", "rayclusters", "", "ray.io"), ("list", "pods", "", "")]
    needed += [("get", "secrets", secret, "")] if secret else []
    missing, proxy = list(_refused(ray, needed)), []
    if ray.api.login.context:  # in a pod, the Service is reached without the API server
        methods = ("get", "create", "update", "delete")
        proxy = list(_refused(ray, [(verb, "services/proxy", name, "") for verb in methods]))
    forward = not proxy or not list(_refused(ray, [("get", "pods/portforward", "", "")]))
    role = f"bind the Role {ray.name}-submitter to it: `submitter.subjects` of the chart"
    if missing or not forward:
        report.add("permissions", FAIL, f"this login may not {'; '.join([*missing, *proxy])}", role)
    elif proxy:
        report.add("permissions", WARN, f"this login may not {'; '.join(proxy)}: a port-forward is used instead", role)
    else:
        report.add("permissions", OK, "all that `submit` needs")
    extra = [("get", "pods/exec", "", ""), ("create", "pods/exec", "", ""), ("get", "pods/proxy", "", "")]
    if lacking := list(_refused(ray, extra)):
        fix = "nothing, unless you want `exec` (pods/exec), or workers' logs by the short way (pods/proxy)"
        report.add("optional", WARN, f"this login may not {'; '.join(lacking)}", fix)
    else:
        report.add("optional", OK, "`exec`, and the logs of workers from their own pods")


def _refused(ray: Cluster, wanted: Iterable[tuple[str, str, str, str]]) -> Iterable[str]:
    """Those of verb, resource, name and group that the API server would refuse, in words."""
    for verb, resource, name, group in wanted:
        kind, _, sub = resource.partition("/")
        attributes: dict[str, Any] = {"namespace": ray.namespace, "verb": verb, "resource": kind, "group": group}
        attributes |= {key: value for key, value in (("subresource", sub), ("name", name)) if value}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
        answer = ray.api.post(
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            {**review, "spec": {"resourceAttributes": attributes}},
        )
        if not answer.get("status", {}).get("allowed"):
            yield f"{verb} {resource}{f' {name}' if name else ''}"
