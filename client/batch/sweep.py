"""A sweep: one job for each combination of parameters."""

import difflib
import hashlib
import itertools
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath

from client.batch.batch import RETRY_ON, Batch, Order, Step
from client.errors import UsageError
from client.job.request import Request
from client.job.submission import user

INDEX = "RAY_WORKLOAD_ARRAY_INDEX"
_ARRAY = "index"  # the parameter of an array
_MOST = 10_000  # jobs of a sweep
_RANGE = re.compile(r"(\d+)-(\d+)")
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([A-Za-z_]\w*)\}")


def matrix(options: Sequence[str]) -> dict[str, list[str]]:
    """Read NAME=VALUE,VALUE and NAME=FIRST-LAST into the values of each parameter.

    Raises:
        UsageError: an option has another form.
    """
    found: dict[str, list[str]] = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) or not text:
            raise UsageError(f"--matrix {option} is not NAME=VALUE,VALUE or NAME=FIRST-LAST", "use one of these forms")
        found.setdefault(name, []).extend(values(text))
    return found


def values(text: str) -> list[str]:
    """The values of VALUE,VALUE where each may also be FIRST-LAST, whole numbers with the width of the first."""
    found: list[str] = []
    for word in text.split(","):
        if (bounds := _RANGE.fullmatch(word)) and int(bounds[1]) <= int(bounds[2]):
            first, last = int(bounds[1]), int(bounds[2])
            if last - first >= _MOST:
                raise UsageError(f"{word} has more than {_MOST} values", "use fewer")
            width = len(bounds[1]) if bounds[1].startswith("0") else 0
            found += [f"{number:0{width}}" for number in range(first, last + 1)]
        else:
            found.append(word)
    return found


def array(text: str) -> list[str]:
    """The indexes of an --array: FIRST-LAST, or several with commas.

    Raises:
        UsageError: it has another form.
    """
    found = values(text)
    if not all(word.isdecimal() for word in found):
        raise UsageError(f"--array {text} is not FIRST-LAST", "use whole numbers, for example 0-99 or 0-9,20")
    return found


def make_sweep(
    request: Request,
    parameters: Mapping[str, Sequence[str]],
    indexes: Sequence[str] = (),
    *,
    retries: int = 0,
    retry_on: Sequence[str] = RETRY_ON,
) -> Batch:
    """Make a job of each combination of parameters.

    Args:
        request: the job, with {NAME} in its arguments and variables for the value of a parameter; {{ and }} are braces.
            Its submission id is the sweep's.
        parameters: the values of each.
        indexes: of an array; each job gets its own in RAY_WORKLOAD_ARRAY_INDEX.
        retries: how often a job is submitted again.
        retry_on: after what.

    Raises:
        UsageError: a placeholder has no parameter, or a parameter has no placeholder.
    """
    if indexes and _ARRAY in parameters:
        raise UsageError(f"an array has the parameter {_ARRAY} already", "give the other one another name")
    named = {**parameters, **({_ARRAY: indexes} if indexes else {})}
    if is_sweep := bool(named):
        _check(request, named, {_ARRAY} if indexes else set())
    arguments = {key: value for key, value in request.arguments.items() if key != "submission_id"}
    plain = replace(request, pip=(), requirements=None, arguments=arguments)
    steps = []
    for combination in itertools.product(*named.values()):
        chosen = dict(zip(named, combination, strict=True))
        name = ",".join(f"{key}={value}" for key, value in chosen.items()) or "job"
        filled = plain
        if is_sweep:
            env = {key: _fill(value, chosen) for key, value in request.env.items()}
            if indexes:
                env[INDEX] = chosen[_ARRAY]
            filled = replace(plain, command=tuple(_fill(word, chosen) for word in request.command), env=env)
        steps.append(Step(Order(name, (), retries, retry_on, filled.may_leave_head), filled, chosen))
    names = [step.name for step in steps]
    if twice := next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None:
        raise UsageError(f"{twice} is there twice", "specify each value once")
    given = request.arguments.get("submission_id")
    if is_sweep:
        return Batch(given or _default_name(request), "sweep", tuple(steps))
    return Batch(given or f"job-{secrets.token_hex(5)}", "job", tuple(steps))


def _check(request: Request, parameters: Mapping[str, Sequence[str]], unused: Collection[str]) -> None:
    if empty := next((name for name, found in parameters.items() if not found), None):
        raise UsageError(f"the parameter {empty} has no values", "add one")
    count = 1
    for values_ in parameters.values():
        count *= len(values_)
    if count > _MOST:
        raise UsageError(f"the sweep has {count} jobs, more than {_MOST}", "use fewer values")
    texts = [*request.command, *request.env.values()]
    used = {found[1] for text in texts for found in _PLACEHOLDER.finditer(text) if found[1]}
    if unknown := next((name for name in sorted(used) if name not in parameters), None):
        close = difflib.get_close_matches(unknown, parameters, 1)
        instead = f"add --matrix {unknown}=VALUES, or write {{{{{unknown}}}}} for the text {{{unknown}}}"
        hint = f"did you mean {{{close[0]}}}?" if close else instead
        raise UsageError(f"there is no parameter {unknown}", hint)
    if idle := next((name for name in parameters if name not in used and name not in unused), None):
        raise UsageError(f"no argument uses the parameter {idle}", f"put {{{idle}}} into an argument or into --env")


def _fill(text: str, chosen: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: chosen[found[1]] if found[1] else found[0][0], text)


def _default_name(request: Request) -> str:
    """The same for the same command of the same user in the same folder, so that it goes on with its sweep."""
    words = [request.script or request.arguments.get("entrypoint", ""), *request.command, str(request.folder), user()]
    first = request.script or next(iter(request.command), "")
    stem = re.sub(r"[^\w.-]", "-", PurePath(first).stem).lstrip("-.") or "sweep"
    return f"{stem}-{hashlib.sha256(repr(words).encode()).hexdigest()[:6]}"
