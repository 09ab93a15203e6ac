import asyncio
import ctypes
import json
import os
import re
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from client.errors import UsageError
from client.upload import package
from client.upload.git import run_git
from client.upload.ignore import Listing, listing
from client.upload.package import LIMIT, Packed, Upload, plan_upload

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_git_and_temp(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "xdg"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(home / ".gitconfig"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path_factory.getbasetemp()))
    temp = tmp_path_factory.mktemp("temp")
    monkeypatch.setattr(tempfile, "tempdir", str(temp))


@pytest.fixture(params=["git", "walk"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a folder to upload: once in a git repository, once outside of one."""
    tree = tmp_path / "tree"
    tree.mkdir()
    if request.param == "git":
        git(tree, "init", "-q")
    return tree


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    tree = tmp_path / "repo"
    tree.mkdir()
    git(tree, "init", "-q")
    return tree


def git(directory: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always"]
    subprocess.run(["git", *identity, *arguments], cwd=directory, check=True, capture_output=True)


def write(root: Path, *paths: str, text: str = "x") -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def paths(found: Listing) -> list[str]:
    return [entry.path for entry in found.entries]


def pack(found: Listing, progress: Callable[[int], object] = lambda count: None) -> Packed:
    return Upload(found, ()).packed(progress)


def temporary() -> list[Path]:
    return list(Path(tempfile.gettempdir()).iterdir())


def one_line(error: pytest.ExceptionInfo[UsageError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# git's ignore rules


def test_a_listing_says_path_source_and_size_sorted_by_path(root: Path) -> None:
    write(root, "a/x", "a-b", "a.py", text="four")
    found = listing(root)
    assert paths(found) == ["a-b", "a.py", "a/x"]
    assert [entry.source for entry in found.entries] == [root / "a-b", root / "a.py", root / "a/x"]
    assert [entry.size for entry in found.entries] == [4, 4, 4]
    assert (found.root, found.size, found.withheld) == (root, 12, ())


def test_a_relative_root_is_made_absolute(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, "a")
    monkeypatch.chdir(root)
    found = listing(Path("."))
    assert (found.root, found.entries[0].source) == (root, root / "a")


def test_largest_names_the_biggest_first(root: Path) -> None:
    for count in (3, 1, 2):
        write(root, f"f{count}", text="x" * count)
    assert [entry.path for entry in listing(root).largest(2)] == ["f3", "f2"]


def test_a_gitignore_above_the_root_counts(repo: Path) -> None:
    write(repo, ".gitignore", text="*.log\n/sub/data/\n")
    write(repo, "sub/a.py", "sub/a.log", "sub/data/x", "outside.py")
    assert paths(listing(repo / "sub")) == ["a.py"]


def test_info_exclude_and_global_excludes_count(repo: Path) -> None:
    write(repo, ".git/info/exclude", text="mine\n")
    write(repo, "global", text="theirs\n")
    git(repo, "config", "core.excludesFile", str(repo / "global"))
    write(repo, "mine", "theirs", "ours")
    assert paths(listing(repo)) == ["global", "ours"]


def test_a_nested_gitignore_can_negate(root: Path) -> None:
    write(root, ".gitignore", text="*.csv\n")
    write(root, "keep/.gitignore", text="!*.csv\n")
    write(root, "a.csv", "keep/b.csv", "keep/deeper/c.csv")
    assert paths(listing(root)) == [".gitignore", "keep/.gitignore", "keep/b.csv", "keep/deeper/c.csv"]


def test_a_nested_gitignore_rules_only_its_own_directory(root: Path) -> None:
    write(root, "a/.gitignore", text="/x\ny/z\n!\n")
    write(root, "a/x", "a/b/x", "a/y/z", "y/z", "x")
    assert paths(listing(root)) == ["a/.gitignore", "a/b/x", "x", "y/z"]


def test_a_directory_that_is_ignored_is_not_entered(root: Path) -> None:
    write(root, ".gitignore", text="out/\n!out/keep\n")
    write(root, "out/keep", "out/.gitignore", "a")
    assert paths(listing(root)) == [".gitignore", "a"]


def test_to_git_a_link_is_no_directory(root: Path, tmp_path: Path) -> None:
    write(tmp_path, "far/x")
    write(root, ".gitignore", text="data/\n")
    (root / "data").symlink_to(tmp_path / "far")
    assert paths(listing(root)) == [".gitignore", "data/x"]


def test_a_tracked_file_that_is_ignored_is_included(repo: Path) -> None:
    write(repo, "kept.log", "lost.log", "a")
    git(repo, "add", "kept.log")
    write(repo, ".gitignore", text="*.log\n")
    assert paths(listing(repo)) == [".gitignore", "a", "kept.log"]


def test_a_tracked_file_that_was_deleted_is_skipped(repo: Path) -> None:
    write(repo, "gone", "dir/gone", "here")
    git(repo, "add", ".")
    (repo / "gone").unlink()
    shutil.rmtree(repo / "dir")
    assert paths(listing(repo)) == ["here"]


def test_a_repository_in_the_repository_follows_its_own_rules(repo: Path) -> None:
    write(repo, "inner/a", "inner/b.tmp")
    git(repo / "inner", "init", "-q")
    write(repo, "inner/.git/info/exclude", text="*.tmp\n")
    assert paths(listing(repo)) == ["inner/a"]


def test_a_submodule_is_listed(repo: Path, tmp_path: Path) -> None:
    write(tmp_path, "lib/code.py", "lib/deep/er.py")
    git(tmp_path / "lib", "init", "-q")
    git(tmp_path / "lib", "add", ".")
    git(tmp_path / "lib", "commit", "-qm", "x")
    git(repo, "submodule", "add", "-q", str(tmp_path / "lib"), "vendor/lib")
    write(repo, "vendor/lib/new.py")
    assert paths(listing(repo)) == [
        ".gitmodules",
        "vendor/lib/code.py",
        "vendor/lib/deep/er.py",
        "vendor/lib/new.py",
    ]


def test_a_submodule_that_was_not_checked_out_is_walked(repo: Path, tmp_path: Path) -> None:
    write(tmp_path, "lib/code.py")
    git(tmp_path / "lib", "init", "-q")
    git(tmp_path / "lib", "add", ".")
    git(tmp_path / "lib", "commit", "-qm", "x")
    git(repo, "submodule", "add", "-q", str(tmp_path / "lib"), "lib")
    git(repo, "submodule", "deinit", "-q", "-f", "lib")
    assert (repo / "lib").is_dir()
    assert paths(listing(repo)) == [".gitmodules"]
    write(repo, "lib/put-there")
    assert paths(listing(repo)) == [".gitmodules", "lib/put-there"]


def test_a_link_to_what_git_ignores_brings_it(repo: Path) -> None:
    write(repo, ".gitignore", text="cache/\n")
    write(repo, "cache/v1/x")
    (repo / "data").symlink_to("cache/v1")
    assert paths(listing(repo)) == [".gitignore", "data/x"]


def test_a_tracked_directory_that_became_a_link_is_followed(repo: Path, tmp_path: Path) -> None:
    write(repo, "data/old")
    git(repo, "add", ".")
    shutil.rmtree(repo / "data")
    write(tmp_path, "far/new")
    (repo / "data").symlink_to(tmp_path / "far")
    assert paths(listing(repo)) == ["data/new"]


def test_a_root_that_git_ignores_itself_is_listed_all_the_same(repo: Path) -> None:
    write(repo, ".gitignore", text="build/\n")
    write(repo, "build/job/a", "build/job/b.log")
    write(repo, "build/job/.gitignore", text="*.log\n")
    assert paths(listing(repo / "build/job")) == [".gitignore", "a"]


def test_a_git_hooks_environment_changes_nothing(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "other/x")
    git(tmp_path / "other", "init", "-q")
    write(repo, "a", "b.log")
    write(repo, ".git/info/exclude", text="*.log\n")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other/.git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    assert paths(listing(repo)) == ["a"]


def test_git_is_run_in_english_for_the_folder_and_until_its_timeout(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    done = run_git(repo, "rev-parse", "--show-toplevel")
    assert done and (done.returncode, done.stdout) == (0, f"{repo}\n".encode())
    done = run_git(repo, "describe")
    assert done and (done.returncode, done.stderr) == (128, b"fatal: No names found, cannot describe anything.\n")
    done = run_git(repo, "-c", "alias.locale=!echo $LC_ALL", "locale", timeout=60)
    assert done and done.stdout == b"C\n"
    assert run_git(repo, "-c", "alias.wait=!sleep 2", "wait", timeout=0.1) is None
    monkeypatch.setenv("PATH", "")
    assert run_git(repo, "describe") is None


def test_a_repository_git_cannot_read_is_an_error_and_not_a_walk(repo: Path) -> None:
    write(repo, "a")
    git(repo, "add", "a")
    (repo / ".git/index").write_bytes(b"not an index")
    with pytest.raises(UsageError, match="git cannot list") as error:
        listing(repo)
    assert "index" in one_line(error)


def test_without_git_on_the_path_the_tree_is_walked(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(repo, ".gitignore", text="*.log\n")
    write(repo, ".git/info/exclude", text="a\n")
    write(repo, "a", "b.log", "sub/c.log")
    monkeypatch.setenv("PATH", "")
    assert paths(listing(repo)) == [".gitignore", "a"]


# .rayignore and excludes


def test_rayignore_leaves_out_more(root: Path) -> None:
    write(root, ".rayignore", text="*.bin\n/docs/\n!small.bin\n")
    write(root, "sub/.rayignore", text="/only-here\n!mid.bin\n")
    write(root, "a.py", "big.bin", "small.bin", "docs/x", "sub/docs/x", "sub/only-here", "only-here", "sub/mid.bin")
    write(root, "mid.bin")
    assert paths(listing(root)) == [
        ".rayignore", "a.py", "only-here", "small.bin", "sub/.rayignore", "sub/docs/x", "sub/mid.bin",
    ]  # fmt: skip


def test_rayignore_applies_to_tracked_files(repo: Path) -> None:
    write(repo, ".rayignore", text="notes/\n")
    write(repo, "notes/x", "a")
    git(repo, "add", ".")
    assert paths(listing(repo)) == [".rayignore", "a"]


@pytest.mark.parametrize(
    ("line", "back"),
    [
        ("!model.bin", ["model.bin", "out/model.bin"]),
        ("!/model.bin", ["model.bin"]),
        ("!out/model.bin", ["out/model.bin"]),
        ("!out/", ["out/log.txt", "out/model.bin"]),
        ("!out/**", ["out/log.txt", "out/model.bin"]),
        ("!*.nothing", []),
    ],
)
def test_rayignore_brings_back_what_git_ignores(root: Path, line: str, back: list[str]) -> None:
    write(root, ".gitignore", text="*.bin\nout/\n")
    write(root, ".rayignore", text=f"{line}\n")
    write(root, "model.bin", "out/model.bin", "out/log.txt", "out/.env", "out/__pycache__/x.pyc")
    assert paths(listing(root)) == [".gitignore", ".rayignore", *back]


def test_a_directory_brought_back_comes_in_spite_of_its_own_gitignore(root: Path) -> None:
    write(root, ".gitignore", text="cache/\n")
    write(root, ".rayignore", text="!cache/\n")
    write(root, "cache/.gitignore", text="*\n")
    write(root, "cache/a")
    assert "cache/a" in paths(listing(root))


def test_the_last_line_that_matches_wins(root: Path) -> None:
    write(root, ".rayignore", text="data/\n!data/keep.csv\n*.tmp\n!data/a.tmp\na.tmp\n")
    write(root, "data/keep.csv", "data/x.csv", "data/a.tmp")
    assert paths(listing(root)) == [".rayignore", "data/keep.csv"]


def test_excludes_come_last_and_only_undo_ignore_lines(root: Path) -> None:
    write(root, ".gitignore", text="ignored\n")
    write(root, ".rayignore", text="*.a\n!b.b\n")
    write(root, "x.a", "y.a", "b.b", "sub/c", "c", "ignored", ".env")
    found = listing(root, ["*.b", "/c", "!x.a", "!ignored", "!.env"])
    assert paths(found) == [".gitignore", ".rayignore", "sub/c", "x.a"]
    assert found.withheld == (".env",)


def test_excludes_can_undo_themselves_below_a_directory(root: Path) -> None:
    write(root, "data/keep", "data/drop", "a")
    assert paths(listing(root, ["/data/", "!/data/keep"])) == ["a", "data/keep"]


def test_excludes_do_not_weaken_a_line_that_brings_back(root: Path) -> None:
    write(root, ".rayignore", text="!.env\n")
    write(root, ".env")
    assert paths(listing(root, ["!.env"])) == [".env", ".rayignore"]


def test_an_ignore_file_may_have_a_byte_order_mark_and_crlf(root: Path) -> None:
    for name in (".gitignore", ".rayignore"):
        (root / name).write_bytes(f"\ufeffby{name}\r\nmore{name}\r\n".encode())
    write(root, "by.gitignore", "by.rayignore", "more.gitignore", "more.rayignore")
    assert paths(listing(root)) == [".gitignore", ".rayignore"]


@pytest.mark.parametrize("line", ["!", "a\\"])
def test_a_line_that_is_no_pattern_is_an_error(root: Path, line: str) -> None:
    write(root, "sub/.rayignore", text=f"{line}\n")
    with pytest.raises(UsageError, match=r"sub/\.rayignore: .* is not a gitignore pattern") as error:
        listing(root)
    one_line(error)
    (root / "sub/.rayignore").unlink()
    with pytest.raises(UsageError, match=r"excludes: .* is not a gitignore pattern"):
        listing(root, [line])


# What is never uploaded


def test_rays_default_excludes_stay_out_until_named(root: Path) -> None:
    write(root, "a.py", "__pycache__/a.pyc", "sub/__pycache__/b.pyc", ".venv/bin/x", "venv/y", "sub/venv/z")
    assert paths(listing(root)) == ["a.py"]
    write(root, ".rayignore", text="!/venv/\n")
    found = listing(root)
    assert paths(found) == [".rayignore", "a.py", "venv/y"]
    assert found.withheld == ()


@pytest.mark.parametrize("line", ["!.git", "!.git/", "!.git/**", "!**", "!config"])
def test_nothing_brings_git_back(repo: Path, line: str) -> None:
    write(repo, ".rayignore", text=f"{line}\n")
    write(repo, "sub/.git/config")
    assert [path for path in paths(listing(repo)) if ".git" in path.split("/")] == []


SECRETS = [
    ".env", ".env.local", ".env.x\ny", ".env.example.local", "server.pem", "tls.key", "a.p12", "a.pfx", "id_rsa",
    "id_dsa", "id_ecdsa", "id_ed25519", ".netrc", ".pypirc", ".npmrc", "application_default_credentials.json",
    "CERT.PEM",
]  # fmt: skip
SECRET_DIRECTORIES = [".ssh/", ".aws/", ".kube/", ".gnupg/"]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("place", ["", "deep/er\n/"])
def test_a_secret_is_withheld_named_once_and_brought_back_by_name(root: Path, place: str, secret: str) -> None:
    write(root, "a.py", place + secret)
    found = listing(root)
    assert paths(found) == ["a.py"]
    assert found.withheld == (place + secret,)
    write(root, ".rayignore", text="!" + secret.replace("\n", "?") + "\n")
    found = listing(root)
    assert paths(found) == [".rayignore", "a.py", place + secret] if place else sorted([".rayignore", "a.py", secret])
    assert found.withheld == ()


@pytest.mark.parametrize("variable", ["RAY_AUTH_TOKEN_PATH", "KUBECONFIG", "GOOGLE_APPLICATION_CREDENTIALS"])
def test_a_file_that_the_environment_names_as_a_login_is_withheld(
    root: Path, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root, "a.py", "sub/mine")
    (root / "link").symlink_to("sub/mine")
    monkeypatch.chdir(root)
    monkeypatch.setenv(variable, "nowhere:sub/mine" if variable == "KUBECONFIG" else "sub/mine")
    found = listing(root)
    assert paths(found) == ["a.py"]
    assert found.withheld == ("link", "sub/mine")
    write(root, ".rayignore", text="!mine\n")
    assert paths(listing(root)) == [".rayignore", "a.py", "sub/mine"]


@pytest.mark.parametrize("secret", SECRET_DIRECTORIES)
def test_a_secret_directory_is_withheld_named_once_and_brought_back(root: Path, secret: str) -> None:
    write(root, "a.py", f"sub/{secret}one", f"sub/{secret}two", f"sub/{secret}id_rsa")
    found = listing(root)
    assert paths(found) == ["a.py"]
    assert found.withheld == (f"sub/{secret}",)
    write(root, ".rayignore", text=f"!{secret}\n")
    found = listing(root)
    assert paths(found) == [".rayignore", "a.py", f"sub/{secret}one", f"sub/{secret}two"]
    assert found.withheld == (f"sub/{secret}id_rsa",)


@pytest.mark.parametrize(
    "name", [".env.example", ".env.sample", ".env.template", "env", ".envrc", "a.pub", "key", ".aws"]
)
def test_what_only_looks_like_a_secret_goes_up(root: Path, name: str) -> None:
    write(root, name)
    assert paths(listing(root)) == [name]


@pytest.mark.parametrize("line", ["!*", "!**", "!/src/**", "!src/", "!src/*", "!.*", "!*.*"])
def test_a_line_that_names_no_secret_brings_none_back(root: Path, line: str) -> None:
    write(root, ".rayignore", text=f"/*\n!/src/\n{line}\n")
    write(root, "src/a.py", "src/.env", "src/__pycache__/x.pyc", "other.py")
    found = listing(root)
    assert "src/a.py" in paths(found)
    assert not {"src/.env", "src/__pycache__/x.pyc"} & set(paths(found))
    assert found.withheld == ("src/.env",)


def test_a_tracked_secret_is_withheld(repo: Path) -> None:
    write(repo, ".env", "a")
    git(repo, "add", ".")
    assert listing(repo).withheld == (".env",)


def test_secrets_that_are_ignored_anyway_are_not_reported(root: Path) -> None:
    write(root, ".gitignore", text=".env\nout/\n")
    write(root, ".rayignore", text="*.pem\n!out/x\n")
    write(root, ".env", "out/tls.key", "out/x", "a.pem", "id_rsa")
    found = listing(root)
    assert paths(found) == [".gitignore", ".rayignore", "out/x"]
    assert found.withheld == ("id_rsa",)


# Links, special files, unusual names


def test_a_link_to_a_file_stands_for_the_file(root: Path, tmp_path: Path) -> None:
    write(tmp_path, "far.txt", text="from afar")
    (root / "near.txt").symlink_to(tmp_path / "far.txt")
    found = listing(root)
    assert [(entry.path, entry.size) for entry in found.entries] == [("near.txt", 9)]
    with pack(found) as packed, zipfile.ZipFile(packed.packages[0].path) as archive:
        assert archive.read("near.txt") == b"from afar"
        assert stat.S_ISREG(archive.getinfo("near.txt").external_attr >> 16)


def test_a_link_to_a_directory_is_followed(root: Path, tmp_path: Path) -> None:
    write(tmp_path, "far/x", "far/deep/y", "far/.env", "far/z.log")
    write(tmp_path, "far/.gitignore", text="*.log\n")
    (root / "data").symlink_to(tmp_path / "far")
    (root / "again").symlink_to("data")
    found = listing(root)
    assert paths(found) == [
        "again/.gitignore", "again/deep/y", "again/x", "data/.gitignore", "data/deep/y", "data/x",
    ]  # fmt: skip
    assert found.withheld == ("again/.env", "data/.env")


def test_a_link_into_a_repository_follows_that_repositorys_rules(repo: Path, tmp_path: Path) -> None:
    write(tmp_path, "lib/src/a.py", "lib/src/a.so")
    write(tmp_path, "lib/.gitignore", text="*.so\n")
    git(tmp_path / "lib", "init", "-q")
    (repo / "lib").symlink_to(tmp_path / "lib/src")
    assert paths(listing(repo)) == ["lib/a.py"]


@pytest.mark.parametrize("target", [".", "..", "../..", "self"])
def test_a_link_loop_is_an_error_that_names_the_link(root: Path, target: str) -> None:
    write(root, "a", "sub/b")
    (root / "sub/self").symlink_to(target)
    with pytest.raises(UsageError, match=r"sub/self is a link loop: correct it or add it to \.rayignore"):
        listing(root)
    write(root, ".rayignore", text="self\n!nothing\n")
    assert paths(listing(root)) == [".rayignore", "a", "sub/b"]


def test_a_loop_of_two_links_is_an_error(root: Path, tmp_path: Path) -> None:
    write(root, "one/a")
    write(tmp_path, "far/b")
    (root / "one/two").symlink_to(tmp_path / "far")
    (tmp_path / "far/back").symlink_to(root / "one")
    with pytest.raises(UsageError, match="one/two/back is a link loop"):
        listing(root)


def test_a_broken_link_is_an_error_that_names_it(root: Path) -> None:
    write(root, "a")
    (root / "dangling").symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"dangling is a broken link.*: correct it or add it to \.rayignore") as error:
        listing(root)
    one_line(error)
    assert paths(listing(root, ["dangling"])) == ["a"]


LIST = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from client.errors import UsageError
from client.upload.ignore import Listing, Entry, listing
from client.upload.package import Upload
root = Path(sys.argv[1])
try:
    if sys.argv[3] == "pack":
        info = (root / "closed").stat()
        entry = Entry("closed", root / "closed", 1, (info.st_dev, info.st_ino), info.st_mtime)
        Upload(Listing(root, (entry,)), ()).packed()
    print([entry.path for entry in listing(root).entries])
except UsageError as error:
    print(error)
"""


def obey_permission_bits() -> None:
    """Drop root's capabilities that override permission bits, for the next program that is executed."""
    if os.geteuid() == 0:
        drop_capability, override, read_search = 24, 1, 2
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.prctl(drop_capability, override) == libc.prctl(drop_capability, read_search) == 0


def said_under_permission_bits(root: Path, action: str = "list") -> str:
    command = [sys.executable, "-c", LIST, str(root), str(REPOSITORY), action]
    done = subprocess.run(command, check=True, capture_output=True, text=True, preexec_fn=obey_permission_bits)
    return done.stdout.strip()


@pytest.mark.parametrize("action", ["list", "pack"])
def test_an_unreadable_file_is_an_error_that_names_it(root: Path, action: str) -> None:
    write(root, "closed", "open")
    (root / "closed").chmod(0)
    expected = "closed cannot be read (Permission denied): correct it or add it to .rayignore"
    assert said_under_permission_bits(root, action) == expected
    write(root, ".rayignore", text="closed\n!nothing\n")
    assert said_under_permission_bits(root) == "['.rayignore', 'open']"


def test_an_unreadable_directory_is_an_error_that_names_it(root: Path) -> None:
    write(root, "closed/x", "open")
    (root / "closed").chmod(0)
    said = said_under_permission_bits(root)
    assert re.search(r"closed/ cannot be read|could not open directory 'closed/'", said)
    assert "Permission denied" in said
    (root / "closed").chmod(0o755)
    assert said_under_permission_bits(root) == "['closed/x', 'open']"


def test_an_unreadable_directory_that_is_ignored_does_no_harm(root: Path) -> None:
    write(root, "closed/x", "open")
    write(root, ".gitignore", text="closed/\n")
    write(root, ".rayignore", text="!nothing\n")
    (root / "closed").chmod(0)
    assert said_under_permission_bits(root) == "['.gitignore', '.rayignore', 'open']"


def test_pipes_and_sockets_are_skipped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, "a")
    write(root, ".rayignore", text="!nothing\n")
    os.mkfifo(root / "pipe")
    (root / "to-pipe").symlink_to("pipe")
    (root / "null").symlink_to("/dev/null")
    monkeypatch.chdir(root)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        assert paths(listing(root)) == [".rayignore", "a"]


@pytest.mark.parametrize("name", ["naïve 日本.txt", "two\nlines", " space ", "a*[b]?.txt", "tab\t", "!bang", "#hash"])
def test_odd_names_survive_to_the_zip(root: Path, name: str) -> None:
    write(root, f"dir {name}/{name}")
    found = listing(root)
    assert paths(found) == [f"dir {name}/{name}"]
    with pack(found) as packed, zipfile.ZipFile(packed.packages[0].path) as archive:
        assert archive.namelist() == [f"dir {name}/{name}"]


@pytest.mark.parametrize("name", [b"latin-\xe9", b"back\\slash", b"c:drive"])
def test_a_name_that_ray_would_drop_is_an_error(root: Path, name: bytes) -> None:
    write(root, "a")
    (root / os.fsdecode(name)).write_text("x")
    with pytest.raises(UsageError, match="Ray cannot unpack a file named") as error:
        listing(root)
    one_line(error).encode()
    assert paths(listing(root, ["latin*", "back*", "c:*"])) == ["a"]


@pytest.mark.parametrize("held", [[], [".env"], ["empty/__pycache__/x"]])
def test_nothing_to_upload_is_an_error(root: Path, held: list[str]) -> None:
    (root / "empty").mkdir()
    write(root, *held)
    with pytest.raises(UsageError, match="no file in .*tree may be uploaded") as error:
        listing(root)
    one_line(error)


@pytest.mark.parametrize("name", ["file", "missing"])
def test_a_root_that_is_no_directory_is_an_error(tmp_path: Path, name: str) -> None:
    write(tmp_path, "file")
    with pytest.raises(UsageError, match=f"{name} is not a directory"):
        listing(tmp_path / name)


# Packing


def test_packages_are_deleted_and_only_the_user_can_read_them(root: Path) -> None:
    write(root, "a")
    with pack(listing(root)) as packed:
        (package,) = packed.packages
        assert temporary() == [package.path.parent]
        assert stat.S_IMODE(package.path.parent.stat().st_mode) == 0o700
        assert packed.size == package.size == package.path.stat().st_size
        assert packed.working_dir == package.uri
        assert re.fullmatch(r"gcs://_ray_pkg_[0-9a-f]{32}\.zip", package.uri)
    assert temporary() == []


def test_the_same_tree_makes_the_same_uri_and_zip(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path, f"{name}/a", f"{name}/sub/b")
    os.utime(tmp_path / "two/a", (0, -1_000_000_000))
    with pack(listing(tmp_path / "one")) as one, pack(listing(tmp_path / "two")) as two:
        assert one.working_dir == two.working_dir
        assert one.packages[0].path.read_bytes() == two.packages[0].path.read_bytes()


def test_what_is_compressed_already_is_stored(root: Path) -> None:
    text = "x" * 10_000
    write(root, "a.py", "b.PNG", "c.tar.gz", text=text)
    with pack(listing(root)) as packed, zipfile.ZipFile(packed.packages[0].path) as archive:
        stored = [info.filename for info in archive.infolist() if info.compress_type == zipfile.ZIP_STORED]
        assert stored == ["b.PNG", "c.tar.gz"]
        assert {archive.read(name) for name in archive.namelist()} == {text.encode()}
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda tree: (tree / "a").write_text("y"),
    "chmod +x": lambda tree: (tree / "a").chmod(0o755),
    "name": lambda tree: (tree / "a").rename(tree / "c"),
    "new empty file": lambda tree: (tree / "c").touch(),
    "shift between files": lambda tree: [(tree / name).write_text(text) for name, text in (("a", "xx"), ("b", ""))],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_another_tree_makes_another_uri(root: Path, change: Callable[[Path], object]) -> None:
    write(root, "a", "b")
    (root / "a").chmod(0o644)
    with pack(listing(root)) as packed:
        before = packed.working_dir
    change(root)
    with pack(listing(root)) as packed:
        assert packed.working_dir != before


def test_content_cannot_pose_as_another_file(root: Path) -> None:
    write(root, "a", "b", text="")
    for name in ("a", "b"):
        (root / name).chmod(0o644)
    with pack(listing(root)) as packed:
        before = packed.working_dir
    (root / "b").unlink()
    for pretence in ("b\0", "b\x00644\0", "b\x00644 0\0"):
        write(root, "a", text=pretence)
        with pack(listing(root)) as packed:
            assert packed.working_dir != before


def test_progress_gets_every_byte_once(root: Path) -> None:
    write(root, "a", text="x" * 3_000_000)
    write(root, "b", text="x" * 5)
    seen: list[int] = []
    with pack(listing(root), seen.append):
        assert sum(seen) == 3_000_005
        assert max(seen) <= 1024**2


COUNT_OPENS = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from client.upload.ignore import listing
from client.upload.package import plan_upload
opened = []
sys.addaudithook(lambda event, args: event == "open" and opened.append(str(args[0])))
with plan_upload(Path(sys.argv[1]), [], []).packed():
    pass
print(json.dumps([path for path in opened if path.startswith(sys.argv[1])]))
"""


def test_each_file_is_opened_once(root: Path) -> None:
    write(root, "a", "sub/b", "sub/c")
    command = [sys.executable, "-c", COUNT_OPENS, str(root), str(REPOSITORY)]
    opened = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert sorted(opened) == [str(root / path) for path in ("a", "sub/b", "sub/c")]


def test_modes_and_content_survive_rays_own_unpacking(root: Path, tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import unzip_package

    write(root, "run.sh", "deep/plain", text="content")
    (root / "run.sh").chmod(0o755)
    (root / "deep/plain").chmod(0o640)
    with pack(listing(root)) as packed:
        package = str(packed.packages[0].path)
        unzip_package(package, str(tmp_path / "out"), remove_top_level_directory=False, unlink_zip=False)
    assert stat.S_IMODE((tmp_path / "out/run.sh").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "out/deep/plain").stat().st_mode) == 0o640
    assert (tmp_path / "out/deep/plain").read_text() == "content"


@pytest.mark.parametrize("text", ["", "x"])
def test_a_file_that_became_shorter_is_an_error(root: Path, text: str) -> None:
    write(root, "log", text="x" * 10)
    found = listing(root)
    write(root, "log", text=text)
    with pytest.raises(UsageError, match="log became shorter while it was packed") as error:
        pack(found)
    one_line(error)
    assert temporary() == []


def test_a_file_that_was_replaced_is_an_error(root: Path) -> None:
    write(root, "log", "new")
    found = listing(root)
    (root / "new").rename(root / "log")
    with pytest.raises(UsageError, match="log was replaced while it was packed") as error:
        pack(found)
    one_line(error)
    assert temporary() == []


def test_a_file_that_grew_is_sent_as_it_was_listed(root: Path) -> None:
    write(root, "log", text="y" * 10)
    found = listing(root)
    write(root, "log", text="x" * 2_000_000)
    with pack(found) as packed, zipfile.ZipFile(packed.packages[0].path) as archive:
        assert archive.read("log") == b"x" * 10


APPEND = """
import sys
with open(sys.argv[1], "a") as file:
    number = 0
    while True:
        number += 1
        print(f"line {number}", file=file, flush=True)
"""


def test_a_file_that_grows_while_it_is_packed_is_sent_as_it_was_listed(root: Path) -> None:
    log = root / "train.log"
    write(root, "a.bin", "z.bin", text="x" * 3_000_000)
    with subprocess.Popen([sys.executable, "-c", APPEND, str(log)]) as writer:
        try:
            wait_for(lambda: log.exists() and log.stat().st_size > 1000)
            found = listing(root)
            (listed,) = (entry.size for entry in found.entries if entry.path == "train.log")

            def see_it_grow(_: int) -> None:  # called for each chunk; continues only when the file has grown
                size = log.stat().st_size
                wait_for(lambda: log.stat().st_size > size)

            with pack(found, see_it_grow) as packed, zipfile.ZipFile(packed.packages[0].path) as archive:
                sent = archive.read("train.log")
        finally:
            writer.kill()
    assert len(sent) == listed < log.stat().st_size
    assert log.read_bytes().startswith(sent)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


OUTPUT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from client.upload.package import plan_upload
print("packing", flush=True)
upload = plan_upload(Path.cwd(), [], ["!train.log", "!errors"])
with upload.packed(lambda _: print("packing", flush=True)) as packed:
    print([entry.path for entry in upload.entries], upload.withheld, flush=True)
"""


@pytest.mark.parametrize("same", [True, False], ids=["2>&1", "two files"])
def test_our_own_output_is_never_uploaded(root: Path, same: bool) -> None:
    write(root, "a.py", "other.log")
    write(root, ".rayignore", text="!train.log\n!errors\n")
    with open(root / "train.log", "w") as out, open(root / "errors", "w") as errors:
        os.link(root / "train.log", root / "second-name")
        (root / "third-name").symlink_to("train.log")
        command = [sys.executable, "-c", OUTPUT, str(REPOSITORY)]
        subprocess.run(command, cwd=root, stdout=out, stderr=out if same else errors, check=True)
    said = (root / "train.log").read_text().splitlines()
    assert said.count("packing") >= 4
    assert said[-1] == str([".rayignore", "a.py", *["errors"] * same, "other.log"]) + " ()"


def test_an_output_that_is_closed_does_no_harm(root: Path) -> None:
    write(root, "a.py")
    code = (
        "import os, sys; os.close(1); os.close(2); from pathlib import Path; sys.path.insert(0, sys.argv[1]); "
        "from client.upload.ignore import listing; sys.exit(len(listing(Path.cwd()).entries))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(REPOSITORY)], cwd=root).returncode == 1


def test_a_file_that_vanished_is_an_error(root: Path) -> None:
    write(root, "a", "b")
    found = listing(root)
    (root / "b").unlink()
    with pytest.raises(UsageError, match=r"b is a broken link or was deleted"):
        pack(found)
    assert temporary() == []


def test_ctrl_c_leaves_no_zip(root: Path) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    write(root, "a")
    with pytest.raises(KeyboardInterrupt):
        pack(listing(root), interrupt)
    assert temporary() == []


def test_no_room_for_the_zip_is_told_from_a_bad_file(root: Path) -> None:
    write(root, "a")
    (root / "a").write_bytes(os.urandom(300_000))
    found = listing(root)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UsageError, match=r"cannot write the packed files to .*: free space or set TMPDIR"):
            pack(found)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert temporary() == []


def test_over_the_limit_is_an_error_that_names_the_largest(root: Path) -> None:
    block = os.urandom(1024**2)
    with open(root / "big.bin", "wb") as file:
        for number in range(101):
            file.write(block[number:] + block[:number])  # repeats lie outside deflate's window
    for number in range(11):
        write(root, f"small{number:02}", text="x" * (number + 1))
    read: list[int] = []
    with pytest.raises(UsageError, match="100 MiB") as error:
        pack(listing(root), read.append)
    said = one_line(error)
    assert "101.0 MiB in 12 files" in said
    assert "big.bin (101.0 MiB)" in said
    assert "small10" in said
    assert "small01" not in said
    assert ".rayignore" in said
    assert 100 * 1024**2 <= sum(read) <= 101 * 1024**2
    assert temporary() == []


def test_the_limit_is_of_the_zip_and_not_of_the_tree(root: Path) -> None:
    with open(root / "zeros", "wb") as file:
        file.truncate(LIMIT + 1)
    with pack(listing(root)) as packed:
        assert packed.size < LIMIT // 100


def test_the_zips_own_tables_count_towards_the_limit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, *(f"a-file-without-content-{number}" for number in range(50)), text="")
    with pack(listing(root)) as packed:
        size = packed.size
    monkeypatch.setattr(package, "LIMIT", size)
    with pack(listing(root)):
        pass
    monkeypatch.setattr(package, "LIMIT", size - 1)
    with pytest.raises(UsageError, match="list large files"):
        pack(listing(root))
    assert temporary() == []


