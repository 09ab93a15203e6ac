"""Ray Client: a script or a notebook outside the cluster's pods runs tasks in the cluster, at a `ray://` address.

In a pod with the label `ray-workload/client: "true"`, if the cluster has the chart's value `api.rayClient=true`:

    RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=FILE python jobs/ray_client.py --address ray://<cluster>-api:10001

Use it for notebooks that already have `ray.init("ray://...")`. For everything else, `ray-workload submit` is better:
the client must have the same versions of Ray and Python as the cluster, and the connection is the job. If it is lost,
so are the tasks, actors and objects. There is no log to follow, no exit code, and `ray-workload list` does not show it.
"""

import argparse
import socket
import sys

import numpy as np
import numpy.typing as npt
import ray

ELEMENTS, BLOCKS = 1_000_000, 8


class Tally:
    """Collects sums. As an actor, it is one process in the cluster, and ends with the connection."""

    def __init__(self) -> None:
        self.sums: dict[int, int] = {}

    def add(self, block: int, total: int) -> None:
        """Store the sum of one block. If Ray runs a task twice, its block still counts once."""
        self.sums[block] = total

    def total(self) -> int:
        """Return the sum so far."""
        return sum(self.sums.values())


def add_block(elements: npt.NDArray[np.int64], block: int, tally: "ray.actor.ActorHandle") -> str:
    """Sum one block of the array, send the sum to the actor, and return where this task ran."""
    ray.get(tally.add.remote(block, int(np.array_split(elements, BLOCKS)[block].sum())))
    return socket.gethostname()


def main() -> None:
    """Send an array to the cluster, sum it there, and compare."""
    parser = argparse.ArgumentParser(description="Sum an array in a cluster with Ray Client.")
    parser.add_argument("--address", required=True, metavar="ray://HOST:10001", help="the port of Ray Client")
    address = parser.parse_args().address
    try:
        ray.init(address)
    except ConnectionError as error:
        sys.exit(f"wrong: no connection to {address} ({error}): check the address, the token and the pod's label")
    elements = np.random.default_rng(0).integers(1000, size=ELEMENTS)
    array = ray.put(elements)
    tally = ray.remote(Tally).remote()
    task = ray.remote(add_block)
    hosts = ray.get([task.remote(array, block, tally) for block in range(BLOCKS)])
    print(f"{BLOCKS} tasks ran on {', '.join(sorted(set(hosts)))}; this client is on {socket.gethostname()}")
    total = ray.get(tally.total.remote())
    if total != (expected := int(elements.sum())):
        sys.exit(f"wrong: the tasks computed {total:,}, but the sum is {expected:,}")
    print(f"all well: the sum of {ELEMENTS:,} elements is {total:,}, here and in the cluster")


if __name__ == "__main__":
    main()
