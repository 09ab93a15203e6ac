"""A distributed sum: each task creates one block of a large numpy array and returns only the block's sum.

The whole array is never in one place: a value depends only on its index, so any task can create any block.

On a cluster:  ray-workload submit jobs/numpy_sum.py --elements 1000000000 --blocks 64
Without one:   python jobs/numpy_sum.py --elements 10000000 --blocks 16
"""

import argparse
import itertools
import sys

import numpy as np
import numpy.typing as npt
import ray

CHECK_BLOCK = 1_000_000


def make_block(start: int, stop: int) -> npt.NDArray[np.int64]:
    """Create the elements from `start` up to `stop`: integers, so that the sum is exact however it is split."""
    return np.arange(start, stop, dtype=np.int64) * 7919 % 10007


def block_sum(start: int, stop: int) -> int:
    """Create one block and add it up."""
    return int(make_block(start, stop).sum())


def main() -> None:
    """Sum the array in the cluster, then with numpy alone, and compare."""
    parser = argparse.ArgumentParser(description="Sum a large array block by block with Ray.")
    parser.add_argument("--elements", type=int, default=10_000_000, help="length of the array (default: 10000000)")
    parser.add_argument("--blocks", type=int, default=16, help="number of tasks (default: 16)")
    args = parser.parse_args()

    ray.init()  # connects to the cluster when run as a job, else starts Ray on this machine
    edges = [args.elements * i // args.blocks for i in range(args.blocks + 1)]
    task = ray.remote(block_sum)
    total = sum(ray.get([task.remote(start, stop) for start, stop in itertools.pairwise(edges)]))
    print(f"{args.blocks} tasks summed {args.elements:,} elements ({args.elements * 8 / 1e6:,.0f} MB): {total:,}")

    # Blocks of a different size would reveal a wrong split; one at a time, they need little memory.
    starts = range(0, args.elements, CHECK_BLOCK)
    expected = sum(block_sum(start, min(start + CHECK_BLOCK, args.elements)) for start in starts)
    if total != expected:
        sys.exit(f"wrong: numpy alone computes {expected:,}")
    print("all well: numpy alone computes the same sum")


if __name__ == "__main__":
    main()
