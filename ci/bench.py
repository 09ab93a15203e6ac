"""Measure the client beside Ray's own tools, each side in turn in one go: `make bench`.

    python ci/bench.py [--runs N] [--only NAME]...

Prints the medians and writes every single time to build/bench.json. A time is a whole process' life. All of it runs in
a home and temporary folder of its own, and ends with it.
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
from typing import Any, NamedTuple

import psutil
from rich.console import Console
from rich.table import Table

from client.ray_jobs import RayJobs
from client.targets import embedded
from client.targets.endpoint import Endpoint

ROOT = Path(__file__).resolve().parent.parent
RAY = str(Path(sys.executable).with_name("ray"))
CLIENT = [sys.executable, "-m", "client"]
SIMPLE_JOB, PROGRESS = "jobs/simple_job.py", "jobs/progress.py"

LIMIT_SECONDS = 300.0  # for any one command
ONCE_SECONDS = 60.0  # a side of theirs that took longer is not run again
STOP_SECONDS = 16.0  # between SIGTERM and SIGKILL, as `ray stop` has it
POLL_SECONDS = 0.1
SUBMITS, THEIR_SUBMITS = 100, 10
SCALE = SUBMITS / THEIR_SUBMITS
LOG_LINES, LOG_LINE_BYTES, LOG_PEAK_MB = 1_000_000, 1_000, 150.0
READ_BYTES = 1 << 20


class Target(NamedTuple):
    """A row: rows of one name share the times of our side; `at_most` is our time divided by theirs."""

    name: str
    ours: str
    theirs: str
    at_most: float


TARGETS = (
    Target("help", "--help", "ray job submit --help", 0.25),
    Target("cold", "submit simple_job.py, cold", "python simple_job.py", 1.4),
    Target("cold", "submit simple_job.py, cold", "ray start --head, ray job submit, its end", 0.45),
    Target("list", "list", "ray job list", 0.5),
    Target("status", "status ID", "ray job list", 0.5),
    Target("warm", "submit simple_job.py, warm", "ray job submit, no upload", 0.5),
    Target(
        "submits",
        f"{SUBMITS} submits of true, from Python",
        f"{SUBMITS} ray job submit --no-wait ({THEIR_SUBMITS}, scaled)",
        1 / 20,
    ),
    Target("log", f"follow {LOG_LINES * LOG_LINE_BYTES / 1e9:g} GB of log", "ray job logs -f", 1 / 3),
)
WITHOUT_HEAD = ("help", "cold")  # the others share the head that `up embedded` keeps
WITHOUT_WARM_UP = ("log",)  # the others have one round that is not counted


def run(*command: str, env: Mapping[str, str] | None = None) -> tuple[float, str]:
    """Run a command. Returns its seconds and what it printed; anything but success ends the benchmark."""
    with tempfile.TemporaryFile() as output:  # a pipe would also wait for what the command leaves running
        began = time.perf_counter()
        done = subprocess.run(
            command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT, timeout=LIMIT_SECONDS, check=False
        )
        seconds = time.perf_counter() - began
        output.seek(0)
        text = output.read().decode(errors="replace")
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode} from {shlex.join(command)}:\n{text}")
    return seconds, text


def count(*command: str, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run a command for at most LIMIT_SECONDS. Returns its seconds, the bytes it wrote and its peak memory."""
    size, began = 0, time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None, "it is a pipe"
        pipe = process.stdout.fileno()
        try:
            while (left := began + LIMIT_SECONDS - time.perf_counter()) > 0 and select.select([pipe], [], [], left)[0]:
                if not (data := os.read(pipe, READ_BYTES)):
                    break
                size += len(data)
            else:
                process.kill()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            process.kill()  # does nothing once it has ended
    seconds = min(time.perf_counter() - began, LIMIT_SECONDS)
    if process.returncode and seconds < LIMIT_SECONDS:
        raise SystemExit(f"exit code {process.returncode} from {shlex.join(command)}")
    peak = usage.ru_maxrss / (1000**2 if sys.platform == "darwin" else 1000)
    return {"seconds": seconds, "bytes": size, "peak_mb": round(peak, 1)}


