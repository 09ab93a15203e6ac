"""The commands `up` and `down`: a Ray kept on this machine, or the chart's release on a cluster."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import click

from client.cli.options import Duration
from client.errors import ClientError, NotAuthorised, Unreachable, UsageError

_LEFT_SECONDS = 120.0  # for what Kubernetes itself removes behind a release
_POD_SUFFIX = re.compile(r"(?<=-)[a-z0-9]{5}\b")  # an operator that is refused a pod tries another name each time
_target = click.argument("target", type=click.Choice(["embedded", "local", "gke"]))
_namespace_option = click.option("--namespace", default="ray", show_default=True, help="Of the release.")
_context_option = click.option(
    "--context", help="Of the kubeconfig. Default: the current one, if it is on this machine (local) or GKE's (gke)."
)


@contextmanager
def _live() -> Iterator[Callable[[str], None]]:
    """One line that changes, on a terminal; else a line for each change."""
    from client.cli import output

    if sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        with Console(stderr=True).status("") as status:
            yield lambda line: status.update(Text(line))
        return
    told = ""

    def tell(line: str) -> None:
        nonlocal told
        same = _POD_SUFFIX.sub("", line)
        if same != told:
            output.note(line)
        told = same

    yield tell


def _only_for_clusters(ctx: click.Context) -> None:
    given = [
        option.opts[0]
        for option in ctx.command.params
        if isinstance(option, click.Option)
        and ctx.get_parameter_source(str(option.name)) is not click.core.ParameterSource.DEFAULT
    ]
    if given:
        raise UsageError(f"{', '.join(given)}: {ctx.info_name} embedded has no options; they are for local and gke")


def _login(target: str, context: str | None) -> Any:
    """The login to the cluster that is meant: without a context the current one, where it is of that kind."""
    from client.cli.output import note
    from client.kube import login as kubeconfig

    if target == "local" and not context:
        context = kubeconfig.local_context()
    if context:
        return kubeconfig.login(context)
    login = kubeconfig.login(None)
    if target == "gke" and (login.context or "").startswith("gke_"):
        note(f"context {login.context}, the current one")
        return login
    current = f"the current context {login.context}" if login.context else "this pod's account"
    wanted = "on this machine (`ci/kind create` makes one)" if target == "local" else "known to be GKE's"
    raise UsageError(f"{current} is not {wanted}: name the cluster that you mean with --context")


@click.command()
@_target
@click.option("--chart", metavar="PATH|OCI", help="Default: the clone's charts/ray-workload.")
@click.option("-f", "files", multiple=True, metavar="FILE", help="Values, on top of the chart's values-TARGET.yaml.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="A value, on top of these; as helm reads it.")
@_namespace_option
@_context_option
@click.option(
    "--timeout",
    type=Duration(),
    default="15m",
    show_default=True,
    metavar="TIME",
    help="Wait so long for Ray to be ready; nothing is removed then.",
)
@click.pass_context
def up(ctx: click.Context, /, target: str, **options: Any) -> None:
    """Start a Ray and keep it: on this machine, or with the chart on Kubernetes (local: kind and the like)."""
    if target == "embedded":
        from client.cli import output
        from client.targets.embedded import target as embedded

        _only_for_clusters(ctx)
        started = "is up" if embedded.up() else "was up already"
        output.note(f"{target} Ray {started}: `submit` uses it until `down {target}`")
        return
    _up(target, **options)


def _up(
    target: str,
    chart: str | None,
    files: tuple[str, ...],
    sets: tuple[str, ...],
    namespace: str,
    context: str | None,
    timeout: float,
) -> None:
    from client.chart.helm import RELEASE, Helm, checked
    from client.chart.release import Release
    from client.cli.output import note, print_line
    from client.kube.cluster import address_of as address

    end = time.monotonic() + timeout
    where = checked(chart, files)
    login = _login(target, context)
    helm = Helm(login.context, namespace)
    release = Release(login, namespace, RELEASE)
    release.check_reachable()
    with _live() as tell:
        tell(f"helm installs {where} into {login.context}/{namespace}")

        def beat() -> None:
            if why := release.hook_waits_for():
                tell(f"helm waits for a hook: {why}")

        found = helm.install(target, where, files, sets, end - time.monotonic(), beat)
        if found:
            release.cluster = found["metadata"]["name"]
            release.wait_ready(tell, end)
    if not found:
        note(f"the operator is installed in {login.context}/{namespace}, without a cluster: ray-cluster.enabled=false")
        return
    if old := release.older_pods():
        note(
            f"{old} pods run as they were before this change: --set rollout.enabled=true makes them anew, and ends jobs"
        )
    print_line(f"export RAY_WORKLOAD_ADDRESS={address(login, namespace, found['metadata']['name'])}")
    note("Ray is ready: run that line, then `python -m client submit jobs/simple_job.py`")


@click.command()
@_target
@_namespace_option
@_context_option
@click.option("--purge", is_flag=True, help="Delete the release's volume claims too, and so their data.")
@click.pass_context
def down(ctx: click.Context, /, target: str, namespace: str, context: str | None, purge: bool) -> None:
    """End the Ray that `up` keeps, with its jobs and all that it made, and nothing else."""
    if target == "embedded":
        from client.cli import output
        from client.targets.embedded import target as embedded

        _only_for_clusters(ctx)
        output.note(f"{target} Ray {'is down' if embedded.down() else 'was not up'}")
        return
    _down(_login(target, context), namespace, purge)


def _down(login: Any, namespace: str, purge: bool) -> None:
    from client.chart.helm import RELEASE, Helm
    from client.chart.release import Release
    from client.chart.remains import Remains
    from client.cli.output import note

    where = f"{login.context}/{namespace}"
    helm, release = Helm(login.context, namespace), Release(login, namespace, RELEASE)
    release.check_reachable()
    remains = Remains(release)
    exists, cluster = helm.find()
    release.cluster = cluster["metadata"]["name"] if cluster else None
    with _live() as tell:
        if exists:
            remains.end_own_jobs(tell)
            _uninstall(helm, release, remains, tell)
        left, kept = remains.sweep(tell, _LEFT_SECONDS, purge=purge)
    for claim in kept:
        note(f"{claim.kind}/{claim.name} is kept: `--purge` deletes it, and its data")
    if left:
        names = ", ".join(f"{o.kind}/{o.name}" for o in left)
        raise ClientError(
            f"release {RELEASE} in {where} is removed, but left is {names}: see who holds it, then repeat"
        )
    gone = "is gone: nothing of it is left but CRDs" if exists else "is not there: nothing to do"
    note(f"release {RELEASE} in {where} {gone}")


def _uninstall(helm: Any, release: Any, remains: Any, tell: Callable[[str], None]) -> None:
    """Uninstall with the chart's hook; where that cannot run (its image is gone), do its work from here."""
    from client.chart.helm import HelmFailed
    from client.chart.release import HookStuckError
    from client.cli.output import note

    def beat(*, hooks: bool = True) -> None:
        with suppress(Unreachable, NotAuthorised):  # helm goes on, whatever we can see of it
            waits, pods = hooks and release.check_hooks(), release.pods()
            left = f"helm uninstalls: {pods} pods of Ray are left"
            tell(f"waiting for the chart's cleanup: {waits}" if waits else left)

    tell("helm uninstalls")
    try:
        helm.uninstall(beat)
    except (HelmFailed, HookStuckError) as error:
        note(f"the chart's own cleanup does not work ({error}): it is done from here")
        remains.end_cluster(tell)
        helm.uninstall(lambda: beat(hooks=False), hooks=False)
