"""A job's log to the last byte, once and in order, and then its end.

There is no stream to lose: each round asks for the job's record and for the log from the byte reached. A connection
that breaks, goes silent or ends early costs one request. The end is believed only from a record with a final status,
read before a log that had no more.
"""

import math
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from client.errors import ClientError, ContactLost, TimedOut, Unreachable
from client.http import Failed, NotFound
from client.job.record import JobRecord
from client.ray_api.jobs import JobNotFound, RayJobs

_LOST_SECONDS = 120.0  # an API server needs a minute to end in good order, and then starts again
_LOST_SECONDS_HERE = 20.0
_RETURN_SECONDS = 600.0  # so long the workers of a fault tolerant cluster wait for its head, as KubeRay sets them up
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_PENDING_SECONDS = 10.0
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class JobResult:
    """How a job ended.

    Attributes:
        job: its record.
        exit_code: 0 SUCCEEDED; the driver's own code; 128+n for signal n; 124 for its timeout; 143 STOPPED; 1 for none.
    """

    job: JobRecord
    exit_code: int


def result(job: JobRecord) -> JobResult:
    """The result of a finished job.

    Args:
        job: a record with a final status.
    """
    if job.status == "SUCCEEDED":
        code = 0
    elif job.status == "STOPPED":
        code = 143
    elif job.exit_code in (124, 137) and (job.seconds or 0) >= _timeout(job):
        code = 124
    elif job.exit_code is None:
        code = 1
    else:
        code = job.exit_code if job.exit_code > 0 else 128 - job.exit_code
    return JobResult(job, code)


def _timeout(job: JobRecord) -> float:
    """The job's --timeout in seconds; metadata that another client wrote may hold anything."""
    try:
        return float(job.metadata["timeout"])
    except (KeyError, TypeError, ValueError):
        return math.inf


def follow(
    jobs: RayJobs,
    submission_id: str,
    write: Callable[[bytes], object],
    note: Callable[[str], object] = lambda _: None,
    *,
    offset: int = 0,
) -> JobResult:
    """Write a job's log as it grows, until the job has ended.

    Args:
        jobs: the cluster's jobs.
        submission_id: of the job.
        write: takes the log's bytes.
        note: takes a line about the following itself.
        offset: the byte of the log to start from.

    Raises:
        JobNotFound: there never was such a job.
        ContactLost: record or log could not be had for 2 minutes, of a Ray on this machine for 20 s, and the cluster
            does not say that its head is on its way; or the head that knew the job is gone.
    """
    seen, tail, contact = "", b"", time.monotonic()
    told = set[str]()

    def note_once(line: str) -> None:
        if line not in told:
            told.add(line)
            note(line)

    quiet_since = contact
    waiting_told = losing_told = whole = False
    while True:
        before, began, took, known = offset, time.monotonic(), 0.0, ""
        try:
            job = jobs.get(submission_id)
            known = f"has ended ({job.status})" if job.finished else f"is {job.status}"
            for chunk in jobs.read_log(job, offset):
                write(chunk)
                offset += len(chunk)
                tail = (tail + chunk[-_TAIL_BYTES:])[-_TAIL_BYTES:]
                contact = time.monotonic()
            if job.finished and offset == before:
                if not offset and not job.node_id:
                    note("it never started")
                elif not jobs.resumes(job) and not jobs.log_ends_with(job, tail):
                    raise Unreachable(f"the log breaks off after {offset} bytes: read it again nearer to the cluster")
                return result(job)
            contact, losing_told = time.monotonic(), False
            took, whole = contact - began, not jobs.resumes(job)
            if job.status != seen or offset > before:
                seen, quiet_since = job.status, contact
            if job.finished:
                continue
        except JobNotFound as error:
            if not seen:
                raise
            raise ContactLost(
                f"the Ray head was restarted and knows job {submission_id} no longer: it is lost"
            ) from error
        except (Unreachable, Failed) as error:  # the dashboard answers 500 while it starts a part of itself again
            lost = time.monotonic() - contact
            if lost > (_LOST_SECONDS_HERE if jobs.endpoint.in_place else _LOST_SECONDS):
                state = f"contact lost for {lost:.0f} s, job {submission_id} may still run"
                if known:
                    state = f"job {submission_id} {known}, but its log cannot be read past byte {offset}"
                raise ContactLost(f"{state}: {error}") from error
            if not losing_told:
                note(f"no contact, trying on: {error}")
                losing_told = True
            contact += _until_head(jobs, submission_id, note_once)
        quiet = time.monotonic() - quiet_since
        if seen == "PENDING" and quiet > _PENDING_SECONDS and not waiting_told:
            note(f"waiting, the job is pending: {job.message or 'no reason given'}")
            waiting_told = True
        # A log that has been quiet for long is asked less often: at most a second late, 5 % of the wait.
        pause = min(_LONGEST_PAUSE, max(_SHORTEST_PAUSE, quiet / 20))
        if whole:
            pause = max(pause, 4 * took)  # it comes whole each time: spare the link
        time.sleep(pause)


def _until_head(jobs: RayJobs, submission_id: str, note: Callable[[str], object]) -> float:
    """Wait while the cluster says that its head is not ready: the seconds that are no loss of contact."""
    began = time.monotonic()
    if jobs.endpoint.ends_with_us:
        return 0.0
    try:
        jobs.endpoint.ready(note, _RETURN_SECONDS)
    except (TimedOut, NotFound) as error:
        raise ContactLost(f"contact lost, job {submission_id} may still run: {error}") from error
    except ClientError:
        return 0.0  # the cluster's own API does not answer either
    return time.monotonic() - began


def stop(jobs: RayJobs, submission_id: str, seconds: float) -> JobRecord:
    """Stop a job and wait for its end.

    Ray does nothing with a stop that comes before the job has started, so it is repeated.

    Args:
        jobs: the cluster's jobs.
        submission_id: of the job.
        seconds: how long to wait.

    Returns:
        The job's record, finished or not.
    """
    deadline = time.monotonic() + seconds
    while not (job := jobs.get(submission_id)).finished:
        jobs.stop(submission_id)
        until = min(deadline, time.monotonic() + 1.0)
        while time.monotonic() < until and not (job := jobs.get(submission_id)).finished:
            time.sleep(_SHORTEST_PAUSE)
        if time.monotonic() >= deadline:
            break
    return job


def tail_offset(jobs: RayJobs, job: JobRecord, lines: int) -> int:
    """The byte of a job's log at which its last lines begin.

    Args:
        jobs: the cluster's jobs.
        job: whose log.
        lines: how many.
    """
    size, window = jobs.log_size(job), 64 * 1024 + 200 * lines
    while True:
        start = max(0, size - window)
        starts, position = deque([start], maxlen=lines + 1), start
        for chunk in jobs.read_log(job, start):
            for end in re.finditer(b"\n", chunk):
                starts.append(position + end.end())
            position += len(chunk)
        if starts[-1] == position:  # the last line is ended, so no line begins behind it
            starts.pop()
        if start == 0 or len(starts) > lines:
            return (list(starts)[-lines:] or [position])[0] if lines else position
        window *= 8
