"""jobs/git_sync.py with a real git and a real `git http-backend` behind a server that demands a token."""

import base64
import gzip
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.client.server import Handler, serving
from tests.conftest import ROOT

TOKEN = "ghp_thetokenofthistest"
CREDENTIALS = base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()
JOB = (sys.executable, str(ROOT / "jobs" / "git_sync.py"))
Done = subprocess.CompletedProcess[str]


class Forge:
    """A server with one repository. `hold` is called before each answer."""

    def __init__(self, folder: Path) -> None:
        self.root, self.work = folder / "served", folder / "work"
        self.token = ""
        self.sent: list[str] = []  # what each request had in its header Authorization
        self.hold: Callable[[str, bytes, Handler], None] = lambda *_: None
        git("init", "--quiet", "--bare", "--initial-branch", "main", str(self.root / "some.git"), cwd=folder)
        git("clone", "--quiet", str(self.root / "some.git"), str(self.work), cwd=folder)
        (self.work / ".gitignore").write_text("*.log\n")
        self.first = self.commit(model="one")
        git("tag", "-a", "v1", "-m", "v1", cwd=self.work)
        self.newest = self.commit(model="two", more="new")

    def commit(self, **files: str) -> str:
        for name, text in files.items():
            (self.work / name).write_text(text)
        git("add", ".", cwd=self.work)
        git("commit", "--quiet", "-m", "a change", cwd=self.work)
        git("push", "--quiet", "--tags", "origin", "HEAD:main", cwd=self.work)
        return git("rev-parse", "HEAD", cwd=self.work)

    def answer(self, request: Handler, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        path, _, query = request.path.partition("?")
        self.sent.append(request.headers.get("Authorization", ""))
        if self.token and self.sent[-1] != f"Basic {CREDENTIALS}":
            # A server may repeat what it got.
            told = base64.b64decode(self.sent[-1].removeprefix("Basic ")) + b" is not known"
            return 401, {"WWW-Authenticate": 'Basic realm="x"', "Content-Type": "text/plain"}, told
        if request.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        variables = {
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": request.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
        }
        command = ["git", "http-backend"]
        done = subprocess.run(command, env={**os.environ, **variables}, input=body, capture_output=True, check=True)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.hold(path, content, request)
        return int(headers.pop("Status", "200")[:3]), headers, content


def git(*args: str, cwd: Path) -> str:
    names = {f"GIT_{who}_{what}": "x@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(["git", *args], cwd=cwd, env={**os.environ, **names}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home, whose git stores passwords in a file."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / ".gitconfig").write_text("[credential]\n  helper = store\n")
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture
def forge(home: Path, tmp_path: Path) -> Forge:
    return Forge(tmp_path)


@pytest.fixture
def url(forge: Forge) -> Iterator[str]:
    with serving(forge.answer) as server:
        yield f"{server}/some.git"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    return tmp_path / "volume" / "clone"


def sync(url: str, clone: Path, ref: str = "main", **env: str) -> Done:
    command = (*JOB, "--repository", url, "--to", str(clone), "--ref", ref)
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=60)


