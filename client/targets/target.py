"""Where jobs run: the one protocol that every target satisfies."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from client.http import Http
from client.wait import Note

STOP_SECONDS = "30"  # RAY_JOB_STOP_WAIT_TIME_S: Ray's own 3 s from SIGTERM to SIGKILL are too short for a checkpoint

OUTPUTS = "RAY_WORKLOAD_OUTPUTS"  # where a job leaves its results
PLAIN = "RAY_COLOR_PREFIX"  # 0: no colors before the lines of tasks (ray/_private/worker.py, 2.60)


@dataclass(frozen=True)
class Runtime:
    """The properties of a target that a job's command line depends on.

    Attributes:
        python: the interpreter that runs a SCRIPT.
        in_place: jobs run in the working directory itself, so it is not uploaded.
        secrets: the folders in which the containers mount Secrets, by the Secret's name; None where nobody was asked.
        outputs: the folder or URL under which each job has a place for its results; "" where that is the job's own
            folder, None where nobody was asked.
    """

    python: str = "python"
    in_place: bool = False
    secrets: Mapping[str, str] | None = None
    outputs: str | None = None


class NodeGroup(NamedTuple):
    """A kind of node that a cluster can have.

    Attributes:
        name: `head`, or the worker group's.
        resources: of one node, as Ray names them.
        most: how many there can be.
    """

    name: str
    resources: Mapping[str, float]
    most: int


class Pod(Protocol):
    """A part of a cluster that can run commands."""

    @property
    def pod_name(self) -> str:
        """Its name."""

    @property
    def ip(self) -> str:
        """Its address in the cluster."""

    def output(self, command: Sequence[str], stdin: bytes) -> Iterator[bytes]:
        """Run a command, and yield what it prints on stdout.

        Raises:
            ClientError: it failed.
            ContactLost: the connection or the pod ended first.
        """


class Target(Protocol):
    """A Ray cluster to send jobs to.

    Attributes:
        address: what to give as --address to come back.
        http: sends requests to the dashboard's API.
        runtime: what a job's command line depends on there.
        ends_with_us: the cluster ends when this client does.
        ray_version: of the cluster, where it was asked already.
    """

    address: str
    http: Http
    runtime: Runtime
    ends_with_us: bool = False
    ray_version: str | None = None

    def __str__(self) -> str:
        """The address, short enough for a line."""
        return self.address if len(self.address) <= 80 else f"{self.address[:38]}...{self.address[-38:]}"

    def agent(self, address: str) -> str | None:
        """The URL of the node agent that a job's record names by its address; None where it cannot be reached."""

    def wait_ready(self, note: Note, seconds: float) -> None:
        """Wait until jobs are accepted, so many seconds.

        Raises:
            TimedOut: they still are not.
            Unreachable: they will not be.
        """

    def runs_in(self, folder: Path) -> bool:
        """Whether the cluster's own processes run in a folder: a job there needs no runtime_env, and starts faster."""
        return False

    def log_file(self, submission_id: str) -> Path | None:
        """The file of a job's log, where the cluster writes it on this machine."""
        return None

    def pods(self) -> Sequence[Pod] | None:
        """The pods of the cluster that run now; None where no commands can be run."""
        return None

    def groups(self) -> Sequence[NodeGroup] | None:
        """The kinds of nodes that the cluster can have, if known."""
        return None

    def out_of_memory(self, since: float, said: str) -> str:
        """Say what ran out of memory after a Unix time, and which limit to raise; "" if not known. `said`: by Ray."""
        return ""

    def facts(self) -> Mapping[str, object]:
        """More lines for `status`, by name."""
        return {}


def same_host_agent(url: str, agent: str) -> str | None:
    """A node agent's address where it shares the dashboard's host, else None.

    A job's record names its agent by an address of the cluster's own network. From outside, the same address may
    belong to a stranger, who must not be sent the token.
    """
    base, parts = urlsplit(url), urlsplit(agent)
    return agent if (parts.scheme, parts.hostname) == (base.scheme, base.hostname) else None
