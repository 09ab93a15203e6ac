"""Fetching a job's files: every file whole and checked, wherever a connection breaks, and only below one folder.

The pods are folders of this machine, in which the same program runs as in a pod. Tests with pods are in tests/e2e.
"""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from client.errors import ClientError, ContactLost, NotFound, OutputLost, UsageError
from client.job import fetch, sender
from client.job.fetch import fetch_files
from client.job.files import File, Found, find_files
from client.ray_api.record import JobRecord
from client.targets.target import Target

CONTENT = os.urandom(3_000_000)


class LocalPod:
    """A folder of this machine, whose answers break off after `cuts` bytes, one after the other."""

    def __init__(self, folder: Path, name: str = "a-pod", ip: str = "10.0.0.1") -> None:
        self.folder, self.pod_name, self.ip = folder, name, ip
        self.cuts: list[int] = []
        self.between: Callable[[], object] = lambda: None  # what happens after a cut
        self.requests: list[dict[str, Any]] = []
        self.sent = 0
        self.proc = folder.parent / "proc"
        words = ("raylet", "--raylet_socket_name=x", f"--python_worker_command={sys.executable} worker.py", "")
        for pid, cmdline in {"1": words, "10": ("job", "--temp_dir=/scratch", "--raylet-name=x", "\\c")}.items():
            (self.proc / pid).mkdir(parents=True, exist_ok=True)
            (self.proc / pid / "cmdline").write_text("\0".join(cmdline))

    def output(self, command: Sequence[str], stdin: bytes) -> Iterator[bytes]:
        request = json.loads(stdin.splitlines()[-1])
        self.requests.append(request)
        if "outputs" in request:  # each pod has a folder of its own behind the same path
            request["outputs"] = str(self.folder)
        given = Path(sender.__file__).read_bytes() + json.dumps(request).encode() + b"\n"
        left = self.cuts.pop(0) if "send" in request and self.cuts else sys.maxsize
        words = [word.replace("/proc/", f"{self.proc}/") for word in command]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=self.folder) as process:
            assert process.stdin and process.stdout
            try:
                process.stdin.write(given)
                process.stdin.close()
                while left and (chunk := os.read(process.stdout.fileno(), min(left, 32_768))):
                    left -= len(chunk)
                    self.sent += len(chunk)
                    yield chunk
            finally:
                process.kill()
        if not left:
            self.between()
            raise ContactLost("the connection to pod a-pod was lost")
        if process.returncode not in (0, -9):
            raise ClientError(f"a command in pod {self.pod_name} failed")


JOB = JobRecord("a-job", "SUCCEEDED", metadata={"outputs": "/data/a-job"}, agent="http://10.0.0.1:52365")


def write(folder: Path, **files: bytes) -> None:
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalPod:
    monkeypatch.setattr("time.sleep", lambda _: None)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write(tmp_path / "pod", model=CONTENT, results__a=b"a", results__deep__b=b"", log=b"one\n")
    return LocalPod(tmp_path / "pod")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def find(*pods: LocalPod, patterns: Sequence[str] = (), note: Callable[[str], object] = print) -> Found:
    return find_files(cast(Target, SimpleNamespace(pods=lambda: pods)), JOB, patterns, note)


def all_files(*pods: LocalPod, patterns: Sequence[str] = ()) -> list[File]:
    return find(*pods, patterns=patterns).files


def test_every_file_with_its_time_and_mode(pod: LocalPod) -> None:
    (pod.folder / "log").chmod(0o751)
    os.utime(pod.folder / "log", ns=(5, 1_234_567_891))
    fetched = list(fetch_files(all_files(pod), Path("got")))
    assert sorted(map(str, fetched)) == ["got/log", "got/model", "got/results/a", "got/results/deep/b"]
    assert contents(Path("got")) == contents(pod.folder)
    info = Path("got/log").stat()
    assert (info.st_mode & 0o777, info.st_mtime_ns) == (0o751, 1_234_567_891)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("results", ["results/a", "results/deep/b"]),
        ("./results/", ["results/a", "results/deep/b"]),
        (".", ["log", "model", "results/a", "results/deep/b"]),
        ("log/", []),
        ("results/**", ["results/a", "results/deep/b"]),
        ("results/*", ["results/a", "results/deep/b"]),
        ("b", ["results/deep/b"]),
        ("[lm]o*", ["log", "model"]),
    ],
)
def test_a_part_of_the_files(pod: LocalPod, pattern: str, names: list[str]) -> None:
    if names:
        assert sorted(file.path for file in all_files(pod, patterns=[pattern])) == names
    else:
        with pytest.raises(ClientError, match="no file of job a-job matches"):
            all_files(pod, patterns=[pattern])


