"""The five stages of a submit: Request, Target, Upload, Submission, Job. Each is made once and handed on."""

from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from client.job.folder import is_copied
from client.job.job import Job
from client.job.request import UPLOAD_KEYS, Request
from client.job.resources import check_resources
from client.job.submission import Submission, command_line, submission
from client.ray_api.jobs import RayJobs, needs_sdk
from client.targets import Address, connect, runtime
from client.targets.embedded.keeper import make_outputs
from client.targets.target import Runtime
from client.upload.bucket import Bucket
from client.upload.package import Packed, Upload, plan_upload
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
    request: Request, entrypoint: str, where: Runtime, upload: Upload, packed: Packed, local: str | None
) -> Submission:
    working_dir = request.working_dir_uri or packed.working_dir or local
    copied = upload.working_dir is not None and is_copied(upload.working_dir)
    modules = packed.py_modules
    return submission(request, entrypoint, where, working_dir=working_dir, py_modules=modules, copied=copied)


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
        jobs = RayJobs(target)
        check_resources(request.resources, target, jobs, note, wait_cluster)
        entrypoint, upload = command_line(request, target.runtime), _upload(request, target.runtime)
        bucket = _bucket(request, target.runtime) if upload.listings else None
        store = Bucket(bucket) if bucket else jobs
        for secret in upload.withheld:
            fix = f"to upload it, add `!{PurePosixPath(secret).name}` to a .rayignore in its folder"
            note(f"not uploaded because it looks like a secret: {secret} ({fix})")
        if needs_sdk({k: v for k, v in request.runtime_env.items() if k not in UPLOAD_KEYS}):
            from client.ray_api.sdk import validate

            validate(request.runtime_env)
        with ExitStack() as files:
            with progress("packing", upload.size) as done:
                packed = files.enter_context(upload.packed(done, bucket))
            if upload.working_dir and not is_copied(upload.working_dir):
                note(
                    "the upload is too large to copy for each job: jobs with the same files share a folder, "
                    "and `fetch` gets only the files in RAY_WORKLOAD_OUTPUTS"
                )
            target.wait_ready(note, wait_cluster)
            theirs = None if target.runtime.in_place else target.ray_version or jobs.version()["ray_version"]
            for package in packed.packages:
                if not store.has_package(package.uri):
                    with progress("uploading", package.size) as sent:
                        store.upload(package.uri, package.path, package.size, sent)
            local = None
            if target.runtime.in_place and request.folder and not target.runs_in(request.folder):
                local = f"local://{request.folder}"
            made = _submission(request, entrypoint, target.runtime, upload, packed, local)
            if local:
                with suppress(OSError):  # a folder that cannot be written
                    make_outputs(Path(made.arguments["metadata"]["outputs"]))
            new = jobs.submit(made.arguments, upload.changed_since)
        _compare_versions(theirs, note)  # while the job starts
        return Job(made.submission_id, target, stack.pop_all(), attached=not new)


def _compare_versions(theirs: str | None, note: Note) -> None:
    """Warn if the cluster runs another version of Ray, which usually works."""
    from importlib.metadata import version

    if theirs not in (None, ours := version("ray")):
        note(f"the cluster runs Ray {theirs}, this client Ray {ours}: if a job fails, use an image with Ray {ours}")
