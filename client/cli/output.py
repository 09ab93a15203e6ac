"""What a user sees: bytes and JSON on stdout, notes and progress on stderr; tables and bars on a terminal only."""

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from errno import ENOSPC
from threading import Condition, Thread
from typing import Any

import click

from client.errors import OutputLost, UsageError
from client.ray_api.record import JobRecord, JobResult
from client.streams import reported, write_all

_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"))
_WAITED_SECONDS = 5.0  # a longer wait for the driver's start is mentioned


def note(line: str) -> None:
    """Tell the user what is going on."""
    with suppress(OSError):  # a full disk under stderr must not end the job
        click.secho(f"ray-workload: {line}", err=True, dim=True)


def error(line: str) -> None:
    """Say what went wrong."""
    with suppress(OSError):
        click.secho(f"ray-workload: {line}", err=True, fg="red")


def close_stdout() -> None:
    """Discard all further output, also what the interpreter flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _stdout() -> Iterator[None]:
    """Raise OutputLost after a failed write, and discard what follows."""
    try:
        with reported():
            yield
    except OutputLost:
        close_stdout()
        raise


@contextmanager
def stdout_to(file: str) -> Iterator[None]:
    """Write stdout to a file, which is created or replaced when the command is done.

    Raises:
        UsageError: the file cannot be written.
    """
    path, whole = os.path.realpath(file), False
    partial = f"{path}.part"
    if os.path.exists(path) and not os.path.isfile(path):
        raise UsageError(f"cannot write {file}: not a regular file", "use another file")
    try:
        with open(partial, "wb") as opened:
            os.dup2(opened.fileno(), sys.stdout.fileno())
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}", "use another file") from error
    try:
        yield
        whole = True
    except click.exceptions.Exit:  # the exit code of a job that was followed to its end
        whole = True
        raise
    finally:
        os.replace(partial, path) if whole else os.unlink(partial)


def print_line(line: str) -> None:
    """Print a line of the result."""
    with _stdout():
        click.echo(line)


def print_json(data: Any) -> None:
    """Print data as JSON, the only thing on stdout."""
    print_line(json.dumps(data, indent=2))


class Sink:
    """Writes the bytes of a log, unchanged.

    A thread writes them, so that Ctrl-C works while a pager or a full pipe blocks. Each chunk is written once, even
    if Ctrl-C interrupts the caller.
    """

    def __init__(self, *, to_stderr: bool, offset: int = 0) -> None:
        """Choose the stream.

        Args:
            to_stderr: write to stderr, because stdout is for JSON.
            offset: the position of the first byte in the log.
        """
        stream = sys.stderr if to_stderr else sys.stdout
        stream.flush()
        self._descriptor, self._written = stream.fileno(), offset
        self._chunks: deque[bytes] = deque()
        self._error: Exception | None = None
        self._changed = Condition()
        Thread(target=self._write_chunks, daemon=True).start()

    @property
    def offset(self) -> int:
        """The position in the log after the last byte that was given to `write`."""
        with self._changed:
            return self._written + sum(map(len, self._chunks))

    def write(self, data: bytes) -> None:
        """Pass bytes on, and wait until they are written."""
        self._chunks.append(data)  # atomic: Ctrl-C comes before it or after it
        self.flush()

    def flush(self) -> None:
        """Wait until everything is written.

        Raises:
            OutputLost: it cannot be written.
            BrokenPipeError: nobody reads it any more.
        """
        with self._changed:
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._chunks)
        if self._error:
            raise self._error

    def _write_chunks(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._chunks)
                chunk = self._chunks[0]
            try:
                write_all(self._descriptor, chunk)
            except (OutputLost, BrokenPipeError) as error:
                self._error = error
            with self._changed:
                self._written += len(chunk)
                self._chunks.popleft()
                self._changed.notify_all()


def job_data(job: JobRecord) -> dict[str, Any]:
    """A job as `-o json` shows it. Times are Unix time in milliseconds; `exit_code` is that of `submit`."""
    return {
        "submission_id": job.submission_id,
        "status": job.status,
        "exit_code": JobResult(job).exit_code if job.finished else None,
        "driver_exit_code": job.driver_exit_code,
        "entrypoint": job.entrypoint,
        "message": job.message,
        "error_type": job.error_type,
        "submit_time": job.submit_time,
        "start_time": job.start_time,
        "end_time": job.end_time,
        "metadata": dict(job.metadata),
    }


def local_time(milliseconds: float | None) -> str:
    """A time in this machine's time zone."""
    return datetime.fromtimestamp(milliseconds / 1000).strftime("%Y-%m-%d %H:%M:%S") if milliseconds else ""


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.0f}"


