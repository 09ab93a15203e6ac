"""jobs/notebook.ipynb, run by a real kernel."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.client.test_python_api import SPEAKS, SPOKEN, spoken
from tests.conftest import ROOT

NOTEBOOK = ROOT / "jobs" / "notebook.ipynb"


def read() -> NotebookNode:
    notebook: NotebookNode = nbformat.read(NOTEBOOK, as_version=4)
    return notebook


@pytest.mark.usefixtures("as_remote")
def test_the_notebook_runs() -> None:
    notebook = read()
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    shown = {
        cell.id: "".join(out.get("text") or out.data["text/plain"] for out in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    assert re.fullmatch(r"<Job (job-\w+) at http://\S+>", shown["submit"])
    assert "all well: there are 9,592 primes below 100,000\n" in shown["wait"]
    assert shown["result"] == "SUCCEEDED 0\n['all well: there are 9,592 primes below 100,000']\n"
    assert shown["list"].startswith(f"{shown['submit'].split()[1]} SUCCEEDED 0\n")


def test_the_notebook_is_stored_without_outputs() -> None:
    notebook = read()
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) == 4
    assert [(cell.outputs, cell.execution_count, cell.metadata) for cell in code] == [([], None, {})] * len(code)


class Watching(NotebookClient):
    """Creates a file when a line of the job comes out of the kernel."""

    go: Path

    def process_message(self, message: dict[str, Any], cell: NotebookNode, index: int) -> NotebookNode | None:
        if message["msg_type"] == "stream" and "first: é€😀\n" in message["content"]["text"]:
            self.go.touch()
        return super().process_message(message, cell, index)


def test_a_cell_shows_the_log_while_the_job_runs(as_remote: Path) -> None:
    """The job ends only after its first line has come out of the kernel."""
    (as_remote / "speaks.py").write_text(SPEAKS)
    notebook = read()
    notebook.cells = [cell for cell in notebook.cells if cell.id == "submit"]
    runner = Watching(notebook, timeout=120, resources={"metadata": {"path": str(as_remote)}})
    runner.go = as_remote / "go"
    submit = f"client.submit('speaks.py', {str(runner.go)!r})"
    notebook.cells[0].source = f"import client\n{submit}.wait(show=True, timeout=60).exit_code"
    runner.execute()
    *streams, result = notebook.cells[0].outputs
    assert result.data["text/plain"] == "7"
    assert spoken("".join(stream.text for stream in streams).split("\n")) == SPOKEN