@pytest.mark.parametrize("pattern", ["[", "!a", "../x", "a/../b", "/data/x"])
def test_a_pattern_that_cannot_be_used(pod: LocalPod, pattern: str) -> None:
    with pytest.raises(UsageError, match="is not a pattern|is not a path inside the job's folder"):
        find(pod, patterns=[pattern])


def test_a_pattern_without_a_file(pod: LocalPod) -> None:
    with pytest.raises(ClientError, match=r"no file of job a-job matches nothing: `fetch a-job` gets all") as failed:
        all_files(pod, patterns=["log", "nothing"])
    assert failed.value.exit_code == 1
    for path in list(contents(pod.folder)):
        (pod.folder / path).unlink()
    with pytest.raises(ClientError, match="no running pod has files of job a-job"):
        all_files(pod)


def test_a_connection_that_breaks_anywhere_continues_at_the_same_byte(pod: LocalPod) -> None:
    """In lines, in blocks, at their ends, and without a byte."""
    whole = pod.sent
    pod.cuts = [0, 1, 150, 200_000, 700_001, 0, 1_500_000, 90]
    notes: list[str] = []
    list(fetch_files(all_files(pod), Path("got"), note=notes.append))
    assert not pod.cuts and contents(Path("got")) == contents(pod.folder)
    assert notes and all("retrying" in note for note in notes)
    assert pod.sent - whole < len(CONTENT) * 1.01 + 10_000  # no byte of the large file came twice
    assert len(pod.requests) == 10


def test_a_file_that_is_replaced_after_a_cut_is_fetched_anew(pod: LocalPod) -> None:
    pod.cuts = [1_000_000]
    pod.between = lambda: write(pod.folder, model=CONTENT[::-1])
    list(fetch_files(all_files(pod, patterns=["model"]), Path("got")))
    assert Path("got/model").read_bytes() == CONTENT[::-1]


def test_a_file_that_becomes_shorter_after_a_cut(pod: LocalPod) -> None:
    pod.cuts = [1_000_000]
    pod.between = lambda: write(pod.folder, model=b"short")
    list(fetch_files(all_files(pod, patterns=["model"]), Path("got")))
    assert Path("got/model").read_bytes() == b"short"


def test_a_file_that_changes_at_each_attempt(pod: LocalPod) -> None:
    pod.cuts = [1_000_000] * 9
    pod.between = lambda: write(pod.folder, model=os.urandom(3_000_000))
    with pytest.raises(ClientError, match="model changes while it is fetched: fetch it when the job has ended"):
        list(fetch_files(all_files(pod, patterns=["model"]), Path("got")))
    assert contents(Path("got")) == {}


def test_bytes_that_were_falsified_on_the_way(pod: LocalPod, monkeypatch: pytest.MonkeyPatch) -> None:
    files = all_files(pod, patterns=["model"])
    true_output = LocalPod.output

    def output(pod: LocalPod, command: Sequence[str], stdin: bytes) -> Iterator[bytes]:
        answer = bytearray(b"".join(true_output(pod, command, stdin)))
        answer[2_000_000] ^= 1
        yield bytes(answer)

    monkeypatch.setattr(LocalPod, "output", output)
    with pytest.raises(ClientError, match="changes while it is fetched"):
        list(fetch_files(files, Path("got")))
    assert contents(Path("got")) == {}


