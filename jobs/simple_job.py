"""The first job to try: Ray tasks and an actor count the primes below 100,000.

On a cluster:  ray-workload submit jobs/simple_job.py --tasks 8
Without one:   python jobs/simple_job.py --tasks 8
"""

import argparse
import os
import sys

import ray

LIMIT, PRIMES = 100_000, 9_592  # the known number of primes below LIMIT


class Tally:
    """Collects the counts of the tasks. As an actor, it is one process somewhere in the cluster."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    def add(self, start: int, count: int) -> None:
        """Store the count of one range. If Ray runs a task twice, its range still counts once."""
        self.counts[start] = count

    def total(self) -> int:
        """Return the sum of the counts so far."""
        return sum(self.counts.values())


def count_primes(start: int, stop: int, tally: "ray.actor.ActorHandle") -> str:
    """Count the primes from `start` up to `stop`, send the count to the actor, and return where this task ran."""
    count = sum(n > 1 and all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(start, stop))
    ray.get(tally.add.remote(start, count))
    return f"node {ray.util.get_node_ip_address()}, pid {os.getpid()}: {count:,} primes from {start:,} up to {stop:,}"


def main() -> None:
    """Spread the work over the cluster and check the result."""
    parser = argparse.ArgumentParser(description="Count the primes below 100,000 with Ray.")
    parser.add_argument("--tasks", type=int, default=8, help="number of tasks (default: 8)")
    tasks = parser.parse_args().tasks
    ray.init()  # connects to the cluster when run as a job, else starts Ray on this machine
    for name, amount in sorted(ray.cluster_resources().items()):
        print(f"the cluster has {name}: " + (f"{amount / 1e9:.1f} GB" if "memory" in name else f"{amount:g}"))

    tally = ray.remote(Tally).remote()
    edges = [LIMIT * i // tasks for i in range(tasks + 1)]
    task = ray.remote(count_primes)
    for line in ray.get([task.remote(edges[i], edges[i + 1], tally) for i in range(tasks)]):
        print(line)
    total = ray.get(tally.total.remote())
    if total != PRIMES:
        sys.exit(f"wrong: counted {total:,} primes below {LIMIT:,}, but there are {PRIMES:,}")
    print(f"all well: there are {total:,} primes below {LIMIT:,}")


if __name__ == "__main__":
    main()
