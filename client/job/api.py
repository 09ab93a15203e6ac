"""The face for notebooks and scripts: plain arguments instead of a command line."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from client.job import job
from client.job.request import JobSpec
from client.ray_api.jobs import RayJobs
from client.targets import connect, resolve


def submit(
    script: str | Path | None = None,
    *args: str,
    command: Sequence[str] = (),
    address: str | None = None,
    working_dir: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    secret_env: Mapping[str, str | None] | None = None,
    name: str | None = None,
    tags: Mapping[str, str] | None = None,
    timeout: float | None = None,
    accelerator: str | None = None,
    allow_plain: bool = False,
    **arguments: Any,
) -> job.Job:
    """Submit a script or a command, once.

    Args:
        script: a Python file in the working directory.
        *args: its arguments.
        command: what to run instead of a script.
        address: `embedded`, `kubernetes://CONTEXT/NAMESPACE/CLUSTER` or a URL; None chooses as the command line does.
        working_dir: the folder the job runs in, by default the current one.
        env: environment variables, readable for everyone who may list jobs.
        secret_env: variables of the driver from Secrets that the cluster mounts: name to SECRET/KEY, or to None.
        name: what the dashboard shows.
        tags: names and values recorded with the job.
        timeout: seconds the job may run.
        accelerator: the kind of GPU that the driver wants, as Ray names it: L4.
        allow_plain: take an `env` name that looks like a secret's.
        **arguments: of Ray's `JobSubmissionClient.submit_job`: submission_id, runtime_env, entrypoint_num_cpus, ...

    Returns:
        The job. A Ray started for it lives until its `wait` returns, or the interpreter ends.

    Raises:
        ClientError: one of its kinds.
    """
    spec = JobSpec(
        script=str(script) if script else None,
        command=args or command,
        working_dir=working_dir,
        env=env or {},
        secret_env=secret_env or {},
        name=name,
        tags=tags or {},
        timeout=timeout,
        accelerator=accelerator,
        allow_plain=allow_plain,
        arguments=arguments,
    )
    return job.submit(spec, resolve(address))


def attach(submission_id: str, address: str | None = None) -> job.Job:
    """Take up a job that was submitted before.

    Args:
        submission_id: of the job.
        address: where it runs, as in `submit`.

    Raises:
        JobNotFound: there is none.
    """
    with ExitStack() as stack:
        jobs = RayJobs(stack.enter_context(connect(resolve(address))))
        jobs.get(submission_id)
        found = job.Job(submission_id, jobs, stack.pop_all(), attached=True)
    return found