def end_processes(folder: Path) -> None:
    """End every process that names a folder in its command line, as `ray stop` does to all Rays of a machine."""
    others = (process for process in psutil.process_iter(["cmdline"]) if process.pid != os.getpid())
    found = [process for process in others if str(folder) in " ".join(process.info["cmdline"] or ())]
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in found:
            try:
                end(process)
            except psutil.NoSuchProcess:
                pass
        _, found = psutil.wait_procs(found, timeout=STOP_SECONDS)


def with_token(folder: Path, token: str) -> dict[str, str]:
    """The environment in which Ray's own tools use a token."""
    (folder / "token").write_text(token)
    return {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}


def free_port() -> int:
    """A port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def submit(*args: str) -> str:
    """Submit a job to the warm head. Returns its id."""
    return run(*CLIENT, "submit", "--address", "embedded", "--detach", *args)[1].split()[-1]


@dataclass
class Bench:
    """Both sides of each row, in a folder of their own; `facts` is what was seen beside the times, by row."""

    scratch: Path
    endpoint: Endpoint | None = None
    env: dict[str, str] = field(default_factory=dict)
    facts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def start_head(self) -> None:
        """Start the warm head."""
        run(*CLIENT, "up", "embedded")
        self.endpoint = embedded.warm()
        assert self.endpoint is not None, "it was just started"
        self.env = with_token(self.scratch, self.endpoint.headers["Authorization"].removeprefix("Bearer "))

    def wait_idle(self) -> None:
        """Wait until the warm head, if there is one, has no job left from the side before."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while self.endpoint and not all(job.finished for job in RayJobs(self.endpoint).list()):
            if time.monotonic() > deadline:
                raise SystemExit(f"a job did not end within {LIMIT_SECONDS:g} s")
            time.sleep(POLL_SECONDS)

    def sides(self, name: str) -> list[Callable[[], float]]:
        """Our side and the others, as TARGETS has them."""
        where = ["--address", "embedded"]
        there = ["--address", self.endpoint.url if self.endpoint else ""]
        submit_ours = [*CLIENT, "submit", *where, SIMPLE_JOB]
        script = ["--", sys.executable, str(ROOT / SIMPLE_JOB)]
        if name == "help":
            return [lambda: run(*CLIENT, "--help")[0], lambda: run(RAY, "job", "submit", "--help")[0]]
        if name == "cold":
            plain = [sys.executable, SIMPLE_JOB]
            return [lambda: run(*submit_ours)[0], lambda: run(*plain)[0], lambda: self._their_cold(script)]
        if name == "warm":
            theirs = [RAY, "job", "submit", *there, *script]
            return [lambda: run(*submit_ours)[0], lambda: run(*theirs, env=self.env)[0]]
        if name == "submits":
            loop = f"for _ in range({SUBMITS}): client.submit(command=['true'], address='embedded')"
            ours, one = [sys.executable, "-c", f"import client\n{loop}"], [RAY, "job", "submit", *there, "--no-wait"]
            return [
                lambda: run(*ours)[0],
                lambda: sum(run(*one, "--", "true", env=self.env)[0] for _ in range(THEIR_SUBMITS)) * SCALE,
            ]
        if name == "log":
            ours, theirs = [*CLIENT, "logs", *where, "--follow"], [RAY, "job", "logs", *there, "-f"]
            return [lambda: self._followed("ours", ours), lambda: self._followed("theirs", theirs)]
        ours = [*CLIENT, name, *where, *([submit("--", "true")] if name == "status" else [])]
        imports = run(sys.executable, "-X", "importtime", *ours[1:])[1].splitlines()
        modules = {line.rpartition("|")[2].strip().partition(".")[0] for line in imports}
        self.facts[name] = [{"passed": {"no import of ray": "client" in modules and "ray" not in modules}}]
        return [lambda: run(*ours)[0], lambda: run(RAY, "job", "list", *there, env=self.env)[0]]

    def _their_cold(self, script: Sequence[str]) -> float:
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        env = with_token(folder, secrets.token_hex(32))
        names = ("dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")
        ports = {name: free_port() for name in names}
        options = [f"--{name}={port}" for name, port in {"port": 0, **ports, "temp-dir": folder}.items()]
        began = time.perf_counter()
        run(RAY, "start", "--head", "--disable-usage-stats", *options, env=env)
        run(RAY, "job", "submit", "--address", f"http://127.0.0.1:{ports['dashboard-port']}", *script, env=env)
        end_processes(folder)
        return time.perf_counter() - began

    def _followed(self, side: str, command: Sequence[str]) -> float:
        """Follow a new job's log; only its size is kept."""
        job = submit(PROGRESS, "--lines", str(LOG_LINES), "--size", str(LOG_LINE_BYTES), "--rate", "0")
        fact = {"side": side, **count(*command, job, env=None if side == "ours" else self.env)}
        self.wait_idle()
        (log,) = self.scratch.rglob(f"job-driver-{job}.log")
        fact["log_bytes"] = log.stat().st_size
        log.unlink()
        if side == "ours":
            exact = fact["bytes"] == fact["log_bytes"] >= LOG_LINES * LOG_LINE_BYTES
            fact["passed"] = {"every byte": exact, f"below {LOG_PEAK_MB:g} MB": fact["peak_mb"] < LOG_PEAK_MB}
        self.facts.setdefault("log", []).append(fact)
        return float(fact["seconds"])

    def measure(self, name: str, runs: int) -> list[dict[str, Any]]:
        """Measure the rows of a name, each side in turn."""
        if name not in WITHOUT_HEAD and self.endpoint is None:
            self.start_head()
        sides = self.sides(name)
        times: list[list[float]] = [[] for _ in sides]
        for number in range(int(name in WITHOUT_WARM_UP), runs + 1):
            print(f"{name}: {f'run {number} of {runs}' if number else 'warm-up'}", file=sys.stderr)
            for side, seconds in zip(sides, times, strict=True):
                if side is sides[0] or not seconds or seconds[0] <= ONCE_SECONDS:
                    self.wait_idle()
                    took = side()
                    seconds += [took] if number else []
        facts, rows = self.facts.get(name, []), []
        missed = sorted({what for fact in facts for what, passed in fact.get("passed", {}).items() if not passed})
        for target, theirs in zip((t for t in TARGETS if t.name == name), times[1:], strict=True):
            ours, median = statistics.median(times[0]), statistics.median(theirs)
            row = {**target._asdict(), "ours_median": ours, "theirs_median": median, "ratio": ours / median}
            row |= {"reached": ours / median <= target.at_most and not missed, "missed": missed}
            rows.append({**row, "ours_seconds": times[0], "theirs_seconds": theirs, "facts": facts})
        return rows


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the table."""
    table = Table("what", "beside", box=None, pad_edge=False)
    for title in ("ours (s)", "theirs (s)", "ratio", "target"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("reached")
    for row in rows:
        above, below = (">", "<") if row["theirs_median"] >= LIMIT_SECONDS else ("", "")
        numbers = (f"{row['ours_median']:.2f}", f"{above}{row['theirs_median']:.2f}", f"{below}{row['ratio']:.3f}")
        reached = "yes" if row["reached"] else f"no {', '.join(row['missed'])}"
        table.add_row(row["ours"], row["theirs"], *numbers, f"{row['at_most']:.3f}", reached)
    Console().print(table)


def main() -> None:
    """Measure, print and write; end everything that was started, however this ends."""
    names = list(dict.fromkeys(target.name for target in TARGETS))
    parser = argparse.ArgumentParser(description="Measure the client beside Ray's own tools.")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="of each side (default: 5)")
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=", ".join(names))
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    scratch = Path(tempfile.mkdtemp(prefix="rwb", dir="/tmp"))  # a short name: Ray's sockets are in it
    for variable in [name for name in os.environ if name.startswith(("RAY_", "PYTHON"))]:
        del os.environ[variable]
    os.environ |= {"HOME": str(scratch), "TMPDIR": str(scratch), "RAY_USAGE_STATS_ENABLED": "0"}
    tempfile.tempdir = None  # it is read again
    facts = {"cores": os.cpu_count(), "load": os.getloadavg(), "system": platform.platform()}
    facts |= {"python": platform.python_version(), "ray": version("ray"), "runs": args.runs}
    bench, rows = Bench(scratch), []
    try:
        for name in [name for name in names if name in (args.only or names)]:
            rows += bench.measure(name, args.runs)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end_processes(scratch)
        shutil.rmtree(scratch, ignore_errors=True)
    result = ROOT / "build" / "bench.json"
    result.parent.mkdir(exist_ok=True)
    result.write_text(json.dumps({"machine": facts, "rows": rows}, indent=2) + "\n")
    print_rows(rows)


if __name__ == "__main__":
    main()
