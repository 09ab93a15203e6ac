"""The report of `doctor`: one line per check. A failed check ends only the checks that depend on it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from client.errors import RUN_DOCTOR, ClientError, OutputLost

OK, WARN, FAIL = "ok", "warn", "FAIL"


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        check: what was checked.
        status: ok, warn, or FAIL where jobs cannot run.
        found: the result.
        fix: what to do about it; empty if the status is ok.
    """

    check: str
    status: str
    found: str
    fix: str = ""


@dataclass
class Report:
    """Collects the checks.

    Attributes:
        show: takes each check as soon as it is done.
        checks: all of them.
    """

    show: Callable[[Check], object]
    checks: list[Check] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether any check failed."""
        return any(check.status == FAIL for check in self.checks)

    def add(self, check: str, status: str, found: str, fix: str = "") -> None:
        """Add a check. Line breaks become spaces."""
        self.checks.append(Check(check, status, " ".join(found.split()), " ".join(fix.split())))
        self.show(self.checks[-1])

    @contextmanager
    def attempt(self, check: str, fix: str = "") -> Iterator[None]:
        """Turn an error into a failed check, and continue.

        Args:
            check: what is checked.
            fix: what to do about an error; empty for the error's own hint.
        """
        try:
            yield
        except OutputLost:  # the report itself cannot be printed
            raise
        except ClientError as error:
            hint = error.hint if error.hint != RUN_DOCTOR else ""
            self.add(check, FAIL, error.what, fix or hint or "correct this and the other lines, then try again")
