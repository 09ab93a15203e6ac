"""Stopping a job, and one that is still pending."""

import secrets
import shlex
import time
from contextlib import suppress

from client.errors import ClientError, JobNotFound
from client.ray_api.jobs import SUPERVISOR, RayJobs
from client.ray_api.record import JobRecord
from client.targets.target import Target
from client.wait import wait

_AGAIN_SECONDS = 1.0  # between two requests: one that comes just before the job starts is lost
_HELPER_SECONDS = 30.0  # for the job that ends a pending one
_PENDING_SECONDS = 2.0  # a job that is pending for longer than this waits for resources

# Ray does nothing with a stop of a pending job, and its HTTP API cannot end an actor, so this runs as a job of its own.
# JobManager then finds the status final, and leaves it (ray/dashboard/modules/job/job_manager.py, 2.60).
_END_PENDING = """
import asyncio, os, ray, sys
from ray._private.worker import global_worker
from ray.dashboard.modules.job.common import JobInfoStorageClient, JobStatus
job, supervisor = sys.argv[1:]
ray.init(log_to_driver=False)
jobs = JobInfoStorageClient(global_worker.gcs_client)
async def end():
    if await jobs.get_status(job) == JobStatus.PENDING:
        await jobs.put_status(job, JobStatus.STOPPED, message="The job was stopped before it started.")
        ray.kill(ray.get_actor(supervisor, namespace="SUPERVISOR_ACTOR_RAY_NAMESPACE"))
asyncio.run(end())
os._exit(0)
"""


class Stopping:
    """Asks for the end of one job, as often as it takes."""

    def __init__(self, target: Target, jobs: RayJobs, submission_id: str) -> None:
        """Ask for nothing yet."""
        self._target, self._jobs, self._submission_id = target, jobs, submission_id
        self._began, self._asked, self._helper = time.monotonic(), 0.0, ""

    def ask(self, job: JobRecord) -> None:
        """Ask again, if the job's record says that it still runs and it is time."""
        now = time.monotonic()
        if job.finished:
            self._clean_up()
        elif now - self._asked >= _AGAIN_SECONDS:
            self._asked = now
            self._jobs.stop(self._submission_id)
            if job.status == "PENDING" and now - self._began > _PENDING_SECONDS and not self._helper:
                self._helper = f"stop-{self._submission_id}-{secrets.token_hex(3)}"
                words = [self._target.runtime.python, "-c", _END_PENDING, job.submission_id]
                line = shlex.join([*words, SUPERVISOR + job.submission_id])
                self._jobs.submit_plain({"entrypoint": f"exec {line}", "submission_id": self._helper})

    def _clean_up(self) -> None:
        """Remove the job that ended a pending one from the list."""

        def why() -> str:
            try:
                if self._jobs.get(self._helper).finished:
                    self._jobs.delete(self._helper)
            except JobNotFound:
                return ""
            return "it is listed"

        if self._helper:
            # JobManager, which looks every second, may write the record of a job anew that was deleted just before.
            with suppress(ClientError):
                wait(why, _HELPER_SECONDS, poll=2.0)
            self._helper = ""


def stop(target: Target, jobs: RayJobs, submission_id: str, seconds: float) -> JobRecord:
    """Stop a job, wait this many seconds for its end, and return its record, finished or not."""
    job, stopping = jobs.get(submission_id), Stopping(target, jobs, submission_id)

    def why() -> str:
        nonlocal job
        job = jobs.get(submission_id)
        stopping.ask(job)
        return "" if job.finished else f"it is {job.status}"

    wait(why, seconds, poll=0.1)
    return job
