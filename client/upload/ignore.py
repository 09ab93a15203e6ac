"""What an upload of a working directory holds, said before it is sent.

Git's own rules decide, with `.rayignore` files and the job's `excludes` on top. For a path, the last line that matches
it wins; a path no line matches shares the fate of its directory. Ray's default excludes and secrets stay out unless a
`!` line of a .rayignore names them.
"""

import errno
import ntpath
import os
import re
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from client.errors import UsageError

_DEFAULTS = frozenset({".venv", "venv", "__pycache__"})  # as Ray has them; .git is left out before any rule
_SECRET_DIRECTORIES = frozenset({".ssh", ".aws", ".kube", ".gnupg"})
_SECRET = re.compile(
    r"\.env | \.env\.(?!(example|sample|template)$).* | .*\.(pem|key|p12|pfx) | id_(rsa|dsa|ecdsa|ed25519)"
    r"| \.(netrc|pypirc|npmrc) | application_default_credentials\.json",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)

# The files that these variables name are secrets, too.
_LOGINS = ("RAY_AUTH_TOKEN_PATH", "KUBECONFIG", "GOOGLE_APPLICATION_CREDENTIALS")

# Why a path stays out, the firmest reason last, and what a `!` line reaches: it brings back what is held no firmer.
_IN, _RULED_OUT, _GIT_IGNORED, _NEVER = range(4)


@dataclass(frozen=True)
class Entry:
    """One file of the upload: its path inside, where its bytes come from, and how many they are."""

    path: str
    source: Path
    size: int


@dataclass(frozen=True)
class Listing:
    """The files of an upload, sorted by path, and the secrets left out of it."""

    root: Path
    entries: tuple[Entry, ...]
    withheld: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of all files, before compression."""
        return sum(entry.size for entry in self.entries)

    def largest(self, count: int = 10) -> list[Entry]:
        """The biggest files, the biggest first."""
        return sorted(self.entries, key=lambda entry: (-entry.size, entry.path))[:count]


def listing(root: Path, excludes: Sequence[str] = ()) -> Listing:
    """Lists what an upload of `root` holds; reads no file but ignore files."""
    root = root.absolute()
    if not root.is_dir():
        raise UsageError(f"{shown(str(root))} is not a directory; name the directory to upload as the working dir")
    walk = _Walk(_rules(excludes, "excludes", reach=_RULED_OUT), _logins())
    walk.visit(_Place(root, "", _IN, _git_tree(root, "")))
    if not walk.entries:
        raise UsageError(f"nothing in {shown(str(root))} may be uploaded; check its .gitignore and .rayignore files")
    return Listing(root, tuple(sorted(walk.entries, key=lambda entry: entry.path)), tuple(sorted(walk.withheld)))


def _logins() -> frozenset[tuple[int, int]]:
    """The files that the environment names as logins, by device and inode."""
    named = [path for name in _LOGINS for path in os.environ.get(name, "").split(os.pathsep)]
    return frozenset((info.st_dev, info.st_ino) for info in (os.stat(path) for path in named if os.path.isfile(path)))


class _Rule(NamedTuple):
    """A line of an ignore file whose directory's path has `base` characters; its reach is 0 when it leaves out."""

    regex: re.Pattern[str]
    base: int
    reach: int

    def matches(self, path: str) -> bool:
        """Whether the line matches this very path, and not only a directory above it."""
        text = path[self.base :].replace("\n", "\r")  # pathspec's regexes stop at a newline, git's patterns do not
        # pathspec's only group marks a match that ended at a directory.
        return any(found.lastindex is None or found.end() == len(text) for found in self.regex.finditer(text))


class _Place(NamedTuple):
    """A directory to list."""

    directory: Path
    path: str  # inside the upload: "" or "a/b/"
    hold: int
    tree: dict[str, set[str]] | None  # the names git lists, by directory; None: no git, .gitignore files are read
    rules: tuple[_Rule, ...] = ()  # of the .rayignore files
    ignores: tuple[_Rule, ...] = ()  # of the .gitignore files, without git
    brought_back: bool = False  # from what git ignores, so git's rules say nothing about it
    links: tuple[Path, ...] = ()  # the real directories in which a link was followed to get here


