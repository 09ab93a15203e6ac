"""Whether a cluster can ever provide the resources that a driver asks for."""

from collections.abc import Mapping, Sequence

from client.errors import UsageError
from client.job.request import ACCELERATOR
from client.ray_api.jobs import RayJobs
from client.targets.target import Target
from client.wait import Note


def check_resources(wanted: Mapping[str, float], target: Target, jobs: RayJobs, note: Note, seconds: float) -> None:
    """Check that a worker group, or a node that is there, has the resources that the driver needs, by Ray's names.

    If only Ray itself can know, this is a note. A cluster may take so many seconds until its nodes can be asked.

    Raises:
        UsageError: none has them, so the job would wait for ever.
    """
    groups = target.groups()
    kinds = [(group.name, group.resources) for group in groups or ()]
    if not wanted or _fits(wanted, kinds):
        return
    target.wait_ready(note, seconds)
    live = [("a live node", node) for node in jobs.nodes()]
    if _fits(wanted, live):
        return
    known = "; ".join(dict.fromkeys(f"{name} has {_words(has, wanted)}" for name, has in [*kinds, *live]))
    what = f"no node of the cluster has the {_words(wanted, wanted)} that the driver asks for ({known})"
    if groups is None:  # an autoscaler that cannot be seen from here may add one
        note(f"{what}, so the job waits until one has")
        return
    raise UsageError(what, "ask for less, or add a worker group that has it")


def _fits(wanted: Mapping[str, float], nodes: Sequence[tuple[str, Mapping[str, float]]]) -> bool:
    return any(all(has.get(name, 0) >= amount for name, amount in wanted.items()) for _, has in nodes)


def _words(has: Mapping[str, float], names: Mapping[str, float]) -> str:
    """The amounts of the requested resources, and all kinds of accelerators."""
    kinds = [name.removeprefix(ACCELERATOR) for name in has if name.startswith(ACCELERATOR)]
    amounts = [f"{has.get(name, 0):g} {name}" for name in sorted(names) if not name.startswith(ACCELERATOR)]
    return " ".join([*amounts, *kinds])
