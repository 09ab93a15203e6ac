"""client/upload/bucket.py: uploads that Ray gets from a bucket, with stand-ins for S3 and Google Cloud Storage."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

import client
from client.errors import UsageError
from client.targets.embedded import target as embedded
from client.targets.target import Target
from tests.client.bucket import UPLOAD_ID, Reply, Store, digest, s3_error
from tests.client.conftest import token_of
from tests.client.server import serving
from tests.conftest import Cli

SECRET = "wJalrXUtnFEMI"
PART = 16 << 20
LOOK = {"s3": [("HEAD", "{}"), ("GET", "list {}/")], "gs": [("GET", "{}"), ("GET", "list {}/"), ("GET", "{}")]}
FOUND = {"s3": [("HEAD", "{}")], "gs": [("GET", "{}"), ("GET", "list {}/")]}
BEGIN = {"s3": ("POST", "{}?uploads"), "gs": ("POST", "?uploadType=resumable")}
SEND = {"s3": ("PUT", "{}?partNumber"), "gs": ("POST", "{}?upload_id")}
CANCEL = {"s3": ("DELETE", "{}?uploadId"), "gs": ("DELETE", "{}?upload_id")}


class Cloud(NamedTuple):
    """A Ray head whose environment, like ours, points at the stand-ins."""

    head: Target
    stores: dict[str, Store]

    def runtime_env(self, submission_id: str) -> dict[str, object]:
        return dict(self.head.http.request("GET", f"/api/jobs/{submission_id}").json()["runtime_env"])


@pytest.fixture(scope="module")
def cloud(environment: Path) -> Iterator[Cloud]:
    stores = {"s3": Store(), "gs": Store()}
    folder = environment / "cloud"
    folder.mkdir()
    with ExitStack() as stack:
        env = stack.enter_context(pytest.MonkeyPatch.context())
        env.setenv("AWS_ENDPOINT_URL", stack.enter_context(serving(stores["s3"].s3)))
        env.setenv("STORAGE_EMULATOR_HOST", stack.enter_context(serving(stores["gs"].gs)))
        for name, value in {"ACCESS_KEY_ID": "AKIA", "SECRET_ACCESS_KEY": SECRET, "REGION": "us-east-1"}.items():
            env.setenv(f"AWS_{name}", value)
        env.setenv("NO_GCE_CHECK", "true")  # google-auth would ask a metadata server for a login
        head = stack.enter_context(embedded.cold(folder))
        head.wait_ready(print, 60)
        (folder / "token").write_text(token_of(head))
        env.setenv("RAY_WORKLOAD_ADDRESS", head.http.server.url)
        env.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
        yield Cloud(head, stores)


@pytest.fixture(params=["s3", "gs"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(cloud: Cloud, scheme: str) -> Store:
    store = cloud.stores[scheme]
    store.objects.clear()
    store.requests.clear()
    store.fail = lambda method, what: None
    return store


def named(requests: list[tuple[str, str]], name: str) -> list[tuple[str, str]]:
    return [(method, what.format(name)) for method, what in requests]


def asked(store: Store) -> list[tuple[str, str]]:
    """What was asked since the last call."""
    requests = [(method, what) for method, what, _ in store.requests]
    store.requests.clear()
    return requests


def test_ray_gets_what_was_put_into_the_bucket_once(
    cloud: Cloud, scheme: str, store: Store, run: Cli, tmp_path: Path
) -> None:
    work, library = tmp_path / "work", tmp_path / "library"
    (work / "only").mkdir(parents=True)  # a single folder, which Ray strips from a zip that it gets from a bucket
    library.mkdir()
    (library / "__init__.py").write_text(f"WORD = 'imported {scheme}'")
    (work / "only" / "a.py").write_text("import library, os\nprint(library.WORD, os.listdir(), os.listdir('only'))")
    (tmp_path / "env.yaml").write_text(f"py_modules: [{library}]")
    submit = ["submit", "--upload-to", f"{scheme}://bucket/jobs/", "--runtime-env", "../env.yaml"]
    done = run(*submit, "--id", f"first-{scheme}", "only/a.py", cwd=work)
    assert done.returncode == 0, done.stderr + done.stdout
    assert f"imported {scheme} ['only'] ['a.py']\n" in done.stdout.decode()
    first, module = (f"{scheme}://bucket/{name}" for name in store.objects)
    runtime_env = cloud.runtime_env(f"first-{scheme}")
    assert (runtime_env["working_dir"], runtime_env["py_modules"]) == (first, [module])
    assert first.startswith(f"{scheme}://bucket/jobs/_ray_pkg_") and first.endswith(".zip")
    name = first.removeprefix(f"{scheme}://bucket/")
    put = {"s3": [("PUT", name)], "gs": named([BEGIN["gs"], SEND["gs"]], name)}[scheme]
    begun = len(LOOK[scheme]) + len(put)
    body = store.requests[begun - 1][2]
    assert body == digest(store.objects[name])
    requests = asked(store)[:begun]
    assert sorted(requests[: -len(put)]) == sorted(named(LOOK[scheme], name))  # gcsfs asks two things at once
    assert requests[-len(put) :] == put

    again = run(*submit, "--id", f"again-{scheme}", "only/a.py", cwd=work)
    assert again.returncode == 0, again.stderr
    requests, wanted = asked(store), named(FOUND[scheme], name)
    assert Counter(wanted) <= Counter(requests)  # in any order; Ray itself may still get objects
    assert {method for method, _ in requests} <= {"GET", "HEAD"}
    assert cloud.runtime_env(f"again-{scheme}")["working_dir"] == first
    assert len(store.objects) == 2

    (work / "only" / "a.py").write_text("print('changed')")
    changed = run(*submit, "only/a.py", cwd=work)
    assert changed.returncode == 0 and b"\nchanged\n" in changed.stdout, changed.stderr
    assert len(store.objects) == 3 and [*store.objects][-1] not in (name, module)
    assert SECRET.encode() not in done.stderr + done.stdout + again.stderr + changed.stderr


def test_a_large_upload_that_ends_in_the_middle_leaves_nothing_and_is_sent_again(
    cloud: Cloud, scheme: str, store: Store, run: Cli, tmp_path: Path
) -> None:
    (tmp_path / "large.npz").write_bytes(os.urandom(101 << 20))  # stored, not compressed
    command = ["submit", "--upload-to", f"{scheme}://bucket", "--", "wc", "-c", "large.npz"]
    for end in ("refused", "interrupted", "killed"):
        process = subprocess.Popen([sys.executable, "-m", "client", *command], cwd=tmp_path, stderr=subprocess.PIPE)

        def at_the_third_part(method: str, what: str, process=process, end=end) -> Reply | None:  # type: ignore[no-untyped-def]
            if [request[:2] for request in store.requests].count((method, what)) != 3 or method == "GET":
                return None
            if end == "refused":
                return s3_error(403, "ExpiredToken") if scheme == "s3" else (403, {}, UPLOAD_ID.encode())
            process.send_signal(signal.SIGINT if end == "interrupted" else signal.SIGKILL)
            return None

        store.fail = at_the_third_part
        said = process.communicate(timeout=60)[1].decode()
        assert process.returncode == {"refused": 77, "interrupted": 130, "killed": -signal.SIGKILL}[end], said
        if end == "refused":
            code = {"s3": "ExpiredToken", "gs": "403"}[scheme]
            assert f"ray-workload: {scheme}://bucket does not accept this upload ({code}): log in" in said
        assert UPLOAD_ID not in said and SECRET not in said and "Traceback" not in said
        assert store.objects == {}
        requests = asked(store)
        name = next(what for _, what in requests if not what.startswith("list "))
        look, sent = requests[: len(LOOK[scheme])], requests[len(LOOK[scheme]) :]
        assert sorted(look) == sorted(named(LOOK[scheme], name))
        cancelled = [CANCEL[scheme]] if end != "killed" else []
        assert sent == named([BEGIN[scheme], *[SEND[scheme]] * 3, *cancelled], name), end
    store.fail = lambda method, what: None
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert f"\n{101 << 20} large.npz\n".encode() in b"\n" + done.stdout
    (data,) = store.objects.values()
    parts = [body for method, what, body in store.requests if (method, what) == named([SEND[scheme]], name)[0]]
    assert parts == [digest(data[at : at + PART]) for at in range(0, len(data), PART)]


@pytest.mark.parametrize(
    ("bucket", "answer", "code", "line"),
    [
        (
            "bucket",
            403,
            77,
            "{0}://bucket does not accept this upload ({1}): log in to the cloud, and ask for the right",
        ),
        ("other", 404, 2, "there is no bucket {0}://other: create it, or use another --upload-to"),
    ],
)
def test_what_a_store_refuses_is_one_line(
    cloud: Cloud, scheme: str, store: Store, run: Cli, tmp_path: Path, bucket: str, answer: int, code: int, line: str
) -> None:
    (tmp_path / "a.py").write_text("")
    denied = s3_error(403, "AccessDenied") if scheme == "s3" else (401, {}, b'{"error": {"message": "hidden words"}}')
    store.fail = lambda method, what: denied if answer == 403 else None
    done = run("submit", "--upload-to", f"{scheme}://{bucket}/x", "a.py")
    assert done.returncode == code, done.stderr
    wrong = [said for said in done.stderr.decode().splitlines() if not said.startswith("ray-workload: address ")]
    shown = {"s3": "AccessDenied", "gs": "401"}[scheme]
    assert len(wrong) == 1 and wrong[0].startswith("ray-workload: " + line.format(scheme, shown)), done.stderr
    assert b"hidden words" not in done.stderr and not store.objects
    assert [method for method, _, _ in store.requests][-1] in ("PUT", "POST"), "the look alone must not decide"


def test_a_store_that_cannot_be_used(cloud: Cloud, run: Cli, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "a.py").write_text("")
    (tmp_path / "none").mkdir()
    for library in ("s3fs", "gcsfs"):
        (tmp_path / "none" / f"{library}.py").write_text("raise ImportError")
    cases = [
        ("s3", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, 69, "s3://b does not answer ("),
        (
            "s3",
            {"AWS_ACCESS_KEY_ID": "", "AWS_EC2_METADATA_DISABLED": "true"},
            77,
            "s3://b does not accept this upload (",
        ),
        (
            "s3",
            {"PYTHONPATH": str(tmp_path / "none")},
            2,
            "an upload to s3://b needs s3fs: pip install 'ray-workload[s3]'",
        ),
        (
            "gs",
            {"PYTHONPATH": str(tmp_path / "none")},
            2,
            "an upload to gs://b needs gcsfs: pip install 'ray-workload[gs]'",
        ),
    ]
    for scheme, env, code, line in cases:
        done = run("submit", "--upload-to", f"{scheme}://b", "a.py", cwd=tmp_path / "work", env=env)
        assert done.returncode == code, done.stderr
        assert done.stderr.decode().splitlines()[-1].startswith(f"ray-workload: {line}"), done.stderr
        assert SECRET not in done.stderr.decode() and b"Traceback" not in done.stderr


def test_a_dry_run_says_where_to_and_asks_nobody(
    cloud: Cloud, store: Store, scheme: str, run: Cli, tmp_path: Path
) -> None:
    (tmp_path / "a.py").write_text("")
    options = ["submit", "--dry-run", "--upload-to", f"{scheme}://bucket/x", "a.py"]
    shown = run(*options, env={"RAY_WORKLOAD_ADDRESS": "http://127.0.0.1:9"})
    assert f"working_dir  {scheme}://bucket/x/_ray_pkg_".encode() in shown.stdout, shown.stderr
    (tmp_path / "m-1.0-py3-none-any.whl").write_text("")
    (tmp_path / "env.yaml").write_text("py_modules: [m-1.0-py3-none-any.whl]")
    runtime_env = json.loads(run(*options[:-1], "--runtime-env", "env.yaml", "-o", "json", "a.py").stdout)[
        "runtime_env"
    ]
    assert runtime_env["working_dir"].startswith(f"{scheme}://bucket/x/_ray_pkg_")
    wheel = rf"{scheme}://bucket/x/m-1\.0-0_[0-9a-f]{{16}}-py3-none-any\.whl"
    assert re.fullmatch(wheel, runtime_env["py_modules"][0])
    assert store.requests == []


def test_ray_on_this_machine_needs_no_bucket(cloud: Cloud, store: Store, scheme: str, run: Cli, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("WORD = 'in place'")
    (tmp_path / "env.yaml").write_text("py_modules: [beside.py]")
    options = ["--upload-to", f"{scheme}://bucket", "--runtime-env", "env.yaml"]
    if scheme == "s3":
        command = ["python", "-c", "import beside; print(beside.WORD)"]
        done = run("submit", "--address", "embedded", *options, "--", *command)
        assert done.returncode == 0 and b"\nin place\n" in done.stdout, done.stderr
        assert b"bucket" not in done.stderr
    data = json.loads(run("submit", "--dry-run", "--address", "embedded", *options, "-o", "json", "--", "true").stdout)
    assert data["runtime_env"]["working_dir"] == f"local://{tmp_path}"
    assert data["runtime_env"]["py_modules"][0].startswith("gcs://_ray_pkg_")
    assert store.requests == []


def test_the_url_of_a_bucket_is_checked(cloud: Cloud, run: Cli, tmp_path: Path) -> None:
    for wrong in ("gcs://b", "https://b/c", "s3://", "s3://user:pass@b", "s3://b/x?y", "gs://b//c", "s3://b/x y"):
        done = run("submit", "--upload-to", wrong, "--", "true")
        assert done.returncode == 2 and b"use gs://BUCKET[/PREFIX] or s3://BUCKET[/PREFIX]" in done.stderr, wrong
        assert b"pass" not in done.stderr
    with pytest.raises(UsageError, match="upload_to must be a str"):
        client.submit(command=["true"], upload_to=5)  # type: ignore[arg-type]


def test_python_puts_it_there_too(cloud: Cloud, store: Store, scheme: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(f"print('{scheme}')")
    job = client.submit("a.py", working_dir=tmp_path, upload_to=f"{scheme}://bucket/python")
    assert job.wait(timeout=60).exit_code == 0
    assert cloud.runtime_env(job.submission_id)["working_dir"] == f"{scheme}://bucket/{next(iter(store.objects))}"
