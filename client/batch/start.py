"""From a batch to its runner: here, or as a job of the cluster."""

import hashlib
import json
import secrets
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from client.batch.batch import Batch, Options, Order
from client.batch.member import Runnable
from client.batch.plan import Planned, id_part, make_plan
from client.batch.run import Runner
from client.batch.table import find
from client.errors import ClientError
from client.job.request import read_text
from client.job.submission import Submission
from client.job.submit import WAIT_CLUSTER_SECONDS, Sender
from client.ray_api.jobs import RayJobs
from client.targets import Address, connect
from client.targets.target import STOP_SECONDS, Target
from client.upload.package import plan_upload
from client.wait import Note, Progress, silent

_KEEP_SECONDS = 240.0  # Ray keeps a package that no job uses for 10 minutes after it was asked for it
_PLAN = "plan.json"
_IMAGE_FOLDER = "/app"  # of the image, which has the client
_RECORDED = "user host client_version git_commit git_dirty batch batch_kind batch_size".split()
_NO_CLIENT = "'the image has no ray-workload client: use the image of this project, or run without --detach'"
_DASHBOARD = "http://127.0.0.1:8265"  # as the head itself reaches it


def no_progress(title: str, size: int) -> Any:
    """Show nothing."""
    return nullcontext(lambda _: None)


@dataclass(frozen=True)
class Ready:
    """A batch that is decided, on a cluster that is connected."""

    batch: Batch
    options: Options
    target: Target
    planned: Sequence[Planned]
    sender: Sender
    note: Note

    def runner(self) -> Runner:
        """Run it here."""
        by_name = {job.step.name: job for job in self.planned}

        def submit(job: Runnable, made: Submission) -> bool:
            return self.sender.send(by_name[job.order.name].prepared, made)

        return Runner(self.planned, self.target, submit, self.options, self.note, self.batch.name)


@contextmanager
def ready(
    batch: Batch,
    address: Address,
    options: Options,
    *,
    may_start: bool = True,
    wait_cluster: float = WAIT_CLUSTER_SECONDS,
    note: Note = silent,
    progress: Progress = no_progress,
) -> Iterator[Ready]:
    """Connect to the cluster, and decide what becomes of each job.

    Args:
        batch: the jobs.
        address: where they run.
        options: how they run.
        may_start: start a Ray that ends with this context, where there is none.
        wait_cluster: seconds that a cluster may take to be ready.
        note: takes a line for the user.
        progress: as in `client.job.submit.send`.
    """
    folder = batch.steps[0].request.folder or Path.cwd()
    with connect(address, start_in=folder if may_start else None) as target:
        note(f"address {target} ({'a Ray of its own; ' if target.ends_with_us else ''}{address.source})")
        with Sender(target, note, progress, wait_cluster) as sender:
            planned = make_plan(batch, options, target, sender, note, wait_cluster)
            yield Ready(batch, options, target, planned, sender, note)


def detach(found: Ready) -> str:
    """Hand a batch to the cluster: a job there runs it with the client of its image.

    Args:
        found: the batch; what its jobs need is uploaded now.

    Returns:
        The id of the job that runs it.
    """
    jobs, batch = found.sender.jobs, found.batch
    table = find(jobs, batch.name)
    plan = {"specs": [job.spec for job in found.planned], "options": asdict(found.options)}
    plan_hash = hashlib.sha256(json.dumps(plan).encode()).hexdigest()
    if table and table.runner and not table.runner.finished and not jobs.lost([table.runner]):
        if table.runner.metadata.get("spec_hash") == plan_hash:
            return table.runner.submission_id
        what = (
            f"{batch.name} runs on the cluster already, as job {table.runner.submission_id}, with other jobs or options"
        )
        raise ClientError(what, f"wait for its end, or run `stop {batch.name}`")
    for job in found.planned:
        if job.decision == "run":
            found.sender.upload(job.prepared)
    target, in_place = found.target, found.target.runtime.in_place
    there = target.http.server.url if in_place else _DASHBOARD
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, _PLAN).write_text(json.dumps(_as_data(found)))
        with plan_upload(Path(folder), (), ()).packed() as packed:
            (package,) = packed.packages
            jobs.upload(package.uri, package.path, package.size, lambda _: None)
    python_path = str(Path(__file__).parents[2]) if in_place else _IMAGE_FOLDER
    python = shlex.quote(target.runtime.python)
    like = found.planned[0].submission(1).arguments["metadata"]
    arguments = {
        "entrypoint": f"{python} -c 'import client' || {{ echo {_NO_CLIENT}; exit 1; }}; "
        f"exec {python} -m client run-plan --address {there} {_PLAN}",
        "submission_id": f"{id_part(batch.name)}.runner.{secrets.token_hex(4)}",
        "runtime_env": {
            "working_dir": package.uri,
            "env_vars": {"PYTHONPATH": f"{python_path}:${{PYTHONPATH}}", "RAY_JOB_STOP_WAIT_TIME_S": STOP_SECONDS},
        },
        "metadata": {**{key: value for key, value in like.items() if key in _RECORDED}, "spec_hash": plan_hash},
    }
    jobs.submit(arguments)
    return str(arguments["submission_id"])


def _as_data(found: Ready) -> dict[str, Any]:
    def as_data(job: Planned) -> dict[str, Any]:
        first = job.next_attempt
        most = range(first, first + job.order.retries + 2) if job.decision in ("run", "attach") else ()
        return {
            "order": asdict(job.order),
            "decision": job.decision,
            "why": job.why,
            "attempts": job.attempts,
            "next_attempt": first,
            "submissions": {attempt: job.submission(attempt).arguments for attempt in most},
        }

    return {"batch": found.batch.name, "options": asdict(found.options), "jobs": list(map(as_data, found.planned))}


@dataclass(frozen=True)
class _Handed:
    """A job of a batch as another process has planned it."""

    order: Order
    decision: str
    why: str
    attempts: Sequence[str]
    next_attempt: int
    submissions: Mapping[str, Mapping[str, Any]]

    def submission(self, attempt: int) -> Submission:
        return Submission(self.submissions[str(attempt)])


@contextmanager
def handed(path: str, address: Address, note: Note) -> Iterator[tuple[Runner, str]]:
    """The runner of a batch that `detach` has handed over, and the batch's name.

    Args:
        path: of its plan.
        address: of the cluster.
        note: takes a line for the user.
    """
    data = json.loads(read_text(path))
    planned = [_Handed(**{**job, "order": Order(**job["order"])}) for job in data["jobs"]]
    with connect(address) as target:
        jobs = RayJobs(target)
        options = Options(**data["options"])
        name = data["batch"]
        packages = {made["runtime_env"].get("working_dir") for job in planned for made in job.submissions.values()}

        def keep_packages() -> None:
            while True:
                for uri in filter(None, packages):
                    with suppress(ClientError):
                        jobs.has_package(uri)
                time.sleep(_KEEP_SECONDS)

        Thread(target=keep_packages, daemon=True).start()
        yield Runner(planned, target, lambda _, made: jobs.submit(made.arguments), options, note, name), name
