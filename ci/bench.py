"""Measure the client beside Ray's own tools, each side in turn in one go: `make bench`.

    python ci/bench.py [--runs N] [--only NAME]...

Prints the medians as a table and writes all there is to build/bench.json. Each side is a whole process, from its start
to its end. Everything runs in a home and temporary folder of its own, and ends with it.
"""

import argparse
import json
import os
import platform
import secrets
import select
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
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from client.ray_jobs import RayJobs
from client.targets import embedded
from client.targets.endpoint import Endpoint

ROOT = Path(__file__).resolve().parent.parent
RAY = str(Path(sys.executable).with_name("ray"))
SIMPLE_JOB, PROGRESS = "jobs/simple_job.py", "jobs/progress.py"


@dataclass(frozen=True)
class Target:
    """A row of the table: what is measured beside what, and what is to be reached.

    Attributes:
        name: what --only takes; rows of one name share one measurement of our side.
        ours: what our side does.
        theirs: what the other side does.
        at_most: our time divided by theirs.
        head: both run on the head that `up embedded` keeps, else there is none.
        warm_up: rounds that are not counted.
    """

    name: str
    ours: str
    theirs: str
    at_most: float
    head: bool = True
    warm_up: int = 1


LIMIT_SECONDS = 300.0  # for any one command
ONCE_SECONDS = 60.0  # a side of theirs that took longer is not run again
SUBMITS, THEIR_SUBMITS = 100, 10  # theirs are scaled up
LOG_LINES, LOG_LINE_BYTES, LOG_PEAK_MB = 1_000_000, 1_000, 150.0
STOP_SECONDS = 16.0  # between SIGTERM and SIGKILL, as `ray stop` has it
POLL_SECONDS = 0.1
READ_BYTES = 1 << 20
TARGETS = (
    Target("help", "--help", "ray job submit --help", 0.25, head=False),
    Target("list", "list", "ray job list", 0.5),
    Target("status", "status ID", "ray job list", 0.5),
    Target("cold", "submit simple_job.py, cold", "python simple_job.py", 1.4, head=False),
    Target("cold", "submit simple_job.py, cold", "ray start --head, ray job submit, its end", 0.45, head=False),
    Target("warm", "submit simple_job.py, warm", "ray job submit, no upload", 0.5),
    Target(
        "submits",
        f"{SUBMITS} submits of `true` from Python",
        f"{SUBMITS} ray job submit --no-wait ({THEIR_SUBMITS}, scaled)",
        1 / 20,
    ),
    Target("log", f"follow {LOG_LINES * LOG_LINE_BYTES / 1e9:g} GB of log", "ray job logs -f", 1 / 3, warm_up=0),
)

Side = Callable[[], float]


def client(*args: str) -> list[str]:
    """Our command line."""
    return [sys.executable, "-m", "client", *args]


def ray_job(url: str, verb: str, *args: str) -> list[str]:
    """Ray's command line for the jobs of a head."""
    return [RAY, "job", verb, "--address", url, *args]


def run(command: Sequence[str], env: Mapping[str, str] | None = None) -> tuple[float, str]:
    """Run a command to its end. Returns its seconds and what it printed; anything but success ends the benchmark."""
    with tempfile.TemporaryFile() as output:  # a pipe would also wait for what the command leaves running
        began = time.perf_counter()
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        seconds = time.perf_counter() - began
        output.seek(0)
        text = output.read().decode(errors="replace")
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode} from {shlex.join(command)}:\n{text}")
    return seconds, text


def follow(command: Sequence[str], env: Mapping[str, str]) -> tuple[float, int, float]:
    """Run a command and count what it writes, for as long as it may take. Returns seconds, bytes and its peak in MB."""
    count, began = 0, time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **env}, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pipe = process.stdout.fileno()
        try:
            while (left := began + LIMIT_SECONDS - time.perf_counter()) > 0 and select.select([pipe], [], [], left)[0]:
                if not (data := os.read(pipe, READ_BYTES)):
                    break
                count += len(data)
            else:
                process.kill()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.perf_counter() - began
        finally:
            process.kill()  # nothing where it has ended
    if process.returncode and seconds < LIMIT_SECONDS:
        raise SystemExit(f"exit code {process.returncode} from {shlex.join(command)}")
    return min(seconds, LIMIT_SECONDS), count, usage.ru_maxrss / (1000 if sys.platform == "linux" else 1000**2)


def end_processes(folder: Path) -> None:
    """End every process that names a folder in its command line, as `ray stop` does to all Rays of a machine."""
    found = [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.pid != os.getpid() and any(str(folder) in word for word in process.info["cmdline"] or ())
    ]
    for step in (psutil.Process.terminate, psutil.Process.kill):
        for process in found:
            try:
                step(process)
            except psutil.NoSuchProcess:
                pass
        _, found = psutil.wait_procs(found, timeout=STOP_SECONDS)


