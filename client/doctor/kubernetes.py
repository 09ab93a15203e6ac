"""What `doctor` checks in Kubernetes, from the kubeconfig to the permissions of the login."""

import os
import re
from contextlib import suppress

from client.doctor.report import FAIL, OK, WARN, Report
from client.errors import Forbidden, NotAuthorised, NotFound, UsageError
from client.kube import kubeconfig
from client.kube import login as kube_login
from client.kube.api import Api, Object, is_deleted, is_ready, node_type
from client.kube.cluster import DASHBOARD, RAY, Cluster, find, head_ready, path, token, token_ref
from client.targets import context_address, kubernetes

_OPERATOR = "app.kubernetes.io/name=kuberay-operator"
_INSTALL = "install the chart: `helm install ray charts/ray-workload -n NAMESPACE --create-namespace`"


def examine(report: Report, address: str) -> bool:
    """Check a RayCluster and everything that leads to it.

    Args:
        report: takes the checks.
        address: of the cluster.

    Returns:
        Whether the cluster exists, ready or not.
    """
    with report.attempt("kubeconfig"):
        context, namespace, name = kubernetes.parts(address)
        login = kube_login.login(context)
        source = f"{kube_login.source()}: context {login.context}" if login.context else "the account of this pod"
        report.add("kubeconfig", OK, f"{source}, namespace {login.namespace}")
        api = Api(login)
        if not (_server(report, api) and _login(report, api) and _definitions(report, api)):
            return False
        found: Object | None = None
        with report.attempt("cluster"):
            found = find(api, namespace, name)
        _operator(report, api, found["metadata"]["namespace"] if found else namespace)
        if found:
            _cluster(report, Cluster(api, found), found)
            return True
    return False


def examine_unused(report: Report) -> None:
    """Report what the kubeconfig has that is not used without an address."""
    for file in filter(None, os.environ.get("KUBECONFIG", "").split(os.pathsep)):
        if not os.path.isfile(file):
            report.add("kubeconfig", WARN, f"KUBECONFIG names {file}, which is not a file", "correct or unset it")
    if not (source := kube_login.source()):
        return
    name, is_local = kube_login.current_context()
    if not name:
        try:
            kubeconfig.load(None)
        except UsageError as error:
            report.add("kubeconfig", WARN, error.what, error.hint)
        return
    found, address = f"{source}: context {name} is not used, because", context_address(name)
    if not is_local:
        why = "its cluster is not on this machine"
        report.add("kubeconfig", OK, f"{found} {why}; to use it, add --address {address}")
    elif not kubernetes.has_cluster(name):
        report.add("kubeconfig", WARN, f"{found} no RayCluster was found", f"run `doctor --address {address}`")


def _server(report: Report, api: Api) -> bool:
    with report.attempt("server", "check that the cluster runs, the VPN is connected and the context is the right one"):
        version = ""
        with suppress(NotAuthorised):
            version = f": Kubernetes {(api.get('/version') or {}).get('gitVersion', 'of an unknown version')}"
        report.add("server", OK, f"{api.login.server.url} answers{version}")
        return True
    return False


