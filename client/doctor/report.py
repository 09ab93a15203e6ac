"""What `doctor` looks at, a line each. A check that fails ends only what cannot be looked at without it."""

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version

from client.errors import ClientError, NotAuthorised, OutputLost, Unreachable
from client.http import Forbidden, Transport
from client.ray_api.jobs import RayJobs
from client.targets import Address, connect, resolve
from client.targets.embedded import target as embedded
from client.targets.target import Endpoint
from client.targets.url import find_token

OK, WARN, FAIL = "ok", "warn", "FAIL"


@dataclass(frozen=True)
class Check:
    """A line.

    Attributes:
        check: what was looked at.
        status: ok, warn, or FAIL where jobs cannot be run.
        found: what there is.
        fix: what to do about it, unless it is ok.
    """

    check: str
    status: str
    found: str
    fix: str = ""


@dataclass
class Report:
    """The lines so far.

    Attributes:
        show: is given each line when it is known.
        checks: all of them.
    """

    show: Callable[[Check], object]
    checks: list[Check] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether a line is a FAIL."""
        return any(check.status == FAIL for check in self.checks)

    def add(self, check: str, status: str, found: str, fix: str = "") -> None:
        """A line; whatever has more than one is put into one."""
        self.checks.append(Check(check, status, " ".join(found.split()), " ".join(fix.split())))
        self.show(self.checks[-1])

    def error(self, check: str, error: ClientError, fix: str = "") -> None:
        """A FAIL with the words of an error, which end with what to do, behind a colon or in brackets."""
        found, _, advice = str(error).removesuffix(")").rpartition(" (" if str(error).endswith(")") else ": ")
        self.add(check, FAIL, found or str(error), fix or (advice if found else ""))

    @contextmanager
    def attempt(self, check: str, fix: str = "") -> Iterator[None]:
        """Make an error a FAIL, and go on."""
        try:
            yield
        except OutputLost:  # of the lines themselves
            raise
        except ClientError as error:
            self.error(check, error, fix)


def examine(address: str | None, show: Callable[[Check], object]) -> Report:
    """Look at all there is at an address.

    Args:
        address: the user's own; None chooses as the other commands do.
        show: is given each line when it is known.
    """
    report = Report(show)
    with report.attempt("address"):
        chosen = resolve(address)
        report.add("address", OK, f"{chosen.value} ({chosen.source})")
        if chosen.warning:
            report.add("address", WARN, chosen.warning, "unset RAY_ADDRESS, or give --address")
        if chosen.value.partition("://")[0] == "kubernetes":
            from client.doctor import kubernetes as doctor_kubernetes

            doctor_kubernetes.examine(report, chosen.value, lambda: _dashboard(report, chosen))
        elif chosen.value == "embedded" and embedded.warm() is None:
            report.add("ray", OK, f"none is kept: `submit` starts Ray {version('ray')} here, and ends it with the job")
        else:
            if chosen.value != "embedded":
                _token(report)
            _dashboard(report, chosen)
    return report


def _token(report: Report) -> None:
    """What would be sent to an http address."""
    with report.attempt("token"):
        if find_token():
            report.add("token", OK, "there is one here")
        else:
            report.add(
                "token", WARN, "there is none here", "where the cluster wants one: name its file in RAY_AUTH_TOKEN_PATH"
            )


def _dashboard(report: Report, address: Address) -> None:
    """The Ray behind an address, and whether it keeps others out."""
    with report.attempt("dashboard"), connect(address) as endpoint:
        ray = ""
        try:
            ray = RayJobs(endpoint).version()["ray_version"]
        except Unreachable as error:
            report.error("dashboard", error)
            return
        except ClientError as error:
            report.error("dashboard", error)
        else:
            report.add("dashboard", OK, f"Ray {ray} answers at {endpoint.url}")
        _authentication(report, endpoint)
        if ray:
            _versions(report, endpoint, ray)


def _authentication(report: Report, endpoint: Endpoint) -> None:
    with report.attempt("auth"):
        try:
            Transport(replace(endpoint, headers={})).request("GET", "/api/version")
        except Forbidden:
            raise
        except NotAuthorised:
            report.add("auth", OK, "on: a request without the token is refused")
        else:
            found = "off: who reaches this address runs code there"
            report.add("auth", WARN, found, "set auth.enabled=true in the chart, or start Ray with RAY_AUTH_MODE=token")


def _versions(report: Report, endpoint: Endpoint, ray: str) -> None:
    """Ray and Python there and here. A job runs with those there; only its submission uses those here."""
    ours = version("ray")
    if ray == ours:
        report.add("ray", OK, f"{ray} there and here")
    else:
        report.add("ray", WARN, f"{ray} there, {ours} here", f"install ray=={ray} here should anything fail")
    with report.attempt("python"):
        response = Transport(endpoint).request("GET", "/api/v0/cluster_metadata")
        try:
            python = str(response.json()["data"]["pythonVersion"])
        except (ValueError, KeyError, TypeError):
            report.add("python", WARN, "the cluster does not say which it runs", "none: jobs use the cluster's own")
            return
        here = platform.python_version()
        if python.split(".")[:2] == here.split(".")[:2]:
            report.add("python", OK, f"{python} there, {here} here")
        else:
            fix = "jobs run with the cluster's: do not pickle between the two"
            report.add("python", WARN, f"{python} there, {here} here", fix)
