"""ci/messages.py finds every message that a user can see."""

import re
import subprocess
import sys

import pytest

import client.errors
from tests.conftest import ROOT

ERRORS = [name for name, kind in vars(client.errors).items() if isinstance(kind, type)]
# An error, or the error that a function returns, and the first words of its message; what is in {} is not compared.
RAISED = re.compile(rf"""\b(?:{"|".join(ERRORS)})\(\s*f?(["'])((?:(?!\1|\{{|\\n).)+)""")
KNOWN = {
    "an error and its hint": "there is nothing to run: specify a SCRIPT, or -- and a COMMAND",
    "an error with a placeholder": "{path} is not a text file",
    "a hint of its own": "if the cluster requires one, put it into the file that RAY_AUTH_TOKEN_PATH names",
    "the help of an option": "Reserve CPUs for the driver itself.",
    "the help of a command": "Run a script or a command, show its log, and exit with its code.",
    "a line of doctor": "{ready} of {wanted} pods are ready, and the others were not created",
    "a line of a wait": "waiting for {cluster}: {reason}",
    "the docstring of a function": "List the jobs of a cluster, newest first.",
    "a mistake in the values": "auth.token and auth.existingSecret are both set: keep one",
    "a printf in a template": "api.{$key} is set, but api.type is {$.Values.api.type}: set api.type={$type}",
    "a note after the installation": "The dashboard is on port {.} of every node.",
    "a hook's line": "RayCluster {NAMESPACE}/{CLUSTER} and its pods are gone",
    "a message of ci/kind": "install Docker, or set DOCKER to another command",
}


@pytest.fixture(scope="module")
def messages() -> dict[str, list[str]]:
    """The texts of each file."""
    run = subprocess.run(
        [sys.executable, "ci/messages.py"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    found: dict[str, list[str]] = {}
    for line in run.stdout.splitlines():
        where, text = line.split("  ", 1)
        file, number = where.rsplit(":", 1)
        assert (ROOT / file).read_text().splitlines()[int(number) - 1].strip()
        found.setdefault(file, []).append(text)
    return found


@pytest.mark.parametrize("text", [pytest.param(text, id=kind) for kind, text in KNOWN.items()])
def test_finds_a_message_of_each_kind(messages: dict[str, list[str]], text: str) -> None:
    assert any(text in texts for texts in messages.values())


def test_finds_every_error(messages: dict[str, list[str]]) -> None:
    """Each error class that is called with a text has that text in the list."""
    raised = [
        (str(path.relative_to(ROOT)), words)
        for path in (ROOT / "client").rglob("*.py")
        for _, words in RAISED.findall(path.read_text())
    ]
    assert len(raised) > 60
    assert not [(file, words) for file, words in raised if not any(words in text for text in messages[file])]


def test_leaves_out_what_is_no_prose(messages: dict[str, list[str]]) -> None:
    texts = [text for texts in messages.values() for text in texts]
    assert not [text for text in texts if re.search(r"\$\(|&& |Bearer |import os", text)]
