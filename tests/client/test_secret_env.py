"""Environment variables from mounted Secrets, set by a real shell."""

import subprocess
from pathlib import Path

import pytest

from client.errors import UsageError
from client.job.request import Request
from client.job.secret_env import exports
from client.job.submission import command_line
from client.targets.target import Runtime

ODD = 'it\'s a $(touch hacked) "se`cret`" with\nlines and ü'


@pytest.fixture
def mounted(tmp_path: Path) -> dict[str, str]:
    folders = {name: tmp_path / name for name in ("wandb", "it's odd")}
    for folder in folders.values():
        folder.mkdir()
    (folders["wandb"] / "api-key").write_text("k1\n")
    (folders["it's odd"] / "ODD").write_text(ODD)
    return {name: str(path) for name, path in folders.items()}


def shell(line: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(line, shell=True, cwd=cwd, capture_output=True, text=True, timeout=10, check=False)


def test_values_arrive_as_they_are(mounted: dict[str, str], tmp_path: Path) -> None:
    line = exports({"WANDB": "wandb/api-key", "ODD": None}, mounted)
    done = shell(f'{line} && sh -c \'printf "%s|%s" "$WANDB" "$ODD"\'', tmp_path)
    assert (done.stdout, done.returncode) == (f"k1|{ODD}", 0)
    assert not (tmp_path / "hacked").exists()


def test_a_missing_key_fails_before_the_driver_starts(mounted: dict[str, str], tmp_path: Path) -> None:
    done = shell(f"{exports({'A': 'wandb/nothing'}, mounted)} && echo started", tmp_path)
    assert (done.stdout, done.returncode, done.stderr) == ("", 1, "no mounted Secret has the key nothing\n")


def test_the_entrypoint_keeps_its_exit_code_and_its_timeout(mounted: dict[str, str], tmp_path: Path) -> None:
    request = Request(command=["sh", "-c", 'echo "$A b"; exit 7'], secret_env={"A": "wandb/api-key"}, timeout=60)
    line = command_line(request, Runtime(secrets=mounted))
    assert "k1" not in line
    assert " timeout -k 30 60 sh -c " in line
    done = shell(line, tmp_path)
    assert (done.stdout, done.returncode) == ("k1 b\n", 7)


@pytest.mark.parametrize(
    ("name", "where", "words"),
    [
        ("A", "gone/key", "mounts no Secret gone; it mounts wandb, it's odd: add it to `secrets`"),
        ("A", "wandb", "use --secret-env A=SECRET/KEY"),
        ("A", "wandb/", "use --secret-env A=SECRET/KEY"),
        ("A B", None, "is not a valid name of a variable"),
        ("1A;rm", "wandb/api-key", "is not a valid name of a variable"),
    ],
)
def test_what_cannot_be(mounted: dict[str, str], name: str, where: str | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        exports({name: where}, mounted)


def test_a_target_without_secrets() -> None:
    with pytest.raises(UsageError, match="it mounts none"):
        exports({"A": None}, {})