@dataclass
class _Walk:
    excludes: tuple[_Rule, ...]
    logins: frozenset[tuple[int, int]]
    entries: list[Entry] = field(default_factory=list)
    withheld: list[str] = field(default_factory=list)

    def visit(self, place: _Place) -> None:
        """Adds all there is below a directory."""
        place = place._replace(rules=place.rules + _ignore_file(place, ".rayignore", _NEVER))
        if place.tree is None and not place.brought_back:
            place = place._replace(ignores=place.ignores + _ignore_file(place, ".gitignore", _RULED_OUT))
        brings_back = any(rule.reach for rule in place.rules)
        names = set() if place.tree is None else set(place.tree.get(place.path, ()))
        if place.tree is None or brings_back:
            try:
                names.update(os.listdir(place.directory))
            except OSError as error:
                if place.hold:
                    return
                raise unusable(place.path, error) from None
        for name in sorted(names - {".git"}):
            self._child(place, name, enter_held=brings_back or any(rule.reach for rule in self.excludes))

    def _child(self, place: _Place, name: str, enter_held: bool) -> None:
        path, source = place.path + name, place.directory / name
        mode, size, is_login, problem = 0, 0, False, None
        try:
            info = source.stat()
            mode, size, is_login = info.st_mode, info.st_size, (info.st_dev, info.st_ino) in self.logins
        except OSError as error:
            if not source.is_symlink() and isinstance(error, FileNotFoundError | NotADirectoryError):
                return  # git tracks it, but it was deleted
            problem = error
        is_directory = stat.S_ISDIR(mode)
        git_ignored = _git_ignores(place, name, is_directory)
        hold = self._hold(place, name, is_directory, git_ignored, is_login)
        if hold and not (is_directory and enter_held and not source.is_symlink()):
            return
        if problem:
            raise unusable(path, problem)
        if is_directory:
            self.visit(_below(place, name, hold, git_ignored))
        elif stat.S_ISREG(mode):
            _check_file(path, source)
            self.entries.append(Entry(path, source, size))

    def _hold(self, place: _Place, name: str, is_directory: bool, git_ignored: bool, is_login: bool) -> int:
        path = place.path + name + "/" * is_directory
        outer = max(place.hold, _GIT_IGNORED if git_ignored else _IN)
        secret = is_login or _SECRET.fullmatch(name) or (is_directory and name in _SECRET_DIRECTORIES)
        hold = _NEVER if secret or name in _DEFAULTS else outer
        reach = _verdict(place.rules + self.excludes, path)
        if reach == 0:
            return max(hold, _RULED_OUT)
        if reach is not None and reach >= hold:
            return _IN
        if secret and (reach or not outer):
            self.withheld.append(path)
        return hold


def _below(place: _Place, name: str, hold: int, git_ignored: bool) -> _Place:
    path, directory = place.path + name + "/", place.directory / name
    inner = place._replace(path=path, directory=directory, hold=hold)
    is_link = directory.is_symlink()
    if is_link:
        target, here = directory.resolve(), place.directory.resolve()
        if any(passed.is_relative_to(target) for passed in (*place.links, here)):
            raise UsageError(f"{shown(path[:-1])} is a link loop; add it to .rayignore or fix it")
        inner = inner._replace(links=(*place.links, here))
    if git_ignored and not hold:
        return inner._replace(tree=None, ignores=(), brought_back=True)
    if place.tree is not None and hold <= _RULED_OUT and (is_link or path not in place.tree):
        # A link, a submodule or a repository in the repository: git lists no more than its name.
        return inner._replace(tree=_git_tree(directory, path))
    return inner


