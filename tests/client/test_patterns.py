"""The patterns of ignore files match what they match in git."""

import subprocess
from pathlib import Path

import pytest

from client.upload.patterns import parse

FILES = [
    "a", "b", "ab", "abc", "a.py", "-", "^x", "!bang", "#hash", "x y", "trail ", "new\nline", "A1", "z]", "[ab]",
    "*s", "[", "d/a", "d/b", "d/abc", "d/e/a", "d/e/f/a", "d/e/f/abc.py", "e/d/a", "foo/foo/foo", "foo/bar",
    "x/foo/x/foo/y", ":",
]  # fmt: skip
PATTERNS = [
    "a", "/a", "a/", "/d", "d/", "/d/", "d/a", "/d/a", "d/*", "d/**", "/d/**", "d/**/", "**/a", "**/e/", "d/**/a",
    "*", "**", "/**", "/*", "*/", "**/", "***", "***/a", "d/***", "d/***/a", "**a", "d/**a", "?**/a", "d**", "**/**",
    "/*/*", "*.py", "a*c", "a?", "?", "/?", "d?a", "d/?", "ab*", "*b*", "foo", "foo/", "/foo", "foo/foo",
    "**/foo/foo", "foo/**", "x/**/foo", "x/**/foo/", "x/**/y", "**/foo/**", "[ab]", "[!a]", "[^a]", "[a-c]", "[a-c]b",
    "[c-a]", "[!c-a]", "[c-ab]", "[]]", "z[]]", "[!]]", "[-a]", "[a-]", "[--a]", "[a-c-e]", "[]-a]", "[[]", "[[]ab]",
    "[[:alpha:]]", "[[:digit:]]", "[[:alpha:]][[:digit:]]", "[![:alpha:]]", "[[:upper:]-z]*", "[[:]", "[[:a]",
    "[[:space:][:punct:]]*", "[\\]]", "[\\a-c]", "d[/]a", "d[!x]a", "\\a", "\\*s", "\\[ab]", "\\!bang", "\\#hash",
    "#hash", "!bang", "x y", "x\\ y", "trail ", "trail\\ ", "trail\\  ", "trail\\\\ ", "a  ", "a\r", " a", "new?line",
    "d/e/../a", "./a", "d//a", "//a", "a//", "^x", "^*", "(a|b)", "a+", "a.py", "a$", "[[:alpha:]", "[[:nothing:]]",
    "[a", "a\\", "[a\\", "foo\\/", "!", "/", "", "  ", "d/[",
]  # fmt: skip
INVALID = {"[[:alpha:]", "[[:nothing:]]", "[a", "a\\", "[a\\", "foo\\/", "!", "/", "d/["}
EMPTY = {"", "  ", "#hash"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("patterns")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    for file in FILES:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def matched_by_git(root: Path, line: str) -> list[str]:
    """Return the paths that a line matches itself: a `!` line does not apply to the paths below a directory."""
    (root / ".git/info/exclude").write_text(f"!{line}\n" if not line.startswith("!") else f"{line}\n", newline="")
    command = ["git", "check-ignore", "--no-index", "--verbose", "-z", "--stdin"]
    every = [f"./{path.relative_to(root)}" for path in root.rglob("*") if ".git" not in path.parts]
    done = subprocess.run(command, cwd=root, input="\0".join(every).encode(), capture_output=True)
    assert done.returncode in (0, 1) and not done.stderr
    return sorted(path.removeprefix("./") for path in done.stdout.decode().split("\0")[3::4])


def matched_by_us(root: Path, line: str) -> list[str]:
    pattern = parse(line)
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if ".git" not in path.parts
        and pattern
        and pattern.matches(str(path.relative_to(root)), path.name, path.is_dir())
    )


@pytest.mark.parametrize("line", [line for line in PATTERNS if line not in INVALID | EMPTY])
def test_a_line_matches_what_it_matches_for_git(tree: Path, line: str) -> None:
    assert matched_by_us(tree, line) == matched_by_git(tree, line)


@pytest.mark.parametrize("line", sorted(INVALID))
def test_a_line_that_matches_nothing_for_git_is_not_valid(tree: Path, line: str) -> None:
    assert matched_by_git(tree, line) == []
    with pytest.raises(ValueError, match="."):
        parse(line)


@pytest.mark.parametrize("line", sorted(EMPTY))
def test_a_comment_and_an_empty_line_are_no_pattern(line: str) -> None:
    assert parse(line) is None