def token_environment(folder: Path, token: str) -> dict[str, str]:
    """What Ray's own tools need to use a token."""
    path = folder / "token"
    path.touch(mode=0o600)
    path.write_text(token)
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


def free_ports(count: int) -> list[int]:
    """Ports that are free now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@dataclass
class Bench:
    """The two sides of each row, and what was found beside their times.

    Attributes:
        scratch: the home and the temporary folder.
        endpoint: the warm head.
        env: what Ray's tools need for that head.
        job: the id of a job there.
        checks: by the name of a row, conditions beside the time.
        facts: by the name of a row, what was seen.
    """

    scratch: Path
    endpoint: Endpoint | None = None
    env: dict[str, str] = field(default_factory=dict)
    job: str = ""
    checks: dict[str, dict[str, bool]] = field(default_factory=dict)
    facts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def start_head(self) -> None:
        """Start the warm head and give it one job to list."""
        run(client("up", "embedded"))
        self.endpoint = embedded.warm()
        assert self.endpoint is not None, "it was just started"
        token = self.endpoint.headers["Authorization"].removeprefix("Bearer ")
        self.env = token_environment(self.scratch, token)
        self.job = self._submit("--", "true")

    def _submit(self, *args: str) -> str:
        return run(client("submit", "--address", "embedded", "--detach", *args))[1].split()[-1]

    def wait_idle(self) -> None:
        """Wait until the head has no job left from the side before."""
        if self.endpoint is not None:
            jobs, deadline = RayJobs(self.endpoint), time.monotonic() + LIMIT_SECONDS
            while not all(job.finished for job in jobs.list()):
                if time.monotonic() > deadline:
                    raise SystemExit(f"the jobs of one side did not end within {LIMIT_SECONDS:g} s")
                time.sleep(POLL_SECONDS)

    def check(self, name: str, what: str, passed: bool) -> None:
        """Note a condition of a row: it is met if it is met each time."""
        checks = self.checks.setdefault(name, {})
        checks[what] = checks.get(what, True) and passed

    def sides(self, name: str) -> list[Side]:
        """Our side and the others, in the order of TARGETS."""

        def timed(*command: str, **env: str) -> Side:
            return lambda: run(command, env)[0]

        def ours(*args: str) -> Side:
            return timed(*client(*args))

        def theirs(verb: str, *args: str) -> Side:
            return timed(*ray_job(self.endpoint.url if self.endpoint else "", verb, *args), **self.env)

        here = ("--address", "embedded")
        if name == "help":
            return [ours("--help"), timed(RAY, "job", "submit", "--help")]
        if name in ("list", "status"):
            args = [name, *here, *([self.job] if name == "status" else [])]
            _, imports = run([sys.executable, "-X", "importtime", *client(*args)[1:]])
            modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in imports.splitlines()}
            self.check(name, "no import of ray", "click" in modules and "ray" not in modules)
            return [ours(*args), theirs("list")]
        if name == "cold":
            return [ours("submit", *here, SIMPLE_JOB), timed(sys.executable, SIMPLE_JOB), self._their_cold]
        if name == "warm":
            script = ("--", sys.executable, str(ROOT / SIMPLE_JOB))
            return [ours("submit", *here, SIMPLE_JOB), theirs("submit", *script)]
        if name == "submits":
            submits = f"for _ in range({SUBMITS}): client.submit(command=['true'], address='embedded')"
            one = theirs("submit", "--no-wait", "--", "true")
            return [
                timed(sys.executable, "-c", f"import client\n{submits}"),
                lambda: sum(one() for _ in range(THEIR_SUBMITS)) * SUBMITS / THEIR_SUBMITS,
            ]
        return [
            lambda: self._followed("ours"),
            lambda: self._followed("theirs"),
        ]

    def _their_cold(self) -> float:
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        dashboard, agent, ray_client = free_ports(3)
        env = token_environment(folder, secrets.token_hex(32))
        ports = [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
        start = ["start", "--head", "--port=0", *ports, f"--ray-client-server-port={ray_client}"]
        began = time.perf_counter()
        run([RAY, *start, f"--temp-dir={folder}", "--disable-usage-stats"], env)
        job = ("--", sys.executable, str(ROOT / SIMPLE_JOB))
        run(ray_job(f"http://127.0.0.1:{dashboard}", "submit", *job), env)
        end_processes(folder)
        return time.perf_counter() - began

    def _followed(self, side: str) -> float:
        assert self.endpoint is not None, "the row says that it needs a head"
        job = self._submit(PROGRESS, "--lines", str(LOG_LINES), "--size", str(LOG_LINE_BYTES), "--rate", "0")
        if side == "ours":
            seconds, count, peak = follow(client("logs", "--address", "embedded", "--follow", job), {})
        else:
            seconds, count, peak = follow(ray_job(self.endpoint.url, "logs", "-f", job), self.env)
        self.wait_idle()
        (log,) = self.scratch.rglob(f"job-driver-{job}.log")
        size = log.stat().st_size
        log.unlink()
        fact = {"side": side, "seconds": seconds, "bytes": count, "log_bytes": size, "peak_mb": round(peak, 1)}
        self.facts.setdefault("log", []).append(fact)
        if side == "ours":
            self.check("log", "every byte", count == size >= LOG_LINES * LOG_LINE_BYTES)
            self.check("log", f"peak below {LOG_PEAK_MB:g} MB", peak < LOG_PEAK_MB)
        return seconds


def measure(bench: Bench, targets: Sequence[Target], runs: int) -> list[dict[str, Any]]:
    """Measure the rows that share a name."""
    name, sides = targets[0].name, bench.sides(targets[0].name)
    times: list[list[float]] = [[] for _ in sides]
    for number in range(1 - targets[0].warm_up, runs + 1):
        print(f"{name}: {f'run {number} of {runs}' if number > 0 else 'warm-up'}", file=sys.stderr)
        for side, seconds in zip(sides, times, strict=True):
            if side is not sides[0] and seconds and seconds[0] > ONCE_SECONDS:
                continue
            bench.wait_idle()
            took = side()
            if number > 0:
                seconds.append(took)
    rows = []
    for target, theirs in zip(targets, times[1:], strict=True):
        our, their = statistics.median(times[0]), statistics.median(theirs)
        checks = bench.checks.get(name, {})
        row = {"name": name, "ours": target.ours, "theirs": target.theirs, "at_most": target.at_most}
        row |= {"ours_median": our, "theirs_median": their, "ratio": our / their, "cut_off": their >= LIMIT_SECONDS}
        row |= {"reached": our / their <= target.at_most and all(checks.values()), "checks": checks}
        rows.append({**row, "ours_seconds": times[0], "theirs_seconds": theirs, "facts": bench.facts.get(name, [])})
    return rows


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "ray": version("ray"),
        "system": platform.platform(),
    }


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the table."""
    table = Table("what", "beside", "ours (s)", "theirs (s)", "ratio", "target", "reached", box=None, pad_edge=False)
    for row in rows:
        missed = [what for what, passed in row["checks"].items() if not passed]
        reached = "yes" if row["reached"] else f"no{': not ' if missed else ''}{', '.join(missed)}"
        sign = (">", "<") if row["cut_off"] else ("", "")
        theirs, ratio = f"{sign[0]}{row['theirs_median']:.2f}", f"{sign[1]}{row['ratio']:.3f}"
        ours = f"{row['ours_median']:.2f}"
        table.add_row(row["ours"], row["theirs"], ours, theirs, ratio, f"{row['at_most']:.3f}", reached)
    Console().print(table)
    for fact in (fact for row in rows for fact in row["facts"] if fact["side"] == "ours"):
        print(f"followed {fact['bytes']} of {fact['log_bytes']} bytes, peak {fact['peak_mb']} MB")


