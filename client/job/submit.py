"""The five stages of a submit: Request, Target, Upload, Submission, Job. Each is made once and handed on."""

from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

from client.job.folder import is_copied
from client.job.job import Job
from client.job.request import UPLOAD_KEYS, Request
from client.job.resources import check_resources
from client.job.submission import Submission, command_line, submission
from client.ray_api.jobs import RayJobs, needs_sdk
from client.targets import Address, connect, runtime
from client.targets.embedded.keeper import make_outputs
from client.targets.target import Runtime, Target
from client.upload.bucket import Bucket
from client.upload.ignore import listing
from client.upload.package import Packed, Upload, content_hash, plan_upload
from client.wait import Note, Progress, silent

WAIT_CLUSTER_SECONDS = 900.0


def attach(submission_id: str, address: Address) -> Job:
    """Attach to a job that was submitted before.

    Args:
        submission_id: of the job.
        address: where it runs.

    Raises:
        JobNotFound: there is none.
    """
    with ExitStack() as stack:
        target = stack.enter_context(connect(address))
        RayJobs(target).get(submission_id)
        return Job(submission_id, target, stack.pop_all(), attached=True)


@dataclass(frozen=True)
class Plan:
    """The plan of a submit, for --dry-run. `packed` is the size in bytes of the packed upload."""

    submission: Submission
    upload: Upload
    packed: int


def plan(request: Request, address: Address) -> Plan:
    """Say what `send` would do, without a cluster."""
    where = runtime(address)
    entrypoint, upload = command_line(request, where), _upload(request, where)
    with upload.packed(bucket=_bucket(request, where)) as packed:
        local = f"local://{request.folder}" if where.in_place else None
        return Plan(_submission(request, entrypoint, where, upload, packed, local), upload, packed.size)


def _upload(request: Request, where: Runtime) -> Upload:
    """List the upload: the working directory, unless the job runs in place, and local py_modules."""
    folder = None if where.in_place else request.folder
    modules = request.runtime_env.get("py_modules", ())
    return plan_upload(folder, modules, request.runtime_env.get("excludes", ()))


def _bucket(request: Request, where: Runtime) -> str | None:
    """The bucket that the upload goes to; Ray on this machine needs none."""
    return None if where.in_place else request.upload_to


def _submission(
    request: Request,
    entrypoint: str,
    where: Runtime,
    upload: Upload,
    packed: Packed,
    local: str | None,
    **more: Any,
) -> Submission:
    working_dir = request.working_dir_uri or packed.working_dir or local
    copied = upload.working_dir is not None and is_copied(upload.working_dir)
    return submission(
        request,
        entrypoint,
        where,
        working_dir=working_dir,
        py_modules=packed.py_modules,
        copied=copied,
        **more,
    )


def send(
    request: Request,
    address: Address,
    *,
    detached: bool = False,
    wait_cluster: float = WAIT_CLUSTER_SECONDS,
    note: Note = silent,
    progress: Progress = lambda title, size: nullcontext(lambda _: None),
) -> Job:
    """Submit a job, once.

    Args:
        request: the job.
        address: where to.
        detached: nobody will wait for it, so a Ray that ends with this client is refused.
        wait_cluster: seconds that a cluster may take to be ready.
        note: takes a line that the user should see.
        progress: makes a context manager, from a title and a number of bytes, that takes the bytes of each step.
    """
    with ExitStack() as stack:
        target = stack.enter_context(connect(address, start_in=None if detached else request.folder or Path.cwd()))
        note(f"address {target} ({'a Ray of its own; ' if target.ends_with_us else ''}{address.source})")
        with Sender(target, note, progress, wait_cluster) as sender:
            check_resources(request.resources, target, sender.jobs, note, wait_cluster)
            prepared = sender.prepare(request)
            sender.wait_ready()
            made = prepared.submission()
            new = sender.send(prepared, made)
            sender.compare_versions()  # while the job starts
        return Job(made.submission_id, target, stack.pop_all(), attached=not new)


