"""ci/prose.py checks the English: each rule finds what it is for, and leaves ordinary sentences alone."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ci import prose
from tests.conftest import ROOT

needs_vale = pytest.mark.skipif(not (shutil.which("go") and shutil.which("cc")), reason="no Go, or no C compiler")
WRONG = {
    "Utilize a Secret for the token.": "Plain.Words",
    "In order to stop the job, press Ctrl-C.": "Plain.Words",
    "The files are fetched via the proxy.": "Plain.Words",
    "You can easily start a cluster.": "Plain.Fillers",
    "Please note that the job continues.": "Plain.Fillers",
    "Of torch, that file has only the version.": "Plain.Order",
    "Only by the operator is the pod replaced.": "Plain.Order",
    "Nor does the client read them.": "Plain.Order",
    "What the job writes, it keeps.": "Plain.Order",
    "The entry point of the job is a script.": "Plain.Terms",
    "A kubernetes cluster runs Ray.": "Plain.Terms",
    "The kube-config has no context.": "Plain.Terms",
    "The cluster recieves the job.": "Plain.Spelling",
    "The the job ends.": "Vale.Repetition",
    f"The client {'reads one more file and ' * 6}stops.": "Plain.Length",
}
RIGHT = """
The client runs `kubectl` in the namespace of the RayCluster, and prints the job's id on stdout.

What happens if the head fails? Jobs whose driver runs on a worker continue. Only pods with the label can connect.

Use `--address kubernetes://CONTEXT/NAMESPACE/CLUSTER`, or set kuberay-operator.enabled=false and `working_dir`.
"""


@needs_vale
def test_each_rule_finds_its_sentence(tmp_path: Path) -> None:
    assert not prose.why_not()
    page = tmp_path / "page.md"
    page.write_text("\n\n".join(WRONG))
    found = [line.split(":")[1:4:2] for line in prose.findings(page)]
    for number, (sentence, rule) in enumerate(WRONG.items()):
        assert [str(2 * number + 1), rule] in found, sentence
    rules = {f"Plain.{path.stem}" for path in (ROOT / "ci/vale/styles/Plain").glob("*.yml")} - {"Plain.TooLong"}
    assert {rule for _, rule in found} == rules | {"Vale.Repetition"}


@needs_vale
def test_ordinary_sentences_pass(tmp_path: Path) -> None:
    assert not prose.why_not()
    page = tmp_path / "page.md"
    page.write_text(RIGHT)
    assert not prose.findings(page)


def test_says_so_without_go(tmp_path: Path) -> None:
    code = "import ci.prose as prose; from pathlib import Path; prose.TOOLS = Path('none'); prose.main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "the English is not checked: go is missing, install Go and a C compiler\n"