def test_a_pod_that_is_gone_costs_only_its_own_files(pod: LocalPod, tmp_path: Path) -> None:
    write(tmp_path / "other", elsewhere=b"e")
    other = LocalPod(tmp_path / "other", "other", "10.0.0.2")
    files, fetched = all_files(pod, other), []
    pod.cuts = [0] * 99
    with pytest.raises(ContactLost, match="the connection to pod a-pod was lost: run `fetch` again"):
        for path in fetch_files(files, Path("got")):
            fetched.append(str(path))
    assert fetched == ["got/elsewhere"] and contents(Path("got")) == {"elsewhere": b"e"}
    pod.cuts = []
    assert len(list(fetch_files(files, Path("got")))) == 4  # the next one gets what is missing


def test_a_listing_that_breaks_is_tried_again_and_one_pod_costs_only_its_own_files(
    pod: LocalPod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "other", elsewhere=b"e")
    other, true_output = LocalPod(tmp_path / "other", "other", "10.0.0.2"), LocalPod.output
    lost = {"a-pod": 1, "other": 99}

    def output(pod: LocalPod, command: Sequence[str], stdin: bytes) -> Iterator[bytes]:
        lost[pod.pod_name] -= 1
        if lost[pod.pod_name] >= 0:
            raise ContactLost(f"the connection to pod {pod.pod_name} was lost")
        yield from true_output(pod, command, stdin)

    monkeypatch.setattr(LocalPod, "output", output)
    found = find(pod, other)
    assert len(found.files) == 4 and [str(error) for error in found.failed] == ["the connection to pod other was lost"]
    with pytest.raises(ContactLost, match="pod other was lost"):
        list(fetch_files(found.files, Path("got"), found.failed))
    assert contents(Path("got")) == contents(pod.folder)


def test_a_file_that_disappears_in_the_middle_costs_only_itself(pod: LocalPod) -> None:
    pod.cuts = [1_000_000]
    pod.between = (pod.folder / "model").unlink
    with pytest.raises(ClientError, match="model cannot be read"):
        list(fetch_files(sorted(all_files(pod), key=lambda file: file.path != "model"), Path("got")))
    assert contents(Path("got")) == {"log": b"one\n", "results/a": b"a", "results/deep/b": b""}


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(pod: LocalPod) -> None:
    files = all_files(pod)
    (pod.folder / "log").unlink()
    os.mkfifo(pod.folder / "log")
    with pytest.raises(ClientError, match=r"log cannot be read \(no regular file\)"):
        list(fetch_files(files, Path("got")))
    assert len(contents(Path("got"))) == 3


@pytest.mark.parametrize(("written", "ok"), [(b"x" * 3_000_000, False), (b"more", True)])
def test_a_file_that_changes_while_it_is_sent(pod: LocalPod, written: bytes, ok: bool) -> None:
    """Lines that are added do no harm; a file that is rewritten is fetched again, and refused in the end."""

    def progress(*_: object) -> nullcontext[Callable[[int], object]]:
        return nullcontext(change)

    def change(_: int) -> None:
        with open(pod.folder / "model", "ab" if ok else "r+b") as file:
            file.write(written)

    write(pod.folder, model=bytes(3_000_000))
    fetching = fetch_files(all_files(pod, patterns=["model"]), Path("got"), progress=progress)
    if ok:
        list(fetching)
        assert Path("got/model").read_bytes().startswith(bytes(3_000_000))
    else:
        with pytest.raises(ClientError, match="model changes while it is fetched"):
            list(fetching)
        assert contents(Path("got")) == {}


