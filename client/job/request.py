"""What a job is, from what the user gave: checked, and turned into the arguments of Ray's Job SDK."""

import hashlib
import json
import math
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from getpass import getuser
from pathlib import Path, PurePosixPath
from typing import Any

import client
from client.errors import UsageError
from client.job import secret_env
from client.targets.target import STOP_SECONDS, Endpoint

# The arguments of JobSubmissionClient.submit_job (ray/dashboard/modules/job/sdk.py, 2.60) that a job file may hold.
FILE_KEYS = {
    "entrypoint": str,
    "submission_id": str,
    "runtime_env": dict,
    "metadata": dict,
    "entrypoint_num_cpus": float,
    "entrypoint_num_gpus": float,
    "entrypoint_memory": float,
    "entrypoint_resources": dict,
    "entrypoint_label_selector": dict,
}
_RUNTIME_ENV_KEYS = {"working_dir": str, "env_vars": dict, "excludes": list}  # that the client itself reads
_KINDS = {str: "text", dict: "names and values", list: "a list", float: "a number of at least 0"}
_RECORDED = ("user", "host", "git_commit", "git_dirty", "client_version", "spec_hash", "timeout", "job_name")
_SECRET_NAME = re.compile(r"(^|_)(TOKEN|PASSWORD|SECRET|KEY)$", re.IGNORECASE)
_ACCELERATOR = "accelerator_type:"
_KILL_SECONDS = STOP_SECONDS  # `timeout` counts them after a stop too


