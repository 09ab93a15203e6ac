"""What a user sees: bytes and JSON on stdout, notes and progress on stderr; tables and bars on a terminal only."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from errno import ENOSPC
from typing import Any

import click

from client.errors import OutputLost
from client.job.follow import JobResult, result
from client.job.record import JobRecord


def note(line: str) -> None:
    """Say something about the work itself."""
    with suppress(OSError):  # a full disk there is no reason to leave the job
        click.secho(f"ray-workload: {line}", err=True, dim=True)


def error(line: str) -> None:
    """Say what went wrong."""
    with suppress(OSError):
        click.secho(f"ray-workload: {line}", err=True, fg="red")


def close_stdout() -> None:
    """Nothing more can be said there, not even by the interpreter's own flush."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _printing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        close_stdout()
        raise OutputLost(f"the output cannot be written here: {error.strerror}") from error


@_printing()
def print_line(line: str) -> None:
    """Print a line that was asked for."""
    click.echo(line)


def print_json(data: Any) -> None:
    """Print data as JSON, the only thing on stdout."""
    print_line(json.dumps(data, indent=2))


class Sink:
    """Where a log's bytes go, unchanged; it knows which is the next."""

    def __init__(self, *, to_stderr: bool, offset: int = 0) -> None:
        """Choose the stream.

        Args:
            to_stderr: leave stdout to the JSON.
            offset: of the first byte.
        """
        self._stream = (sys.stderr if to_stderr else sys.stdout).buffer
        self.offset = offset

    def write(self, data: bytes) -> None:
        """Pass bytes on at once."""
        # Ctrl-C between the two would leave an offset that is behind, and these bytes would be shown again. To block
        # the signal would not do: where there are more threads, another is given it.
        came = list[int]()
        before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
        try:
            self._stream.write(data)
            self._stream.flush()
            self.offset += len(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputLost(f"the log cannot be written here: {error.strerror}") from error
        finally:
            signal.signal(signal.SIGINT, before)
            if came:
                signal.raise_signal(signal.SIGINT)


def job_data(job: JobRecord) -> dict[str, Any]:
    """A job as `-o json` shows it. Times are Unix time in milliseconds, `exit_code` is the one `submit` would give."""
    return {
        "submission_id": job.submission_id,
        "status": job.status,
        "exit_code": result(job).exit_code if job.finished else None,
        "driver_exit_code": job.exit_code,
        "entrypoint": job.entrypoint,
        "message": job.message,
        "error_type": job.error_type,
        "start_time": job.start_time,
        "end_time": job.end_time,
        "metadata": dict(job.metadata),
    }


def _time(milliseconds: int | None) -> str:
    return datetime.fromtimestamp(milliseconds / 1000).strftime("%Y-%m-%d %H:%M:%S") if milliseconds else ""


def print_jobs(jobs: Sequence[JobRecord]) -> None:
    """Print jobs as a table, or as tab-separated lines into a pipe."""
    header = ("SUBMISSION ID", "STATUS", "EXIT", "STARTED", "SECONDS", "NAME", "ENTRYPOINT")
    rows = [
        (
            job.submission_id,
            job.status,
            str(result(job).exit_code) if job.finished else "",
            _time(job.start_time),
            f"{job.seconds:.0f}" if job.seconds is not None else "",
            job.metadata.get("job_name", ""),
            job.entrypoint,
        )
        for job in jobs
    ]
    print_table(header, rows)


def print_pairs(pairs: dict[str, Any]) -> None:
    """Print names and values, one a line; what has more lines goes on below itself."""
    width = max(map(len, pairs)) + 2
    for name, value in pairs.items():
        if isinstance(value, dict):
            value = ", ".join(
                f"{key} {part:g}" if isinstance(part, float) else f"{key}={part}" for key, part in value.items()
            )
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
    for row in rows:
        table.add_row(*(Text(cell, style=styles.get(cell, "")) for cell in row))
    with _printing():
        Console().print(table)


def print_result(ended: JobResult) -> None:
    """Say how a job ended."""
    job = ended.job
    how = {"SUCCEEDED": "succeeded", "STOPPED": "was stopped"}.get(
        job.status, f"failed with exit code {ended.exit_code}"
    )
    if ended.exit_code == 124 and "timeout" in job.metadata:
        how = f"ran longer than its --timeout of {job.metadata['timeout']} s and was ended"
    line = f"job {job.submission_id} {how} after {job.seconds or 0:.1f} s"
    if job.status == "FAILED":
        why = (job.message or "").strip().rpartition("\n")[2]
        if os.strerror(ENOSPC) in why:
            why += " (the disk of its node is full: `exec -- df -h /tmp/ray` shows the head's)"
        error(line if job.exit_code is not None else f"{line}: {why}")
    else:
        note(line)


@contextmanager
def progress(title: str, size: int) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal, else nothing.

    Args:
        title: what is going on.
        size: bytes in all.

    Yields:
        A function that takes the bytes of each step.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=size)
        yield lambda step: bar.advance(task, step)
