"""client/batch/chain_file.py: every mistake in a chain's file is reported at once, each with its line."""

from pathlib import Path

import pytest

from client.batch.batch import Batch
from client.batch.chain_file import chain_of, read_chain
from client.errors import UsageError
from client.job.request import Request
from tests.conftest import Cli

MANY = """\
nmae: x
cluster: {workers: many, gpu: 1}
defaults: {env: {A: [1]}, retry: 1, timeout: soon}
jobs:
  prepare:
    script: prepare.py
    timeot: 5
  train:
    script: missing.py
    after: [prepar]
    parent_job_key: evaluat
  evaluate:
    command: "true"
    script: prepare.py
  words:
    command: [echo, "${NOT_SET}"]
    retries: -1
    retry_on: [never]
  secret:
    command: [echo]
    num_gpus: no
    args: {a: b}
    env: {B_TOKEN: plain}
  empty: 5
  "no name":
    command: [echo]
  one:
    command: [echo]
    parent_job_key: two
    working_dir: nowhere
  two:
    command: [echo]
    after: one
    runtime_env: {env_vars: 5}
    retries: .nan
  words:
    command: [echo]
    num_cpus: .inf
    runtime_env: 5
"""
FOUND = [
    (1, "there is no key nmae; did you mean name?"),
    (2, "there is no key gpu; did you mean gpus?"),
    (2, "workers must be a number of at least 0, not many"),
    (3, "env must map each name to a text"),
    (3, "there is no key retry; did you mean retry_on?"),
    (3, "timeout must be a duration like 90s, 15m or 2h, not soon"),
    (7, "there is no key timeot; did you mean timeout?"),
    (8, "there is no script missing.py"),
    (10, "there is no job prepar; did you mean prepare?"),
    (11, "there is no job evaluat; did you mean evaluate?"),
    (12, "job evaluate needs either a script or a command"),
    (19, "B_TOKEN looks like a secret, "),
    (21, "num_gpus must be a number of at least 0, not False"),
    (22, "args must be a list of words"),
    (24, "job empty must have keys, for example script"),
    (25, "no name is not a name: use letters, digits, underscores, dots and dashes"),
    (27, "jobs wait for each other: one -> two -> one"),
    (27, "there is no folder "),
    (31, "env_vars must be names and values"),
    (35, "retries must be a number of at least 0, not nan"),
    (36, "words is there twice"),
    (38, "num_cpus must be a number of at least 0, not inf"),
    (39, "runtime_env must map names to values"),
]


@pytest.fixture(autouse=True)
def _script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prepare.py").write_text("")
    monkeypatch.chdir(tmp_path)


def mistakes(text: str) -> list[str]:
    """The mistakes of a chain's file, each with its line."""
    Path("chain.yaml").write_text(text)
    with pytest.raises(UsageError) as told:
        read_chain("chain.yaml")
    first, *lines = str(told.value).split("\n  ")
    if lines:
        assert first == f"chain.yaml has {len(lines)} mistakes:"
        return lines
    return [first.removeprefix("chain.yaml, ")]


def chain(text: str) -> Batch:
    Path("chain.yaml").write_text(text)
    return read_chain("chain.yaml")


def requests(text: str) -> dict[str, Request]:
    return {step.name: step.request for step in chain(text).steps}


def test_every_mistake_is_reported_at_once_with_its_line() -> None:
    found = mistakes(MANY)
    assert len(found) == len(FOUND), found
    for line, (number, words) in zip(found, FOUND, strict=True):
        assert line.startswith(f"line {number}: {words}")


