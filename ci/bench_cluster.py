"""Measure the chart, its image and the client on the cluster of the current kubeconfig: `make bench-cluster`.

    python -m ci.bench_cluster [--runs N] [--only NAME]...

Both sides run alternately and use the images of `ci/kind images --e2e`. Each install gets a new namespace, which is
deleted afterwards. Prints the medians of each row as soon as it is measured, and writes every measured time to
build/bench-cluster.json. To run the comparison with pip without an index, set PIP_NO_INDEX and PIP_FIND_LINKS.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial
from typing import Literal, NamedTuple

from ci import bench_chart
from ci.bench_chart import IMAGE, JOBS_IMAGE, PLAIN_IMAGE, ROOT, VALUES, Sides, install, measure_install, run, timed
from ci.bench_client import AT_ONCE, TREE_FILES, TREE_MIB, Client, measure_up

RESULT = ROOT / "build" / "bench-cluster.json"
COLUMNS = {"what": 43, "ours (s)": 19, "theirs": 37, "theirs (s)": 10, "figure": 8, "target": 13, "reached": 0}


class Target(NamedTuple):
    """A row. `of` says what `at_most` limits: our time divided by theirs, our seconds, or our seconds minus theirs.

    A text in `at_most` is a condition that the measurement itself checks. None: the row has no target.
    """

    name: str
    ours: str
    theirs: str | None
    at_most: float | str | None
    of: Literal["ratio", "s", "s more"] = "ratio"
    runs: int | None = None  # overrides --runs


TABLES = {
    "The chart and its image": (
        Target("install", "helm install, values-local, to ready", "upstream's two charts, the same image", 0.7),
        Target("hello", "hello job", "the same, image without bytecode", 0.65),
        Target("jobs-install", "helm install to ready, image with extras", "the same, image without extras", 1.1),
        Target("jobs-hello", "hello job, image with extras", "the same, image without extras", 1.1),
        Target("template", "helm template, values-local", None, 0.3, "s"),
        Target("imports", "container's start to the end of all imports", "venv + pip install + imports", None, runs=1),
    ),
    "The client": (
        Target("up", "up local, to ready", "helm install, to ready", 1.5, "s more"),
        Target("submit", "warm hello submit, start to exit", "kubectl port-forward + ray job submit", 0.5),
        Target("own-time", "the same without the job's own time", None, 1.0, "s"),
        Target("list", "list", None, 0.8, "s"),
        Target("status", "status ID", None, 0.8, "s"),
        Target("upload", f"submit of {TREE_FILES} files, {TREE_MIB} MiB", "Ray's SDK through a port-forward", 0.6),
        Target("submits", f"{AT_ONCE} submits at once, to the last one's end", None, "each ran once", "s", runs=1),
    ),
}


def sides(name: str, stack: ExitStack, client: Callable[[], Client]) -> Sides:
    """Return the sides of a row; each side is a function that returns seconds.

    Args:
        name: The name of the row.
        stack: Cleans up what only this row uses.
        client: Returns the cluster that the rows of the client share.
    """
    template = ("helm", "template", "ray", str(bench_chart.CHART), "-f", str(VALUES), "--set", "auth.token=of-bench")
    makers: dict[str, Callable[[], Sides]] = {
        "install": lambda: [partial(measure_install, how) for how in (install, bench_chart.install_upstream)],
        "hello": lambda: [stack.enter_context(bench_chart.cluster(image)) for image in (IMAGE, PLAIN_IMAGE)],
        "jobs-install": lambda: [partial(measure_install, partial(install, image=i)) for i in (JOBS_IMAGE, IMAGE)],
        "jobs-hello": lambda: [stack.enter_context(bench_chart.cluster(image)) for image in (JOBS_IMAGE, IMAGE)],
        "template": lambda: [lambda: timed(lambda: run(*template))],
        "imports": lambda: [bench_chart.measure_imports, bench_chart.measure_pip],
        "up": lambda: [partial(measure_install, how) for how in (measure_up, install)],
        "submit": lambda: client().submit(),
        "own-time": lambda: client().own_time(),
        "list": lambda: client().list(),
        "status": lambda: client().status(),
        "upload": lambda: client().upload(stack),
        "submits": lambda: client().submits(),
    }
    return makers[name]()


def row(target: Target, times: list[list[float]]) -> list[str]:
    """Return the cells of the table for a target."""
    medians = [statistics.median(side) for side in times]
    ours, theirs = medians[0], medians[-1]
    figure = {"ratio": ours / theirs, "s": ours, "s more": ours - theirs}[target.of]
    spread = f"{ours:.2f} ({min(times[0]):.2f}-{max(times[0]):.2f})"
    beside = (target.theirs or "", f"{theirs:.2f}" if target.theirs else "")
    if target.at_most is None:
        return [target.ours, spread, *beside, f"{figure:.2f}", "", ""]
    if isinstance(target.at_most, str):
        return [target.ours, spread, *beside, f"{figure:.2f} {target.of}", target.at_most, "yes"]
    wanted = f"{target.at_most:g} {target.of}"
    return [target.ours, spread, *beside, f"{figure:.2f}", wanted, "yes" if figure <= target.at_most else "NO"]


def print_cells(*cells: str) -> None:
    """Print one line of the table and flush it."""
    line = "  ".join(cell.ljust(width) for cell, width in zip(cells, COLUMNS.values(), strict=True))
    print(line.rstrip(), flush=True)


def main() -> None:
    """Measure the selected rows, print and write the results."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    parser = argparse.ArgumentParser(description="Measure the chart, its image and the client")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", action="append", choices=[t.name for targets in TABLES.values() for t in targets])
    options = parser.parse_args()
    times: dict[str, list[list[float]]] = {}
    RESULT.parent.mkdir(exist_ok=True)
    for title, targets in TABLES.items():
        wanted = [target for target in targets if not options.only or target.name in options.only]
        if not wanted:
            continue
        print(f"\n{title}")
        print_cells(*COLUMNS)
        with ExitStack() as shared:
            client = cache(partial(Client, shared))
            for target in wanted:
                with ExitStack() as stack:
                    of_row = sides(target.name, stack, client)
                    rounds = [[side() for side in of_row] for _ in range(target.runs or options.runs)]
                times[target.name] = [list(side) for side in zip(*rounds, strict=True)]
                RESULT.write_text(json.dumps(times, indent=1))
                print_cells(*row(target, times[target.name]))


if __name__ == "__main__":
    main()
