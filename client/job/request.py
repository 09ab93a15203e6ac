"""What the user asked for, checked without a cluster."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from client.errors import UsageError
from client.job.requirements import read_requirements

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
_VALUE_KINDS = {"metadata": str, "entrypoint_resources": float, "entrypoint_label_selector": str}
RECORDED = frozenset(  # the metadata that the client itself adds
    "user host git_commit git_dirty client_version spec_hash timeout job_name outputs num_cpus num_gpus "
    "batch batch_kind batch_size batch_stop step step_spec attempt parameters".split()
)
UPLOAD_KEYS = ("working_dir", "excludes", "py_modules")  # of a runtime_env: say what is uploaded
_RUNTIME_ENV_KEYS = {"working_dir": str, "env_vars": dict, "excludes": list, "py_modules": list}  # read by the client
_KINDS = {str: "text", dict: "names and values", list: "a list", float: "a number of at least 0"}
_SECRET_NAME = re.compile(r"(^|_)(TOKEN|PASSWORD|SECRET|KEY)$", re.IGNORECASE)
_BUCKET = re.compile(r"(gs|s3)://[\w.-]+(/[\w.=+@~-]+)*")
_PASSWORD = re.compile(r"://[^/\s@]*:(?!\$)[^/\s@]+@")  # pip expands ${NAME} with its own variables
_SEVERAL = re.compile(r"(?!-)[\w.\-\[\]]+(,|\s+[A-Za-z])")  # names with no version or option between them
ACCELERATOR = "accelerator_type:"
INSTALLERS = ("pip", "uv", "conda")  # of a runtime_env: each makes an environment for the job


@dataclass(frozen=True)
class Request:
    """A job as the user asked for it.

    Attributes:
        script: a Python file, run by the target's Python; or None.
        command: the arguments of the script, or a whole command where there is no script.
        working_dir: the folder the job runs in, or a URI that Ray knows; None takes the runtime_env's, else the
            current folder.
        env: environment variables of the job, which everyone who may list jobs can read.
        secret_env: variables of the driver alone, as `client.job.secret_env.exports` takes them.
        pip: packages that Ray installs with pip for the job, as pip takes them.
        requirements: a requirements file with more of them.
        name: what the dashboard shows.
        tags: names and values recorded with the job.
        timeout: seconds the job may run.
        accelerator: the kind of GPU that the driver needs, as Ray names it: L4, A100. It gets one, if
            `entrypoint_num_gpus` does not say how many.
        plain: ask Ray for lines without colors. Jobs that differ only in this are the same.
        allow_plain: accept an `env` name that looks like a secret's, and a password in the packages' URLs.
        upload_to: the bucket that what is uploaded is put into, for Ray to get it from there.
        arguments: of the Job SDK's `submit_job`, by its own names; the fields above win.
    """

    script: str | None = None
    command: Sequence[str] = ()
    working_dir: str | Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    secret_env: Mapping[str, str | None] = field(default_factory=dict)
    pip: Sequence[str] = ()
    requirements: str | Path | None = None
    name: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    accelerator: str | None = None
    plain: bool = False
    allow_plain: bool = False
    upload_to: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check everything that can be checked without a cluster.

        Raises:
            UsageError: a value is not usable, or the folder or the script does not exist.
        """
        object.__setattr__(self, "arguments", self._checked_arguments())
        _check_kinds(self.runtime_env, _RUNTIME_ENV_KEYS)
        if not self.script and not any(self.command) and not self.arguments.get("entrypoint"):
            raise UsageError("there is nothing to run", "specify a SCRIPT, or -- and a COMMAND")
        if not re.fullmatch(r"\w[\w.-]*", self.arguments.get("submission_id", "x")):
            what = "an id may contain only letters, digits, underscores, and after the first character dots and dashes"
            raise UsageError(what, "use another one")
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise UsageError("a timeout must be more than 0 seconds", "use another one")
        if self.upload_to is not None:
            object.__setattr__(self, "upload_to", self.upload_to.rstrip("/"))
            if not _BUCKET.fullmatch(self.upload_to):
                raise UsageError(
                    "--upload-to is not the URL of a bucket", "use gs://BUCKET[/PREFIX] or s3://BUCKET[/PREFIX]"
                )
        for name, value in self.environment.items():
            if (_SECRET_NAME.search(str(name)) or _PASSWORD.search(str(value))) and not self.allow_plain:
                raise UsageError(
                    f"{name} looks like a secret, and everyone who may list jobs can read a job's variables",
                    "use a Secret that the cluster mounts (--secret-env), or --allow-plain",
                )
        for name in (*self.tags, *self.arguments.get("metadata", {})):
            if name in RECORDED:
                raise UsageError(f"the client itself records {name}", "give the tag another name")
        _ = self.folder, self.script_path

    def _checked_arguments(self) -> dict[str, Any]:
        if unknown := sorted(map(str, self.arguments.keys() - FILE_KEYS)):
            raise UsageError(f"a job has no argument {unknown[0]}", f"use only {', '.join(FILE_KEYS)}")
        given = {name: value for name, value in self.arguments.items() if value is not None}  # as Ray's SDK takes it
        _check_kinds(given, FILE_KEYS)
        for key, kind in _VALUE_KINDS.items():
            if not all(isinstance(name, str) and _is(kind, value) for name, value in given.get(key, {}).items()):
                raise UsageError(f"{key} must map each name to {_KINDS[kind]}")
        if self.accelerator:
            # Ray's own amount (ray/_common/ray_option_utils.py): it asks for the kind, and uses up none.
            resources = {**given.get("entrypoint_resources", {}), f"{ACCELERATOR}{self.accelerator}": 0.001}
            given = {"entrypoint_num_gpus": 1, **given, "entrypoint_resources": resources}
        if packages := self._packages():
            runtime_env = given.get("runtime_env", {})
            if other := next(filter(runtime_env.get, INSTALLERS), None):
                hint = "list all packages there, or all with --pip and --requirements"
                raise UsageError(f"the runtime_env has packages, too ({other})", hint)
            # Not uv: Ray would get uv itself with pip from an index, because most images do not have it.
            given = {**given, "runtime_env": {**runtime_env, "pip": packages}}
        return given

    def _packages(self) -> list[str]:
        if isinstance(self.pip, str):
            raise UsageError("pip must be a list", f"use pip=[{self.pip!r}]")
        if several := next(filter(_SEVERAL.match, self.pip), None):
            raise UsageError(f"{several!r} is not one package", "repeat --pip for each package")
        packages = [*(read_requirements(self.requirements) if self.requirements else ()), *self.pip]
        if any(map(_PASSWORD.search, packages)) and not self.allow_plain:
            raise UsageError(
                "the packages contain a password, and everyone who may list jobs can read it",
                "put ${NAME} there, a variable of the Ray pods, or use --allow-plain",
            )
        return packages

    @property
    def runtime_env(self) -> Mapping[str, Any]:
        """Ray's runtime_env, as given."""
        return self.arguments.get("runtime_env") or {}

    @property
    def environment(self) -> dict[str, str]:
        """All environment variables of the job."""
        return {**self.runtime_env.get("env_vars", {}), **self.env}

    @property
    def resources(self) -> dict[str, float]:
        """The resources that the driver needs for itself, by Ray's names."""
        named = {"CPU": "entrypoint_num_cpus", "GPU": "entrypoint_num_gpus", "memory": "entrypoint_memory"}
        wanted = {name: self.arguments.get(argument, 0) for name, argument in named.items()}
        return {
            name: amount for name, amount in (wanted | self.arguments.get("entrypoint_resources", {})).items() if amount
        }

    @property
    def may_leave_head(self) -> bool:
        """Whether Ray may start the driver on a worker."""
        return bool(self.resources or self.arguments.get("entrypoint_label_selector"))

    @cached_property
    def folder(self) -> Path | None:
        """The local folder the job runs in, absolute; None if the working_dir is a URI."""
        given = self.working_dir or self.runtime_env.get("working_dir") or "."
        if "://" in str(given):
            return None
        folder = Path(os.path.abspath(given))
        if not folder.is_dir():
            raise UsageError(f"there is no folder {given}", "use another working_dir")
        return folder

    @property
    def working_dir_uri(self) -> str | None:
        """The working_dir, if it is a URI."""
        return None if self.folder else str(self.working_dir or self.runtime_env["working_dir"])

    @cached_property
    def script_path(self) -> str | None:
        """The script's path inside the working directory, if there is one."""
        if not self.script or self.folder is None:
            return self.script
        path, inside = (Path(os.path.abspath(folder / self.script)) for folder in (Path(), self.folder))
        if inside.is_file() and not (path.is_file() and path.is_relative_to(self.folder)):
            path = inside
        if not path.is_file():
            raise UsageError(f"there is no script {self.script}", "to run a command, put -- before it")
        if not path.is_relative_to(self.folder):
            what = f"{self.script} is outside the working directory {self.folder}"
            raise UsageError(what, "use a working_dir that contains it (--working-dir)")
        return path.relative_to(self.folder).as_posix()


def _check_kinds(values: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    for name, kind in kinds.items():
        if not _is(kind, values.get(name, kind())):
            raise UsageError(f"{name} must be {_KINDS[kind]}")


def _is(kind: type, value: object) -> bool:
    if kind is float:
        return isinstance(value, int | float) and 0 <= value < math.inf
    return isinstance(value, kind)


def read_text(path: str) -> str:
    """The text of a file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return Path(path).read_text()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not text in UTF-8") from error


def read_yaml(path: str) -> dict[str, Any]:
    """A YAML or JSON file that holds one mapping: a job file or a runtime_env.

    Args:
        path: of the file.

    Raises:
        UsageError: it cannot be read, or is something else.
    """
    import yaml

    try:
        data = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, ValueError) as error:  # a date with a 13th month is a ValueError
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error).partition("\n")[0]
        raise UsageError(f"{path} is not valid YAML{where}: {problem}") from error
    if not isinstance(data, dict):
        hint = f"pass a list of packages with --requirements {path}" if isinstance(data, str) else ""
        raise UsageError(f"{path} must contain names and values, not {type(data).__name__}", hint)
    return data
