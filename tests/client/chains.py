"""Chains for the tests. Jobs append marks to a file outside of their folder, so that the order of events is known."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from client.batch.batch import Options
from client.batch.chain_file import read_chain
from client.batch.start import ready
from client.ray_api.jobs import RayJobs
from client.ray_api.record import JobRecord
from client.targets import resolve
from client.targets.embedded import folder as head_folder
from client.targets.embedded.target import EmbeddedTarget
from client.targets.target import Target
from tests.conftest import Cli

SECONDS = 60  # until a job that waits for a file gives up
_PAUSE = "sleep 0.05; n=$((n+1))"


class Marks:
    """What the jobs of a test have done, in its order."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.file = folder, folder / "marks"
        self.file.touch()

    def job(self, name: str, then: str = "true") -> dict[str, Any]:
        """A job that marks its start, runs a line of shell, and marks its end."""
        file = shlex.quote(str(self.file))
        return {"command": ["sh", "-c", f"echo start {name} >> {file}; {then} && echo end {name} >> {file}"]}

    def wait_for(self, name: str) -> str:
        """A line of shell that waits for a file, made with `open`."""
        gate = shlex.quote(str(self.folder / name))
        return f"n=0; while [ ! -e {gate} ]; do [ $n -lt {SECONDS * 20} ] || exit 99; {_PAUSE}; done"

    def wait_for_starts(self, pattern: str, number: int) -> str:
        """A line of shell that waits until so many jobs have started."""
        count = f"$(grep -c 'start {pattern}' {shlex.quote(str(self.file))})"
        return f"n=0; while [ {count} -lt {number} ]; do [ $n -lt {SECONDS * 20} ] || exit 98; {_PAUSE}; done"

    def open(self, name: str) -> None:
        (self.folder / name).touch()

    def close(self, name: str) -> None:
        (self.folder / name).unlink()

    @property
    def all(self) -> list[str]:
        return self.file.read_text().splitlines()

    def at(self, mark: str) -> int:
        """The place of a mark that is there once."""
        (place,) = [place for place, found in enumerate(self.all) if found == mark]
        return place


class Place:
    """A cluster, as a user of the command line has it, and the folder of the user's files."""

    def __init__(self, run: Cli, folder: Path, env: Mapping[str, str], target: Target) -> None:
        folder.mkdir()
        self.folder, self.env, self.jobs = folder, dict(env), RayJobs(target)
        self._run = run

    def write(self, name: str, jobs: Mapping[str, Any], **top: Any) -> str:
        """Write a chain's file, and return its name."""
        text = re.sub(r"\$(?!\{)", "$$", json.dumps({**top, "jobs": jobs}, indent=1))
        (self.folder / f"{name}.yaml").write_text(text)
        return f"{name}.yaml"

    def run(self, *words: str, env: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[bytes]":
        return self._run(*words, cwd=self.folder, env={**self.env, **(env or {})}, timeout=120)

    def json(self, *words: str, env: Mapping[str, str] | None = None) -> Any:
        done = self.run(words[0], "-o", "json", *words[1:], env=env)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def decisions(self, file: str, *, env: Mapping[str, str] | None = None, **options: Any) -> dict[str, str]:
        """What would become of each job."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**self.env, **(env or {})}.items():
                patch.setenv(name, value)
            batch = read_chain(str(self.folder / file))
            with ready(batch, resolve(None), Options(**options)) as found:
                return {job.step.name: job.decision for job in found.planned}

    def records(self, batch: str) -> list[JobRecord]:
        """All attempts of all jobs of a batch, the oldest first."""
        return [job for job in reversed(self.jobs.list()) if job.metadata.get("batch") == batch]


def warm(head: Target) -> Path:
    """Make the test's own head the warm one, until the link is removed: to start another takes long."""
    assert isinstance(head, EmbeddedTarget)
    link = head_folder.base() / "warm"
    link.symlink_to(head.log_file("any").parents[2])
    return link


def of_job(output: bytes, name: str) -> bytes:
    """A job's part of a prefixed stream of logs, without Ray's own lines."""
    lines = [line.partition(b" | ") for line in output.splitlines(keepends=True)]
    return without_ray(b"".join(line for prefix, bar, line in lines if bar and prefix.strip() == name.encode()))


def without_ray(log: bytes) -> bytes:
    """A log without Ray's own lines, which may come before, between or after the job's."""
    return re.sub(rb"(?m)Running entrypoint for job .*\n?|^[-\d]+ [:,\d]+\tINFO job_manager\.py:.*\n?", b"", log)


def said(done: "subprocess.CompletedProcess[bytes]") -> list[str]:
    """What the client said, without the address."""
    lines = [line.removeprefix("ray-workload: ") for line in done.stderr.decode().splitlines()]
    return [line for line in lines if not line.startswith("address ")]


def most_at_once(jobs: Iterable[JobRecord]) -> int:
    """How many jobs there were at most that were submitted and had not ended."""
    times = [(job.submit_time or 0, 1) for job in jobs] + [(job.end_time or 0, -1) for job in jobs]
    now = most = 0
    for _, change in sorted(times):
        now += change
        most = max(most, now)
    return most


def one(found: Iterable[str], words: str) -> str:
    """The one line that has these words."""
    lines = [line for line in found if words in line]
    if len(lines) != 1:
        pytest.fail(f"{words!r} is in {len(lines)} lines of {list(found)}")
    return lines[0]
