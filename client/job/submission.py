"""The arguments of Ray's Job SDK, made once from the request, the target and the upload."""

import hashlib
import json
import os
import secrets
import shlex
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from getpass import getuser
from pathlib import Path, PurePosixPath
from typing import Any

import client
from client.errors import UsageError
from client.job import folder, secret_env
from client.job.request import INSTALLERS, Request
from client.ray_api.record import TIMEOUT_SIGNAL
from client.targets.target import OUTPUTS, PLAIN, STOP_SECONDS, Runtime
from client.upload.git import run_git


@dataclass(frozen=True)
class Submission:
    """A job as it is sent: the arguments of `JobSubmissionClient.submit_job`."""

    arguments: Mapping[str, Any]

    @property
    def submission_id(self) -> str:
        """The job's id, chosen before it is sent."""
        return str(self.arguments["submission_id"])

    @property
    def spec_hash(self) -> str:
        """A hash of the arguments, apart from the id and the metadata."""
        return str(self.arguments["metadata"]["spec_hash"])


def submission(
    request: Request,
    entrypoint: str,
    runtime: Runtime,
    *,
    working_dir: str | None,
    py_modules: Sequence[str] = (),
    copied: bool = False,
    submission_id: str | None = None,
    results_of: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Submission:
    """Make the submission.

    Args:
        request: what the user asked for.
        entrypoint: as `command_line` gives it.
        runtime: of the target.
        working_dir: the URI of the working directory there; None where the cluster's own processes run in it.
        py_modules: the URIs of the runtime_env's py_modules.
        copied: the job runs in a copy of the working directory.
        submission_id: of the job; None takes the request's, else a random one.
        results_of: the earlier attempt whose folder for results it uses, if there is one.
        metadata: more to record.
    """
    runtime_env = {key: value for key, value in request.runtime_env.items() if key != "excludes"}  # done in packing
    environment: dict[str, str] = request.environment
    outputs = None
    if runtime.in_place:
        outputs = environment.get(OUTPUTS) or os.environ.get(OUTPUTS) or f"{request.folder or Path.cwd()}/outputs"
    if working_dir:
        runtime_env["working_dir"] = working_dir
        environment = {"RAY_JOB_STOP_WAIT_TIME_S": STOP_SECONDS, **_python_path(request), **environment}
        if outputs:
            environment[OUTPUTS] = outputs
    if py_modules:
        runtime_env["py_modules"] = list(py_modules)
    if environment:
        runtime_env["env_vars"] = environment
    arguments = {**request.arguments, "entrypoint": entrypoint, "runtime_env": runtime_env}
    spec = {key: value for key, value in arguments.items() if key not in ("submission_id", "metadata")}
    recorded = {
        "user": user(),
        "host": socket.gethostname(),
        "client_version": client.__version__,
        "spec_hash": hashlib.sha256(json.dumps(spec, sort_keys=True, default=str).encode()).hexdigest(),
        **_git_state(request.folder, int(time.monotonic())),
    }
    if request.timeout is not None:
        recorded["timeout"] = f"{request.timeout:.15g}"
    if request.name:
        recorded["job_name"] = request.name
    for name, amount in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
        if reserved := request.resources.get(amount):
            recorded[name] = f"{reserved:g}"
    arguments["submission_id"] = submission_id or arguments.get("submission_id") or f"job-{secrets.token_hex(5)}"
    if outputs := outputs or folder.outputs(arguments["submission_id"], runtime_env, runtime.outputs, results_of):
        recorded["outputs"] = outputs
    arguments["metadata"] = {**request.arguments.get("metadata", {}), **request.tags, **recorded, **(metadata or {})}
    if request.plain and working_dir:  # a Ray whose processes run in the folder is itself started so
        runtime_env = {**runtime_env, "env_vars": {PLAIN: "0", **environment}}
    if not runtime.in_place:
        runtime_env = folder.started_in_folder(
            arguments["submission_id"],
            runtime_env,
            copied=copied,
            results_of=results_of,
        )
    arguments["runtime_env"] = runtime_env
    return Submission(arguments)


def command_line(request: Request, runtime: Runtime) -> str:
    """The job's entrypoint, a line for the shell in the working directory.

    Raises:
        UsageError: the target does not have what it needs.
    """
    # Ray puts the `python` of an environment that it made first on the driver's PATH.
    python = "python" if any(map(request.runtime_env.get, INSTALLERS)) else runtime.python
    words = [*([python, request.script_path] if request.script_path else []), *request.command]
    if words and "=" in words[0]:
        words = ["env", *words]
    # A shell that stays would end first at a stop, and Ray waits 30 s for what is left of it.
    line = f"exec {shlex.join(words)}" if words else str(request.arguments["entrypoint"])
    if request.secret_env:  # Ray would show env_vars to everyone who may list jobs
        words, line = [], f"{secret_env.exports(request.secret_env, runtime.secrets)} && {line}"
    if request.timeout is None:
        return line
    if runtime.in_place and not shutil.which("timeout"):
        raise UsageError("a timeout needs the program `timeout`", "install GNU coreutils")
    return _limited(shlex.join(words) if words else f"sh -c {shlex.quote(line)}", request.timeout)


def _limited(command: str, seconds: float) -> str:
    """A command that TIMEOUT_SIGNAL ends if it runs too long, and that otherwise ends as it does by itself.

    The exit codes 124 and 137 of `timeout` can also be the command's own. The shell waits for it even at a stop (TERM).
    """
    limit = f"timeout -k {STOP_SECONDS} {seconds:.15g} {command}"
    late = f"[ $(($(date +%s%N) - t)) -lt {int(seconds * 1e9)} ] || kill -{TIMEOUT_SIGNAL.name[3:]} $$"
    return f"trap : TERM; t=$(date +%s%N); {limit}; c=$?; case $c in 124|137) {late};; esac; exit $c"


def _python_path(request: Request) -> dict[str, str]:
    # Ray lets tasks import what lies beside the script, but for a job with a working_dir it does not.
    folder = PurePosixPath(request.script_path).parent if request.script_path else PurePosixPath()
    return {"PYTHONPATH": f"{folder}:${{PYTHONPATH}}"} if folder.parts else {}


def user() -> str:
    """The name of the user who submits."""
    try:
        return getuser()
    except (KeyError, OSError):  # a container's user may have a number only
        return str(os.getuid())


@lru_cache(maxsize=1)
def _git_state(folder: Path | None, second: int) -> dict[str, str]:
    """The commit a folder is at and whether tracked files differ from it; of many submits, one a second asks git."""
    if folder is None:
        return {}
    done = run_git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*", timeout=5)
    if done is None or done.returncode:
        return {}
    commit, dirty, _ = done.stdout.decode().strip().partition("-dirty")
    return {"git_commit": commit, "git_dirty": str(bool(dirty)).lower()}
