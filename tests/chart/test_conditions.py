"""Both sides of every `if`, `with` and `range` of the templates are rendered, and depend on the condition.

tests/e2e tests the conditions that depend on `lookup`, which needs a live cluster.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.conftest import CHART, LOADER, Manifest, Render, RenderError

HERE = Path(__file__).parent
CONDITION = re.compile(r"\{\{-?\s*((?:else )?(?:if|with|range)\b.*?)\s*-?\}\}")
LIVE = {
    (
        "auth/secret.yaml",
        'if and (not $live) (eq .Release.Name (dig "metadata" "labels" "app.kubernetes.io/instance" "" $before))',
    ),
    ("_validate.tpl", "if not $operator.singleNamespaceInstall"),
    ("_validate.tpl", "range $name, $value := ternary dict $ray.spec (empty $ray.known)"),
    (
        "_validate.tpl",
        'if or (not (hasKey $ray.known $name)) (and (kindIs "map" $value) (hasKey $value "backend") '
        '(not (dig $name "properties" "backend" "" $ray.known)))',
    ),
    ("_validate.tpl", 'range dig "items" list (lookup "apps/v1" "Deployment" "" "" | default dict)'),
    (
        "_validate.tpl",
        'if and (eq "kuberay-operator" (dig "metadata" "labels" "app.kubernetes.io/name" "" .)) '
        '(ne (printf "%s/%s" $.Release.Namespace $.Release.Name) '
        '(printf "%s/%s" .metadata.namespace (dig "metadata" "annotations" "meta.helm.sh/release-name" "" .)))',
    ),
}
COMPUTED = ("_merge.tpl", "_nodes.tpl", "_spec.tpl", "seam/upstream/ray-cluster.yaml")  # for these, see test_seam.py
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    where: str
    condition: str
    see: str = ""
    note: str = ""
    error: str = ""
    equals: Any = None
    when: Values = field(default_factory=dict)
    unless: Any = field(default_factory=lambda: [{}])
    args: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.where}: {self.condition}"

    @property
    def others(self) -> list[Values]:
        return self.unless if isinstance(self.unless, list) else []

    def seen(self, manifests: list[Manifest]) -> bool:
        """Return whether the rendered manifests contain what the case names."""
        if self.error:
            return self.error in manifests[0].get("text", "")
        kind, name, *path = self.see.split() if self.see else ("ConfigMap", "notes", "data", "text")
        found: Any = next((m for m in manifests if (m["kind"], m["metadata"]["name"]) == (kind, name)), None)
        for key in path:
            inner = dict(enumerate(found)) if isinstance(found, list) else found
            found = inner.get(int(key) if isinstance(found, list) else key) if isinstance(inner, dict) else None
        if self.note:
            return self.note in str(found)
        return bool(found) if self.equals is None else found == self.equals


def nest(dotted: Values) -> Values:
    """Build nested values from dotted keys, with a new dict for each key."""
    values: dict[str, Any] = {}
    for path, value in dotted.items():
        *parents, last = path.split(".")
        inner = values
        for key in parents:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return values


def cases() -> Iterator[Case]:
    for file in ("conditions.yaml", "mistakes.yaml"):
        for where, conditions in yaml.load((HERE / file).read_text(), LOADER)["conditions"].items():
            for condition, given in conditions.items():
                yield Case(where, condition, **given)


CASES = list(cases())


class Outcome:
    """Renders the chart, and returns an error as a manifest."""

    def __init__(self, render: Render, chart: Path) -> None:
        self._render, self._chart = render, chart

    def __call__(self, values: Values, args: tuple[str, ...] = (), chart: Path | None = None) -> list[Manifest]:
        try:
            found = self._render(values=nest(values), args=args, chart=chart or self._chart)
        except RenderError as error:
            return [{"kind": "Error", "metadata": {"name": "error"}, "text": str(error)}]
        for manifest in found:
            (manifest.get("data") or {}).pop("auth_token", None)  # the token is random
        return found


@pytest.fixture(scope="session")
def outcome(render: Render, editable: Path) -> Outcome:
    return Outcome(render, editable)


def wrong(case: Case, outcome: Outcome) -> Iterator[str]:
    if not case.seen(outcome(case.when, case.args)):
        yield f"{case}: not rendered with {case.when}: {str(outcome(case.when, case.args)[0])[:300]}"
    for values in case.others:
        manifests = outcome(values)
        if case.seen(manifests):
            yield f"{case}: rendered with {values}"
        if case.error and manifests[0]["kind"] == "Error":
            yield f"{case}: {values} is valid, but was refused: {manifests[0]['text']}"


def test_both_sides_are_rendered(outcome: Outcome) -> None:
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda case: list(wrong(case, outcome)), CASES))
    assert not (lines := sum(found, [])), "\n".join(lines)


def conditions(text: str) -> dict[str, tuple[int, int]]:
    """Return the position of each condition. The name of a repeated condition ends with (2)."""
    found: dict[str, tuple[int, int]] = {}
    for match in CONDITION.finditer(text):
        name = next(n for n in (match[1], *(f"{match[1]} ({count})" for count in range(2, 99))) if n not in found)
        found[name] = match.span(1)
    return found


def test_every_condition_has_its_case() -> None:
    templates = CHART / "templates"
    found = {
        (str(path.relative_to(templates)), condition)
        for path in templates.rglob("*.*")
        if str(path.relative_to(templates)) not in COMPUTED
        for condition in conditions(path.read_text())
    }
    assert found - LIVE == {(case.where, case.condition) for case in CASES} and len(found) > 100
    assert LIVE < found, "LIVE has a condition that the templates do not have"


def constant(condition: str, side: bool) -> str:
    """Return the condition changed so that it is always, or never, true."""
    kind, _, what = condition.removeprefix("else ").partition(" ")
    begin = condition.removesuffix(what)
    assigned, _, what = what.rpartition(" := ") if kind == "range" else ("", "", what)
    empty, full = ("dict", '(dict "mutant" dict)') if "," in assigned else ("list", '(list "mutant")')
    if kind == "if":
        return f"{begin}{str(side).lower()}"
    if kind == "with":
        return f'{begin}({what}) | default "mutant"' if side else f'{begin}""'
    return f"{begin}{assigned}{' := ' if assigned else ''}" + (f"({what}) | default {full}" if side else empty)


def surviving(case: Case, outcome: Outcome, chart: Path) -> Iterator[str]:
    """Yield the cases whose outcome does not change when the condition becomes a constant."""
    file = "_notes.tpl" if case.where == "NOTES.txt" else case.where
    with tempfile.TemporaryDirectory() as folder:
        if case.condition not in conditions((chart / "templates" / file).read_text()):
            yield f"{case}: no such condition in the template"
            return
        for side in (False, True):
            copy = Path(folder, str(side))
            shutil.copytree(chart, copy)
            template = copy / "templates" / file
            text = template.read_text()
            begin, end = conditions(text)[case.condition]
            template.write_text(text[:begin] + constant(text[begin:end], side) + text[end:])
            if not side and case.seen(outcome(case.when, case.args, copy)):
                yield f"{case}: rendered although the condition is never true"
            if side and case.unless != "never":
                tried: list[tuple[Values, tuple[str, ...]]] = [(values, ()) for values in case.others]
                for values, args in tried or [(case.when, case.args)]:
                    if outcome(values, args, copy) == outcome(values, args):
                        yield f"{case}: no change if the condition is always true, with {values}"


@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_each_condition_matters(outcome: Outcome, editable: Path, all_of_them: bool) -> None:
    """Test the conditions whose other side no case renders, or all of them, which takes long."""
    cases = [case for case in CASES if case.unless in ("both sides", "never") or all_of_them]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda case: list(surviving(case, outcome, editable)), cases))
    assert not (lines := sum(found, [])), "\n".join(lines)
