"""What to do about a job that failed, as far as the end of its log says what was wrong."""

import re
from pathlib import Path

from client.targets.target import Runtime

# Ray may write a line of its own after those of a driver that fails at once.
_NO_MODULE = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'\s*(Running entrypoint for job .*\s*)?\Z")
# How each installer says that its index does not answer, and the variable that names another index to it.
_NO_INDEX = (("connection broken by", "PIP_INDEX_URL"), ("error sending request", "UV_DEFAULT_INDEX"))


def hint(log_end: str, exit_code: int, runtime: Runtime) -> str:
    """Say what to do about a failed job; an empty text if that is not known.

    Args:
        log_end: the end of its log, or what Ray says about a job that never started.
        exit_code: of the job.
        runtime: of the target where it ran.
    """
    if log_end.startswith("runtime_env setup failed"):
        for words, variable in _NO_INDEX:
            if words in log_end:
                return _no_index(variable, runtime)
        if log_end.rstrip().endswith(": No module named pip"):
            return f"Ray needs pip to install packages: install it in {_packages_of(runtime)} (`uv pip install pip`)"
    if exit_code == 1 and (missing := _NO_MODULE.search(log_end)):
        return _no_module(missing[1], runtime)
    return ""


def _no_index(variable: str, runtime: Runtime) -> str:
    if runtime.in_place:
        here, other = "this machine", "install the packages beforehand"
    else:
        here, other = "the cluster", "use an image that has the packages"
    return (
        f"no package index could be reached from {here}: {other}, "
        f"or name an index that can be reached (--env {variable}=URL)"
    )


def _no_module(name: str, runtime: Runtime) -> str:
    other = f"run `{runtime.python} -m pip install {name}`" if runtime.in_place else "add it to the image"
    return (
        f"there is no module {name} in {_packages_of(runtime)}: submit again with --pip {name}, or {other} "
        "(the package may have another name; code of your own belongs in the working directory)"
    )


def _packages_of(runtime: Runtime) -> str:
    return str(Path(runtime.python).parents[1]) if runtime.in_place else "the cluster's image"
