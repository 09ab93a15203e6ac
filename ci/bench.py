"""Compare the client with Ray's own tools; both sides run alternately: `make bench`.

    python ci/bench.py [--runs N] [--only NAME]...

Prints the medians of each row as soon as it is measured, and writes every measured time to build/bench.json. A time is
the wall time of a whole process. Everything runs with its own home and temporary folder, and is removed at the end.
"""

import argparse
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from threading import Timer
from typing import Any, NamedTuple

import psutil

from client.ray_api.jobs import RayJobs
from client.ray_api.record import JobRecord
from client.targets.embedded import target as embedded
from client.targets.target import Target as Head

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "build" / "bench.json"
RAY = str(Path(sys.executable).with_name("ray"))
CLIENT = [sys.executable, "-m", "client"]
SIMPLE_JOB, PROGRESS = "jobs/simple_job.py", "jobs/progress.py"
RAY_SIMPLE_JOB = ["--", sys.executable, str(ROOT / SIMPLE_JOB)]  # an absolute path: nothing is uploaded

LIMIT_SECONDS = 300.0  # for each command
ONCE_SECONDS = 60.0  # a command of theirs that takes longer is run only once
STOP_SECONDS = 16.0  # between SIGTERM and SIGKILL, as in `ray stop`
POLL_SECONDS = 0.1
MAXRSS_UNIT, MB = 1 if sys.platform == "darwin" else 1024, 1e6
SUBMITS, THEIR_SUBMITS = 100, 10
SWEEP_JOBS, THEIR_SWEEP_JOBS, SWEEP_PARALLEL, SWEEP_PEAK_MB = 1_000, 20, 8, 150.0
SWEEP_LIMIT_SECONDS = 1_800.0
# Keeps SWEEP_PARALLEL jobs running, and waits for the end of all.
SHELL_LOOP = f"""
running() {{ "$RAY" job list --address "$ADDRESS" 2>/dev/null | grep -cE "JobStatus\\.(PENDING|RUNNING)"; }}
for number in $(seq {THEIR_SWEEP_JOBS}); do
    while [ "$(running)" -ge {SWEEP_PARALLEL} ]; do sleep 1; done
    "$RAY" job submit --address "$ADDRESS" --no-wait -- true >/dev/null
done
while [ "$(running)" -gt 0 ]; do sleep 1; done
"""
CHAIN_JOBS, CHAIN_SECONDS = 20, 1.0
LOG_LINES, LOG_LINE_BYTES, LOG_PEAK_MB = 1_000_000, 1_000, 150.0


class Target(NamedTuple):
    """A row. Rows with the same name share our times; `at_most` is the largest accepted ratio of our time to theirs."""

    name: str
    ours: str
    theirs: str
    at_most: float


TARGETS = (
    Target("help", "--help", "ray job submit --help", 0.1),
    Target("cold", "submit simple_job.py, cold", "python simple_job.py", 1.4),
    Target("cold", "submit simple_job.py, cold", "ray start --head, ray job submit, its end", 0.45),
    Target("list", "list", "ray job list", 0.5),
    Target("status", "status ID", "ray job list", 0.5),
    Target("warm", "submit simple_job.py, warm", "ray job submit, no upload", 0.5),
    Target("submits", f"{SUBMITS} submits, Python", f"ray job submit --no-wait ({THEIR_SUBMITS}, scaled)", 1 / 20),
    Target("sweep", f"a sweep of {SWEEP_JOBS} jobs", f"submit --no-wait, loop polls ({THEIR_SWEEP_JOBS}, scaled)", 0.2),
    Target("log", f"follow {LOG_LINES * LOG_LINE_BYTES / 1e9:g} GB of log", "ray job logs -f", 1 / 3),
    Target("log-live", "the same, while it is written", "ray job logs -f", 1 / 3),
)
COLUMNS = {"what": 29, "beside": 41, "ours (s)": 8, "theirs (s)": 10, "ratio": 6, "target": 6, "reached": 0}
ONCE = ("sweep",)  # takes minutes
Side = Callable[[], float]
WITHOUT_HEAD = ("help", "cold")  # the others share the head that `up embedded` started
WITHOUT_WARM_UP = ("submits", "sweep", "log", "log-live")  # the others have one extra run that is not counted


