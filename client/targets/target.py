"""What every target yields: all that the rest of the client may know of where a job runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from ssl import SSLContext
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from requests.auth import AuthBase

STOP_SECONDS = "30"  # RAY_JOB_STOP_WAIT_TIME_S: Ray's own 3 s from SIGTERM to SIGKILL are too short for a checkpoint


def same_host_agent(url: str) -> Callable[[str], str | None]:
    """Reach a node agent directly where it shares the dashboard's host, and nowhere else.

    A job's record names its agent by an address of the cluster's own network. From outside, the same address may
    belong to a stranger, who must not be sent the token.

    Args:
        url: the dashboard's base URL.

    Returns:
        A function from an agent's address, as in the job's record, to the URL to use or None.
    """
    base = urlsplit(url)

    def reach(agent: str) -> str | None:
        parts = urlsplit(agent)
        return agent if (parts.scheme, parts.hostname) == (base.scheme, base.hostname) else None

    return reach


def is_token(text: str) -> bool:
    """Whether it can be sent in a header: the library that sends it would say aloud what cannot."""
    return text.isascii() and text.isprintable()


@dataclass(frozen=True)
class Connection:
    """How an API server is connected to.

    Attributes:
        tls: whom to trust, and our own certificate.
        server_name: whose certificate the server is to show, if not that of the URL's host.
        proxy: the URL of one on the way, if not the environment's.
    """

    tls: SSLContext
    server_name: str | None = None
    proxy: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Endpoint:
    """Where jobs are sent, and how.

    Attributes:
        address: what to give as --address to come back here.
        url: the base URL of the dashboard's HTTP API.
        agent: from a node agent's address (a job's `driver_agent_http_address`) to a URL that reaches it, or None.
        headers: sent with every request; holds the token.
        connection: to an API server; None for a server that the system trusts.
        auth: adds to every request what may change with time.
        python: the interpreter that runs a SCRIPT there.
        in_place: jobs run in the working directory itself, so nothing is uploaded.
        runs_in: whether the cluster's own processes run in a folder. A job there needs no runtime_env, and so is given
            the workers that Ray has started already.
        secrets: the folders of the job's own containers in which Secrets are mounted, by the Secret's name.
        nodes: the GPUs and accelerators of each kind of node that the cluster can have, by its name, as Ray names
            resources: GPU, accelerator_type:L4; None where that is not known.
        facts: what else is known of the cluster, by name, for whoever asks for its status.
        ends_with_us: the cluster ends when this client does.
        ready: waits until jobs are taken, so many seconds at most, and tells why it waits; raises TimedOut, or
            Unreachable where that will not be.
    """

    address: str
    url: str
    agent: Callable[[str], str | None]
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    connection: Connection | None = None
    auth: "AuthBase | None" = field(default=None, repr=False)
    python: str = "python"
    in_place: bool = False
    runs_in: Callable[[Path], bool] = lambda _: False
    secrets: Mapping[str, str] = field(default_factory=dict)
    nodes: Mapping[str, Mapping[str, float]] | None = None
    facts: Callable[[], Mapping[str, object]] = dict
    ends_with_us: bool = False
    ready: Callable[[Callable[[str], object], float], None] = lambda note, seconds: None