def main() -> None:
    """Measure, print and write; end everything that was started, however this ends."""
    parser = argparse.ArgumentParser(description="Measure the client beside Ray's own tools.")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="of each side (default: 5)")
    names = list(dict.fromkeys(target.name for target in TARGETS))
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=", ".join(names))
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    scratch = Path(tempfile.mkdtemp(prefix="rwb", dir="/tmp"))  # a short name: Ray's sockets are in it
    for name in [name for name in os.environ if name.startswith(("RAY_", "PYTHON"))]:
        del os.environ[name]
    os.environ |= {"HOME": str(scratch), "TMPDIR": str(scratch), "RAY_USAGE_STATS_ENABLED": "0"}
    tempfile.tempdir = None  # read TMPDIR again
    bench, found = Bench(scratch), machine()
    rows: list[dict[str, Any]] = []
    try:
        for name in sorted(args.only or names, key=lambda name: [t.head for t in TARGETS if t.name == name]):
            targets = [target for target in TARGETS if target.name == name]
            if targets[0].head and bench.endpoint is None:
                bench.start_head()
            rows += measure(bench, targets, args.runs)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end_processes(scratch)
        shutil.rmtree(scratch, ignore_errors=True)
    result = ROOT / "build" / "bench.json"
    result.parent.mkdir(exist_ok=True)
    result.write_text(json.dumps({"machine": found, "runs": args.runs, "rows": rows}, indent=2) + "\n")
    print_rows(rows)


if __name__ == "__main__":
    main()
