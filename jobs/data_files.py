"""Ray Data: read Parquet files, sort more data than the object store can hold, and write Parquet files.

Ray writes to disk what does not fit in the object store ("spilling"); this job shows how much that was. It makes its
own input, by default 1.5 times as large as the object store. The files are small, because the data compresses well.

On a cluster:  ray-workload submit jobs/data_files.py
Without one:   python jobs/data_files.py
A quick look:  ray-workload submit jobs/data_files.py --megabytes 200
"""

import argparse
import itertools
import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

ROW = 10_000  # bytes
STORE = 100_000_000  # bytes of the object store, if this script starts Ray


def make_file(path: str, start: int, stop: int) -> None:
    """Write the rows from `start` up to `stop`: an id, a key to sort by, and 10,000 bytes that follow from the id."""
    ids = np.arange(start, stop)
    content = pa.array([bytes([i % 251]) * ROW for i in ids], pa.large_binary())
    pq.write_table(pa.table({"id": ids, "key": ids * 7919 % 10007, "content": content}), path)


def read_file(batch: dict[str, npt.NDArray[np.str_]]) -> pa.Table:
    """Read the file that a batch of one path names."""
    return pq.read_table(batch["item"][0])


def add_up(batch: pa.Table) -> pa.Table:
    """Replace the bytes of each row with their sum."""
    sums = [int(np.frombuffer(content.as_buffer(), np.uint8).sum()) for content in batch["content"]]
    return batch.drop_columns("content").append_column("sum", pa.array(sums))


def spilled() -> int:
    """Return how many bytes the nodes of the cluster have written to disk so far."""
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return int(get_memory_info_reply(state).store_stats.spilled_bytes_total)


def main() -> None:
    """Make the files, sort and transform them, and check the result."""
    parser = argparse.ArgumentParser(description="Sort Parquet files with Ray Data.")
    parser.add_argument("--megabytes", type=int, help="size of the data (default: 1.5 times the object store)")
    args = parser.parse_args()

    if "RAY_ADDRESS" in os.environ:  # run as a job
        ray.init(log_to_driver=False)
    else:
        ray.init("local", log_to_driver=False, object_store_memory=STORE)
    store = ray.cluster_resources()["object_store_memory"]
    rows = int(args.megabytes * 1e6 if args.megabytes else 1.5 * store) // ROW
    print(f"the object store has {store / 1e6:,.0f} MB, the data {rows * ROW / 1e6:,.0f} MB")

    folder = f"{os.environ.get('RAY_WORKLOAD_OUTPUTS', 'outputs')}/data_files"
    place: dict[str, Any] = {}
    if "://" not in folder:
        # Other nodes may not have this folder. If they do, or in a bucket, `ray.data.read_parquet` reads on all nodes.
        node = ray.get_runtime_context().get_node_id()
        place = {"num_cpus": 0, "label_selector": {"ray.io/node-id": node}}  # no CPU: a head may have none for tasks
        folder = str(Path(folder).absolute())
        Path(folder, "input").mkdir(parents=True, exist_ok=True)
    count = max(16, rows * ROW // 128_000_000)
    edges = [rows * i // count for i in range(count + 1)]
    paths = [f"{folder}/input/{i:05}.parquet" for i in range(count)]
    for path, (start, stop) in zip(paths, itertools.pairwise(edges), strict=True):
        make_file(path, start, stop)

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    before = spilled()
    two = ray.data.TaskPoolStrategy(size=2)
    data = ray.data.from_items(paths).map_batches(read_file, batch_size=1, compute=two, **place)
    data = data.sort("key").map_batches(add_up, batch_format="pyarrow")
    data.write_parquet(f"{folder}/sorted", mode="overwrite", concurrency=2, ray_remote_args=place)
    size = spilled() - before
    print(f"Ray spilled {size / 1e6:,.0f} MB to disk")

    table = pq.read_table(f"{folder}/sorted")
    ids, keys, sums = (table[name].to_numpy() for name in ("id", "key", "sum"))
    expected = np.arange(rows)
    if not np.array_equal(np.sort(ids), expected):
        sys.exit(f"wrong: {len(ids):,} rows were written, {len(np.unique(ids)):,} of {rows:,} ids are there")
    if (np.diff(keys) < 0).any() or not np.array_equal(keys, ids * 7919 % 10007):
        sys.exit("wrong: the rows are not sorted by their key")
    if not np.array_equal(sums, ids % 251 * ROW):
        sys.exit("wrong: the content of some rows was changed")
    if rows * ROW > store and not size:
        sys.exit("wrong: the data is larger than the object store, but nothing was spilled")
    print(f"all well: {rows:,} sorted rows with the sum {sums.sum():,} are in {folder}/sorted")


if __name__ == "__main__":
    main()