def _git_tree(directory: Path, prefix: str) -> dict[str, set[str]] | None:
    """The names git lists by directory, or None where git has no say."""
    listed = _git(directory, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listed in (None, b"./\0") or (not listed and _git(directory, "check-ignore", ".")):
        return None  # no repository, a submodule not checked out, or a directory that was named although it is ignored
    tree: dict[str, set[str]] = {prefix: set()}
    for path in os.fsdecode(listed or b"").split("\0")[:-1]:
        path = prefix + path.rstrip("/")
        while path + "/" != prefix and path:
            parent, _, name = path.rpartition("/")
            tree.setdefault(parent and parent + "/", set()).add(name)
            path = parent
    return tree


def _git(directory: Path, *arguments: str) -> bytes | None:
    # A git hook's variables would answer for another repository; the messages below are matched in English.
    env = {key: value for key, value in os.environ.items() if key not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    try:
        done = subprocess.run(["git", *arguments], cwd=directory, env=env | {"LC_ALL": "C"}, capture_output=True)
    except OSError:
        return None
    said = os.fsdecode(done.stderr)
    if "not a git repository" in said or "must be run in a work tree" in said:
        return None
    if done.returncode > 1 or "could not open directory" in said:
        reason = shown(" ".join(said.split()))
        raise UsageError(f"git cannot list {shown(str(directory))}: {reason}; fix that, or have git ignore it")
    return done.stdout


def _git_ignores(place: _Place, name: str, is_directory: bool) -> bool:
    if place.tree is not None:
        return name not in place.tree.get(place.path, ())
    if is_directory and not (place.directory / name).is_symlink():  # to git, a link is never a directory
        name += "/"
    return _verdict(place.ignores, place.path + name) == 0


def _verdict(rules: Sequence[_Rule], path: str) -> int | None:
    """0: left out; more: the reach of the `!` lines that come last; None: no line matches."""
    reach = None
    for rule in reversed(rules):
        if rule.matches(path):
            if not rule.reach:
                return reach or 0
            reach = max(reach or 0, rule.reach)
    return reach


def _ignore_file(place: _Place, name: str, reach: int) -> tuple[_Rule, ...]:
    file = place.directory / name
    try:
        lines = file.read_text("utf-8-sig", "surrogateescape").split("\n") if os.path.isfile(file) else []
    except OSError as error:
        raise unusable(place.path + name, error) from None
    return _rules(lines, place.path + name, reach, len(place.path))


def _rules(lines: Sequence[str], origin: str, reach: int, base: int = 0) -> tuple[_Rule, ...]:
    if not lines:
        return ()
    from pathspec import GitIgnoreSpec

    rules = []
    for line in lines:
        try:
            patterns = GitIgnoreSpec.from_lines([line]).patterns
        except ValueError:
            if origin.endswith(".gitignore"):
                continue  # as git does
            raise UsageError(f"{shown(origin)}: {line!r} is not a gitignore pattern; correct or remove it") from None
        # `!src/**` does not name a secret in src: a secret needs a last part that holds more than wildcards.
        names = re.search(r"\w", line.rstrip("/ ").rpartition("/")[2])
        brings = reach if names else min(reach, _GIT_IGNORED)
        rules += [_Rule(found.regex, base, 0 if found.include else brings) for found in patterns if found.regex]
    return tuple(rules)


def _check_file(path: str, source: Path) -> None:
    if not os.access(source, os.R_OK):
        raise unusable(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    if "\\" in path or ntpath.splitdrive(path)[0] or path.encode(errors="replace").decode() != path:
        raise UsageError(f"Ray cannot unpack a file named {shown(path)}; rename it or add it to .rayignore")


def unusable(path: str, error: OSError) -> UsageError:
    """The error for a file that cannot be sent."""
    reason = {errno.ELOOP: "is a link loop", errno.ENOENT: "is a broken link, or is gone"}.get(error.errno or 0)
    reason = reason or f"cannot be read ({error.strerror})"
    return UsageError(f"{shown(path)} {reason}; add it to .rayignore or fix it")


def shown(path: str) -> str:
    """A path as a message can hold it, on one line."""
    return path if path.isprintable() else repr(path)