def test_a_mistake_is_a_wrong_use_and_nothing_is_asked(run: Cli, tmp_path: Path) -> None:
    (tmp_path / "chain.yaml").write_text("jobs:\n  a: {command: [x], after: b}\n")
    done = run("run", "chain.yaml", "--address", "http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"ray-workload: chain.yaml, line 2: there is no job b; there are a\n"
    assert run("run", "none.yaml").stderr == b"ray-workload: cannot read none.yaml: No such file or directory\n"


ALONE = {
    "nothing": ("", "line 1: there is no key `jobs`, with a name for each job"),
    "a list": ("- jobs\n", "line 1: there is no key `jobs`, with a name for each job"),
    "no jobs": ("name: x\njobs: {}\n", "line 2: there is no key `jobs`, with a name for each job"),
    "jobs in a list": ("jobs:\n- a\n", "line 1: there is no key `jobs`, with a name for each job"),
    "no yaml": (
        "jobs:\n  a: {command: [x]\n  b: 5\n",
        "line 3: not valid YAML: expected ',' or '}', but got '<scalar>'",
    ),
    "a date": (
        "jobs:\n  a: {command: [x], env: {A: 2020-13-01}}\n",
        "chain.yaml: not valid YAML: month must be in 1..12",
    ),
    "name": (
        "name: a/b\njobs:\n  a: {command: [x]}\n",
        "line 1: a/b is not a name: use letters, digits, underscores, ",
    ),
    "defaults": ("defaults: [a]\njobs:\n  a: {command: [x]}\n", "line 1: defaults must map names to values"),
    "script as a default": (
        "jobs:\n  a: {command: [x]}\ndefaults: {script: x}\n",
        "line 3: there is no key script; use ",
    ),
    "cluster": ("cluster: 5\njobs:\n  a: {command: [x]}\n", "line 1: cluster must map names to values"),
    "three wait": (
        "jobs:\n  a: {command: [x], after: b}\n  b: {command: [x], after: c}\n  c: {command: [x], after: a}\n",
        "line 2: jobs wait for each other: a -> c -> b -> a",
    ),
    "waits for itself": ("jobs:\n  a: {command: [x], after: a}\n", "line 2: jobs wait for each other: a -> a"),
    "no time": ("jobs:\n  a:\n    command: [x]\n    timeout: 0\n", "line 2: a timeout must be more than 0 seconds"),
    "negative": (
        "jobs:\n  a: {command: [x], num_cpus: -1}\n",
        "line 2: num_cpus must be a number of at least 0, not -1",
    ),
    "true": ("jobs:\n  a: {command: [x], retries: yes}\n", "line 2: retries must be a number of at least 0, not True"),
    "args of args": ("jobs:\n  a:\n    command: [x]\n    args: [[a]]\n", "line 4: args must be a list of words"),
    "neither": ("jobs:\n  a: {}\n", "line 2: job a needs either a script or a command"),
    "a key twice": ("jobs:\n  a:\n    command: [x]\n    command: [y]\n", "line 4: command is there twice"),
    "twice at the top": ("jobs:\n  a: {command: [x]}\nname: x\nname: y\n", "line 4: name is there twice"),
    "a default once": (
        "defaults:\n  num_cpus: 2\n  num_gpus: many\njobs:\n  a: {command: [x]}\n  b: {command: [x]}\n",
        "line 3: num_gpus must be a number of at least 0, not many",
    ),
    "several packages": ("jobs:\n  a: {command: [x], pip: ['a b']}\n", "line 2: 'a b' is not one package: "),
    "outside": ("jobs:\n  a: {script: ../a.py}\n", "line 2: there is no script ../a.py"),
}


@pytest.mark.parametrize("case", ALONE)
def test_one_mistake(case: str) -> None:
    text, words = ALONE[case]
    (found,) = mistakes(text)
    assert found.startswith(words)


def test_variables_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FULL": "of the caller", "EMPTY": "", "NUMBER": "3"}.items():
        monkeypatch.setenv(name, value)
    text = """\
name: chain-${NUMBER}
jobs:
  a:
    command: [echo, "${FULL}!", "${FULL:-x}"]
    args: ["${EMPTY}", "${EMPTY:-x y}", "${NONE:-}", "${NONE:-/a:b}", $FULL, "$${FULL}"]
    env: {A: "${NONE:-1}${NUMBER}"}
    timeout: ${NUMBER}m
    num_cpus: ${NUMBER}
    retries: ${NUMBER}
"""
    batch = chain(text)
    (step,) = batch.steps
    given = step.request
    words = ["echo", "of the caller!", "of the caller", "", "x y", "", "/a:b", "$FULL", "${FULL}"]
    assert (batch.name, list(given.command), given.env) == ("chain-3", words, {"A": "13"})
    assert (given.timeout, given.resources, step.order.retries) == (180, {"CPU": 3}, 3)
    text = "name: ${N}\njobs:\n  a:\n    command:\n    - echo\n    - ${A}\n    - ${B}\n    env: {X: '${C}'}\n"
    assert mistakes(text) == [
        f"line {line}: the variable {name} is not set; set it, or use ${{{name}:-DEFAULT}}"
        for line, name in ((1, "N"), (6, "A"), (7, "B"), (8, "C"))
    ]


def test_defaults_and_what_a_job_says_itself() -> None:
    batch = chain(
        "defaults: {env: {A: 1, B: 2}, args: [x], timeout: 10m, num_cpus: 1, pip: [einops],\n"
        "  retries: 2, retry_on: lost}\n"
        "jobs:\n"
        "  a: {command: [echo]}\n"
        "  b: {command: [echo], env: {B: yes, C: 1.5}, args: [], timeout: 90, num_cpus: 0,\n"
        "    retries: 0, retry_on: [exit]}\n"
    )
    a, b = batch.steps
    assert (a.request.env, b.request.env) == ({"A": "1", "B": "2"}, {"A": "1", "B": "true", "C": "1.5"})
    assert (a.request.command, b.request.command) == (["echo", "x"], ["echo"])
    assert (a.request.timeout, b.request.timeout) == (600, 90)
    assert (a.order.retries, list(a.order.retry_on)) == (2, ["lost"])
    assert (b.order.retries, list(b.order.retry_on)) == (0, ["exit"])
    assert a.request.resources["CPU"] == 1 and not b.request.resources.get("CPU")
    assert a.request.arguments["runtime_env"]["pip"] == b.request.arguments["runtime_env"]["pip"] == ["einops"]


def test_what_runs(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "deep.py").write_text("")
    found = requests(
        "jobs:\n"
        "  script: {script: prepare.py, args: [--n, 4, 1e-3]}\n"
        "  words: {command: [sh, -c, 'echo $HOME']}\n"
        "  line: {command: 'echo a && echo b', args: [c]}\n"
        "  deep: {script: deep.py, working_dir: sub}\n"
        "  sub: {script: sub/deep.py}\n"
        "  secret: {command: [x], secret_env: {TOKEN: my-secret/token, OTHER: }}\n"
        "  secrets: {command: [x], secret_env: [TOKEN]}\n"
        "  gpu: {command: [x], accelerator: L4}\n"
    )
    assert (found["script"].script_path, list(found["script"].command)) == ("prepare.py", ["--n", "4", "1e-3"])
    assert list(found["words"].command) == ["sh", "-c", "echo $HOME"]
    assert found["line"].arguments["entrypoint"] == "echo a && echo b c"
    assert (found["deep"].folder, found["sub"].folder) == (tmp_path / "sub", tmp_path)
    assert dict(found["secret"].secret_env) == {"TOKEN": "my-secret/token", "OTHER": None}
    assert dict(found["secrets"].secret_env) == {"TOKEN": None}
    assert found["gpu"].resources == {"GPU": 1, "accelerator_type:L4": 0.001}


def test_the_folder_is_that_of_the_file_and_the_name_too(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "job.py").write_text("")
    Path("project/nightly.yaml").write_text("jobs:\n  a: {script: job.py}\n")
    batch = read_chain("project/nightly.yaml")
    assert (batch.name, batch.steps[0].request.folder) == ("nightly", tmp_path / "project")


@pytest.mark.parametrize("key", ["after", "parent_job_key"])
def test_a_job_comes_after_those_it_waits_for(key: str) -> None:
    text = (
        "jobs:\n"
        f"  last: {{command: [x], {key}: [middle, first]}}\n"
        f"  middle: {{command: [x], {key}: first}}\n"
        "  1: {command: [x]}\n"
        "  first: {command: [x]}\n"
    )
    batch = chain(text)
    order = [step.name for step in batch.steps]
    assert order.index("first") < order.index("middle") < order.index("last") and "1" in order
    assert {step.name: list(step.order.after) for step in batch.steps} == {
        "first": [],
        "middle": ["first"],
        "last": ["middle", "first"],
        "1": [],
    }


def test_both_names_of_the_key_add_up() -> None:
    (*_, last) = chain(
        "jobs:\n  a: {command: [x]}\n  b: {command: [x]}\n  c: {command: [x], after: a, parent_job_key: b}\n"
    ).steps
    assert list(last.order.after) == ["a", "b"]


def test_a_chain_as_a_dict(tmp_path: Path) -> None:
    batch = chain_of(
        {"jobs": {"a": {"script": "prepare.py"}, "b": {"command": ["x"], "after": "a"}}}, "named", tmp_path
    )
    assert (batch.name, [step.name for step in batch.steps]) == ("named", ["a", "b"])
    with pytest.raises(UsageError, match=r"there is no key aftr; did you mean after\?$"):
        chain_of({"jobs": {"a": {"command": ["x"], "aftr": []}}}, "named", tmp_path)


def test_the_wish(tmp_path: Path) -> None:
    batch = chain("cluster: {workers: 2, gpus: 1, accelerator: L4}\njobs:\n  a: {command: [x]}\n")
    assert (batch.wish.workers, batch.wish.gpus, batch.wish.accelerator) == (2, 1, "L4")
