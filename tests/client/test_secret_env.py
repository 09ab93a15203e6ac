"""Variables from mounted Secrets, run by a real shell; and GPUs that no node has."""

import shlex
import subprocess
from pathlib import Path

import pytest

from client.errors import UsageError
from client.job.request import JobSpec
from client.job.secret_env import exports
from client.targets.target import Endpoint

ODD = 'it\'s a $(touch hacked) "se`cret`" with\nlines and ü'


@pytest.fixture
def endpoint(tmp_path: Path) -> Endpoint:
    folders = {name: tmp_path / name for name in ("wandb", "it's odd")}
    for folder in folders.values():
        folder.mkdir()
    (folders["wandb"] / "api-key").write_text("k1\n")
    (folders["it's odd"] / "ODD").write_text(ODD)
    return Endpoint("a", "http://a", lambda _: None, secrets={name: str(path) for name, path in folders.items()})


def shell(line: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(line, shell=True, cwd=cwd, capture_output=True, text=True, timeout=10, check=False)


def test_values_arrive_as_they_are(endpoint: Endpoint, tmp_path: Path) -> None:
    line = exports({"WANDB": "wandb/api-key", "ODD": None}, endpoint)
    done = shell(f'{line} && sh -c \'printf "%s|%s" "$WANDB" "$ODD"\'', tmp_path)
    assert (done.stdout, done.returncode) == (f"k1|{ODD}", 0)
    assert not (tmp_path / "hacked").exists()


def test_a_missing_key_fails_before_the_driver_starts(endpoint: Endpoint, tmp_path: Path) -> None:
    done = shell(f"{exports({'A': 'wandb/nothing'}, endpoint)} && echo started", tmp_path)
    assert (done.stdout, done.returncode, done.stderr) == ("", 1, "no mounted Secret has the key nothing\n")


def test_the_entrypoint_keeps_its_exit_code_and_its_timeout(endpoint: Endpoint, tmp_path: Path) -> None:
    spec = JobSpec(command=["sh", "-c", 'echo "$A b"; exit 7'], secret_env={"A": "wandb/api-key"}, timeout=60)
    line = spec.entrypoint(endpoint)
    assert "k1" not in line
    assert shlex.split(line)[:5] == ["exec", "timeout", "-k", "30", "60"]
    done = shell(line, tmp_path)
    assert (done.stdout, done.returncode) == ("k1 b\n", 7)


@pytest.mark.parametrize(
    ("name", "where", "words"),
    [
        ("A", "gone/key", "mounts no Secret gone, it has wandb"),
        ("A", "wandb", "give --secret-env A=SECRET/KEY"),
        ("A", "wandb/", "give --secret-env A=SECRET/KEY"),
        ("A B", None, "no name of a variable"),
        ("1A;rm", "wandb/api-key", "no name of a variable"),
    ],
)
def test_what_cannot_be(endpoint: Endpoint, name: str, where: str | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        exports({name: where}, endpoint)


def test_a_target_without_secrets() -> None:
    with pytest.raises(UsageError, match="it has none"):
        exports({"A": None}, Endpoint("embedded", "http://a", lambda _: None))
