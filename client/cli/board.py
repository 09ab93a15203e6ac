"""Shows a batch while it runs: a live table on a terminal, one prefixed stream of logs elsewhere."""

import csv
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from client.cli import output

if TYPE_CHECKING:
    from client.batch.member import Changed, Event, Member

_STYLES = {"SUCCEEDED": "green", "SKIPPED": "green", "FAILED": "red", "LOST": "red", "STOPPED": "yellow"}
_STYLES |= {"RUNNING": "cyan", "PENDING": "cyan"}
_COLUMNS = ("status", "exit_code", "seconds", "submission_id", "attempts")  # of a job in CSV
_FRESH_SECONDS = 0.25
_NAME_WIDTH = 24
_LINES = 6  # of a terminal that are not for jobs


class Board:
    """Takes what happens in a batch, and shows it."""

    def __init__(self, names: Sequence[str], *, to_stderr: bool, prefixed: bool = True) -> None:
        """Show nothing yet.

        Args:
            names: of the jobs.
            to_stderr: write the logs there, because stdout is for data.
            prefixed: write each line with its job's name.
        """
        self._sink, self._prefixed = output.Sink(to_stderr=to_stderr), prefixed
        self._rests: dict[str, bytes] = {}
        self._width = min(_NAME_WIDTH, max(map(len, names), default=0))

    def log(self, name: str, data: bytes) -> None:
        """Write the whole lines of a log, each with its job's name."""
        if not self._prefixed:
            self._sink.write(data)
            return
        *lines, rest = (self._rests.pop(name, b"") + data).split(b"\n")
        if rest:
            self._rests[name] = rest
        if lines:
            prefix = self._prefix(name)
            self._sink.write(b"".join(prefix + line + b"\n" for line in lines))

    def _prefix(self, name: str) -> bytes:
        return f"{name:<{self._width}} | ".encode()

    def end_log(self, name: str) -> None:
        """Write a last line that has no end."""
        if rest := self._rests.pop(name, b""):
            self._sink.write(self._prefix(name) + rest + b"\n")

    def show(self, event: "Event") -> None:
        """Show what happened."""
        from client.batch.member import Logged

        if isinstance(event, Logged):
            self.log(event.member.name, event.data)
            return
        if event.member.state not in ("PENDING", "RUNNING"):
            self.end_log(event.member.name)
        if line := said(event):
            output.note(line)


def said(event: "Changed") -> str:
    """A line about a job's new state; "" if there is nothing to say."""
    member = event.member
    if member.state == "SKIPPED":
        return f"{member.name}: skipped, because {member.planned.why}"
    if member.state == "NOT_STARTED":
        return f"{member.name}: not started" if member.planned.decision != "leave" else ""
    if member.state in ("WAITING", "RUNNING"):
        return ""
    if member.state == "PENDING":
        how = (
            f"attached to job {member.submission_id}" if member.is_attached else f"job {member.submission_id} submitted"
        )
        return f"{member.name}: {how}"
    took = f" after {member.seconds:.1f} s" if member.seconds is not None else ""
    how = {"SUCCEEDED": "succeeded", "STOPPED": "was stopped", "LOST": "was lost"}.get(
        member.state, f"failed with exit code {member.exit_code}"
    )
    record = member.record
    why = f": {member.error}" if member.error else ""
    if not why and record and member.state == "FAILED" and record.driver_exit_code is None:
        why = ": " + (record.message or "").strip().rpartition("\n")[2].strip()
    return f"{member.name}: {how}{took}{why}"


@contextmanager
def live(members: "Sequence[Member]", name: str) -> Iterator[Any]:
    """Show a table of the jobs that changes, and yield a function that takes what happens.

    Args:
        members: all jobs.
        name: of the batch.
    """
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    console = Console(stderr=True)

    def table() -> Group:
        room = max(3, console.size.height - _LINES)
        shown = list(members)
        if len(shown) > room:
            order = {"RUNNING": 0, "PENDING": 0, "FAILED": 1, "LOST": 1, "STOPPED": 1, "WAITING": 3}
            shown = sorted(shown, key=lambda member: order.get(member.state, 2))[:room]
        made = Table("JOB", "STATE", "SECONDS", "LAST LINE", box=None, pad_edge=False, header_style="bold", expand=True)
        for column, fixed in zip(made.columns, (True, True, True, False), strict=True):
            column.no_wrap, column.ratio = True, None if fixed else 1
        for member in shown:
            seconds = "" if member.seconds is None else f"{member.seconds:.0f}"
            state = Text(words(member.state), style=_STYLES.get(member.state, "dim"))
            made.add_row(Text(member.name), state, seconds, Text(printable(member.last_line), style="dim"))
        return Group(made, Text(f"{name}: {counts(members)}", style="bold"))

    with Live(get_renderable=table, console=console, refresh_per_second=1 / _FRESH_SECONDS):
        yield lambda event: None


def printable(line: str) -> str:
    """A line without what moves a terminal's cursor."""
    return "".join(char if char.isprintable() else " " for char in line.rpartition("\r")[2])


def words(state: str) -> str:
    """A state for people."""
    return state.lower().replace("_", " ")


def counts(members: "Sequence[Member]") -> str:
    """How many jobs are in each state."""
    found: dict[str, int] = {}
    for member in members:
        state = words(member.state)
        found[state] = found.get(state, 0) + 1
    total = "1 job" if len(members) == 1 else f"{len(members)} jobs"
    return f"{total}, " + ", ".join(f"{number} {state}" for state, number in found.items())


def to_csv(rows: Sequence[dict[str, Any]], columns: Sequence[str] = _COLUMNS) -> str:
    """Rows as CSV: a column for each parameter, then these columns."""
    parameters = list(dict.fromkeys(name for row in rows for name in row["parameters"]))
    names = ["job", *parameters, *columns]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = {**row["parameters"], **row, "attempts": len(row["attempts"])}
        writer.writerow(["" if values.get(name) is None else values[name] for name in names])
    return text.getvalue()


def is_terminal() -> bool:
    """Whether a live table can be shown: nobody reads the logs as a stream."""
    return sys.stdout.isatty() and sys.stderr.isatty()