def ago(milliseconds: float) -> str:
    """How long ago a time was, in the largest unit that fits."""
    seconds = max(0, time.time() - milliseconds / 1000)
    size, unit = next((unit for unit in _UNITS if seconds >= unit[0]), (1, "s"))
    return f"{seconds // size:.0f} {unit} ago"


def outputs(job: JobRecord, *, in_place: bool) -> str:
    """The place of a job's results; "" if it left none on this machine, or if another client submitted it.

    Args:
        job: the job.
        in_place: whether it ran on this machine.
    """
    where = job.metadata.get("outputs", "")
    if in_place:
        with suppress(OSError):
            return where if any(not name.startswith(".") for name in os.listdir(where)) else ""
        return ""
    if not where and "client_version" in job.metadata:
        from client.job.folder import own_folder

        own = own_folder(job.submission_id)
        return f"RAY_WORKLOAD_OUTPUTS of the cluster, if it is set, else {own} on the nodes"
    return where


def print_jobs(jobs: Sequence[JobRecord]) -> None:
    """Print jobs as a table, or as tab-separated lines into a pipe."""
    header = ("SUBMISSION ID", "STATUS", "EXIT", "SUBMITTED", "WAITED", "SECONDS", "NAME", "ENTRYPOINT")
    rows = [
        (
            job.submission_id,
            job.status,
            str(JobResult(job).exit_code) if job.finished else "",
            local_time(job.submit_time),
            _seconds(job.waited_seconds),
            _seconds(job.seconds),
            job.metadata.get("job_name", ""),
            job.entrypoint,
        )
        for job in jobs
    ]
    print_table(header, rows)


def print_pairs(pairs: dict[str, Any]) -> None:
    """Print names and values, one a line. Further lines of a value are indented below its first line."""
    width = max(map(len, pairs)) + 2
    for name, value in pairs.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key}={part}" for key, part in value.items())
        if value not in (None, ""):
            text = str(value).strip().replace("\n", "\n" + " " * width)
            print_line(f"{name:<{width}}{text}")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a header."""
    if not sys.stdout.isatty():
        for row in (header, *rows):
            print_line("\t".join(" ".join(cell.split()) for cell in row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, box=None, pad_edge=False, header_style="bold")
    styles = {"SUCCEEDED": "green", "FAILED": "red", "STOPPED": "yellow", "RUNNING": "cyan"}
    table.columns[0].no_wrap = table.columns[-1].no_wrap = True
    table.columns[0].min_width = max((len(row[0]) for row in rows), default=0)  # a truncated id is of no use
    for row in rows:
        table.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row))
    with _stdout():
        Console().print(table)


def print_result(ended: JobResult) -> None:
    """Say how a job ended."""
    job = ended.job
    how = {"SUCCEEDED": "succeeded", "STOPPED": "was stopped"}.get(
        job.status, f"failed with exit code {ended.exit_code}"
    )
    if ended.timed_out:
        how = f"was ended because it ran longer than its timeout of {job.metadata['timeout']} s"
    line = f"job {job.submission_id} {how}"
    if job.seconds is not None:
        line += f" after {job.seconds:.1f} s"
    if (job.waited_seconds or 0) >= _WAITED_SECONDS:
        line += f" (it waited {job.waited_seconds:.1f} s to start)"
    if job.status == "FAILED":
        why = (job.message or "").strip().rpartition("\n")[2].strip()
        if os.strerror(ENOSPC) in why:
            why += " (the disk of its node is full: `exec -- df -h /tmp/ray` shows the head's)"
        error(line if job.driver_exit_code is not None else f"{line}: {why}")
    else:
        note(line)


@contextmanager
def progress(title: str, size: int) -> Iterator[Callable[[int], object]]:
    """Show a progress bar, on a terminal only, if there is something to count.

    Args:
        title: the text before the bar.
        size: bytes in all.

    Yields:
        A function that takes the bytes of each step.
    """
    if not (size and sys.stderr.isatty()):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=size)
        yield lambda step: bar.advance(task, step)
