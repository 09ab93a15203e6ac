"""Gathers the mistakes of a file, so that all are reported at once."""

import difflib
from collections.abc import Collection, Mapping

from client.errors import UsageError

KeyPath = tuple[str | int, ...]  # from the top of the file to a key or an item


class Mistakes:
    """Gathers what is wrong with a file, each with its line."""

    def __init__(self, path: str, lines: Mapping[KeyPath, int]) -> None:
        self._path, self._lines, self._found = path, lines, dict[tuple[int, str], None]()

    def line(self, where: KeyPath) -> int:
        """The line of a key, or of the nearest one above it that is in the file."""
        if where not in self._lines and where[:1] == ("jobs",) and (default := ("defaults", *where[2:])) in self._lines:
            where = default
        while where not in self._lines and where:
            where = where[:-1]
        return self._lines.get(where, 1)

    def add(self, where: KeyPath, what: str) -> None:
        """Add a mistake."""
        self._found[self.line(where), what] = None

    def unknown(self, where: KeyPath, word: str, known: Collection[str], kind: str) -> None:
        """Add a word that is not known, with the nearest one that is."""
        close = difflib.get_close_matches(word, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"use {', '.join(known)}" if known else "there are none"
        self.add((*where, word), f"there is no {kind} {word}; {hint}")

    def check(self) -> None:
        """Raise UsageError if there are mistakes."""
        if len(found := sorted(self._found)) == 1:
            raise UsageError(f"{self._path}, line {found[0][0]}: {found[0][1]}")
        if found:
            lines = [f"line {line}: {what}" for line, what in found]
            raise UsageError("\n  ".join([f"{self._path} has {len(found)} mistakes:", *lines]))
