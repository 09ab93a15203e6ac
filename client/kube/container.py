"""The Ray containers of a cluster, and commands that run there."""

import json
import select
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from client.errors import ClientError, ContactLost, Unreachable, UsageError
from client.kube import stream
from client.kube.api import Object, is_deleted, node_type, why_not_ready
from client.kube.cluster import Cluster

STDIN, STDOUT, STDERR, STATUS, SIZE = range(5)  # channels, as in k8s.io/apimachinery/pkg/util/remotecommand
V5 = "v5.channel.k8s.io"  # from Kubernetes 1.30 on; older versions cannot close a command's stdin
CHUNK = 1 << 15
_KILLED = (137, 143)  # exit codes after SIGKILL and SIGTERM, which a pod's end sends


@dataclass(frozen=True, eq=False)
class Container:
    """A container of a cluster.

    Attributes:
        cluster: that it belongs to.
        pod: its pod, as it was when it was found.
        name: of the container.
    """

    cluster: Cluster
    pod: Object
    name: str

    @property
    def pod_name(self) -> str:
        """The name of its pod."""
        return str(self.pod["metadata"]["name"])

    @property
    def ip(self) -> str:
        """The address of its pod."""
        return str(self.pod.get("status", {}).get("podIP", ""))

    @property
    def runs(self) -> bool:
        """Whether it ran when its pod was found."""
        states = {c["name"]: c["state"] for c in self.pod.get("status", {}).get("containerStatuses", ())}
        return "running" in states.get(self.name, {})

    def connect(self, command: Sequence[str], *streams: str) -> stream.Stream:
        """Start a command.

        Args:
            command: with its arguments.
            *streams: those to connect: stdin, stdout, stderr; tty.

        Raises:
            NotAuthorised: the login may not do that.
            Unreachable: the API server does not answer.
        """
        query = [("container", self.name), *(("command", word) for word in command)]
        query += [(name, "true") for name in streams]
        path = f"{self.cluster.core}/pods/{self.pod_name}/exec"
        return stream.connect(self.cluster.api.login, path, query, [V5, "v4.channel.k8s.io"])

    def output(self, command: Sequence[str], stdin: bytes) -> Iterator[bytes]:
        """Run a command, and yield what it prints on stdout.

        Args:
            command: with its arguments.
            stdin: what it reads. Its stdin stays open after that.

        Raises:
            NotAuthorised: the login may not do that.
            ClientError: the command failed; the message is the last line of its stderr.
            ContactLost: the connection or the pod ended first.
        """
        status, said = b"", b""
        with self.connect(command, "stdin", "stdout", "stderr") as connection:
            for start in range(0, len(stdin), CHUNK):
                connection.send(STDIN, stdin[start : start + CHUNK])
            poll = select.poll()
            while not connection.closed:
                poll.register(connection, connection.events)
                poll.poll(connection.poll_seconds * 1000)
                connection.write()
                for channel, data in connection.read():
                    if channel == STDOUT:
                        yield data
                    elif channel == STDERR:
                        said = (said + data)[-CHUNK:]
                    elif channel == STATUS:
                        status += data
                connection.keep_alive()
        if code := self.exit_code(status):
            last = said.decode(errors="replace").strip().rpartition("\n")[2] or f"exit code {code}"
            raise ClientError(f"a command in pod {self.pod_name} failed ({last})")

    def exit_code(self, status: bytes) -> int:
        """The exit code of a command that was run here.

        Args:
            status: what the server sent at its end; empty if the connection was lost.

        Raises:
            ClientError: the command could not be started.
            ContactLost: the connection or the pod ended first.
        """
        code = _exit_code(status) if status else None
        if (code is None or code in _KILLED) and (ended := self._why_ended()):
            raise ContactLost(
                f"pod {self.pod_name} {ended} while the command ran", "run it again when the pod is ready"
            )
        if code is None:
            raise ContactLost(
                f"the connection to pod {self.pod_name} was lost", "the command may still be running there"
            )
        return code

    def _why_ended(self) -> str:
        """What happened to the pod, if it or the container no longer runs."""
        with suppress(ClientError):
            pod = self.cluster.api.get(f"{self.cluster.core}/pods/{self.pod_name}")
            if not pod or is_deleted(pod):
                return "was deleted"
            before, now = (
                {c["name"]: c.get("containerID") for c in state["status"].get("containerStatuses", ())}
                for state in (self.pod, pod)
            )
            if before.get(self.name) != now.get(self.name) or pod["status"].get("phase") != "Running":
                return "ended or was restarted"
        return ""


def running(cluster: Cluster) -> list[Container]:
    """The Ray containers that run, the head's first."""
    found, pods = cluster.read(), cluster.pods()
    pods.sort(key=lambda pod: (node_type(pod) != "head", str(pod["metadata"]["name"])))
    containers = [Container(cluster, pod, _ray_container(found, pod)) for pod in pods]
    return [container for container in containers if container.runs]


def find(cluster: Cluster, worker: int | None) -> Container:
    """The Ray container of the head or of a worker.

    Args:
        cluster: to search.
        worker: the index of a worker, from 0, in the order of their names; None for the head.

    Raises:
        UsageError: there is no such worker.
        Unreachable: the pod does not run.
    """
    if worker is None:
        pod = cluster.existing_head()
    else:
        workers = [p for p in cluster.pods() if node_type(p) == "worker"]
        workers.sort(key=lambda p: str(p["metadata"]["name"]))
        if worker >= len(workers):
            raise UsageError(f"{cluster} has no worker {worker}", f"it has {len(workers)}, numbered from 0")
        pod = workers[worker]
    container = Container(cluster, pod, _ray_container(cluster.read(), pod))
    if not container.runs:
        raise Unreachable(why_not_ready(pod), "try again when it runs, or run `doctor`")
    return container


def _ray_container(cluster: Object, pod: Object) -> str:
    """The name of the container that Ray runs in: the first in the RayCluster, but not always the first in the pod."""
    spec, labels = cluster["spec"], pod["metadata"]["labels"]
    groups = {g["groupName"]: g for g in spec.get("workerGroupSpecs") or () if node_type(pod) == "worker"}
    group = groups.get(labels.get("ray.io/group"), spec["headGroupSpec"])
    return str(group["template"]["spec"]["containers"][0]["name"])


def _exit_code(status: bytes) -> int:
    """The command's own exit code, from the Status that the server sends last."""
    try:
        result = json.loads(status)
        if result["status"] == "Success":
            return 0
        causes = (result.get("details") or {}).get("causes") or ()
        codes = [int(cause["message"]) for cause in causes if cause.get("reason") == "ExitCode"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"the API server sent {status[:200]!r} instead of the command's exit code"
        raise ClientError(what, "the command may have run") from error
    if codes:
        return codes[0]
    message = " ".join(str(result.get("message", "no reason given")).split())
    raise ClientError(f"the command could not be started ({message})", "check its name and whether the image has it")
