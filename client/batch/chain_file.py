"""A chain's file: YAML, read with the line of each key, so that every mistake is reported at once with its line."""

import difflib
import math
import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from client.batch.batch import RETRY_ON, Batch, Order, Step, Wish, in_order
from client.batch.mistakes import KeyPath, Mistakes
from client.errors import UsageError
from client.job.request import Request, read_text
from client.wait import read_duration

_TOP = ("name", "cluster", "defaults", "jobs")
_WISH = ("workers", "gpus", "accelerator")
_DEFAULTS = ["working_dir", "args", "env", "secret_env", "pip", "num_cpus", "num_gpus", "accelerator", "timeout"]
_DEFAULTS += ["retries", "retry_on", "runtime_env"]
_JOB = ["script", "command", "after", "parent_job_key", *_DEFAULTS]
_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?:(:-)((?:[^{}])*))?\})")
NAME = re.compile(r"\w[\w.-]*")


def read_chain(path: str) -> Batch:
    """Read a chain from its file.

    Args:
        path: of the YAML file.

    Raises:
        UsageError: it cannot be read, or has mistakes; all of them are named.
    """
    data, lines, twice = _load(path)
    return _chain(data, lines, path, twice)


def chain_of(data: Mapping[str, Any], name: str, folder: Path) -> Batch:
    """A chain from data with the keys of its file.

    Args:
        data: as `yaml.safe_load` would read the file.
        name: of the chain, where the data has none.
        folder: what a relative `working_dir` starts from.
    """
    return _chain(dict(data), {}, str(folder / f"{name}.yaml"))


def _load(path: str) -> tuple[Any, dict[KeyPath, int], list[KeyPath]]:
    """The data of a file, the line of each key and item, and the keys that are there twice."""
    import yaml

    text, lines = read_text(path), dict[KeyPath, int]()
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        twice = list(_note_lines(root, (), lines))
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error).partition("\n")[0]
        raise UsageError(f"{path}{where}: not valid YAML: {problem}") from error
    return data, lines, twice


