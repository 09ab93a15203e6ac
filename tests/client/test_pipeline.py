"""jobs/pipeline.yaml on an embedded Ray: a private repository, its packages, and its script with tasks."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.server import serving
from tests.client.test_git_sync import CREDENTIALS, TOKEN, Forge, places
from tests.client.test_packages import make_wheel
from tests.conftest import ROOT, Cli

TRAIN = """
import sys, ray, helper
ray.init()
print("driver", sys.executable, helper.word())
print("task", *ray.get(ray.remote(lambda: (sys.executable, helper.word())).remote()))
"""
HELPER = "import rw_packed\n\ndef word():\n    return rw_packed.WORD + ' {}'\n"


@pytest.fixture
def ray(run: Cli) -> Iterator[dict[str, str]]:
    """The environment of a user who keeps a Ray that has the token."""
    with tempfile.TemporaryDirectory(prefix="rwt", dir="/tmp") as folder:
        env = {"TMPDIR": folder, "GIT_TOKEN": TOKEN}
        assert run("up", "embedded", env=env, timeout=100).returncode == 0
        try:
            yield env
        finally:
            assert run("down", "embedded", env=env, timeout=60).returncode == 0


def test_the_chain(run: Cli, ray: dict[str, str], tmp_path: Path) -> None:
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs")
    forge = Forge(tmp_path)
    forge.token = TOKEN
    make_wheel(forge.work, "rw_packed")
    forge.commit(
        **{"train.py": TRAIN, "helper.py": HELPER.format(1), "requirements.txt": "./rw_packed-1.0-py3-none-any.whl"}
    )
    data = tmp_path / "data"
    python = data / "environment" / "bin" / "python"

    def chain(**more: str) -> tuple[str, str]:
        env = {**ray, "DATA": str(data), "REPOSITORY": f"{url}/some.git", **more}
        done = run("run", "jobs/pipeline.yaml", "--address", "embedded", env=env, timeout=150)
        assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
        return done.stdout.decode(), done.stderr.decode()

    with serving(forge.answer) as url:
        output, _ = chain()
        for who in ("driver", "task"):
            assert f"work              | {who} {python} rw_packed 1\n" in output
        asked = len(forge.sent)
        output, said = chain()
        assert said.splitlines()[-1] == "ray-workload: pipeline: 3 jobs, 3 skipped" and len(forge.sent) == asked
        commit = forge.commit(**{"helper.py": HELPER.format(2)})
        output, _ = chain(REF=commit)
        assert f"is at commit {commit}, " in output and "environment is complete" not in output
        assert f" | driver {python} rw_packed 2\n" in output and f"task {python} rw_packed 2\n" in output

    assert f"Basic {CREDENTIALS}" in forge.sent
    listed = run("list", "--address", "embedded", "-o", "json", env=ray).stdout
    assert len(json.loads(listed)) == 6 and TOKEN.encode() not in listed
    assert not places(tmp_path, TOKEN, CREDENTIALS) and not places(Path(ray["TMPDIR"]), TOKEN, CREDENTIALS)
