"""Tune a model with Ray Tune: which degree has the polynomial that fits a noisy curve best?

Each trial fits a polynomial of one degree to more and more points. The scheduler ASHA stops a trial as soon as others
with as many points are better. The curve has degree 5, so this is the best. The errors of all trials are drawn into
tune_sweep.png. It takes 15 s on 2 cores, and needs `pip install '.[tune]'`.

On a cluster:  ray-workload submit --fetch tune_sweep.png jobs/tune_sweep.py --degrees 24
Without one:   python jobs/tune_sweep.py
"""

import argparse
import logging
import os
import sys

import numpy as np
import numpy.typing as npt
import ray
from matplotlib.figure import Figure
from numpy.polynomial import Chebyshev
from pyarrow.fs import FileSystem
from ray import tune
from ray.tune.schedulers import ASHAScheduler

CURVE = Chebyshev.basis(5)  # 16 x^5 - 20 x^3 + 5 x
POINTS = [32, 64, 128, 256, 512]


def measure(count: int, seed: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return points of the curve with noise."""
    random = np.random.default_rng(seed)
    x = random.uniform(-1, 1, count)
    return x, CURVE(x) + random.normal(0, 0.3, count)


def fit(config: dict[str, int]) -> None:
    """Fit a polynomial to more and more points, and report its error for other points each time."""
    x, y = measure(POINTS[-1], seed=6)
    other_x, other_y = measure(100_000, seed=1)
    for points in POINTS:
        fitted = Chebyshev.fit(x[:points], y[:points], config["degree"], domain=[-1, 1])
        tune.report({"points": points, "error": float(np.mean((fitted(other_x) - other_y) ** 2))})


def draw(results: tune.ResultGrid, best: tune.Result, url: str) -> None:
    """Draw the error of each trial against its points, and save the picture in a folder or a bucket."""
    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    axes = figure.subplots()
    for result in results:
        history = result.metrics_dataframe
        color, label = ("tab:red", f"degree {best.config['degree']}") if result.path == best.path else ("silver", None)
        axes.semilogy(history["points"].astype(str), history["error"], color=color, label=label, marker="o")
    axes.set(xlabel="points", ylabel="mean squared error", title="Each line is a trial; ASHA ended the short ones")
    axes.legend()
    filesystem, path = FileSystem.from_uri(url)
    filesystem.create_dir(path)
    with filesystem.open_output_stream(f"{path}/tune_sweep.png") as file:
        figure.savefig(file)


def main() -> None:
    """Try all degrees, and compare the best with the curve's own."""
    parser = argparse.ArgumentParser(description="Find the best degree of a polynomial with Ray Tune.")
    parser.add_argument("--degrees", type=int, default=12, help="highest degree to try (default: 12)")
    degrees = parser.parse_args().degrees
    outputs = os.environ.get("RAY_WORKLOAD_OUTPUTS", os.path.abspath("outputs"))
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # with verbose=0 below: no tables
    logging.getLogger("ray.tune").setLevel(logging.WARNING)
    ray.init()  # connects to the cluster when run as a job, else starts Ray on this machine
    tuner = tune.Tuner(
        fit,
        param_space={"degree": tune.grid_search(range(degrees, 0, -1))},
        tune_config=tune.TuneConfig(
            metric="error",
            mode="min",
            scheduler=ASHAScheduler(time_attr="points", grace_period=POINTS[0], max_t=POINTS[-1], reduction_factor=4),
            reuse_actors=True,  # a new trial starts at once in the process of one that has ended
        ),
        run_config=tune.RunConfig(storage_path=outputs, verbose=0),
    )
    results = tuner.fit()
    for result in results:
        print("degree {degree:2}: error {error:.4f} after {points} points".format(**result.metrics, **result.config))
    best = results.get_best_result()
    draw(results, best, outputs)
    print(f"the picture is {outputs}/tune_sweep.png")
    if best.config["degree"] != CURVE.degree():
        sys.exit(f"wrong: degree {best.config['degree']} is not the degree of the curve, {CURVE.degree()}")
    print(f"all well: the best degree is {CURVE.degree()}, that of the curve")


if __name__ == "__main__":
    main()
