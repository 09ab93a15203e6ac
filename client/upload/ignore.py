"""The list of files in an upload, made before anything is packed.

Git's rules apply, then `.rayignore` files, then the `excludes` of the job. The last line that matches a path decides; a
path that no line matches is treated as its directory is. Secrets and Ray's default excludes are left out unless a `!`
line of a .rayignore names them. The files that this process writes its own output to are always left out.
"""

import errno
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from client.errors import UsageError
from client.upload.git import names_by_directory
from client.upload.patterns import Pattern, parse
from client.upload.problems import check_uploadable, file_error, printable

_DEFAULT_EXCLUDES = frozenset({".venv", "venv", "__pycache__"})  # Ray's own; .git is left out before any rule applies
_SECRET_DIRECTORIES = frozenset({".ssh", ".aws", ".kube", ".gnupg"})
_SECRET = re.compile(
    r"\.env | \.env\.(?!(example|sample|template)$).* | .*\.(pem|key|p12|pfx) | id_(rsa|dsa|ecdsa|ed25519)"
    r"| \.(netrc|pypirc|npmrc) | application_default_credentials\.json",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
_LOGIN_VARIABLES = ("RAY_AUTH_TOKEN_PATH", "KUBECONFIG", "GOOGLE_APPLICATION_CREDENTIALS")
_OUTPUT_DESCRIPTORS = (1, 2)

FileId = tuple[int, int]  # device and inode


class _Exclusion(IntEnum):
    """Why a path is left out, the strongest reason last. A `!` line overrides reasons up to a certain one."""

    NONE = 0
    LINE = 1
    GIT = 2
    PROTECTED = 3  # a secret, or one of Ray's default excludes


@dataclass(frozen=True)
class Entry:
    """One file of an upload.

    Attributes:
        path: the path in the upload.
        source: the local file.
        size: the number of bytes when it was listed. No more are sent.
        file_id: device and inode when it was listed.
        modified: when it was written last, as Unix time.
    """

    path: str
    source: Path
    size: int
    file_id: FileId
    modified: float


@dataclass(frozen=True)
class Listing:
    """The files of one package.

    Attributes:
        root: the folder or the single file that was given.
        entries: the files, sorted by path.
        withheld: the paths of the secrets that were left out.
    """

    root: Path
    entries: tuple[Entry, ...]
    withheld: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files, before compression."""
        return sum(entry.size for entry in self.entries)

    def largest(self, count: int = 10) -> list[Entry]:
        """The largest files, in order of size."""
        return sorted(self.entries, key=lambda entry: (-entry.size, entry.path))[:count]


def listing(root: Path, excludes: Sequence[str] = (), prefix: str = "", *, may_be_empty: bool = False) -> Listing:
    """List the files of a folder that an upload contains. This reads only ignore files.

    Args:
        root: the folder.
        excludes: gitignore patterns, relative to the folder.
        prefix: the path of the folder in the upload, "" or "name/".
        may_be_empty: it need not have a file.

    Raises:
        UsageError: the folder cannot be listed, or a file in it cannot be uploaded.
    """
    root = root.absolute()
    if not root.is_dir():
        raise UsageError(f"{printable(str(root))} is not a directory", "specify the directory to upload")
    walk = _Walk(
        _rules(excludes, "excludes", _Exclusion.LINE, len(prefix)),
        logins=_file_ids(path for name in _LOGIN_VARIABLES for path in os.environ.get(name, "").split(os.pathsep)),
        outputs=_file_ids(_OUTPUT_DESCRIPTORS),
    )
    walk.visit(_Directory(root, prefix, _Exclusion.NONE, names_by_directory(root, prefix)))
    if not walk.entries and not may_be_empty:
        raise UsageError(
            f"no file in {printable(str(root))} may be uploaded", "check its .gitignore and .rayignore files"
        )
    return Listing(root, tuple(sorted(walk.entries, key=lambda entry: entry.path)), tuple(sorted(walk.withheld)))


def file_listing(file: Path) -> Listing:
    """The listing of a single file, which is uploaded under its own name.

    Raises:
        UsageError: the file cannot be uploaded.
    """
    try:
        info = file.stat()
    except OSError as error:
        raise file_error(str(file), error) from None
    check_uploadable(file.name, file)
    return Listing(file, (Entry(file.name, file, info.st_size, (info.st_dev, info.st_ino), info.st_mtime),))


def _file_ids(files: Iterable[str | int]) -> frozenset[FileId]:
    """The ids of the regular files among paths and file descriptors."""
    found = set()
    for file in files:
        try:
            info = os.stat(file)
        except OSError:
            continue
        if stat.S_ISREG(info.st_mode):
            found.add((info.st_dev, info.st_ino))
    return frozenset(found)


class _Rule(NamedTuple):
    """A line of an ignore file."""

    pattern: Pattern
    base: int  # the length of the path of the ignore file's directory
    overrides: _Exclusion  # the strongest exclusion that the line overrides; NONE if the line excludes


class _Directory(NamedTuple):
    """A directory to list."""

    location: Path
    path: str  # in the upload: "" or "a/b/"
    exclusion: _Exclusion
    git_names: dict[str, set[str]] | None  # the names that git lists, by directory; None: .gitignore files are read
    rayignore: tuple[_Rule, ...] = ()
    gitignore: tuple[_Rule, ...] = ()
    git_overridden: bool = False  # a `!` line overrides git for the whole directory
    linked_from: tuple[Path, ...] = ()  # the real directories of the links that lead here


@dataclass
class _Walk:
    excludes: tuple[_Rule, ...]
    logins: frozenset[FileId]
    outputs: frozenset[FileId]
    entries: list[Entry] = field(default_factory=list)
    withheld: list[str] = field(default_factory=list)

    def visit(self, directory: _Directory) -> None:
        """Add the files below a directory."""
        rayignore = directory.rayignore + _ignore_file(directory, ".rayignore", _Exclusion.PROTECTED)
        directory = directory._replace(rayignore=rayignore)
        if directory.git_names is None and not directory.git_overridden:
            gitignore = directory.gitignore + _ignore_file(directory, ".gitignore", _Exclusion.LINE)
            directory = directory._replace(gitignore=gitignore)
        overridable = any(rule.overrides for rule in rayignore)
        names = set() if directory.git_names is None else set(directory.git_names.get(directory.path, ()))
        if directory.git_names is None or overridable:
            try:
                names.update(os.listdir(directory.location))
            except OSError as error:
                if directory.exclusion:
                    return
                raise file_error(directory.path, error) from None
        enter_excluded = overridable or any(rule.overrides for rule in self.excludes)
        for name in sorted(names - {".git"}):
            self._add(directory, name, enter_excluded)

    def _add(self, parent: _Directory, name: str, enter_excluded: bool) -> None:
        path, source = parent.path + name, parent.location / name
        mode, size, file_id, modified, problem = 0, 0, (0, 0), 0.0, None
        try:
            info = source.stat()
            mode, size, file_id, modified = info.st_mode, info.st_size, (info.st_dev, info.st_ino), info.st_mtime
        except OSError as error:
            if not source.is_symlink() and isinstance(error, FileNotFoundError | NotADirectoryError):
                return  # git tracks it, but it was deleted
            problem = error
        if file_id in self.outputs:
            return
        is_directory = stat.S_ISDIR(mode)
        git_ignored = _git_ignores(parent, name, is_directory)
        exclusion = self._exclusion(parent, name, is_directory, git_ignored, is_login=file_id in self.logins)
        if exclusion and not (is_directory and enter_excluded and not source.is_symlink()):
            return
        if problem:
            raise file_error(path, problem)
        if is_directory:
            self.visit(_subdirectory(parent, name, exclusion, git_ignored))
        elif stat.S_ISREG(mode):
            check_uploadable(path, source)
            self.entries.append(Entry(path, source, size, file_id, modified))

    def _exclusion(
        self, parent: _Directory, name: str, is_directory: bool, git_ignored: bool, is_login: bool
    ) -> _Exclusion:
        inherited = max(parent.exclusion, _Exclusion.GIT if git_ignored else _Exclusion.NONE)
        is_secret = is_login or _SECRET.fullmatch(name) or (is_directory and name in _SECRET_DIRECTORIES)
        exclusion = _Exclusion.PROTECTED if is_secret or name in _DEFAULT_EXCLUDES else inherited
        overrides = _last_match(parent.rayignore + self.excludes, parent.path, name, is_directory)
        if overrides == _Exclusion.NONE:
            return max(exclusion, _Exclusion.LINE)
        if overrides is not None and overrides >= exclusion:
            return _Exclusion.NONE
        if is_secret and (overrides or not inherited):
            self.withheld.append(parent.path + name + "/" * is_directory)
        return exclusion


def _subdirectory(parent: _Directory, name: str, exclusion: _Exclusion, git_ignored: bool) -> _Directory:
    path, location = parent.path + name + "/", parent.location / name
    directory = parent._replace(path=path, location=location, exclusion=exclusion)
    is_link = location.is_symlink()
    if is_link:
        target, here = location.resolve(), parent.location.resolve()
        if any(passed.is_relative_to(target) for passed in (*parent.linked_from, here)):
            raise file_error(path[:-1], OSError(errno.ELOOP, os.strerror(errno.ELOOP)))
        directory = directory._replace(linked_from=(*parent.linked_from, here))
    if git_ignored and not exclusion:
        return directory._replace(git_names=None, gitignore=(), git_overridden=True)
    if parent.git_names is not None and exclusion <= _Exclusion.LINE and (is_link or path not in parent.git_names):
        # git lists only the name of a link, a submodule or a nested repository.
        return directory._replace(git_names=names_by_directory(location, path))
    return directory


def _git_ignores(parent: _Directory, name: str, is_directory: bool) -> bool:
    if parent.git_names is not None:
        return name not in parent.git_names.get(parent.path, ())
    is_directory = is_directory and not (parent.location / name).is_symlink()  # to git, a link is never a directory
    return _last_match(parent.gitignore, parent.path, name, is_directory) == _Exclusion.NONE


def _last_match(rules: Sequence[_Rule], parent: str, name: str, is_directory: bool) -> _Exclusion | None:
    """What the last lines that match a path override; NONE if the very last excludes it, None if no line matches."""
    path, overrides = parent + name, None
    for pattern, base, line_overrides in reversed(rules):
        if pattern.matches(path[base:], name, is_directory):
            if not line_overrides:
                return overrides or _Exclusion.NONE
            overrides = max(overrides or _Exclusion.NONE, line_overrides)
    return overrides


def _ignore_file(directory: _Directory, name: str, overrides: _Exclusion) -> tuple[_Rule, ...]:
    file = directory.location / name
    try:
        lines = file.read_text("utf-8-sig", "surrogateescape").split("\n") if os.path.isfile(file) else []
    except OSError as error:
        raise file_error(directory.path + name, error) from None
    return _rules(lines, directory.path + name, overrides, len(directory.path))


def _rules(lines: Sequence[str], origin: str, overrides: _Exclusion, base: int) -> tuple[_Rule, ...]:
    rules = []
    for line in lines:
        try:
            pattern = parse(line)
        except ValueError as error:
            if origin.endswith(".gitignore"):
                continue  # as git does
            raise UsageError(
                f"{printable(origin)}: {line!r} is not a gitignore pattern: {error}", "correct or remove it"
            ) from None
        if pattern:
            # Only a line whose last part is more than wildcards names a secret: `!src/**` does not.
            names_a_file = re.search(r"\w", line.rstrip("/ ").rpartition("/")[2])
            limit = overrides if names_a_file else min(overrides, _Exclusion.GIT)
            rules.append(_Rule(pattern, base, limit if pattern.negated else _Exclusion.NONE))
    return tuple(rules)
