"""What a batch needs from a cluster, decided before anything is sent: each job's spec, and whether it has succeeded.

The state is Ray's own table of jobs. Each job of a batch has in its metadata the batch, its name there, and the hash of
its spec: its arguments, its files by content, its environment, and the specs of the jobs it comes after. Its id is made
of the same three, so that two clients that run one batch submit each job once.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from client.batch.batch import Batch, Options, Order, Step, chosen
from client.errors import ClientError, UsageError
from client.job.resources import check_resources
from client.job.submission import Submission
from client.job.submit import Prepared, Sender
from client.ray_api.record import JobRecord
from client.targets.target import NodeGroup, Target
from client.wait import Note, silent

Decision = Literal["run", "attach", "skip", "leave"]
_NEW = "it is new"
_ID_LENGTH = 40  # of the batch's name and of the job's, in an id


@dataclass(frozen=True)
class Planned:
    """One job of a batch, and what becomes of it.

    Attributes:
        step: the job.
        spec: the hash of its spec.
        decision: run it; attach to it, because it runs; skip it, because it has succeeded; or leave it out.
        why: the reason, for the user.
        attempts: the ids of its earlier attempts, the newest last.
        next_attempt: the number of the next one. Earlier ones may be missing in the table: a head can forget.
        prepared: its files are packed; None where another process has sent them.
        metadata: what is recorded with each attempt.
    """

    step: Step
    spec: str
    decision: Decision
    why: str
    attempts: tuple[str, ...]
    next_attempt: int
    prepared: Prepared
    metadata: Mapping[str, str] = field(repr=False)

    @property
    def order(self) -> Order:
        """When it runs."""
        return self.step.order

    def submission(self, attempt: int) -> Submission:
        """The submission of an attempt, counted from 1."""
        first, this = (attempt_id(self.metadata["batch"], self.step.name, self.spec, n) for n in (1, attempt))
        metadata = {**self.metadata, "attempt": str(attempt)}
        # A retry finds the checkpoints of the attempt before it.
        return self.prepared.submission(submission_id=this, results_of=first, metadata=metadata)


def id_part(name: str) -> str:
    """A name as a part of an id: Ray makes file names of ids."""
    return re.sub(r"[^\w.-]", "-", name, flags=re.ASCII)[:_ID_LENGTH]


def attempt_id(batch: str, step: str, spec: str, attempt: int) -> str:
    """The id of an attempt, the same for everyone who submits it."""
    words = [id_part(batch), id_part(step)]
    digest = hashlib.sha256(f"{batch}\0{step}\0{spec}".encode()).hexdigest()[:12]
    return ".".join([*words, digest]) + (f"-{attempt}" if attempt > 1 else "")


def make_plan(
    batch: Batch, options: Options, target: Target, sender: Sender, note: Note = silent, seconds: float = 0.0
) -> list[Planned]:
    """Decide what becomes of each job.

    Args:
        batch: the jobs.
        options: how they run.
        target: where.
        sender: packs what they upload.
        note: takes a line for the user.
        seconds: how long the cluster may take to be ready.

    Raises:
        UsageError: the cluster cannot run some of the jobs; all of these are named.
        ClientError: another version of one of the jobs still runs.
    """
    may_run = chosen(batch, options)
    _check(batch, target, sender, note, seconds)
    prepared = {step.name: sender.prepare(step.request) for step in batch.steps}
    sender.wait_ready()
    everything = sender.jobs.list()
    if any(job.submission_id == batch.name for job in everything):
        raise ClientError(f"there is a job with the id {batch.name}", f"use another name for the {batch.kind}")
    jobs = [job for job in everything if job.metadata.get("batch") == batch.name]
    known, lost = attempts(jobs), sender.jobs.lost(jobs)
    names = {name for name, _ in known}
    running = {job.metadata["step"]: job for found in known.values() if (job := _running(found, lost))}
    planned: list[Planned] = []
    specs: dict[str, str] = {}
    for step in batch.steps:
        hashes = [prepared[step.name].submission().spec_hash, sender.content(prepared[step.name])]
        after = [specs[name] for name in step.order.after]
        spec = specs[step.name] = hashlib.sha256(json.dumps([*hashes, *after]).encode()).hexdigest()[:16]
        before = known.get((step.name, spec), [])
        decision, why = _decide(step, before, lost, options, may_run)
        if why == _NEW and step.name in names:
            why = "it, its files or a job before it have changed"
        if decision == "run" and (other := running.get(step.name)):
            raise ClientError(
                f"{other.submission_id}, another version of {batch.name}/{step.name}, is still {other.status}",
                f"wait for its end, or run `stop {batch.name}`",
            )
        earlier, number = tuple(job.submission_id for job in before), _attempt(before[-1]) + 1 if before else 1
        metadata = {
            "batch": batch.name,
            "batch_kind": batch.kind,
            "batch_size": str(len(batch.steps)),
            "step": step.name,
            "step_spec": spec,
        }
        if step.parameters:
            metadata["parameters"] = json.dumps(dict(step.parameters))
        planned.append(Planned(step, spec, decision, why, earlier, number, prepared[step.name], metadata))
    return planned


def attempts(jobs: Sequence[JobRecord]) -> dict[tuple[str, str], list[JobRecord]]:
    """The attempts of each job of a batch by its name and its spec, the newest last; `jobs` has the newest first."""
    found: dict[tuple[str, str], list[JobRecord]] = {}
    for job in reversed(jobs):
        if "step_spec" in job.metadata:
            found.setdefault((job.metadata["step"], job.metadata["step_spec"]), []).append(job)
    return {key: sorted(jobs, key=_attempt) for key, jobs in found.items()}


def _attempt(job: JobRecord) -> int:
    return int(job.metadata.get("attempt", 0))


def _decide(
    step: Step, known: Sequence[JobRecord], lost: Collection[str], options: Options, may_run: frozenset[str]
) -> tuple[Decision, str]:
    if step.name not in may_run:
        return "leave", "not chosen"
    if running := _running(known, lost):
        return "attach", f"{running.submission_id} is {running.status}"
    # The newest attempt counts: one that was forced and failed is not undone by an older one.
    done = known[-1].submission_id if known and known[-1].status == "SUCCEEDED" else None
    forced = options.force or options.start is not None or options.only is not None
    if done and not forced:
        return "skip", f"{done} succeeded"
    return "run", "forced, though it succeeded before" if done else "it failed before" if known else _NEW


def _running(known: Iterable[JobRecord], lost: Collection[str]) -> JobRecord | None:
    return next((job for job in known if not job.finished and job.submission_id not in lost), None)


def _check(batch: Batch, target: Target, sender: Sender, note: Note, seconds: float) -> None:
    """Check the wish and the resources of all jobs, and report all that is missing at once."""
    wrong: dict[str, None] = {}
    if missing := _missing(batch, target, sender, note, seconds):
        wrong[missing] = None
    checked: dict[str, str] = {}
    for step in batch.steps:
        key = repr(sorted(step.request.resources.items()))
        if key not in checked:
            try:
                check_resources(step.request.resources, target, sender.jobs, note, seconds)
                checked[key] = ""
            except UsageError as error:
                checked[key] = error.what
        if checked[key]:
            wrong[f"{step.where or step.name}: {checked[key]}"] = None
    if wrong:
        raise UsageError("\n  ".join([f"{batch.name} cannot run on this cluster:", *wrong]))


def _missing(batch: Batch, target: Target, sender: Sender, note: Note, seconds: float) -> str:
    wish, groups = batch.wish, target.groups()
    if wish == type(wish)():
        return ""
    if not groups:
        target.wait_ready(note, seconds)
        nodes = sender.jobs.nodes()
        groups = [NodeGroup("a node", node, 1) for node in nodes]
    workers = sum(most for _, _, most in groups) - 1
    gpus = sum(node.get("GPU", 0) * most for _, node, most in groups)
    kind = f"accelerator_type:{wish.accelerator}"
    missing = []
    if workers < wish.workers:
        missing.append(f"{wish.workers:g} workers (there are at most {workers:g})")
    if gpus < wish.gpus:
        missing.append(f"{wish.gpus:g} GPU (there are at most {gpus:g})")
    if wish.accelerator and not any(kind in node for _, node, _ in groups):
        missing.append(f"a GPU of the kind {wish.accelerator}")
    return f"cluster: the chain needs {', '.join(missing)}" if missing else ""