@contextmanager
def syncing(url: str, clone: Path, **env: str) -> "Iterator[subprocess.Popen[str]]":
    command = (*JOB, "--repository", url, "--to", str(clone), "--ref", "main")
    with subprocess.Popen(
        command, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        yield process


def files(clone: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in clone.iterdir() if path.is_file()}


NEWEST = {".gitignore": "*.log\n", "model": "two", "more": "new"}


def succeeded(done: Done, commit: str) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"is at commit {commit}, " in done.stdout.splitlines()[-1] and done.stdout.startswith("all well: ")


def refused(done: Done, says: str) -> None:
    assert done.returncode == 1 and done.stderr.startswith("wrong: ") and says in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "all well" not in done.stdout


def test_a_branch_a_tag_and_a_commit(forge: Forge, url: str, clone: Path) -> None:
    succeeded(sync(url, clone), forge.newest)
    assert files(clone) == NEWEST
    succeeded(sync(url, clone, "v1"), forge.first)
    assert files(clone) == {".gitignore": "*.log\n", "model": "one"}
    succeeded(sync(url, clone, forge.newest), forge.newest)
    succeeded(sync(url, clone, forge.first), forge.first)
    succeeded(sync(url, clone, "HEAD"), forge.newest)
    refused(sync(url, clone, "nowhere"), "couldn't find remote ref nowhere")
    refused(sync(url, clone, forge.newest[:10]), f"couldn't find remote ref {forge.newest[:10]}")
    assert files(clone) == NEWEST


def test_an_update_keeps_what_git_does_not_know(forge: Forge, url: str, clone: Path) -> None:
    succeeded(sync(url, clone), forge.newest)
    before = (clone / "more").stat().st_ctime_ns
    succeeded(sync(url, clone), forge.newest)
    assert (clone / "more").stat().st_ctime_ns == before  # nothing is written again
    (clone / "result.log").write_text("ignored")
    (clone / "result").write_text("not known")
    (clone / "model").write_text("a change of a job")
    (clone / "more").unlink()
    forge.newest = forge.commit(third="3")
    succeeded(sync(url, clone), forge.newest)
    assert files(clone) == {**NEWEST, "third": "3", "result": "not known", "result.log": "ignored"}


def places(folder: Path, *secrets: str) -> list[Path]:
    """Return the files below a folder that contain one of the secrets, in their content or their name."""
    found = []
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        found += [path for secret in secrets if secret.encode() in content or secret in str(path)]
    return found


def test_the_token_reaches_the_server_alone(forge: Forge, url: str, clone: Path, tmp_path: Path) -> None:
    forge.token = TOKEN
    seen: list[str] = []

    def look(*_: object) -> None:
        found = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
        seen.extend(line for line in found if "git" in line or TOKEN in line)

    forge.hold = look
    trace = tmp_path / "trace"  # git's own record of each process that it starts, and of each request
    verbose = {"GIT_TRACE": str(trace), "GIT_TRACE_CURL": str(trace), "GIT_TRACE_SETUP": str(trace)}
    for _ in range(2):
        done = sync(url, clone, GIT_TOKEN=TOKEN, **verbose)
        succeeded(done, forge.newest)
        assert TOKEN not in done.stdout + done.stderr and CREDENTIALS not in done.stdout + done.stderr
    assert {"", f"Basic {CREDENTIALS}"} == set(forge.sent)
    assert any("git-remote-http" in line for line in seen) and any("git_sync.py" in line for line in seen)
    assert not [line for line in seen if TOKEN in line or CREDENTIALS in line]
    assert "password=$GIT_TOKEN" in trace.read_text() and "Authorization: Basic <redacted>" in trace.read_text()
    assert places(tmp_path, "gitsync") and not places(tmp_path, TOKEN, CREDENTIALS)


def test_without_the_token_and_with_a_wrong_one(forge: Forge, url: str, clone: Path, tmp_path: Path) -> None:
    forge.token = TOKEN
    refused(sync(url, clone), "could not read Username")
    assert set(forge.sent) == {""}
    wrong = "ghp_anothertoken"
    done = sync(url, clone, GIT_TOKEN=wrong)
    refused(done, "Authentication failed")
    assert "remote: x-access-token:*** is not known" in done.stderr and wrong not in done.stderr
    assert not places(tmp_path, wrong)
    succeeded(sync(url, clone, GIT_TOKEN=TOKEN), forge.newest)


def test_a_token_in_the_url_is_refused(clone: Path) -> None:
    for user in (TOKEN, f"me:{TOKEN}"):
        done = sync(f"https://{user}@127.0.0.1:9/some.git", clone)
        refused(done, "put the token into GIT_TOKEN")
        assert TOKEN not in done.stderr and not clone.parent.exists()


def test_another_server_does_not_get_the_token(forge: Forge, clone: Path) -> None:
    got: list[str | None] = []

    def thief(request: Handler, _: bytes) -> tuple[int, Mapping[str, str], bytes]:
        got.append(request.headers.get("Authorization"))
        return 401, {"WWW-Authenticate": 'Basic realm="x"'}, b""

    def redirect(request: Handler, _: bytes) -> tuple[int, Mapping[str, str], bytes]:
        return 302, {"Location": f"{other}{request.path}"}, b""

    with serving(thief) as other, serving(redirect) as server:
        done = sync(f"{server}/some.git", clone, GIT_TOKEN=TOKEN)
    refused(done, "could not read Username")
    assert got and set(got) == {None}


def test_a_folder_with_other_files_is_left_alone(forge: Forge, url: str, clone: Path, tmp_path: Path) -> None:
    clone.mkdir(parents=True)
    succeeded(sync(url, clone), forge.newest)  # an empty one is used
    refused(sync(f"{url}/", clone), "has other files than a clone of")
    (forge.work / "model").write_text("not committed")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("mine")
    for folder in (forge.work, tmp_path / "full"):
        refused(sync(url, folder), "has other files than a clone of")
    assert (forge.work / "model").read_text() == "not committed"
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["a"]


def kill(process: "subprocess.Popen[str]", *, children: bool) -> None:
    """Kill the job, with its git or without."""
    found = psutil.Process(process.pid).children(recursive=True)
    assert found
    process.kill()
    for child in found if children else ():
        with suppress(psutil.NoSuchProcess):  # git's helpers end by themselves when git is killed
            child.kill()
    psutil.wait_procs(found if children else ())
    assert process.wait() == -signal.SIGKILL


def test_a_job_that_was_killed_while_it_fetched(forge: Forge, url: str, clone: Path, home: Path) -> None:
    (home / ".gitconfig").write_text(
        "[fetch]\n  unpackLimit = 1\n"
    )  # git writes what it gets, as it does if that is large
    forge.commit(large=os.urandom(2_000_000).hex())
    half, over = threading.Event(), threading.Event()

    def send_half(path: str, content: bytes, request: Handler) -> None:
        if len(content) > 1_000_000 and not half.is_set():
            request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-result\r\n")
            request.wfile.write(b"Content-Length: %d\r\n\r\n" % len(content) + content[: len(content) // 2])
            half.set()
            over.wait(60)

    forge.hold = send_half
    with syncing(url, clone) as process:
        assert half.wait(60)
        while not list(clone.rglob("tmp_pack_*")):
            assert process.poll() is None
            time.sleep(0.01)
        kill(process, children=True)
    over.set()
    assert (clone / ".git" / "shallow.lock").exists() and "large" not in files(clone)
    succeeded(sync(url, clone), git("rev-parse", "HEAD", cwd=forge.work))
    assert files(clone)["large"] == (forge.work / "large").read_text()


def test_a_job_that_was_killed_while_it_wrote_files(forge: Forge, url: str, clone: Path, home: Path) -> None:
    started = home / "started"
    slow = f'[filter "slow"]\n  smudge = "cat; echo >{started}; while :; do sleep 1; done"\n'
    (home / ".gitconfig").write_text(slow)
    succeeded(sync(url, clone), forge.newest)
    forge.newest = forge.commit(**{".gitattributes": "zlast filter=slow\n", "model": "three", "zlast": "z"})
    with syncing(url, clone) as process:
        while not started.exists():
            assert process.poll() is None
            time.sleep(0.01)
        kill(process, children=True)
    assert (clone / ".git" / "index.lock").exists() and files(clone)["model"] == "three"
    (home / ".gitconfig").write_text("")
    succeeded(sync(url, clone), forge.newest)
    assert files(clone) == {**NEWEST, ".gitattributes": "zlast filter=slow\n", "model": "three", "zlast": "z"}


def wait_for_the_lock(process: "subprocess.Popen[str]") -> None:
    """Return when the process waits for a lock that another one has."""
    while f" FLOCK  ADVISORY  WRITE {process.pid} " not in "".join(
        line for line in Path("/proc/locks").read_text().splitlines(keepends=True) if "->" in line
    ):
        assert process.poll() is None
        time.sleep(0.01)


@pytest.mark.parametrize("killed", [False, True], ids=["both end", "the first is killed, its git is not"])
def test_two_jobs_at_once(forge: Forge, url: str, clone: Path, killed: bool) -> None:
    asked, go = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        asked.set()
        assert go.wait(60)

    forge.hold = hold
    with syncing(url, clone) as first:
        assert asked.wait(60)
        with syncing(url, clone) as second:
            wait_for_the_lock(second)
            count = len(forge.sent)
            if killed:
                kill(first, children=False)
                wait_for_the_lock(second)
            assert len(forge.sent) == count == 1
            go.set()
            said = second.communicate(timeout=60)[0]
            assert second.returncode == 0 and f"is at commit {forge.newest}, " in said, said
    assert killed or first.returncode == 0
    assert files(clone) == NEWEST
    assert git("fsck", "--strict", cwd=clone) == "" and not list((clone / ".git").rglob("*.lock"))
