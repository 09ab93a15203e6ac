"""The use case: a spec and an address become a job that can be followed, waited for and stopped."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from sys import executable
from threading import Thread
from typing import Any

from client.job import follow
from client.job.record import JobRecord
from client.job.request import JobSpec
from client.ray_api.jobs import RayJobs, import_sdk
from client.targets import Address, connect
from client.targets.target import Endpoint
from client.upload.ignore import Listing, listing
from client.upload.package import Package, pack

Note = Callable[[str], object]
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]


WAIT_CLUSTER_SECONDS = 900.0


def _silent(_: str) -> None:
    """Take a note and drop it."""


def _no_progress(_: str, __: int) -> AbstractContextManager[Callable[[int], object]]:
    """Show no progress."""
    return nullcontext(lambda _: None)


_open: "set[Job]" = set()  # a job that nobody holds goes on all the same


class Job:
    """A submitted job. A Ray started for it lives until `wait` returns, or `close`, or the interpreter ends."""

    def __init__(self, submission_id: str, jobs: RayJobs, stack: ExitStack, *, attached: bool = False) -> None:
        """Take over a job that is there; `submit` makes one.

        Args:
            submission_id: of the job.
            jobs: the cluster's jobs.
            stack: what is to be closed with the job.
            attached: the job was there before.
        """
        self.submission_id = submission_id
        self.attached = attached
        self.jobs = jobs
        self._stack = stack
        _open.add(self)

    def __repr__(self) -> str:
        return f"<Job {self.submission_id} at {self.jobs.endpoint.address}>"

    def status(self) -> JobRecord:
        """The job's record as it is now."""
        return self.jobs.get(self.submission_id)

    def logs(self) -> Iterator[str]:
        """Yield the lines that the job has written so far, without their ends; bytes that are no UTF-8 as U+FFFD."""
        rest = b""
        for chunk in self.jobs.read_log(self.status(), 0):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)
        if rest:
            yield rest.decode(errors="replace")

    def wait(
        self, write: Callable[[bytes], object] = lambda _: None, note: Note = _silent, *, offset: int = 0
    ) -> follow.JobResult:
        """Wait for the job's end. A Ray that was started for it is ended then.

        Args:
            write: takes the log's bytes as they come, for instance `sys.stdout.buffer.write`.
            note: takes a line about the waiting itself.
            offset: the byte of the log to start from.

        Raises:
            ContactLost: the cluster is gone; the job may still run.
        """
        ended = follow.follow(self.jobs, self.submission_id, write, note, offset=offset)
        self.close()
        return ended

    def stop(self, seconds: float = 40.0) -> JobRecord:
        """Stop the job and wait for its end.

        Args:
            seconds: how long to wait. Ray kills a job 30 s after it was asked to end.

        Returns:
            The job's record, finished or not.
        """
        return follow.stop(self.jobs, self.submission_id, seconds)

    def close(self) -> None:
        """End a Ray that was started for this job, and the job with it; another goes on."""
        _open.discard(self)
        self._stack.close()


@dataclass(frozen=True)
class Plan:
    """What a submit would do.

    Attributes:
        arguments: of the Job SDK's `submit_job`.
        upload: the files that would be sent, where any would.
        packed: bytes that they have when packed.
    """

    arguments: dict[str, Any]
    upload: Listing | None = None
    packed: int = 0


def _files(spec: JobSpec, endpoint: Endpoint) -> Listing | None:
    """What has to be uploaded, where anything has."""
    folder = spec.folder()
    if folder is None or endpoint.in_place:
        return None
    return listing(folder, (spec.arguments.get("runtime_env") or {}).get("excludes", ()))


def _uri(spec: JobSpec, endpoint: Endpoint, package: Package | None = None) -> str | None:
    """The working directory as Ray is told it, where it has to be."""
    if package:
        return package.uri
    folder = spec.folder()
    if folder is None:
        return str(spec.working_dir or spec.arguments["runtime_env"]["working_dir"])
    return None if endpoint.runs_in(folder) else f"local://{folder}"


def plan(spec: JobSpec, address: Address) -> Plan:
    """Say what `submit` would send, without a cluster.

    Args:
        spec: the job.
        address: where it would go.

    Raises:
        UsageError: it could not be sent.
    """
    embedded = address.value == "embedded"
    endpoint = Endpoint(
        address.value, "", lambda _: None, in_place=embedded, python=executable if embedded else "python"
    )
    files = _files(spec, endpoint)
    if files is None:
        return Plan(spec.sdk_arguments(endpoint, _uri(spec, endpoint)))
    with pack(files) as package:
        return Plan(spec.sdk_arguments(endpoint, _uri(spec, endpoint, package)), files, package.size)


def submit(
    spec: JobSpec,
    chosen: Address,
    *,
    detached: bool = False,
    wait_cluster: float = WAIT_CLUSTER_SECONDS,
    note: Note = _silent,
    progress: Progress = _no_progress,
) -> Job:
    """Submit a job, once.

    Args:
        spec: the job.
        chosen: where to.
        detached: nobody will wait for it, so a Ray that ends with us is refused.
        wait_cluster: seconds that a cluster may take to be ready.
        note: takes a line that the user should see.
        progress: makes a context manager, from a title and a number of bytes, that takes the bytes of each step.

    Returns:
        The job; `attached` where the same id with the same spec was there before.

    Raises:
        ClientError: one of its kinds; `client.errors` says which.
    """
    with ExitStack() as stack:
        spec.check_files()
        endpoint = stack.enter_context(connect(chosen, start_in=None if detached else spec.folder() or Path.cwd()))
        kind = "a Ray of its own" if endpoint.ends_with_us else endpoint.url
        note(f"address {endpoint.address} ({kind}; {chosen.source})")
        spec.check_gpus(endpoint)
        jobs = RayJobs(endpoint)
        files = _files(spec, endpoint)
        for secret in files.withheld if files else ():
            note(f"not uploaded, it looks like a secret: {secret} (`!{secret}` in .rayignore sends it)")
        with _packed(files, progress) as package:
            arguments = spec.sdk_arguments(endpoint, _uri(spec, endpoint, package))
            Thread(target=import_sdk, daemon=True).start()  # while the head starts, or others have our requests
            endpoint.ready(note, wait_cluster)
            if not endpoint.in_place:
                _check_version(jobs, note)
            if package and not jobs.has_package(package):
                with progress("uploading", package.size) as sent:
                    jobs.upload(package, sent)
            new = jobs.submit(arguments)
        job = Job(arguments["submission_id"], jobs, stack.pop_all(), attached=not new)
    return job


def _packed(files: Listing | None, progress: Progress) -> AbstractContextManager[Package | None]:
    if files is None:
        return nullcontext()
    with progress("packing", files.size) as done:
        return pack(files, done)


def _check_version(jobs: RayJobs, note: Note) -> None:
    """Warn of a server of another Ray, which mostly works; what has no job API is refused by `version`."""
    theirs, ours = jobs.version()["ray_version"], version("ray")
    if theirs != ours:
        note(f"the cluster runs Ray {theirs}, this client {ours}: install ray=={theirs} here should anything fail")