@dataclass(frozen=True)
class JobSpec:
    """A job as the user gave it.

    Attributes:
        script: a Python file, run by the target's Python; or None.
        command: the arguments of the script, or a whole command where there is no script.
        working_dir: the folder the job runs in, or a URI that Ray knows; None takes the runtime_env's, else the
            current folder.
        env: environment variables of the job, which everyone who may list jobs can read.
        secret_env: variables of the driver alone, as `client.secret_env.exports` takes them.
        name: what the dashboard shows.
        tags: names and values recorded with the job.
        timeout: seconds the job may run.
        accelerator: the kind of GPU that the driver wants, as Ray names it: L4, A100. It gets one, if
            `entrypoint_num_gpus` does not say how many.
        allow_plain: take an `env` name that looks like a secret's.
        arguments: of the Job SDK's `submit_job`, by its own names; the fields above win.
    """

    script: str | None = None
    command: Sequence[str] = ()
    working_dir: str | Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    secret_env: Mapping[str, str | None] = field(default_factory=dict)
    name: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    accelerator: str | None = None
    allow_plain: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked without a cluster.

        Raises:
            UsageError: a value is not usable.
        """
        if unknown := sorted(map(str, self.arguments.keys() - FILE_KEYS)):
            raise UsageError(f"unknown key {unknown[0]} in the job file: it takes {', '.join(FILE_KEYS)}")
        given = {name: value for name, value in self.arguments.items() if value is not None}  # as Ray's SDK takes it
        _check_kinds(given, FILE_KEYS)
        resources = given.get("entrypoint_resources", {})
        if not all(isinstance(name, str) and isinstance(amount, int | float) for name, amount in resources.items()):
            raise UsageError("entrypoint_resources must hold a number for each name")
        if self.accelerator:
            # Ray's own amount (ray/_common/ray_option_utils.py): it asks for the kind, and uses up none.
            kind = {f"{_ACCELERATOR}{self.accelerator}": 0.001}
            given = {"entrypoint_num_gpus": 1, **given} | {"entrypoint_resources": {**resources, **kind}}
        object.__setattr__(self, "arguments", given)
        _check_kinds(self._runtime_env(), _RUNTIME_ENV_KEYS)
        if not self.script and not any(self.command) and not self.arguments.get("entrypoint"):
            raise UsageError("there is nothing to run: give a SCRIPT, or -- and a COMMAND")
        if not re.fullmatch(r"[\w.-]+", self.arguments.get("submission_id", "x")):
            raise UsageError("an --id may hold letters, digits, dots, dashes and underscores only")
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise UsageError("--timeout must be more than 0 seconds")
        for name in self._environment():
            if _SECRET_NAME.search(str(name)) and not self.allow_plain:
                raise UsageError(
                    f"{name} looks like a secret, and Ray shows a job's variables to everyone who may list jobs: "
                    "mount it in the cluster and give --secret-env, or give --allow-plain"
                )
        for name in (*self.tags, *self.arguments.get("metadata", {})):
            if name in _RECORDED:
                raise UsageError(f"the tag {name} is recorded by the client itself: take another name")

    def _environment(self) -> dict[str, str]:
        return {**self._runtime_env().get("env_vars", {}), **self.env}

    def _runtime_env(self) -> Mapping[str, Any]:
        return self.arguments.get("runtime_env") or {}

    def folder(self) -> Path | None:
        """The local folder the job runs in, absolute; None where the working_dir is a remote URI.

        Raises:
            UsageError: there is no such folder.
        """
        given = self.working_dir or self._runtime_env().get("working_dir") or "."
        if "://" in str(given):
            return None
        folder = Path(os.path.abspath(given))
        if not folder.is_dir():
            raise UsageError(f"no such folder: {given} (--working-dir)")
        return folder

    def entrypoint(self, endpoint: Endpoint) -> str:
        """The command line that is run, seen from the working directory.

        Args:
            endpoint: where; its Python runs a script.

        Raises:
            UsageError: there is no such script, or the job would not have it.
        """
        if self.script:
            words = [endpoint.python, self._script_in_folder(self.script), *self.command]
        else:
            words = list(self.command)
        line = shlex.join(words) if words else str(self.arguments["entrypoint"])
        if words and "=" not in words[0]:
            line = f"exec {line}"  # a shell that stays ends first at a stop, and Ray waits 30 s for who is left of it
        if self.secret_env:  # Ray would show env_vars to everyone who may list jobs
            words, line = [], f"{secret_env.exports(self.secret_env, endpoint)} && {line}"
        if self.timeout is None:
            return line
        if endpoint.in_place and not shutil.which("timeout"):
            raise UsageError("--timeout needs the program `timeout` of GNU coreutils: install it")
        run = shlex.join(words) if words else "sh -c " + shlex.quote(line)
        return f"exec timeout -k {_KILL_SECONDS} {self.timeout:.15g} {run}"

    def _beside_script(self) -> dict[str, str]:
        # Ray lets tasks import what lies beside the script, but for a job with a working_dir it does not.
        folder = PurePosixPath(self._script_in_folder(self.script)).parent if self.script else PurePosixPath()
        return {"PYTHONPATH": f"{folder}:${{PYTHONPATH}}"} if folder.parts else {}

    def check_gpus(self, endpoint: Endpoint) -> None:
        """Check that a kind of node has the GPUs that the driver wants.

        Raises:
            UsageError: none has.
        """
        custom = self.arguments.get("entrypoint_resources", {})
        wanted = {name: amount for name, amount in custom.items() if name.startswith(_ACCELERATOR)}
        wanted["GPU"] = self.arguments.get("entrypoint_num_gpus", 0)
        nodes = endpoint.nodes
        if nodes is None or any(all(has.get(n, 0) >= wanted[n] for n in wanted) for has in nodes.values()):
            return
        known = ", ".join(f"{name} has {_gpus(has)}" for name, has in nodes.items())
        raise UsageError(
            f"no node of the cluster has the {_gpus(wanted)} that the driver wants: {known} (a group tells its kind in "
            'rayStartParams, as resources: {"accelerator_type:L4": 1})'
        )

    def check_files(self) -> None:
        """Check that the folder and the script are there, before a cluster is asked anything.

        Raises:
            UsageError: one is not.
        """
        self.folder()
        if self.script:
            self._script_in_folder(self.script)

    def _script_in_folder(self, script: str) -> str:
        path, folder = Path(os.path.abspath(script)), self.folder()
        if folder is None:
            return script
        if not path.is_file():
            raise UsageError(f"no such script: {script} (to run a command, put -- before it)")
        if not path.is_relative_to(folder):
            raise UsageError(f"{script} is outside the working directory {folder}: give --working-dir a folder with it")
        return path.relative_to(folder).as_posix()

    def sdk_arguments(self, endpoint: Endpoint, working_dir: str | None) -> dict[str, Any]:
        """The arguments of `JobSubmissionClient.submit_job`, with an id and all that is recorded.

        Args:
            endpoint: where the job is sent.
            working_dir: the URI of the working directory there; None where the cluster itself runs in it.
        """
        runtime_env = {key: value for key, value in self._runtime_env().items() if key != "excludes"}  # done in packing
        environment = self._environment()
        if working_dir:
            runtime_env["working_dir"] = working_dir
            environment = {"RAY_JOB_STOP_WAIT_TIME_S": STOP_SECONDS, **self._beside_script(), **environment}
        if environment:
            runtime_env["env_vars"] = environment
        arguments = {**self.arguments, "entrypoint": self.entrypoint(endpoint), "runtime_env": runtime_env}
        spec = {key: value for key, value in arguments.items() if key not in ("submission_id", "metadata")}
        recorded = {
            "user": _user(),
            "host": socket.gethostname(),
            "client_version": client.__version__,
            "spec_hash": hashlib.sha256(json.dumps(spec, sort_keys=True, default=str).encode()).hexdigest(),
            **_git_state(self.folder(), int(time.monotonic())),
        }
        if self.timeout is not None:
            recorded["timeout"] = f"{self.timeout:.15g}"
        if self.name:
            recorded["job_name"] = self.name
        arguments["metadata"] = {**self.arguments.get("metadata", {}), **self.tags, **recorded}
        arguments.setdefault("submission_id", f"job-{secrets.token_hex(5)}")
        return arguments


def _check_kinds(values: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    for name, kind in kinds.items():
        value = values.get(name, kind())
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or (kind is float and not 0 <= value < math.inf):
            raise UsageError(f"{name} must be {_KINDS[kind]}")


def _gpus(resources: Mapping[str, float]) -> str:
    kinds = [name.removeprefix(_ACCELERATOR) for name in resources if name.startswith(_ACCELERATOR)]
    return " ".join([f"{resources['GPU']:g} GPU", *kinds])


def _user() -> str:
    try:
        return getuser()
    except (KeyError, OSError):  # a container's user may have a number only
        return str(os.getuid())


@lru_cache(maxsize=1)
def _git_state(folder: Path | None, second: int) -> dict[str, str]:
    """The commit a folder is at and whether tracked files differ from it; nothing outside a repository.

    Args:
        folder: to look at.
        second: now. Of many submits in a row, one a second asks git.
    """
    if folder is None:
        return {}
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    commit, dirty, _ = done.stdout.strip().partition("-dirty")
    return {"git_commit": commit, "git_dirty": str(bool(dirty)).lower()}


def read_yaml(path: str) -> dict[str, Any]:
    """A YAML or JSON file that holds one mapping: a job file or a runtime_env.

    Args:
        path: of the file.

    Raises:
        UsageError: it cannot be read, or is something else.
    """
    import yaml

    try:
        data = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # a date with a 13th month is a ValueError
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error).partition("\n")[0]
        raise UsageError(f"{path} is not valid YAML{where}: {problem}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path} must hold names and values, not {type(data).__name__}")
    return data
