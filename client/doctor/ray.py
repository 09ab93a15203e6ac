"""What `doctor` checks: the address, and the Ray cluster that answers there."""

import platform
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version

from client.doctor import kubernetes
from client.doctor.report import OK, WARN, Check, Report
from client.errors import NotAuthorised
from client.http import Http
from client.ray_api.jobs import RayJobs
from client.targets import UNASKED, Address, connect, resolve
from client.targets.embedded import target as embedded
from client.targets.url import find_token


def examine(address: str | None, show: Callable[[Check], object]) -> Report:
    """Check everything that a job needs.

    Args:
        address: as the user gave it; None to choose it as the other commands do.
        show: takes each check as soon as it is done.
    """
    report = Report(show)
    with report.attempt("address"):
        chosen = resolve(address)
        report.add("address", OK, f"{chosen.value} ({chosen.source})")
        if chosen.warning:
            report.add("address", WARN, chosen.warning, "unset RAY_ADDRESS, or use --address")
        if chosen.source == UNASKED:
            kubernetes.examine_unused(report)
        if chosen.scheme == "kubernetes":
            if not kubernetes.examine(report, chosen.value):
                return report
        elif chosen.value != "embedded":
            _token(report, chosen)
        elif embedded.warm() is None:
            report.add("ray", OK, f"none is running: `submit` starts Ray {version('ray')} and ends it after the job")
            return report
        _dashboard(report, chosen)
    return report


def _token(report: Report, address: Address) -> None:
    """Check the token that is sent to an http address."""
    with report.attempt("token"):
        if address.from_file:
            found = f"your token is not sent, because {address.source} chose the address"
            report.add("token", WARN, found, f"if you trust that address, use --address {address.value}")
        elif find_token():
            report.add("token", OK, "your token is sent to this address")
        else:
            fix = "if the cluster requires one, put it into the file that RAY_AUTH_TOKEN_PATH names"
            report.add("token", WARN, "you have no token", fix)


def _dashboard(report: Report, address: Address) -> None:
    """Check the dashboard, whether it requires a token, and the versions behind it."""
    with report.attempt("dashboard"), connect(address) as target:
        ray = RayJobs(target).version()["ray_version"]
        report.add("dashboard", OK, f"Ray {ray} answers at {target.http.server.url}")
        _authentication(report, target.http)
        _versions(report, target.http, ray)


def _authentication(report: Report, http: Http) -> None:
    """Check whether a request that succeeded with our token is refused without it."""
    with report.attempt("auth"):
        try:
            Http(replace(http.server, headers={})).request("GET", "/api/version")
        except NotAuthorised:
            report.add("auth", OK, "on: a request without the token is refused")
        else:
            found = "off: anyone who can reach this address can run code on the cluster"
            report.add("auth", WARN, found, "set auth.enabled=true in the chart, or start Ray with RAY_AUTH_MODE=token")


def _versions(report: Report, http: Http, ray: str) -> None:
    """Compare Ray and Python on the cluster and here. Those here only submit the job."""
    ours = version("ray")
    if ray == ours:
        report.add("ray", OK, f"{ray} on the cluster and here")
    else:
        report.add("ray", WARN, f"{ray} on the cluster, {ours} here", f"use an image with Ray {ours} on the cluster")
    with report.attempt("python"):
        response, here = http.request("GET", "/api/v0/cluster_metadata"), platform.python_version()
        try:
            python = str(response.json()["data"]["pythonVersion"])
        except (ValueError, KeyError, TypeError):
            fix = "no action needed: jobs run with the cluster's Python"
            report.add("python", WARN, "the cluster does not report its version", fix)
            return
        found = f"{python} on the cluster, {here} here"
        if python.split(".")[:2] == here.split(".")[:2]:
            report.add("python", OK, found)
        else:
            fix = "no action needed, unless you exchange pickled objects: jobs run with the cluster's Python"
            report.add("python", WARN, found, fix)