def _note_lines(node: Any, where: KeyPath, lines: dict[KeyPath, int]) -> Iterator[KeyPath]:
    """Note the line of each key and item, and yield the keys that are there twice."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if (path := (*where, str(key.value))) in lines:
                yield path
                for part in [part for part in lines if part[: len(path)] == path]:
                    del lines[part]  # the last one counts
            lines[path] = key.start_mark.line + 1
            yield from _note_lines(value, path, lines)
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            lines[*where, number] = item.start_mark.line + 1
            yield from _note_lines(item, (*where, number), lines)


def _chain(data: Any, lines: Mapping[KeyPath, int], path: str, twice: Collection[KeyPath] = ()) -> Batch:
    mistakes = Mistakes(path, lines)
    for key in twice:
        mistakes.add(key, f"{key[-1]} is there twice")
    if not isinstance(data, dict) or not isinstance(data.get("jobs"), dict) or not data["jobs"]:
        mistakes.add(("jobs",), "there is no key `jobs`, with a name for each job")
        mistakes.check()
    data = _expanded(data, (), mistakes)
    for key in data:
        if key not in _TOP:
            mistakes.unknown((), str(key), _TOP, "key")
    name = str(data.get("name") or Path(path).stem)
    if not NAME.fullmatch(name):
        mistakes.add(("name",), f"{name} is not a name: use letters, digits, underscores, dots and dashes")
    defaults = _mapping(data, "defaults", _DEFAULTS, mistakes)
    wish = _wish(_mapping(data, "cluster", _WISH, mistakes), mistakes)
    names = [str(job) for job in data["jobs"]]
    waits = {str(job): _after(str(job), spec, names, mistakes) for job, spec in data["jobs"].items()}
    steps = []
    for job, spec in data["jobs"].items():
        if step := _step(str(job), spec, defaults, waits[str(job)], Path(os.path.abspath(path)), mistakes):
            steps.append(step)
    try:
        TopologicalSorter(waits).prepare()
    except CycleError as error:
        cycle = error.args[1]
        mistakes.add(("jobs", cycle[0], "after"), f"jobs wait for each other: {' -> '.join(cycle)}")
    mistakes.check()
    return Batch(name, "chain", in_order(steps), wish)


def _expanded(value: Any, where: KeyPath, mistakes: Mistakes) -> Any:
    """Replace ${VAR} and ${VAR:-default} with variables of the environment, and $$ with $."""
    if isinstance(value, dict):
        return {key: _expanded(part, (*where, str(key)), mistakes) for key, part in value.items()}
    if isinstance(value, list):
        return [_expanded(part, (*where, number), mistakes) for number, part in enumerate(value)]
    if not isinstance(value, str):
        return value

    def variable(found: re.Match[str]) -> str:
        name, has_default, default = found.groups()
        if name is None:
            return "$"
        if (given := os.environ.get(name)) or (given is not None and not has_default):
            return given
        if not has_default:
            mistakes.add(where, f"the variable {name} is not set; set it, or use ${{{name}:-DEFAULT}}")
        return default if has_default else name  # one mistake is enough

    return _VARIABLE.sub(variable, value)


def _mapping(data: Mapping[str, Any], key: str, known: Collection[str], mistakes: Mistakes) -> dict[str, Any]:
    value = data.get(key) or {}
    if not isinstance(value, dict):
        mistakes.add((key,), f"{key} must map names to values")
        return {}
    for name in value:
        if name not in known:
            mistakes.unknown((key,), str(name), known, "key")
    return {name: part for name, part in value.items() if name in known}


def _wish(given: Mapping[str, Any], mistakes: Mistakes) -> Wish:
    workers, gpus = (_number(given, name, ("cluster",), mistakes) or 0 for name in ("workers", "gpus"))
    return Wish(workers, gpus, str(given.get("accelerator") or ""))


def _number(given: Mapping[str, Any], key: str, where: KeyPath, mistakes: Mistakes) -> float | None:
    value = given.get(key)
    if value is None:
        return None
    try:
        number = float(value)
        if not 0 <= number < math.inf or isinstance(value, bool):
            raise ValueError
    except (TypeError, ValueError):
        mistakes.add((*where, key), f"{key} must be a number of at least 0, not {value}")
        return None
    return number


def _words(given: Mapping[str, Any], key: str, where: KeyPath, mistakes: Mistakes) -> list[str]:
    value = given.get(key)
    value = [] if value is None else [value] if isinstance(value, str | int | float) else value
    if not isinstance(value, list) or not all(isinstance(word, str | int | float) for word in value):
        mistakes.add((*where, key), f"{key} must be a list of words")
        return []
    return [str(word).lower() if isinstance(word, bool) else str(word) for word in value]


def _variables(given: Mapping[str, Any], key: str, where: KeyPath, mistakes: Mistakes) -> dict[str, str]:
    value = given.get(key) or {}
    if not isinstance(value, dict) or any(isinstance(part, dict | list) or part is None for part in value.values()):
        mistakes.add((*where, key), f"{key} must map each name to a text")
        return {}
    return {str(name): str(part).lower() if isinstance(part, bool) else str(part) for name, part in value.items()}


def _after(name: str, given: Any, names: Collection[str], mistakes: Mistakes) -> list[str]:
    """The names of the jobs that a job waits for."""
    found = []
    for key in ("after", "parent_job_key") if isinstance(given, dict) else ():
        for other in _words(given, key, ("jobs", name), mistakes):
            if other in names:
                found.append(other)
                continue
            close = difflib.get_close_matches(other, names, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
            mistakes.add(("jobs", name, key), f"there is no job {other}; {hint}")
    return found


def _step(
    name: str, given: Any, defaults: Mapping[str, Any], after: Sequence[str], file: Path, mistakes: Mistakes
) -> Step | None:
    where: KeyPath = ("jobs", name)
    if not isinstance(given, dict):
        mistakes.add(where, f"job {name} must have keys, for example script")
        return None
    if not NAME.fullmatch(name):
        mistakes.add(where, f"{name} is not a name: use letters, digits, underscores, dots and dashes")
    for key in given:
        if key not in _JOB:
            mistakes.unknown(where, str(key), _JOB, "key")
    merged = {**defaults, **given}
    merged["env"] = _variables(defaults, "env", ("defaults",), mistakes) | _variables(given, "env", where, mistakes)
    retry_on = _words(merged, "retry_on", where, mistakes) or list(RETRY_ON)
    for kind in retry_on:
        if kind not in RETRY_ON:
            mistakes.add((*where, "retry_on"), f"retry_on must be {' or '.join(RETRY_ON)}, not {kind}")
    request = _request(merged, where, file, mistakes)
    retries = int(_number(merged, "retries", where, mistakes) or 0)
    line = f"line {mistakes.line(where)}, {name}"
    if request is None:
        return None
    return Step(Order(name, after, retries, retry_on, request.may_leave_head), request, where=line)


def _request(given: Mapping[str, Any], where: KeyPath, file: Path, mistakes: Mistakes) -> Request | None:
    script, command = given.get("script"), given.get("command")
    if bool(script) == bool(command):
        mistakes.add(where, f"job {where[-1]} needs either a script or a command")
        return None
    timeout = given.get("timeout")
    if timeout is not None and read_duration(str(timeout)) is None:
        mistakes.add((*where, "timeout"), f"timeout must be a duration like 90s, 15m or 2h, not {timeout}")
        timeout = None
    args = _words(given, "args", where, mistakes)
    runtime_env = given.get("runtime_env") or {}
    if not isinstance(runtime_env, dict):
        mistakes.add((*where, "runtime_env"), "runtime_env must map names to values")
        runtime_env = {}
    working_dir = str(given.get("working_dir") or runtime_env.get("working_dir") or ".")
    arguments: dict[str, Any] = {"runtime_env": _without(file, working_dir, runtime_env)}
    for key in ("num_cpus", "num_gpus"):
        arguments[f"entrypoint_{key}"] = _number(given, key, where, mistakes)
    if isinstance(command, str):
        arguments["entrypoint"] = f"{command} {shlex.join(args)}".rstrip()
        words: list[str] = []
    else:
        words = [*_words(given, "command", where, mistakes), *args]
    secrets = given.get("secret_env") or {}
    if not isinstance(secrets, dict):
        secrets = dict.fromkeys(_words(given, "secret_env", where, mistakes))
    try:
        return Request(
            script=_script(script, file, working_dir),
            command=words,
            working_dir=working_dir if "://" in working_dir else file.parent / working_dir,
            env=given["env"],
            secret_env={str(key): None if value is None else str(value) for key, value in secrets.items()},
            pip=_words(given, "pip", where, mistakes),
            timeout=None if timeout is None else read_duration(str(timeout)),
            accelerator=str(given["accelerator"]) if given.get("accelerator") else None,
            arguments=arguments,
        )
    except UsageError as error:
        text = error.what if "put --" in error.hint else str(error)  # a hint for the command line
        mistakes.add(where, text.replace(_script(script, file, working_dir) or "/", str(script)))
        return None


def _script(script: Any, file: Path, working_dir: str) -> str | None:
    """The path of a script, which starts from the working directory, wherever the caller is."""
    if not script or "://" in working_dir:
        return str(script) if script else None
    return str(file.parent / working_dir / str(script))


def _without(file: Path, working_dir: str, runtime_env: Mapping[str, Any]) -> dict[str, Any]:
    """A runtime_env that does not upload the chain's own file: a change in it would make all jobs run again."""
    folder = Path(os.path.abspath(file.parent / working_dir))
    excludes = runtime_env.get("excludes") or []
    inside = "://" not in working_dir and folder.is_dir() and file.is_relative_to(folder)
    # An upload needs a file, and the folder of results has none that is uploaded.
    others = inside and any(path not in (file, folder / "outputs") for path in folder.iterdir())
    if not others or not isinstance(excludes, list):
        return dict(runtime_env)
    return {**runtime_env, "excludes": [*excludes, f"/{file.relative_to(folder).as_posix()}"]}
