"""The client's layers: which module may import which, and where errors are defined."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Each imports only those after it.
LAYERS = ("cli", "doctor", "batch", "job", "chart", "targets", "upload", "ray_api", "kube")
BASE = ("errors", "http", "wait", "streams")  # below all of them; these import only each other
PUBLIC = ("", "__main__")  # the package itself exports the Python API; `python -m client` is the command line
MAX_LINES = 300
FILES = {
    ".".join(path.relative_to(ROOT / "client").with_suffix("").parts).removesuffix("__init__").rstrip("."): path
    for path in sorted((ROOT / "client").rglob("*.py"))
}  # by the module's name inside `client`


def imports(name: str, path: Path, *, runtime: bool = False) -> Iterator[str]:
    """Yield the modules of the client that a module imports, including imports inside functions.

    With `runtime`, skips imports for type checkers only.
    """
    package = ["client", *name.split(".")] if path.name == "__init__.py" else ["client", *name.split(".")][:-1]
    for node in _nodes(ast.parse(path.read_text()), runtime):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            base = base if node.level else node.module or ""
            found = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            found = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        else:
            continue
        for module in found:
            if module == "client" or module.startswith("client."):
                inside = module.partition(".")[2]
                yield inside if inside in FILES else inside.rpartition(".")[0]


def _nodes(tree: ast.AST, runtime: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if runtime and isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        yield node
        yield from _nodes(node, runtime)


def _called(node: ast.Call) -> str:
    return str(getattr(node.func, "attr", "") or getattr(node.func, "id", ""))


def layer(name: str) -> str:
    return name.partition(".")[0]


def test_every_module_is_in_a_layer() -> None:
    assert {layer(name) for name in FILES} == {*LAYERS, *BASE, *PUBLIC}


@pytest.mark.parametrize("name", [name for name in FILES if name not in PUBLIC])
def test_a_module_imports_only_what_is_below_it(name: str) -> None:
    own = layer(name)
    below = {*BASE} if own in BASE else {*BASE, *LAYERS[LAYERS.index(own) :]}
    wrong = {other for other in imports(name, FILES[name]) if layer(other) not in below and other != ""}
    assert not wrong, f"client.{name} imports upward"


def test_the_package_itself_is_asked_for_its_version_only() -> None:
    asking = {name for name, path in FILES.items() if "" in imports(name, path)}
    assert asking <= {"job.submission", "cli.main"}


def test_no_modules_import_each_other() -> None:
    graph = {name: {*imports(name, path, runtime=True)} - {name, ""} for name, path in FILES.items() if name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("name", FILES)
def test_a_module_is_short(name: str) -> None:
    assert len(FILES[name].read_text().splitlines()) <= MAX_LINES


def test_every_error_is_in_one_module() -> None:
    """Every error that users can see is a class in client/errors.py with its own exit code."""
    known = {n.name for n in ast.walk(ast.parse(FILES["errors"].read_text())) if isinstance(n, ast.ClassDef)}
    assert {"ClientError", "UsageError", "ContactLost"} <= known
    derived = {
        f"{name}.{node.name}"
        for name, path in FILES.items()
        if name != "errors"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if (getattr(base, "id", "") or getattr(base, "attr", "")) in known | {"Exception", "BaseException"}
    }
    assert not derived


def test_the_reading_of_imports_sees_them_all(tmp_path: Path) -> None:
    """The tests above prove nothing if `imports` misses an import."""
    path = tmp_path / "x.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nimport client.errors\nfrom client.kube import login\nfrom . import wait\n"
        "if TYPE_CHECKING:\n    from client.cli.output import note\n"
        "def f():\n    from client.job.submit import send\n    import_module('client.ray_api.sdk')\n"
    )
    runtime = {"errors", "kube.login", "wait", "job.submit", "ray_api.sdk"}
    assert {*imports("x", path, runtime=True)} == runtime
    assert {*imports("x", path)} == runtime | {"cli.output"}
