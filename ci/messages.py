"""Print every text that the project shows its users, one a line: `FILE:LINE  TEXT`, with placeholders as {name}.

The list has the errors of the client with their hints, all other strings that are prose, and the first lines of public
docstrings, which click and `help` show. It also has the messages of the chart's scripts and templates, and of ci/kind.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "charts/ray-workload"
ERRORS = ROOT / "client/errors.py"
SCRIPTS = (ROOT / "ci/kind", ROOT / "ci/upgrade-crds")

Text = tuple[int, str]  # with the number of its line
_PROSE = re.compile(r"[A-Za-z]{2,}[,:;]? (\{|`|[A-Za-z]+\b)|\} [a-z]{2,}")
# Strings with shell code, patterns, types, HTTP headers or YAML are not prose.
_CODE = re.compile(
    r"\$\(|&& |\\[sw(*]|(?:tuple|dict|bytes)[\[\]]|import \w+, |/p\b|Bearer |Path=/|<!doc|\\n *\w+: |^f=\$|\|\^|\[ -d"
)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_PRINTF = re.compile(r'printf "((?:[^"\\]|\\.)*)"((?: (?:\((?:[^()]|\([^()]*\))*\)|[^\s()]+))*)')
_ARGUMENT = re.compile(r"\((?:[^()]|\([^()]*\))*\)|[^\s()]+")


def errors() -> set[str]:
    """Return the names of the client's error classes."""
    return {node.name for node in ast.walk(ast.parse(ERRORS.read_text())) if isinstance(node, ast.ClassDef)}


def prose(text: str) -> bool:
    """Return whether a string has words in a row, and is not code."""
    plain = re.sub(r"\{[^}]*\}", "{}", text)
    return bool(_PROSE.search(plain) and not _CODE.search(plain))


def shown(node: ast.expr) -> str:
    """Return a string as a user sees it; everything else in braces."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(map(shown, parts))
        case ast.FormattedValue(value=value):
            return f"{{{ast.unparse(value)}}}"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return shown(left) + shown(right)
        case ast.IfExp(body=body, orelse=orelse):
            return f"{shown(body)} | {shown(orelse)}"
    return f"{{{ast.unparse(node)}}}"


class Messages(ast.NodeVisitor):
    """Collects the texts of a module of Python."""

    def __init__(self, errors: set[str]) -> None:
        """Start with none.

        Args:
            errors: the names of the error classes.
        """
        self.errors, self.texts, self._docstrings = errors, list[Text](), set[ast.AST]()

    def visit(self, node: ast.AST) -> None:
        """Collect the text of a node. An error and its hint are one text."""
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            self._docstring(node)
        called = ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
        if isinstance(node, ast.Call) and (called in self.errors or called == "add" and len(node.args) > 2):
            parts = [*node.args, *(keyword.value for keyword in node.keywords)]
            self.texts.append((node.lineno, ": ".join(map(shown, parts))))
        elif isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
            if node not in self._docstrings and prose(text := shown(node)):
                self.texts.append((node.lineno, text))
        else:
            self.generic_visit(node)

    def _docstring(self, node: ast.Module | ast.ClassDef | ast.FunctionDef) -> None:
        first = node.body[0]
        assert isinstance(first, ast.Expr)
        self._docstrings.add(first.value)
        if not isinstance(node, ast.Module) and not node.name.startswith("_"):
            self.texts.append((first.lineno, (ast.get_docstring(node) or "").splitlines()[0]))


def in_python(path: Path) -> list[Text]:
    """Return the texts of a module."""
    messages = Messages(errors())
    messages.visit(ast.parse(path.read_text()))
    return messages.texts


def in_script(path: Path) -> Iterator[Text]:
    """Yield the texts of a shell script: its quoted strings that are prose."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.startswith("#"):
            texts = (quoted.replace("\\`", "`") for quoted in _QUOTED.findall(line))
            yield from ((number, text) for text in texts if prose(text))


def in_template(path: Path) -> Iterator[Text]:
    """Yield the texts of a template: its quoted strings that are prose, with the arguments of printf in braces."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if path.suffix == ".txt":
            text = re.sub(r"\{\{-? *(.*?) *-?\}\}", r"{\1}", line)
            texts = [] if line.startswith(("{{-", "  ")) else [text]  # "  ": a command
        else:
            formatted = _PRINTF.sub(lambda found: f'"{_filled(found[1], found[2])}"', line)
            texts = _QUOTED.findall(formatted)
        yield from ((number, text.strip()) for text in texts if prose(text))


def _filled(form: str, arguments: str) -> str:
    left = iter(_ARGUMENT.findall(arguments.replace('"', "'")))
    return re.sub(r"%[sqd]", lambda _: f"{{{next(left, '')}}}", form)


def gather() -> Iterator[tuple[str, int, str]]:
    """Yield every text, with its file and line."""
    for read, paths in (
        (in_python, [*sorted((ROOT / "client").rglob("*.py")), *sorted((CHART / "files").glob("*.py"))]),
        (in_template, sorted(p for p in (CHART / "templates").rglob("*") if p.suffix in (".tpl", ".txt", ".yaml"))),
        (in_script, SCRIPTS),
    ):
        for path in paths:
            for number, text in read(path):
                yield str(path.relative_to(ROOT)), number, " ".join(text.split())


if __name__ == "__main__":
    for file, number, text in gather():
        print(f"{file}:{number}  {text}")
