"""Follows jobs of a batch that others run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from client.batch.batch import Options, Order
from client.batch.member import Event
from client.batch.run import Runner
from client.job.submission import Submission
from client.targets.target import Target
from client.wait import Note

_AT_ONCE = 32  # logs that are followed


@dataclass(frozen=True)
class _Attached:
    """A job that only is followed."""

    order: Order
    attempts: Sequence[str]
    decision: str = "attach"
    why: str = ""
    next_attempt: int = 0

    def submission(self, attempt: int) -> Submission:
        raise AssertionError("it is never submitted")


def watch(target: Target, jobs: Mapping[str, str], note: Note) -> Iterator[Event]:
    """Follow jobs to their end, and yield what happens.

    Args:
        target: where they run.
        jobs: their ids, by their names.
        note: takes a line for the user.
    """
    planned = [_Attached(Order(name), [submission_id]) for name, submission_id in jobs.items()]
    return Runner(planned, target, lambda *_: False, Options(_AT_ONCE, keep_going=True), note, "").run()
