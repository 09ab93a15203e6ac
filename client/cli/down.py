"""The command `down`: remove what `up` made."""

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from client.cli.cluster import context_option, log_in, namespace_option, refuse_options, status_line, target_argument
from client.cli.help import Command
from client.errors import ClientError, HelmFailed, HookStuck, UsageError

if TYPE_CHECKING:
    from client.chart.helm import Helm
    from client.chart.release import Release
    from client.chart.remains import Remains
    from client.wait import Note

_REMAINS_SECONDS = 120.0  # for what Kubernetes itself removes after a release


@click.command(cls=Command, examples=("down embedded", "down local --purge"))
@target_argument
@namespace_option
@context_option
@click.option("--purge", is_flag=True, help="Also delete the release's volume claims and the data in them.")
@click.option("--yes", is_flag=True, help="Do not ask first. Required for local and gke if there is no terminal.")
@click.pass_context
def down(ctx: click.Context, /, target: str, namespace: str, context: str | None, purge: bool, yes: bool) -> None:
    """Stop the Ray that `up` started, with its jobs, and remove only what `up` created."""
    from client.cli.output import note

    if target == "embedded":
        from client.targets.embedded import target as embedded

        refuse_options(ctx)
        note(f"embedded Ray {'was stopped' if embedded.down() else 'was not running'}")
        return
    if not yes and not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(f"`down {target}` asks before it removes a release, and there is no terminal", "add --yes")
    from client.chart.helm import RELEASE, Helm
    from client.chart.release import Release
    from client.chart.remains import Remains
    from client.kube.cluster import address_of

    login = log_in(target, context)
    helm, release = Helm(login.context, namespace), Release(login, namespace, RELEASE)
    remains, where = Remains(release), f"{login.context}/{namespace}"
    exists, cluster = helm.find()
    release.cluster_name = cluster["metadata"]["name"] if cluster else None
    remnants = remains.find()
    found = exists or any(purge or not remnant.is_claim for remnant in remnants)
    if found and not yes:
        jobs = _running_jobs(address_of(login, namespace, release.cluster_name)) if release.cluster_name else ""
        what = f"release {RELEASE} in namespace {namespace} of context {login.context}"
        click.echo(f"This removes {what}{jobs}:", err=True)
        for remnant in remnants:
            if remnant.kind.startswith("Ray") or (purge and remnant.is_claim):
                click.echo(f"  {remnant}{' and its data' if remnant.is_claim else ''}", err=True)
        if not click.confirm("Continue?", err=True):
            raise ClientError("nothing was removed")
    with status_line() as show:
        if exists:
            remains.end_own_jobs(show)
            _uninstall(helm, release, remains, show)
            remnants = remains.find()
        kept = [remnant for remnant in remnants if remnant.is_claim and not purge]
        remaining = remains.remove([remnant for remnant in remnants if remnant not in kept], show, _REMAINS_SECONDS)
    for claim in kept:
        note(f"{claim} is kept: `--purge` deletes it and its data")
    if remaining:
        what = f"release {RELEASE} in {where} is removed, but these objects remain: {', '.join(map(str, remaining))}"
        raise ClientError(what, "check their finalizers, then run `down` again")
    note(f"release {RELEASE} in {where} {'is removed: only CRDs remain' if found else 'does not exist'}")


def _running_jobs(address: str) -> str:
    """The number of running jobs, for the question; "" if the cluster does not report it."""
    from client.ray_api.jobs import RayJobs
    from client.targets.kubernetes import connect

    with suppress(ClientError), connect(address) as target:
        running = sum(job.status == "RUNNING" for job in RayJobs(target).list())
        return f", where {running} job{'s are' if running != 1 else ' is'} running"
    return ""


def _uninstall(helm: "Helm", release: "Release", remains: "Remains", show: "Note") -> None:
    """Uninstall with the chart's cleanup hook; without it, if it cannot run (its image is gone)."""
    from client.cli.output import note

    def watch() -> None:
        show(f"helm uninstalls the release: {release.count_pods()} pods are left")

    def watch_hook() -> None:
        if why := release.check_hook():
            show(f"helm is waiting for the chart's cleanup: {why}")
        else:
            watch()

    show("helm uninstalls the release")
    try:
        helm.uninstall(watch_hook)
    except (HelmFailed, HookStuck) as error:
        note(f"the chart's cleanup failed ({error}): the client removes the cluster itself")
        remains.end_cluster(show)
        helm.uninstall(watch, hooks=False)