def run(*command: str, env: Mapping[str, str] | None = None, limit: float = LIMIT_SECONDS) -> tuple[float, str, float]:
    """Run a command for at most `limit` seconds. Returns its seconds, its output and its peak memory in MB."""
    with tempfile.TemporaryFile() as output:  # a pipe would also wait for background processes of the command
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        timer = Timer(limit, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            timer.cancel()
        seconds, process.returncode = time.perf_counter() - began, os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if process.returncode and seconds < limit:
        raise SystemExit(f"exit code {process.returncode} from {' '.join(command)}:\n{text}")
    return seconds, text, usage.ru_maxrss * MAXRSS_UNIT / MB


def end_processes(folder: Path) -> None:
    """End every process whose command line contains a folder. `ray stop` would end every Ray on the machine."""
    others = (process for process in psutil.process_iter(["cmdline"]) if process.pid != os.getpid())
    found = [process for process in others if str(folder) in " ".join(process.info["cmdline"] or ())]
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in found:
            with suppress(psutil.NoSuchProcess):
                end(process)
        _, found = psutil.wait_procs(found, timeout=STOP_SECONDS)


def with_token(folder: Path, token: str) -> dict[str, str]:
    """Write a token to a file; return an environment in which Ray's own tools use it."""
    (folder / "token").write_text(token)
    return {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}


def free_port() -> str:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def submit(*args: str) -> str:
    """Submit a job to the warm head and return its ID."""
    return run(*CLIENT, "submit", "--address", "embedded", "--detach", *args)[1].split()[-1]


@dataclass
class Bench:
    """Measures both sides of each row; `facts` holds the other results of a row, by its name."""

    scratch: Path
    head: Head | None = None
    env: dict[str, str] = field(default_factory=dict)
    facts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def wait(self, ready: Callable[[JobRecord], bool]) -> None:
        """Wait until every job on the warm head, if there is one, is `ready`."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while self.head and not all(map(ready, RayJobs(self.head).list())):
            if time.monotonic() > deadline:
                raise SystemExit(f"a job is not ready after {LIMIT_SECONDS:g} s")
            time.sleep(POLL_SECONDS)

    def sides(self, name: str) -> list[Side]:
        """Return our side, then the other sides in the order of TARGETS."""
        where, there = ["--address", "embedded"], ["--address", self.head.http.server.url if self.head else ""]

        def timed(*command: str, times: int = 1) -> Side:
            env = self.env if command[0] == RAY and self.head else None
            return lambda: sum(run(*command, env=env)[0] for _ in range(times))

        ours = timed(*CLIENT, "submit", *where, SIMPLE_JOB)
        if name == "help":
            return [timed(*CLIENT, "--help"), timed(RAY, "job", "submit", "--help")]
        if name == "cold":
            return [ours, timed(sys.executable, SIMPLE_JOB), self._their_cold]
        if name == "warm":
            return [ours, timed(RAY, "job", "submit", *there, *RAY_SIMPLE_JOB)]
        if name == "submits":
            loop = f"for _ in range({SUBMITS}): client.submit(command=['true'], address='embedded')"
            some = timed(RAY, "job", "submit", *there, "--no-wait", "--", "true", times=THEIR_SUBMITS)
            return [timed(sys.executable, "-c", f"import client\n{loop}"), lambda: some() * SUBMITS / THEIR_SUBMITS]
        if name == "sweep":
            self.env |= {"RAY": RAY, "ADDRESS": there[1]}
            return [self._swept, lambda: run("sh", "-c", SHELL_LOOP, env=self.env)[0] * SWEEP_JOBS / THEIR_SWEEP_JOBS]
        if name in ("log", "log-live"):
            commands = ([*CLIENT, "logs", *where, "--follow"], [RAY, "job", "logs", *there, "-f"])
            return [partial(self._followed, name, command) for command in commands]
        command = [*CLIENT, name, *where, *([submit("--", "true")] if name == "status" else [])]
        imports = run(sys.executable, "-X", "importtime", *command[1:])[1].splitlines()
        modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in imports}
        self.facts[name] = [{"passed": {"no import of ray": "client" in modules and "ray" not in modules}}]
        return [timed(*command), timed(RAY, "job", "list", *there)]

    def _swept(self) -> float:
        given = [*CLIENT, "submit", "--address", "embedded", "--max-parallel", str(SWEEP_PARALLEL)]
        given += ["--id", secrets.token_hex(4), "--array", f"1-{SWEEP_JOBS}", "--", "true"]
        seconds, _, peak = run(*given, limit=SWEEP_LIMIT_SECONDS)
        chain = self.scratch / "chain" / "chain.yaml"
        chain.parent.mkdir(exist_ok=True)
        jobs = {f"job-{number}": {"command": "true"} for number in range(CHAIN_JOBS)}
        chain.write_text(json.dumps({"jobs": jobs}))
        command = [*CLIENT, "run", "--address", "embedded", "--max-parallel", str(SWEEP_PARALLEL), str(chain)]
        run(*command)
        skipped, text, _ = run(*command)
        assert text.count("skipped, because") == CHAIN_JOBS, text
        passed = {
            f"below {SWEEP_PEAK_MB:g} MB": peak < SWEEP_PEAK_MB,
            f"{CHAIN_JOBS} jobs skipped in {CHAIN_SECONDS:g} s": skipped <= CHAIN_SECONDS,
        }
        fact = {"peak_mb": peak, "chain_skipped_seconds": skipped, "passed": passed}
        self.facts.setdefault("sweep", []).append(fact)
        return seconds

    def _their_cold(self) -> float:
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        env = with_token(folder, secrets.token_hex())
        port = free_port()
        ports = ["--port", "0", "--dashboard-port", port, "--dashboard-agent-listen-port", free_port()]
        ports += ["--ray-client-server-port", free_port()]
        began = time.perf_counter()
        run(RAY, "start", "--head", *ports, f"--temp-dir={folder}", "--disable-usage-stats", env=env)
        run(RAY, "job", "submit", "--address", f"http://127.0.0.1:{port}", *RAY_SIMPLE_JOB, env=env)
        end_processes(folder)
        return time.perf_counter() - began

    def _followed(self, name: str, command: Sequence[str]) -> float:
        job = submit(PROGRESS, "--lines", str(LOG_LINES), "--size", str(LOG_LINE_BYTES), "--rate", "0")
        # The start of the job is not part of either time.
        self.wait(lambda job: job.status != "PENDING" if name == "log-live" else job.finished)
        ours, counted = command[0] != RAY, f"{shlex.join([*command, job])} 2>/dev/null | wc -c"
        seconds, count, peak = run("sh", "-c", counted, env=None if ours else self.env)
        self.wait(lambda job: job.finished)
        (log,) = self.scratch.rglob(f"job-driver-{job}.log")
        size = log.stat().st_size
        log.unlink()
        passed = {"every byte": count.strip() == str(size), f"below {LOG_PEAK_MB:g} MB": peak < LOG_PEAK_MB}
        fact = {"ours": ours, "bytes": count.strip(), "log_bytes": size, "peak_mb": peak}
        self.facts.setdefault(name, []).append({**fact, **({"passed": passed} if ours else {})})
        return min(seconds, LIMIT_SECONDS)

    def measure(self, name: str, runs: int) -> list[dict[str, Any]]:
        """Measure the rows with this name; the sides run alternately."""
        runs = 1 if name in ONCE else runs
        if name not in WITHOUT_HEAD and self.head is None:
            embedded.up()
            self.head = embedded.warm()
            assert self.head is not None, "the head has just been started"
            self.env = with_token(self.scratch, self.head.http.server.headers["Authorization"].removeprefix("Bearer "))
        sides = self.sides(name)
        times: list[list[float]] = [[] for _ in sides]
        slow: list[Side] = []
        for number in range(int(name in WITHOUT_WARM_UP), runs + 1):
            print(f"{name}: {f'run {number} of {runs}' if number else 'warm-up'}", file=sys.stderr)
            for side, seconds in zip(sides, times, strict=True):
                if seconds and side in slow:
                    continue
                self.wait(lambda job: job.finished)
                began, took = time.monotonic(), side()
                if side is not sides[0] and time.monotonic() - began > ONCE_SECONDS:
                    slow.append(side)
                seconds += [took] if number else []
        facts, rows = self.facts.get(name, []), []
        missed = [what for fact in facts for what, passed in fact.get("passed", {}).items() if not passed]
        for target, theirs in zip((t for t in TARGETS if t.name == name), times[1:], strict=True):
            ours, median = statistics.median(times[0]), statistics.median(theirs)
            row = {**target._asdict(), "ours_median": ours, "theirs_median": median, "ratio": ours / median}
            row |= {"reached": ours / median <= target.at_most and not missed, "missed": missed}
            rows.append({**row, "ours_seconds": times[0], "theirs_seconds": theirs, "facts": facts})
        return rows


def print_cells(*cells: str) -> None:
    """Print one line of the table and flush it."""
    line = "  ".join(cell.ljust(width) for cell, width in zip(cells, COLUMNS.values(), strict=True))
    print(line.rstrip(), flush=True)


def print_row(row: Mapping[str, Any]) -> None:
    """Print one measured row."""
    above, below = "><" if row["theirs_median"] >= LIMIT_SECONDS else ("", "")
    times = (f"{row['ours_median']:.2f}", f"{above}{row['theirs_median']:.2f}", f"{below}{row['ratio']:.3f}")
    reached = "yes" if row["reached"] else f"no {', '.join(row['missed'])}"
    print_cells(row["ours"], row["theirs"], *times, f"{row['at_most']:.3f}", reached)


def main() -> None:
    """Measure, print and write the results. Always end every process that was started."""
    names = list(dict.fromkeys(target.name for target in TARGETS))
    parser = argparse.ArgumentParser(description="Compare the client with Ray's own tools.")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="number of runs of each side (default: 5)")
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=", ".join(names))
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    scratch = Path(tempfile.mkdtemp(prefix="rwb", dir="/tmp"))  # short: the length of Ray's socket paths is limited
    for variable in [name for name in os.environ if name.startswith(("RAY_", "PYTHON"))]:
        del os.environ[variable]
    os.environ |= {"HOME": str(scratch), "TMPDIR": str(scratch), "RAY_USAGE_STATS_ENABLED": "0"}
    tempfile.tempdir = None  # makes tempfile read TMPDIR again
    machine = {"cores": os.cpu_count(), "load": os.getloadavg(), "python": sys.version, "ray": version("ray")}
    bench, rows = Bench(scratch), list[dict[str, Any]]()
    RESULT.parent.mkdir(exist_ok=True)
    print_cells(*COLUMNS)
    try:
        for name in [name for name in names if name in (args.only or names)]:
            rows += (measured := bench.measure(name, args.runs))
            RESULT.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
            for row in measured:
                print_row(row)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_processes(scratch)
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
