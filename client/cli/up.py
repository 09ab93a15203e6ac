"""The command `up`: start Ray and keep it, on this machine or as the chart's release on a cluster."""

import json
import os
import tempfile
import time

import click

from client.cli.cluster import context_option, log_in, namespace_option, refuse_options, status_line, target_argument
from client.cli.help import Command, complete_files
from client.cli.options import Duration


@click.command(cls=Command, examples=("up embedded", "up gke --context CONTEXT --set image.tag=TAG"))
@target_argument
@click.option(
    "--chart",
    metavar="PATH|OCI",
    shell_complete=complete_files,
    help="Chart to install. Default: the clone's charts/ray-workload.",
)
@click.option(
    "--config",
    metavar="FILE",
    shell_complete=complete_files,
    help="A file with the number and size of the workers, like jobs/ray_cluster_config.yaml. -f and --set override it.",
)
@click.option(
    "-f",
    "files",
    multiple=True,
    metavar="FILE",
    shell_complete=complete_files,
    help="A file with values, which override the chart's values-TARGET.yaml.",
)
@click.option(
    "--set", "sets", multiple=True, metavar="KEY=VALUE", help="One value, which overrides the files, as in helm."
)
@namespace_option
@context_option
@click.option(
    "--timeout",
    type=Duration(),
    default="15m",
    show_default=True,
    metavar="DURATION",
    help="How long to wait for Ray to be ready. If the time runs out, nothing is removed.",
)
@click.pass_context
def up(
    ctx: click.Context,
    /,
    target: str,
    chart: str | None,
    config: str | None,
    files: tuple[str, ...],
    sets: tuple[str, ...],
    namespace: str,
    context: str | None,
    timeout: float,
) -> None:
    """Start Ray and keep it running: on this machine (embedded), or with the chart on a cluster (local, gke)."""
    from client.cli.output import note, print_line

    if target == "embedded":
        from client.targets.embedded import target as embedded
        from client.targets.target import PLAIN

        refuse_options(ctx)
        os.environ.setdefault(PLAIN, "0")  # this Ray serves terminals and pipes
        started = "is running" if embedded.up(note) else "was already running"
        note(f"embedded Ray {started}: `submit` uses it until `down embedded`")
        return
    from client.chart.config import values_of
    from client.chart.helm import RELEASE, Helm, find_chart
    from client.chart.release import Release
    from client.job.request import read_yaml
    from client.kube.cluster import address_of

    end = time.monotonic() + timeout
    chart = find_chart(chart, files)
    values = values_of(config, read_yaml(config), os.environ, target, note) if config else {}
    login = log_in(target, context)
    helm, release = Helm(login.context, namespace), Release(login, namespace, RELEASE)
    with status_line() as show, tempfile.NamedTemporaryFile("w", suffix=".yaml") as own:
        json.dump(values, own)
        own.flush()
        show(f"helm installs {chart} into {login.context}/{namespace}")

        def watch() -> None:
            if why := release.why_hook_waits():
                show(f"helm is waiting for a hook: {why}")

        found = helm.install(target, chart, (own.name, *files), sets, end - time.monotonic(), watch)
        if found:
            release.cluster_name = found["metadata"]["name"]
            release.wait_ready(show, end - time.monotonic())
    if not found:
        note(f"the operator is installed in {login.context}/{namespace}, without a RayCluster")
        return
    if older := release.count_older_pods():
        fix = "to replace them, which ends running jobs, add --set replacePodsOnUpgrade=true"
        note(f"{older} pods keep their spec from before this change: {fix}")
    print_line(f"export RAY_WORKLOAD_ADDRESS={address_of(login, namespace, found['metadata']['name'])}")
    note("Ray is ready: run the line above, then `ray-workload submit jobs/simple_job.py`")
