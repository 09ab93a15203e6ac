"""The patterns of gitignore(5), with the rules of git's own wildmatch.c.

The package pathspec cannot be used: with several ignore files, it matters whether a line matches a path itself or only
a directory above it, and only private parts of its regular expressions tell.
"""

import re
from typing import NamedTuple

_CHARACTER = r"(?:\\.|[^]\\])"
_SET_ITEM = rf"(?:\[:[^]]+:]|{_CHARACTER}(?:-{_CHARACTER})?+)"
_TOKEN = re.compile(
    rf"(?P<levels>(?:^|(?<=/))\*\*+(?P<slash>/|$)) | (?P<star>\*+) | (?P<any>\?)"
    rf"| \[(?P<negated>[!^]?+)(?P<items>(?:](?:-{_CHARACTER})?+)?+{_SET_ITEM}*+)]"
    r"| \\(?P<escaped>.) | (?P<literal>[^\\[])",
    re.VERBOSE | re.DOTALL,
)
_ITEM = re.compile(r"\[:(?P<name>[^]]+):] | \\?(?P<first>.)(?:-\\?(?P<last>.))?", re.VERBOSE | re.DOTALL)
_CLASSES = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "blank": r" \t",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r" \t-\r",
    "upper": "A-Z",
    "xdigit": "0-9a-fA-F",
}


class Pattern(NamedTuple):
    """One line of an ignore file."""

    negated: bool  # the line starts with `!`
    directories_only: bool
    name_only: bool  # the line has no slash: it is compared with the name, in any directory
    regex: re.Pattern[str]

    def matches(self, path: str, name: str, is_directory: bool) -> bool:
        """Whether the line matches this path itself, and not only a directory above it.

        Args:
            path: the path, relative to the directory of the ignore file.
            name: the last part of the path.
            is_directory: whether the path is a directory.
        """
        if self.directories_only and not is_directory:
            return False
        return self.regex.fullmatch(name if self.name_only else path) is not None


def parse(line: str) -> Pattern | None:
    """Parse one line of an ignore file.

    Args:
        line: the line, without its line feed.

    Returns:
        The pattern; None for an empty line or a comment.

    Raises:
        ValueError: the line is not a valid pattern.
    """
    if line.startswith("#"):
        return None
    found = re.fullmatch(r"(!?)((?:\\.|[^\\])*?) *", line.removesuffix("\r"), re.DOTALL)
    if not found:
        raise ValueError("the last character is an escape")
    negation, glob = found.groups()
    if not (negation or glob):
        return None
    directories_only, glob = glob.endswith("/"), glob.removesuffix("/")
    if not glob:
        raise ValueError("there is no name")
    regex = re.compile(_translate(glob.removeprefix("/")), re.DOTALL)
    return Pattern(bool(negation), directories_only, "/" not in glob, regex)


def _translate(glob: str) -> str:
    regex, position = "", 0
    while position < len(glob):
        token = _TOKEN.match(glob, position)
        if not token:
            raise ValueError("a bracket is not closed, or the last character is an escape")
        position = token.end()
        if token["levels"]:
            regex += "(?:.*/)?" if token["slash"] else ".*"
        elif token["star"]:
            regex += "[^/]*"
        elif token["any"]:
            regex += "[^/]"
        elif token["items"] is not None:
            regex += _set(token["items"], bool(token["negated"]))
        else:
            regex += re.escape(token["escaped"] or token["literal"])
    return regex


def _set(items: str, negated: bool) -> str:
    members = ""
    for item in _ITEM.finditer(items):
        name, first, last = item.group("name", "first", "last")
        if name:
            if name not in _CLASSES:
                raise ValueError(f"there is no character class {name}")
            members += _CLASSES[name]
        elif first <= (last or first):  # to git, a range in reverse order is empty
            members += re.escape(first) + (f"-{re.escape(last)}" if last else "")
    if negated:
        return f"[^/{members}]"
    return f"(?!/)[{members}]" if members else "(?!)"
