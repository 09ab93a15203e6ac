"""What `ci/bench_cluster.py` measures of the client, compared with `kubectl port-forward` and Ray's own tools."""

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ci.bench_chart import CHART, HELLO, Sides, current_context, install, namespace, run, sets, timed, token

CLIENT = (sys.executable, "-m", "client")
RAY = str(Path(sys.executable).with_name("ray"))
AT_ONCE = 50
TREE_FILES, TREE_MIB = 20_000, 90
PHRASE = b"    total += weights[index] * samples[index]  # of the %d. row\n"
UPLOAD = """
import sys
from ray.job_submission import JobSubmissionClient
JobSubmissionClient(sys.argv[1]).submit_job(entrypoint="true", runtime_env={"working_dir": sys.argv[2]})
"""
# Prints each job's ID, its exit code, and how often its line is in its log. All jobs are submitted by one process.
SUBMITS = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
import client

def one(number):
    job, log = client.submit(command=["echo", f"line {number}"], working_dir=sys.argv[2]), []
    return job.submission_id, job.wait(log.append).exit_code, b"".join(log).count(b"\\nline %d\\n" % number)

with ThreadPoolExecutor(int(sys.argv[1])) as pool:
    print(json.dumps(list(pool.map(one, range(int(sys.argv[1]))))))
"""


@contextmanager
def port_forward(namespace: str) -> Iterator[str]:
    """Run `kubectl port-forward` to the head; yield its URL."""
    command = ["kubectl", "port-forward", "-n", namespace, "service/ray-head-svc", ":8265"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout
        try:
            yield f"http://{process.stdout.readline().split()[2]}"
        finally:
            process.terminate()


class Client:
    """Installs a cluster and returns the sides of each row."""

    def __init__(self, stack: ExitStack) -> None:
        """Install the cluster; closing the stack removes it."""
        self._namespace = stack.enter_context(namespace())
        install(self._namespace)
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        address = f"kubernetes://{current_context()}/{self._namespace}/ray"
        (self._folder / "token").write_text(token(self._namespace))
        self._ours = {"RAY_WORKLOAD_ADDRESS": address}
        self._theirs = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self._folder / "token")}
        self._hello = ("--working-dir", str(self._folder / "hello"), "--", "python", "hello.py")
        (self._folder / "hello").mkdir()
        (self._folder / "hello" / "hello.py").write_text(HELLO)
        self._submit(*self._hello)  # the first job on a head is slower

    def _submit(self, *args: str) -> dict[str, float]:
        return dict(json.loads(run(*CLIENT, "submit", "-o", "json", *args, **self._ours)))

    def submit(self) -> Sides:
        """Measure the whole command; Ray's side includes the start and end of the port-forward."""

        def theirs() -> None:
            with port_forward(self._namespace) as url:
                run(RAY, "job", "submit", "--address", url, *self._hello, **self._theirs)

        return [lambda: timed(lambda: self._submit(*self._hello)), lambda: timed(theirs)]

    def own_time(self) -> Sides:
        """Measure the whole command without the time of the job itself, which is in Ray's record of the job."""

        def ours() -> float:
            began = time.perf_counter()
            job = self._submit(*self._hello)
            return time.perf_counter() - began - (job["end_time"] - job["submit_time"]) / 1000

        return [ours]

    def list(self) -> Sides:
        """Measure `list`, with the jobs of the previous rows on the cluster."""
        return [lambda: timed(lambda: run(*CLIENT, "list", **self._ours))]

    def status(self) -> Sides:
        """Measure `status` of one job."""
        job = str(self._submit(*self._hello)["submission_id"])
        return [lambda: timed(lambda: run(*CLIENT, "status", job, **self._ours))]

    def upload(self, stack: ExitStack) -> Sides:
        """Measure the time until the job is accepted. The tree is changed before each upload, so nothing is cached."""
        tree = self._folder / "tree"
        write_tree(tree)
        url = stack.enter_context(port_forward(self._namespace))

        def changed(*command: str, **env: str) -> float:
            (tree / "0" / "0.py").write_bytes(os.urandom(1000))
            seconds = timed(lambda: run(*command, **env))
            self._wait()  # unpacking this upload would slow down the next
            return seconds

        ours = (*CLIENT, "submit", "--detach", "--working-dir", str(tree), "--", "true")
        theirs = (sys.executable, "-c", UPLOAD, url, str(tree))
        return [lambda: changed(*ours, **self._ours), lambda: changed(*theirs, **self._theirs)]

    def _wait(self) -> None:
        while re.search("PENDING|RUNNING", run(*CLIENT, "list", **self._ours)):
            time.sleep(0.1)

    def submits(self) -> Sides:
        """Measure concurrent submits until the last job ends. Each job must run once and log its line once."""

        def listed() -> set[str]:
            jobs = json.loads(run(*CLIENT, "list", "--limit", "10000", "-o", "json", **self._ours))
            return {job["submission_id"] for job in jobs}

        def ours() -> float:
            before, began = listed(), time.perf_counter()
            ended = json.loads(run(sys.executable, "-c", SUBMITS, str(AT_ONCE), self._hello[1], **self._ours))
            seconds = time.perf_counter() - began
            if {job for job, *_ in ended} != listed() - before or any(rest != [0, 1] for _, *rest in ended):
                raise SystemExit(f"not every one of the {AT_ONCE} jobs ran exactly once: {ended}")
            return seconds

        return [ours]


def write_tree(folder: Path) -> None:
    """Write a tree with 100 files per folder: half are text; the others, like images, do not compress."""
    size, content = TREE_MIB * 2**20 // TREE_FILES, random.Random(0)
    for number in range(TREE_FILES):
        there = folder / str(number // 100)
        there.mkdir(parents=True, exist_ok=True)
        if number % 2:
            (there / f"{number}.png").write_bytes(content.randbytes(size))
        else:
            rows = (PHRASE % content.randrange(10**6) for _ in range(size // len(PHRASE) + 1))
            (there / f"{number}.py").write_bytes(b"".join(rows)[:size])


def measure_up(into: str) -> None:
    """Install our chart with `up`."""
    given = [part for value in sets() for part in ("--set", value)]
    run(*CLIENT, "up", "local", "--chart", str(CHART), "--context", current_context(), "--namespace", into, *given)