@dataclass(frozen=True)
class Prepared:
    """A job whose files are packed, and whose submission can be made.

    Attributes:
        request: what the user asked for.
        packed: the packages of its upload.
    """

    request: Request
    packed: Packed
    _entrypoint: str
    _target: Target
    _upload: Upload
    _bucket: str | None

    @property
    def _local(self) -> str | None:
        folder = self.request.folder
        in_place = self._target.runtime.in_place and folder and not self._target.runs_in(folder)
        return f"local://{folder}" if in_place else None

    def submission(self, **more: Any) -> Submission:
        """Make the submission; the arguments are the last ones of `client.job.submission.submission`."""
        where, packed = self._target.runtime, self.packed
        return _submission(self.request, self._entrypoint, where, self._upload, packed, self._local, **more)


class Sender:
    """Sends jobs to a target. Those with the same folder share one upload, which is packed and sent once."""

    def __init__(self, target: Target, note: Note, progress: Progress, wait_cluster: float) -> None:
        """Send nothing yet; the arguments are those of `send`."""
        self.jobs = RayJobs(target)
        self._target, self._note, self._progress, self._wait_cluster = target, note, progress, wait_cluster
        self._files, self._packed = ExitStack(), dict[str, tuple[Upload, Packed]]()
        self._contents: dict[str, str] = {}
        self._version: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def prepare(self, request: Request) -> Prepared:
        """Check what the target must have for a job, and pack its upload."""
        runtime = self._target.runtime
        entrypoint, bucket = command_line(request, runtime), _bucket(request, runtime)
        key = repr((request.folder, bucket, [request.runtime_env.get(name) for name in UPLOAD_KEYS]))
        rest = {name: value for name, value in request.runtime_env.items() if name not in UPLOAD_KEYS}
        if needs_sdk(rest):
            from client.ray_api.sdk import validate

            validate(rest)
        if key not in self._packed:
            self._packed[key] = self._pack(request, bucket)
        upload, packed = self._packed[key]
        return Prepared(request, packed, entrypoint, self._target, upload, bucket)

    def content(self, prepared: Prepared) -> str:
        """A hash of the files of a job that runs in its folder; "" where the names of its packages have it."""
        folder, excludes = prepared.request.folder, prepared.request.runtime_env.get("excludes", ())
        if not self._target.runtime.in_place or not folder:
            return ""
        key = repr((folder, excludes))
        if key not in self._contents:
            self._contents[key] = content_hash(listing(folder, excludes, may_be_empty=True))
        return self._contents[key]

    def _pack(self, request: Request, bucket: str | None) -> tuple[Upload, Packed]:
        upload = _upload(request, self._target.runtime)
        for secret in upload.withheld:
            fix = f"to upload it, add `!{PurePosixPath(secret).name}` to a .rayignore in its folder"
            self._note(f"not uploaded because it looks like a secret: {secret} ({fix})")
        with self._progress("packing", upload.size) as done:
            packed = self._files.enter_context(upload.packed(done, bucket))
        if upload.working_dir and not is_copied(upload.working_dir):
            self._note(
                "the upload is too large to copy for each job: jobs with the same files share a folder, "
                "and `fetch` gets only the files in RAY_WORKLOAD_OUTPUTS"
            )
        return upload, packed

    def wait_ready(self) -> None:
        """Wait until the target takes jobs."""
        self._target.wait_ready(self._note, self._wait_cluster)
        if not self._target.runtime.in_place:
            self._version = self._target.ray_version or self.jobs.version()["ray_version"]

    def send(self, prepared: Prepared, made: Submission) -> bool:
        """Upload what the cluster does not have, and submit a job; False if it was there before."""
        self.upload(prepared)
        if prepared._local:
            with suppress(OSError):  # a folder that cannot be written
                make_outputs(Path(made.arguments["metadata"]["outputs"]))
        return self.jobs.submit(made.arguments, prepared._upload.changed_since)

    def upload(self, prepared: Prepared) -> None:
        """Upload what the cluster does not have."""
        store = Bucket(prepared._bucket) if prepared._bucket and prepared.packed.packages else self.jobs
        for package in prepared.packed.packages:
            if not store.has_package(package.uri):
                with self._progress("uploading", package.size) as sent:
                    store.upload(package.uri, package.path, package.size, sent)

    def compare_versions(self) -> None:
        """Warn if the cluster runs another version of Ray, which usually works."""
        from importlib.metadata import version

        if self._version not in (None, ours := version("ray")):
            self._note(
                f"the cluster runs Ray {self._version}, this client Ray {ours}: if a job fails, "
                f"use an image with Ray {ours}"
            )
