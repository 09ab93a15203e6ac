"""The Python API: what `import client` offers to notebooks and scripts."""

from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from client.errors import UsageError
from client.job.arguments import CHECKED, check, in_python
from client.job.job import Job
from client.job.request import FILE_KEYS, Request
from client.job.submit import attach as _attach
from client.job.submit import send
from client.ray_api.jobs import RayJobs
from client.ray_api.record import JobRecord
from client.targets import connect, resolve


@in_python
def submit(
    script: str | Path | None = None,
    *args: str,
    command: Sequence[str] = (),
    address: str | None = None,
    working_dir: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    secret_env: Mapping[str, str | None] | None = None,
    pip: Sequence[str] = (),
    requirements: str | Path | None = None,
    name: str | None = None,
    tags: Mapping[str, str] | None = None,
    timeout: float | None = None,
    accelerator: str | None = None,
    allow_plain: bool = False,
    upload_to: str | None = None,
    **arguments: Any,
) -> Job:
    """Submit a script or a command, once.

    Args:
        script: a Python file in the working directory.
        *args: its arguments.
        command: what to run instead of a script.
        address: `embedded`, `kubernetes://CONTEXT/NAMESPACE/CLUSTER` or a URL; None chooses as the command line does.
        working_dir: the folder the job runs in, by default the current one.
        env: environment variables, which everyone who may list jobs can read.
        secret_env: variables of the driver from Secrets that the cluster mounts: name to SECRET/KEY, or to None.
        pip: packages that Ray installs with pip for the driver and its tasks, as pip takes them.
        requirements: a requirements file with more of them.
        name: what the dashboard shows.
        tags: names and values recorded with the job.
        timeout: seconds the job may run.
        accelerator: the kind of GPU that the driver needs, as Ray names it: L4.
        allow_plain: accept an `env` name that looks like a secret's, and a password in the packages' URLs.
        upload_to: gs://BUCKET[/PREFIX] or s3://BUCKET[/PREFIX]: where Ray gets the files from; has no size limit.
        **arguments: of Ray's `JobSubmissionClient.submit_job`: submission_id, runtime_env, entrypoint_num_cpus, ...

    Returns:
        The job. A Ray started for it lives until its `wait` returns, or the interpreter ends.

    Raises:
        UsageError: an argument is wrong.
        ClientError: one of its other kinds.
    """
    check(address=address)
    given = {
        "command": command,
        "working_dir": working_dir,
        "env": env,
        "secret_env": secret_env,
        "pip": pip,
        "requirements": requirements,
        "name": name,
        "tags": tags,
        "timeout": timeout,
        "accelerator": accelerator,
        "allow_plain": allow_plain,
        "upload_to": upload_to,
    }
    return send(request_of(script, args, **given, **arguments), resolve(address))


def request_of(script: str | Path | None, args: Sequence[str], **given: Any) -> Request:
    """The request that the arguments of `submit` make.

    Raises:
        UsageError: an argument is wrong.
    """
    known = [name for name in signature(submit).parameters if name not in ("args", "arguments")]
    if unknown := sorted(given.keys() - {*known, *FILE_KEYS}):
        raise UsageError(f"submit() has no argument {unknown[0]}", f"it has {', '.join([*known, *FILE_KEYS])}")
    check(script=script, args=args, **{name: value for name, value in given.items() if name in CHECKED})
    command = given.get("command") or ()
    if command and (script or args):
        raise UsageError("a job runs a script or a command", "specify one of them")
    fields = {name: value for name, value in given.items() if name in known and value is not None}
    arguments = {name: value for name, value in given.items() if name in FILE_KEYS}
    return Request(
        **{**fields, "script": str(script) if script else None, "command": args or command}, arguments=arguments
    )


@in_python
def attach(submission_id: str, address: str | None = None) -> Job:
    """Attach to a job that was submitted before.

    Args:
        submission_id: of the job.
        address: where it runs, as in `submit`.

    Raises:
        JobNotFound: there is none.
    """
    check(submission_id=submission_id, address=address)
    return _attach(submission_id, resolve(address))


@in_python
def jobs(address: str | None = None) -> list[JobRecord]:
    """List the jobs of a cluster, newest first.

    Args:
        address: of the cluster, as in `submit`.

    Raises:
        UsageError: there is no cluster.
    """
    check(address=address)
    with connect(resolve(address)) as target:
        found = RayJobs(target)
        return list(found.with_start_times(found.list()))
