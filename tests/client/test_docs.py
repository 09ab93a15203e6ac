"""The guide and the README: every command that needs no cluster is run, and every other one says why not."""

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ci.messages import gather
from client.cli.main import cli
from tests.conftest import ROOT, Cli
from tests.guide import NOT_RUN, PAGES, blocks, copy_repository, pages, script

README = ROOT / "README.md"
# Kubernetes, helm, Docker and Python say these, or a word stands for a placeholder of ours.
NOT_LITERAL = [
    "address embedded (a Ray of its own; no other address is set)",
    "there is no RayCluster in ... of context ...",
    "the login plugin gke-gcloud-auth-plugin of context ... cannot be run (No such file or directory)",
    "the API server answers 503 (error trying to reach service: ...)",
    "the Secret ... with the token of RayCluster ... does not exist, or has no key auth_token",
    'no matches for kind "RayCluster" in version "ray.io/v1"',
    'Service "ray-api" is invalid: spec.ports[0].nodePort: ... provided port is already allocated',
    "Bind for 127.0.0.1:8265 failed: port is already allocated",
    "values don't meet the specifications of the schema(s)",
    "another operation (install/upgrade/rollback) is in progress",
    "has no node: 0/... nodes are available: ... didn't match Pod's node affinity/selector",
    "... had untolerated taint",
    "there is no module ... in the cluster's image",
    "no package index could be reached from the cluster",
    "... ran out of memory (OOMKilled): raise head.memory",
    "No space left on device",
    "No module named client",
]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", pages("run: laptop"), ids=name)
def test_every_command_for_a_laptop_runs(page: Path, tmp_path: Path) -> None:
    copy_repository(tmp_path)
    try:
        done = subprocess.run(
            ["bash", "-c", script(page, "run: laptop")], cwd=tmp_path, capture_output=True, text=True, timeout=200
        )
    finally:
        subprocess.run(["ray-workload", "down", "embedded"], cwd=tmp_path, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_is_run_or_says_why_not(page: Path) -> None:
    for block in blocks(page):
        assert block.language, f"{block}: a block without a language"
        if block.language in ("sh", "bash", "shell", "console"):
            run = {f"run: {where}" for where in ("laptop", "cluster", "gallery", "schedulers")}
            allowed = {*run, *(f"not run: {reason}" for reason in NOT_RUN)}
            assert block.language == "sh" and block.comment in allowed, f"{block}: {block.comment!r}"
        if block.language in ("yaml", "python") and not block.title:
            assert block.comment, f"{block}: nothing tests this block"


def test_the_gallery_is_complete() -> None:
    text = (ROOT / "docs/jobs.md").read_text()
    assert set(re.findall(r"^\| `(\S+)` ", text, re.MULTILINE)) == {
        path.name for path in (ROOT / "jobs").iterdir() if path.is_file()
    }
    tests = "".join(path.read_text() for path in (ROOT / "tests/gallery").glob("test_*.py"))
    for block in blocks(ROOT / "docs/jobs.md"):
        if block.comment == "run: gallery":
            (job,) = re.findall(r"^ray-workload submit jobs/(\w+)\.py$", block.text, re.MULTILINE)
            assert f'submit("{job}"' in tests or f"jobs/{job}.py" in tests


@pytest.mark.parametrize("block", [b for page in PAGES for b in blocks(page) if b.comment == "job file"], ids=str)
def test_every_job_file_is_valid(block, run: Cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "job.yaml").write_text(block.text)
    done = run("submit", "--dry-run", "-f", "job.yaml", "--address", "embedded")
    assert done.returncode == 0, done.stderr


def test_the_site_is_built_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    done = subprocess.run(["make", "-o", ".venv/.done", "docs"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    site = ROOT / "build/docs"
    assert (site / "reference/commands.html").exists()
    # What a reader's browser would load: nothing from another host.
    for file in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img|iframe)[^>]*?(?:src|href)="(https?:[^"]+)"', file.read_text())
        assert not loaded, file


def triples(text: str) -> set[tuple[str, ...]]:
    """Return each three words in a row, which no placeholder, number or bracket separates."""
    parts = [re.findall(r"[A-Za-z']+", part) for part in re.split(r"\{[^}]*\}|\.\.\.|[\d(:]", text)]
    return {triple for words in parts for triple in zip(words, words[1:], words[2:], strict=False)}


def test_troubleshooting_has_the_words_of_the_messages() -> None:
    ours = set().union(*(triples(text) for _, _, text in gather()))
    text = (ROOT / "docs/troubleshooting.md").read_text().replace("\n", " ")
    quotes = re.findall(r"`+([^`]+)`+", " ".join(re.findall(r"\*\*(`.+?`)\*\*", text)))
    others = [quote for quote in quotes if not triples(quote) <= ours]
    assert len(quotes) > 40 and others == NOT_LITERAL


def lines_of(picture: Path) -> set[str]:
    """Return the lines of a recorded session, without what differs from run to run."""
    lines: dict[str, str] = {}
    for y, text in re.findall(r'<text .*?y="([\d.]+)".*?>(.*?)</text>', picture.read_text()):
        lines[y] = lines.get(y, "") + text
    texts = (html.unescape(line).partition("\xa0(it\xa0waited")[0] for line in lines.values())
    return {re.sub(r"job-\w+|\d+", "N", text) for text in texts}


def test_the_recorded_session_is_what_the_commands_print(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "ci/record.py", str(tmp_path / "new.svg")], cwd=ROOT, check=True, timeout=200)
    recorded = lines_of(ROOT / "docs/img/session.svg")
    assert len(recorded) > 10 and recorded <= lines_of(tmp_path / "new.svg")


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 120
    linked = set(re.findall(r"\]\(docs/([\w/-]+\.md)", text))
    assert linked >= {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}


def test_every_command_has_help_and_is_in_the_reference() -> None:
    reference = (ROOT / "docs/reference/commands.md").read_text()
    for command_name, command in cli.commands.items():
        assert command.help and command.help.endswith("."), command_name
        assert (f"## {command_name}\n" in reference) != command.hidden
