"""Chains and sweeps in Python."""

import queue
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from client.batch.batch import RETRY_ON, Batch, Options, rebuild
from client.batch.chain_file import chain_of, read_chain
from client.batch.member import Changed, Member
from client.batch.start import ready
from client.batch.stop import stop_batch
from client.batch.sweep import make_sweep
from client.errors import ClientError, JobNotFound, TimedOut, UsageError
from client.job.api import request_of
from client.job.arguments import check, in_python
from client.job.job import STOP_SECONDS
from client.targets import resolve


@dataclass(frozen=True)
class BatchJob:
    """A job of a chain or sweep after its end.

    Attributes:
        name: in its chain or sweep.
        parameters: its values in a sweep.
        status: SUCCEEDED, FAILED, STOPPED, LOST; SKIPPED, because it had succeeded before; or NOT_STARTED.
        exit_code: as in `JobResult`; None where it did not run now.
        submission_id: of its newest attempt; None where it was never submitted.
        attempts: the ids of all its attempts.
        seconds: how long the newest attempt took, from its submit on.
    """

    name: str
    parameters: Mapping[str, str]
    status: str
    exit_code: int | None
    submission_id: str | None
    attempts: Sequence[str]
    seconds: float | None


class BatchRun:
    """A chain or a sweep that runs, in a thread of this process.

    Attributes:
        name: its handle, for `status`, `logs` and `stop`.
    """

    def __init__(self, batch: Batch, address: str | None, options: Options) -> None:
        """Check everything, then start; `client.chain` and `client.sweep` do so."""
        self.name = batch.name
        self._results: dict[str, BatchJob] = {}
        self._new: queue.SimpleQueue[BatchJob | BaseException | None] = queue.SimpleQueue()
        self._end: BaseException | None = None
        self._ended = False
        with ExitStack() as stack:
            self._ready = stack.enter_context(ready(batch, resolve(address), options))
            self._runner = self._ready.runner()
            self._thread = Thread(target=self._run, args=[stack.pop_all()], name=batch.name, daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<BatchRun {self.name} at {self._ready.target.address}>"

    def _run(self, stack: ExitStack) -> None:
        parameters = {job.step.name: job.step.parameters for job in self._ready.planned}
        try:
            with stack:
                for event in self._runner.run():
                    if isinstance(event, Changed) and event.member.is_over:
                        self._new.put(_result(event.member, parameters[event.member.name]))
            self._new.put(None)
        except BaseException as error:
            self._new.put(error)

    def as_completed(self, timeout: float | None = None) -> Iterator[BatchJob]:
        """Yield each job when it has ended; first those that have ended already.

        Args:
            timeout: seconds to wait for the next one; None waits to the end.

        Raises:
            TimedOut: none has ended in time; all continue.
            ContactLost: the cluster is gone; jobs may still run.
        """
        yield from list(self._results.values())
        while not self._ended:
            try:
                found = self._new.get(timeout=timeout)
            except queue.Empty:
                raise TimedOut(f"no other job of {self.name} has ended in {timeout:g} s", "they continue") from None
            if isinstance(found, BatchJob):
                self._results[found.name] = found
                yield found
            else:
                self._ended, self._end = True, found
        if self._end:
            raise self._end

    def wait(self) -> list[BatchJob]:
        """Wait for the end of all jobs, and return them in the order of the chain or sweep.

        Raises:
            ContactLost: the cluster is gone; jobs may still run.
        """
        for _ in self.as_completed():
            pass
        return [self._results[member.name] for member in self._runner.members]

    @property
    def exit_code(self) -> int:
        """The highest exit code of the jobs that have ended."""
        return self._runner.exit_code

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Stop all jobs, start no other, and wait for their end.

        Args:
            seconds: how long to wait. Ray kills a job 30 s after it was asked to end.
        """
        check(seconds=seconds)
        self._runner.end()
        end = time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < end:
            try:
                stop_batch(self._ready.target, self._ready.sender.jobs, self.name, end - time.monotonic())
            except JobNotFound:
                pass  # nothing has been submitted yet
            except ClientError:
                if self._thread.is_alive():  # else a Ray of our own has ended with the jobs
                    raise
            self._thread.join(1.0)


def _result(member: Member, parameters: Mapping[str, str]) -> BatchJob:
    return BatchJob(
        member.name,
        dict(parameters),
        member.state,
        member.exit_code,
        member.submission_id,
        tuple(member.attempts),
        member.seconds,
    )


@in_python
def chain(
    chain: str | Path | Mapping[str, Any],
    *,
    address: str | None = None,
    max_parallel: int = 4,
    keep_going: bool = False,
    force: bool = False,
    start: str | None = None,
    only: str | None = None,
) -> BatchRun:
    """Run the jobs of a chain in their order, and skip those that have succeeded before.

    Args:
        chain: the file, or its content as a dict.
        address: where, as in `submit`.
        max_parallel: how many jobs run at once.
        keep_going: after a failure, finish what does not wait for the failed job.
        force: also run the jobs that have succeeded before.
        start: run this job and those after it, even if they have succeeded, and no others.
        only: run this job alone, even if it has succeeded.

    Returns:
        The chain, which runs in a thread of this process: call `wait`.

    Raises:
        UsageError: the chain has mistakes; all of them are named.
        ClientError: one of its other kinds.
    """
    check(chain=chain, max_parallel=max_parallel, start=start, only=only)
    options = _options(max_parallel, force, keep_going, start, only)
    if isinstance(chain, Mapping):
        if not chain.get("name"):
            raise UsageError("the chain has no name", "add the key `name`: the next run finds its jobs by it")
        batch = chain_of(chain, str(chain["name"]), Path.cwd())
    else:
        batch = read_chain(str(chain))
    return BatchRun(batch, address, options)


@in_python
def sweep(
    script: str | Path | None = None,
    *args: str,
    matrix: Mapping[str, Sequence[Any]] | None = None,
    array: Sequence[int] | None = None,
    max_parallel: int = 4,
    retries: int = 0,
    retry_on: Sequence[str] = RETRY_ON,
    force: bool = False,
    address: str | None = None,
    **arguments: Any,
) -> BatchRun:
    """Run a script or a command once for each combination of parameters.

    Args:
        script: a Python file in the working directory.
        *args: its arguments, with {NAME} for the value of a parameter.
        matrix: the values of each parameter.
        array: numbers; each job has its own in RAY_WORKLOAD_ARRAY_INDEX and as {index}.
        max_parallel: how many jobs run at once.
        retries: how often a job is submitted again.
        retry_on: after what: lost, its node or the head was lost; exit, the driver failed.
        force: also run the jobs that have succeeded before.
        address: where, as in `submit`.
        **arguments: the other arguments of `submit`; `submission_id` is the name of the sweep.

    Returns:
        The sweep, which runs in a thread of this process: call `wait` or `as_completed`.

    Raises:
        UsageError: an argument is wrong.
        ClientError: one of its other kinds.
    """
    check(matrix=matrix, array=array, max_parallel=max_parallel, retries=retries, retry_on=retry_on)
    options = _options(max_parallel, force, keep_going=True)
    if wrong := next((kind for kind in retry_on if kind not in RETRY_ON), None):
        raise UsageError(f"retry_on has no kind {wrong}", f"use {' or '.join(RETRY_ON)}")
    parameters = {name: [str(value) for value in values] for name, values in (matrix or {}).items()}
    request = request_of(script, args, **arguments)
    if array is not None and not len(array):
        raise UsageError("array has no numbers", "add one")
    indexes = [str(index) for index in array or ()]
    batch = make_sweep(request, parameters, indexes, retries=retries, retry_on=retry_on)
    return BatchRun(batch, address, options)


def _options(
    max_parallel: int, force: bool, keep_going: bool, start: str | None = None, only: str | None = None
) -> Options:
    if max_parallel < 1:
        raise UsageError("max_parallel must be at least 1")
    return Options(max_parallel, keep_going, force or rebuild(), start, only)
