"""A batch, as the user asked for it: its jobs, what each of them waits for, and what the cluster must have."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Literal

from client.errors import UsageError
from client.job.request import Request

Kind = Literal["chain", "sweep", "job"]
RETRY_ON = ("lost", "exit")  # the head or the node was lost; the driver failed
REBUILD = "FORCE_REBUILD"


@dataclass(frozen=True)
class Order:
    """When a job of a batch runs, and how often.

    Attributes:
        name: of the job in its batch.
        after: the names of the jobs that must have succeeded before it starts.
        retries: how often it is submitted again.
        retry_on: after what, of RETRY_ON.
        may_leave_head: whether its driver may run on a worker.
    """

    name: str
    after: Sequence[str] = ()
    retries: int = 0
    retry_on: Sequence[str] = RETRY_ON
    may_leave_head: bool = False


@dataclass(frozen=True)
class Step:
    """One job of a batch.

    Attributes:
        order: when it runs.
        request: the job.
        parameters: its values in a sweep.
        where: the line of the file that has it, for errors.
    """

    order: Order
    request: Request
    parameters: Mapping[str, str] = field(default_factory=dict)
    where: str = ""

    @property
    def name(self) -> str:
        """Of the job in its batch."""
        return self.order.name


@dataclass(frozen=True)
class Wish:
    """The needs of a batch, checked before it is sent.

    Attributes:
        workers: how many nodes besides the head.
        gpus: how many GPUs in all.
        accelerator: the kind of one of its GPUs, as Ray names it.
    """

    workers: float = 0
    gpus: float = 0
    accelerator: str = ""


@dataclass(frozen=True)
class Batch:
    """Jobs under one name.

    Attributes:
        name: the handle of them all.
        kind: a chain; a sweep; or one job with its retries.
        steps: the jobs, each after those it waits for.
        wish: what the cluster must have.
    """

    name: str
    kind: Kind
    steps: tuple[Step, ...]
    wish: Wish = Wish()


@dataclass(frozen=True)
class Options:
    """How a batch runs.

    Attributes:
        max_parallel: how many jobs run at once.
        keep_going: after a failure, start the jobs that do not wait for the failed one.
        force: run the jobs that have succeeded before, too.
        start: run this job and those that wait for it, and no others.
        only: run this job alone.
    """

    max_parallel: int = 4
    keep_going: bool = False
    force: bool = False
    start: str | None = None
    only: str | None = None


def rebuild() -> bool:
    """Whether the environment asks for a run of all jobs."""
    return os.environ.get(REBUILD, "").lower() in ("1", "true", "yes")


def in_order(steps: Iterable[Step]) -> tuple[Step, ...]:
    """The steps, each after those it waits for, else as they are given.

    Raises:
        graphlib.CycleError: some wait for each other; its second argument has their names.
    """
    by_name = {step.name: step for step in steps}
    return tuple(
        by_name[name] for name in TopologicalSorter({s.name: s.order.after for s in by_name.values()}).static_order()
    )


def chosen(batch: Batch, options: Options) -> frozenset[str]:
    """The names of the jobs that may run, by `start` and `only`.

    Raises:
        UsageError: there is no such job.
    """
    names = [step.name for step in batch.steps]
    if wrong := next((n for n in (options.start, options.only) if n is not None and n not in names), None):
        raise UsageError(f"{batch.name} has no job {wrong}", f"it has {', '.join(names)}")
    if options.only is not None and options.start is not None:
        raise UsageError("--only and --from are both used", "keep one of them")
    if options.only is not None:
        return frozenset({options.only})
    if options.start is None:
        return frozenset(names)
    found = {options.start}
    for step in batch.steps:
        if found & set(step.order.after):
            found.add(step.name)
    return frozenset(found)
