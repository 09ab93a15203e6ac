"""The one waiting loop: for a cluster, a release, the end of a job or of an object."""

import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from client.errors import NotFound, Unreachable

Note = Callable[[str], object]  # takes a line for the user
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]  # takes a title and a number of bytes

_POLL_SECONDS = 0.25
_AWAY_SECONDS = 60.0  # an API server that restarts needs most of a minute


def read_duration(text: str) -> float | None:
    """The seconds of a duration: 90, 90s, 15m or 2h; None if it is not one."""
    read = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    return float(read[1]) * {"h": 3600, "m": 60}.get(read[2], 1) if read else None


def silent(_: str) -> None:
    """Drop a note."""


def wait(why: Callable[[], str], seconds: float, note: Note = silent, *, poll: float = _POLL_SECONDS) -> str:
    """Wait until there is no reason left to wait.

    Args:
        why: returns the reason to wait, or "" when there is none. An API server that does not answer is a reason, too,
            for a minute.
        seconds: how long to wait.
        note: takes each new reason.
        poll: seconds between two questions.

    Returns:
        "", or the reason that is left when the time is over.

    Raises:
        NotFound: `why` did.
        Unreachable: there was no answer for a minute.
    """
    answered = time.monotonic()
    end, last = answered + seconds, ""
    while True:
        try:
            reason = why()
            answered = time.monotonic()
        except NotFound:
            raise
        except Unreachable as error:
            if time.monotonic() - answered > _AWAY_SECONDS:
                raise
            reason = str(error)
        if not reason or time.monotonic() >= end:
            return reason
        if reason != last:
            note(last := reason)
        time.sleep(min(poll, max(0.0, end - time.monotonic())))
