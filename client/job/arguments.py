"""The arguments of the Python API: their kinds, and errors in the words of Python instead of the command line's."""

import functools
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import ParamSpec, TypeVar

from client.errors import ClientError, UsageError

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _are(kind: type, values: object) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str) and all(isinstance(v, kind) for v in values)


def _maps(kind: type | tuple[type, ...], value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(n, str) and isinstance(v, kind) for n, v in value.items())


def _has_values(value: object) -> bool:
    return _maps(Iterable, value) and not (
        isinstance(value, Mapping) and any(isinstance(v, str) for v in value.values())
    )


_TEXT = (lambda value: isinstance(value, str), "a str")
_PATH = (lambda value: isinstance(value, str | os.PathLike), "a str or a Path")
_WHOLE = (lambda value: isinstance(value, int), "an int")
_NUMBER = (lambda value: isinstance(value, int | float), "a number")
_FUNCTION = (callable, "a function")
_TEXTS = (lambda value: _maps(str, value), "a dict of str to str")
_KINDS: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "script": _PATH,
    "args": (lambda value: _are(str, value), "str, like '4'"),
    "command": (lambda value: _are(str, value), "a list of str, like ['echo', 'hello']"),
    "address": _TEXT,
    "working_dir": _PATH,
    "env": _TEXTS,
    "secret_env": (lambda value: _maps((str, type(None)), value), "a dict of str to str or None"),
    "pip": (lambda value: _are(str, value), "a list of str, like ['einops']"),
    "requirements": _PATH,
    "name": _TEXT,
    "tags": _TEXTS,
    "timeout": _NUMBER,
    "accelerator": _TEXT,
    "upload_to": _TEXT,
    "to": _PATH,
    "submission_id": _TEXT,
    "write": _FUNCTION,
    "note": _FUNCTION,
    "offset": _NUMBER,
    "seconds": _NUMBER,
    "chain": (lambda value: isinstance(value, str | os.PathLike | Mapping), "a str, a Path or a dict"),
    "matrix": (_has_values, "a dict of str to lists, like {'lr': [0.1, 0.01]}"),
    "array": (lambda value: _are(int, value), "a list of int or a range"),
    "max_parallel": _WHOLE,
    "retries": _WHOLE,
    "retry_on": (lambda value: _are(str, value), "a list of str, like ['lost']"),
    "start": _TEXT,
    "only": _TEXT,
}

CHECKED = _KINDS.keys()

# Words of the command line, and those of Python for them.
_WORDS = {
    r"a SCRIPT, or -- and a COMMAND": "a script or a command",
    r"put -- before it": "use command=[...]",
    r" \(--working-dir\)": "",
    r"--secret-env (\w+)=(\w+/\w+)": r"secret_env={'\1': '\2'}",
    r"--allow-plain": "allow_plain=True",
    r"--id\b": "submission_id",
    r"--(\w+)-(\w+)": r"\1_\2",
    r"--(\w+)": r"\1",
    r"`list`": "`client.jobs()`",
    r"`status (\S+)`": r"`client.attach('\1').status()`",
    r"`(up|down|doctor)\b": r"`ray-workload \1",
}


def check(**given: object) -> None:
    """Check the types of arguments; None is always valid.

    Raises:
        UsageError: one is wrong.
    """
    for name, value in given.items():
        fits, what = _KINDS[name]
        if value is not None and not fits(value):
            raise UsageError(f"{name} must be {what}")


def in_python(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Make a function's errors name Python arguments instead of options."""

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        except ClientError as error:
            error.args = error.what, error.hint = _translated(error.what), _translated(error.hint)
            raise

    return wrapped


def _translated(text: str) -> str:
    for said, instead in _WORDS.items():
        text = re.sub(said, instead, text)
    return text