def test_a_folder_that_cannot_be_listed_is_said(pod: LocalPod, monkeypatch: pytest.MonkeyPatch) -> None:
    def scandir(path: str) -> object:
        if str(path).endswith("deep"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return true_scandir(path)

    true_scandir = os.scandir
    monkeypatch.setattr("os.scandir", scandir)
    *found, problem = sender.files(str(pod.folder), 0)
    assert len(found) == 3 and problem["error"].endswith("deep cannot be read (Permission denied)")


def test_a_deleted_pod_is_not_waited_for(pod: LocalPod, monkeypatch: pytest.MonkeyPatch) -> None:
    files = all_files(pod)

    def output(*_: object) -> Iterator[bytes]:
        raise NotFound('pods "a-pod" not found')

    monkeypatch.setattr(LocalPod, "output", output)
    with pytest.raises(NotFound):
        list(fetch_files(files, Path("got")))


def test_a_file_that_cannot_be_read_costs_only_itself(pod: LocalPod) -> None:
    files = all_files(pod)
    (pod.folder / "log").unlink()
    (pod.folder / "log").symlink_to("/etc/passwd")  # meanwhile: the program does not follow it
    with pytest.raises(ClientError, match=r"log cannot be read \(Too many levels of symbolic links\)"):
        list(fetch_files(files, Path("got")))
    assert sorted(contents(Path("got"))) == ["model", "results/a", "results/deep/b"]


def test_pods_with_different_files_of_the_same_name(pod: LocalPod, tmp_path: Path) -> None:
    """The driver's keep their names, also where a file has the name of another's folder. Links are shared."""
    write(tmp_path / "other", log=b"other", results=b"a file", model__x=b"x")
    os.link(pod.folder / "model", tmp_path / "other" / "same")
    os.link(pod.folder / "model", pod.folder / "same")
    write(pod.folder, rank=b"1")
    write(tmp_path / "other", rank=b"2")
    for folder in (pod.folder, tmp_path / "other"):
        os.utime(folder / "rank", ns=(7, 7))  # of equal size, written in the same tick of the clock
    for folder in (pod.folder, tmp_path / "other"):
        (folder / "link").symlink_to("log")
    list(fetch_files(all_files(LocalPod(tmp_path / "other", "other", "10.0.0.2"), pod), Path("got")))
    other = {"other/rank": b"2", "other/log": b"other", "other/results": b"a file", "other/model/x": b"x"}
    assert contents(Path("got")) == contents(pod.folder) | other
    assert os.readlink("got/link") == "log"


def test_links_never_lead_out_of_the_folder(pod: LocalPod, tmp_path: Path) -> None:
    inside = {"latest": "results/deep", "results/up": "../log", "absolute": str(pod.folder / "log")}
    outside = {
        "passwd": "/etc/passwd",
        "a\x1b\nb": "/x\ny",
        "parent": "..",
        "results/far": "../../elsewhere",
        "broken-out": "/nowhere",
    }
    for name, target in {**inside, **outside, "self": "."}.items():
        (pod.folder / name).symlink_to(target)
    found = find(pod)
    assert len(found.outside) == len(outside) + 1 and all(line.isprintable() for line in found.outside)
    list(fetch_files(found.files, Path("got")))
    links = {str(path.relative_to("got")): os.readlink(path) for path in Path("got").rglob("*") if path.is_symlink()}
    assert links == {"latest": "results/deep", "results/up": "../log", "absolute": "log"}
    assert len(list(fetch_files(found.files, Path("got")))) == 0  # again


@pytest.mark.parametrize(
    "line",
    [
        {"path": "../out"},
        {"path": "/etc/out"},
        {"path": "a/../../out"},
        {"path": "a//out"},
        {"path": "in", "link": "../out"},
        {"path": "in", "link": "/etc/passwd"},
        {"path": "in", "link": "a/../.."},
        {"path": "in", "link": "a/../b"},
    ],
)
def test_a_pod_that_lies_writes_nothing_elsewhere(
    pod: LocalPod, line: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = json.dumps({"source": "/x", "size": 0, "mtime": 0, "identity": [0, 0], **line}).encode() + b"\n"
    monkeypatch.setattr(LocalPod, "output", lambda *_: iter([said]))
    if "link" in line:
        found = find(pod)
        assert found.files == [] and len(found.outside) == 1
    else:
        with pytest.raises(ClientError, match="is not below the job's folder"):
            find(pod)


def test_nothing_of_the_user_is_replaced(pod: LocalPod) -> None:
    Path("got").mkdir()
    Path("got/log").write_bytes(b"mine")
    files = all_files(pod)
    with pytest.raises(UsageError, match=r"got/log exists and differs: use another folder \(--to\)"):
        list(fetch_files(files, Path("got")))
    assert contents(Path("got")) == {"log": b"mine"} and len(pod.requests) == 1
    Path("got/log").unlink()
    assert len(list(fetch_files(files, Path("got")))) == 4
    assert list(fetch_files(all_files(pod), Path("got"))) == []  # the same files
    write(pod.folder, log=b"two\n")
    assert list(fetch_files(all_files(pod), Path("got"), replace=True)) == [Path("got/log")]
    assert Path("got/log").read_bytes() == b"two\n"
    Path("got/log").write_bytes(b"edited")
    with pytest.raises(UsageError, match="got/log exists and differs"):
        list(fetch_files(all_files(pod), Path("got"), replace=True))


def test_a_file_that_appears_meanwhile_is_not_replaced(pod: LocalPod) -> None:
    files = all_files(pod)
    fetching = fetch_files(files, Path("got"))
    next(fetching)
    (last,) = [file.path for file in files if not Path("got", file.path).exists()][-1:]
    Path("got", last).parent.mkdir(parents=True, exist_ok=True)
    Path("got", last).write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists and differs"):
        list(fetching)
    assert Path("got", last).read_bytes() == b"mine"


def test_a_link_in_the_local_folder_is_not_followed(pod: LocalPod, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    Path("got").mkdir()
    Path("got/results").symlink_to(tmp_path / "precious")
    for replace in (True, False):
        with pytest.raises(UsageError, match="got/results is a link"):
            list(fetch_files(all_files(pod), Path("got"), replace=replace))
    assert contents(tmp_path / "precious") == {}


def test_the_default_folder_is_left_out_by_git(pod: LocalPod) -> None:
    list(fetch_files(all_files(pod), fetch.default_folder("a-job"), replace=True))
    assert Path("outputs/.gitignore").read_text().endswith("\n*\n") and Path("outputs/a-job/log").exists()


def test_a_folder_that_cannot_be_written(pod: LocalPod) -> None:
    Path("got").write_text("a file")
    with pytest.raises(UsageError, match="got is not a folder"):
        list(fetch_files(all_files(pod), Path("got")))
    with pytest.raises(OutputLost, match=r"cannot be written \(Not a directory\)"):
        list(fetch_files(all_files(pod), Path("got/inside")))


def test_an_interrupt_leaves_no_partial_file(pod: LocalPod) -> None:
    fetching = fetch_files(all_files(pod, patterns=["model"]), Path("got"), progress=Interrupting)
    with pytest.raises(KeyboardInterrupt):
        list(fetching)
    assert list(Path("got").iterdir()) == []


class Interrupting:
    """A progress bar during which the user presses Ctrl-C."""

    def __init__(self, *_: object) -> None:
        self.seen = 0

    def __enter__(self) -> Callable[[int], object]:
        return self.step

    def __exit__(self, *_: object) -> None:
        assert self.seen > 1_000_000

    def step(self, size: int) -> None:
        self.seen += size
        if self.seen > 1_000_000:
            raise KeyboardInterrupt


def test_only_what_the_job_wrote_in_its_copy_of_the_upload(tmp_path: Path) -> None:
    """A tool that keeps the old time of a file, as `cp -p`, does not hide it."""
    jobs = tmp_path / "ray" / "session_2026-01-01" / "jobs"
    write(jobs / "a-job", uploaded=b"u", changed=b"c")
    (jobs / ".a-job").touch()
    copied = (jobs / ".a-job").stat().st_ctime_ns
    (jobs / "probe").touch()
    while (jobs / "probe").stat().st_ctime_ns <= copied:  # until the file system's clock has moved
        (jobs / "probe").touch()
    write(jobs / "a-job", changed=b"C", written=b"w", __pycache____x=b"bytecode")
    os.utime(jobs / "a-job" / "written", ns=(1, 1))
    roots = list(sender.roots(str(tmp_path / "ray"), "a-job", str(jobs / "a-job")))
    assert roots == [(str(jobs / "a-job"), copied)]
    assert sorted(found["path"] for found in sender.files(*roots[0])) == ["changed", "written"]