def _login(report: Report, api: Api) -> bool:
    with report.attempt("login"):
        user, review = "", {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        with suppress(NotFound, Forbidden, KeyError):  # this API server cannot report the user's name
            answer = api.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
            user = f" as {answer['status']['userInfo']['username']}"
        report.add("login", OK, f"accepted{user}")
        return True
    return False


def _definitions(report: Report, api: Api) -> bool:
    with report.attempt("crds"):
        if "rayclusters" in {resource["name"] for resource in (api.get(RAY) or {}).get("resources", ())}:
            report.add("crds", OK, "RayCluster is defined")
            return True
        report.add("crds", FAIL, f"{api.login.server.url} has no RayCluster resource definition", _INSTALL)
    return False


def _operator(report: Report, api: Api, namespace: str | None) -> None:
    """Check the operator that watches a namespace; None stands for any namespace."""
    with report.attempt("operator"):
        found = None
        for scope in ("", f"/namespaces/{namespace or api.login.namespace}"):
            with suppress(Forbidden):
                found = api.list(f"/apis/apps/v1{scope}/deployments?labelSelector={_OPERATOR}")
                break
        if deployments := [d for d in found or () if _watches(d, namespace)]:
            _deployment(report, max(deployments, key=_ready_replicas))
            return
        seen = "there is none" if found is not None else "unknown: this login may not list Deployments"
        fix = f"no action needed if the platform runs it (GKE's add-on); otherwise, {_INSTALL}"
        report.add("operator", WARN, seen, fix)


def _watches(deployment: Object, namespace: str | None) -> bool:
    """Whether an operator watches a namespace. Without `--watch-namespace` it watches all."""
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    command = " ".join([*container.get("command", ()), *container.get("args", ())])
    watched = re.search(r"(?:^|\s)--?watch-namespace[= ](\S+)", command)
    return not watched or namespace is None or namespace in watched[1].split(",")


def _deployment(report: Report, deployment: Object) -> None:
    name, wanted = deployment["metadata"]["name"], deployment["spec"].get("replicas", 1)
    if _ready_replicas(deployment):
        image = deployment["spec"]["template"]["spec"]["containers"][0]["image"].rpartition("/")[2]
        report.add("operator", OK, f"Deployment {path(deployment)} runs {image}")
        return
    kubectl = f"kubectl -n {deployment['metadata']['namespace']}"
    fix = f"see `{kubectl} describe pods -l {_OPERATOR}`"
    if not wanted:
        fix = f"start it with `{kubectl} scale deployment/{name} --replicas=1`"
    report.add("operator", FAIL, f"Deployment {path(deployment)} has 0 of {wanted} replicas ready", fix)


def _ready_replicas(deployment: Object) -> int:
    return int(deployment.get("status", {}).get("readyReplicas", 0))


def _cluster(report: Report, cluster: Cluster, found: Object) -> None:
    describe = f"see `kubectl -n {cluster.namespace} describe raycluster {cluster.name}`"
    with report.attempt("cluster"):
        if why := cluster.why_not_ready():
            report.add("cluster", FAIL, f"{cluster} does not take jobs: {why}", describe)
        else:
            version = found["spec"].get("rayVersion", "of an unknown version")
            report.add("cluster", OK, f"{cluster} is ready, Ray {version}")
    with report.attempt("pods"):
        _pods(report, cluster, found, describe)
    with report.attempt("service"):
        _service(report, cluster)
    secret, key = token_ref(found) or ("", "")
    with report.attempt("secret"):
        if not secret:
            report.add("secret", WARN, "the cluster has no token", "set auth.enabled=true in the chart")
        elif token(cluster.api, found):
            report.add("secret", OK, f"the token can be read from the Secret {secret}")
        else:
            report.add("secret", FAIL, f"the key {key} of the Secret {secret} is empty", "put a token there")
    with report.attempt("permissions"):
        _permissions(report, cluster, secret)


def _pods(report: Report, cluster: Cluster, found: Object, describe: str) -> None:
    pods = sorted(cluster.pods(), key=lambda pod: str(pod["metadata"]["name"]))
    waiting = [pod for pod in pods if is_deleted(pod) or not is_ready(pod)]
    for pod in waiting:
        status = FAIL if node_type(pod) == "head" and not head_ready(found) else WARN
        fix = f"see `kubectl -n {cluster.namespace} describe pod {pod['metadata']['name']}`"
        report.add("pods", status, cluster.api.why_not_ready(pod), fix)
    ready, wanted = len(pods) - len(waiting), 1 + (found.get("status", {}).get("desiredWorkerReplicas") or 0)
    if ready >= wanted:
        report.add("pods", OK, f"{ready} ready")
    elif not waiting:
        why = f"{ready} of {wanted} pods are ready, and the others were not created"
        report.add("pods", WARN if ready else FAIL, why, describe)


def _service(report: Report, cluster: Cluster) -> None:
    try:
        if cluster.reaches_agent:
            report.add("service", OK, f"{cluster.service}, from the chart")
        elif cluster.api.get(f"{cluster.core}/services/{cluster.service}"):
            fix = "install the cluster with the chart: its own Service also gives access to the log files"
            report.add("service", WARN, f"{cluster.service}, from the operator", fix)
        else:
            report.add("service", FAIL, f"the Service {cluster.service} does not exist", _INSTALL)
    except Forbidden as error:
        report.add("service", WARN, f"this login may not read Services in namespace {cluster.namespace}", error.hint)


def _permissions(report: Report, cluster: Cluster, secret: str) -> None:
    """Check what the login may do. The name of the proxy resource is spelled as in the client's URLs."""
    missing = _denied(cluster, "list rayclusters.ray.io", "list pods", *([f"get secrets {secret}"] if secret else ()))
    proxy: list[str] = []
    if cluster.api.login.context:  # in a pod, the Service is reached without the API server
        resource = f"services/proxy http:{cluster.service}:{DASHBOARD}"
        proxy = _denied(cluster, *(f"{verb} {resource}" for verb in ("get", "create", "update", "delete")))
    no_forward = proxy and _denied(cluster, "get pods/portforward")
    fix = f"bind the Role {cluster.name}-submitter to this login: `submitter.subjects` in the chart"
    if missing or no_forward:
        report.add("permissions", FAIL, f"this login may not {'; '.join([*missing, *proxy])}", fix)
    elif proxy:
        report.add("permissions", WARN, f"this login may not {'; '.join(proxy)}: a port-forward is used instead", fix)
    else:
        report.add("permissions", OK, "this login may do everything that `submit` needs")
    if denied := _denied(cluster, "get pods/exec", "create pods/exec", "get pods/proxy"):
        fix = "no action needed, unless you use `exec` (pods/exec) or have drivers on workers (pods/proxy: faster logs)"
        report.add("optional", WARN, f"this login may not {'; '.join(denied)}", fix)
    else:
        report.add("optional", OK, "this login may use `exec`, and read the logs of workers from their own pods")


def _denied(cluster: Cluster, *actions: str) -> list[str]:
    """Those of the actions, each `VERB RESOURCE[.GROUP][/SUBRESOURCE] [NAME]`, that this login may not do."""
    denied = []
    for action in actions:
        verb, resource, name = f"{action} ".split(" ")[:3]
        kind, _, subresource = resource.partition("/")
        kind, _, group = kind.partition(".")
        attributes = {"namespace": cluster.namespace, "verb": verb, "group": group, "resource": kind}
        attributes |= {"subresource": subresource, "name": name}
        answer = cluster.api.post(
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": attributes},
            },
        )
        if not answer.get("status", {}).get("allowed"):
            denied.append(action)
    return denied