PEAK_MEMORY = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from client.upload.ignore import listing
from client.upload.package import Upload
found = listing(Path(sys.argv[1]))
import zipfile
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with Upload(found, ()).packed():
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_stays_bounded(root: Path) -> None:
    with open(root / "zeros", "wb") as file:
        file.truncate(200 * 1024**2)
    (root / "noise").write_bytes(os.urandom(30 * 1024**2))
    command = [sys.executable, "-c", PEAK_MEMORY, str(root), str(REPOSITORY)]
    grown = int(subprocess.run(command, check=True, capture_output=True).stdout)
    assert grown < 16 * 1024  # KiB


def test_listing_does_not_pay_for_zipfile(root: Path) -> None:
    write(root, "a")
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); "
        "from client.upload.package import plan_upload; "
        "plan_upload(Path(sys.argv[1]), [], []); sys.exit('zipfile' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(root), str(REPOSITORY)]).returncode == 0


# py_modules


def write_wheel(path: Path, text: str) -> None:
    info = "wheelmod-0.1.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("wheelmod.py", text)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: wheelmod\nVersion: 0.1\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "wheelmod.py,,\n")


@pytest.fixture
def modules(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a folder, a file and a wheel for py_modules, next to a working directory `job`."""
    write(root, "job/a.py", "lib/pkg/__init__.py", "lib/pkg/sub/deep.py", text="VALUE = 'folder'\n")
    write(root, "lib/pkg/.env", "lib/pkg/sub/tls.key", "lib/pkg/noise.tmp", "lib/pkg/__pycache__/x.pyc", "job/.env")
    write(root, "lib/single.py", text="VALUE = 'file'\n")
    write_wheel(root / "lib/wheelmod-0.1-py3-none-any.whl", "VALUE = 'wheel'\n")
    monkeypatch.chdir(root)
    return root


WHEEL = "lib/wheelmod-0.1-py3-none-any.whl"


def test_py_modules_are_listed_by_the_same_rules_and_their_secrets_withheld(modules: Path) -> None:
    write(modules, "lib/.gitignore", text="*.tmp\n")
    write(modules, "lib/pkg/.gitignore", text="*.tmp\n")
    upload = plan_upload(modules / "job", ["lib/pkg", "lib/single.py", "s3://b/m.zip", WHEEL], ["/sub/*.md"])
    assert [entry.path for entry in upload.entries] == [
        "a.py", "pkg/.gitignore", "pkg/__init__.py", "pkg/sub/deep.py", "single.py", "wheelmod-0.1-py3-none-any.whl",
    ]  # fmt: skip
    assert upload.withheld == (".env", "pkg/.env", "pkg/sub/tls.key")
    assert upload.size == sum(entry.source.stat().st_size for entry in upload.entries)
    assert [found.root.name for found in upload.listings] == ["job", "pkg", "single.py", Path(WHEEL).name]
    assert temporary() == []


def test_a_rayignore_in_a_py_module_counts_and_excludes_are_relative_to_it(modules: Path) -> None:
    write(modules, "lib/pkg/.rayignore", text="/sub/deep.py\n!/.env\n*.tmp\n")
    write(modules, "lib/pkg/data/x", "lib/pkg/sub/data/y")
    upload = plan_upload(None, ["lib/pkg"], ["/data/", "/pkg/"])
    assert [entry.path for entry in upload.entries] == [
        "pkg/.env", "pkg/.rayignore", "pkg/__init__.py", "pkg/sub/data/y",
    ]  # fmt: skip
    assert upload.withheld == ("pkg/sub/tls.key",)


def test_a_gitignore_above_a_py_module_counts(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(repo, ".gitignore", text="*.tmp\n/lib/pkg/gone/\n")
    write(repo, "lib/pkg/__init__.py", "lib/pkg/x.tmp", "lib/pkg/gone/y", "lib/pkg/sub/z.py")
    monkeypatch.chdir(repo / "lib/pkg/sub")
    assert [entry.path for entry in plan_upload(None, [".."], []).entries] == ["pkg/__init__.py", "pkg/sub/z.py"]


class Store:
    """A stand-in for Ray's GCS that holds the packages."""

    def __init__(self, packed: Packed) -> None:
        self.content = {package.uri.encode(): package.path.read_bytes() for package in packed.packages}

    async def async_internal_kv_get(self, key: bytes, namespace: None, timeout: None) -> bytes:
        return self.content[key]


def imported_through_ray(packed: Packed, folder: Path, expression: str) -> str:
    """Return the output of a Ray worker for which Ray's own plugin has unpacked the py_modules."""
    from ray._private.runtime_env.context import RuntimeEnvContext
    from ray._private.runtime_env.py_modules import PyModulesPlugin

    plugin = PyModulesPlugin(str(folder), Store(packed))
    context = RuntimeEnvContext()
    for uri in packed.py_modules:
        asyncio.run(plugin.create(uri, {}, context))
    plugin.modify_context(packed.py_modules, {}, context)
    command = [sys.executable, "-c", f"import pkg, pkg.sub.deep, single, wheelmod; print({expression})"]
    return subprocess.run(
        command, env={**os.environ, **context.env_vars}, cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_rays_own_plugin_unpacks_and_imports_every_form(
    modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    given = ["lib/pkg", "lib/single.py", WHEEL]
    values = "pkg.VALUE, pkg.sub.deep.VALUE, single.VALUE, wheelmod.VALUE"
    with plan_upload(None, given, []).packed() as packed:
        assert packed.working_dir is None
        assert packed.py_modules == [package.uri for package in packed.packages]
        assert imported_through_ray(packed, tmp_path / "node", values) == "folder folder file wheel"
        unpacked = [path.name for path in (tmp_path / "node").rglob("*")]
        assert "deep.py" in unpacked
        assert not {".env", "tls.key"} & set(unpacked)
    write_wheel(modules / WHEEL, "VALUE = 'built again'\n")
    with plan_upload(None, given, []).packed() as packed:
        assert imported_through_ray(packed, tmp_path / "node", "wheelmod.VALUE") == "built again"


def test_uris_stay_as_they_are_in_their_place(modules: Path) -> None:
    given = ["gs://b/one.zip", "lib/pkg", "local:///in/image", "lib/single.py"]
    with plan_upload(modules / "job", given, []).packed() as packed:
        working_dir, folder, single = packed.packages
        assert packed.working_dir == working_dir.uri
        assert packed.py_modules == ["gs://b/one.zip", folder.uri, "local:///in/image", single.uri]
        assert packed.size == sum(package.path.stat().st_size for package in packed.packages)
        assert len({package.uri for package in packed.packages}) == 3
    assert temporary() == []


def test_an_upload_of_nothing_makes_no_file() -> None:
    upload = plan_upload(None, ["gs://b/one.zip"], [])
    assert (upload.listings, upload.entries, upload.size) == ((), (), 0)
    with upload.packed() as packed:
        assert (packed.working_dir, packed.py_modules, packed.packages) == (None, ["gs://b/one.zip"], ())
        assert temporary() == []


def test_a_wheel_keeps_its_build_tag(modules: Path) -> None:
    shutil.copy(modules / WHEEL, modules / "lib/wheelmod-0.1-7a-py3-none-any.whl")
    with plan_upload(None, [WHEEL, "lib/wheelmod-0.1-7a-py3-none-any.whl"], []).packed() as packed:
        assert re.fullmatch(r"gcs://wheelmod-0\.1-0_[0-9a-f]{16}-py3-none-any\.whl", packed.py_modules[0])
        assert re.fullmatch(r"gcs://wheelmod-0\.1-7a_[0-9a-f]{16}-py3-none-any\.whl", packed.py_modules[1])
        assert packed.packages[0].path.read_bytes() == (modules / WHEEL).read_bytes()


@pytest.mark.parametrize("module", ["nowhere", "job/data.txt", "lib/no-wheel.whl", "nowhere.py", "/"])
def test_what_cannot_be_a_py_module_is_an_error(modules: Path, module: str) -> None:
    write(modules, "job/data.txt", "lib/no-wheel.whl")
    with pytest.raises(UsageError, match="in py_modules is not a folder, a .py file or a wheel") as error:
        plan_upload(None, [module], [])
    assert module in one_line(error)


def test_a_py_module_that_changes_or_is_too_large_is_an_error_that_leaves_no_file(
    modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = plan_upload(modules / "job", ["lib/pkg", WHEEL], [])
    write(modules, "lib/new")
    (modules / "lib/new").rename(modules / WHEEL)
    with pytest.raises(UsageError, match=r"wheelmod-0\.1-py3-none-any\.whl was replaced"):
        upload.packed()
    assert temporary() == []
    write_wheel(modules / WHEEL, "x" * 3000)
    monkeypatch.setattr(package, "LIMIT", 2000)
    with pytest.raises(UsageError, match=r"wheelmod.* that Ray accepts"):
        plan_upload(modules / "job", ["lib/pkg", WHEEL], []).packed()
    assert temporary() == []
