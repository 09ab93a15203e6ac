"""jobs/data_files.py: the files that it writes, and how much Ray spilled."""

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from tests.gallery.conftest import Job

OUTPUT = r"""the object store has ([\d,]+) MB, the data ([\d,]+) MB
(?:.*\n)*?Ray spilled ([\d,]+) MB to disk
all well: ([\d,]+) sorted rows with the sum ([\d,]+) are in (\S+)
"""


def numbers(output: str) -> tuple[list[int], Path]:
    """Return the numbers that the job printed, and the folder of its result."""
    found = re.search(OUTPUT, output)
    assert found, output
    *given, folder = found.groups()
    return [int(number.replace(",", "")) for number in given], Path(folder)


def check(folder: Path, rows: int, total: int) -> None:
    """Compare the files with what is computed here: each id is there once, sorted by the key, with the right sum."""
    assert len(list((folder.parent / "input").glob("*.parquet"))) == 16
    table = pq.read_table(folder)
    ids = table["id"].to_numpy()
    assert np.array_equal(np.sort(ids), np.arange(rows))
    assert (np.diff(ids * 7919 % 10007) >= 0).all()
    assert np.array_equal(table["sum"].to_numpy(), ids % 251 * 10_000)
    assert total == sum(i % 251 * 10_000 for i in range(rows))


def test_a_plain_script_sorts_more_than_the_object_store_holds(job: Job, folder: Path) -> None:
    done = job("data_files", timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    (store, size, spilled, rows, total), result = numbers(done.stdout)
    assert (store, size, rows) == (100, 150, 15_000)
    assert spilled > size - store
    assert result == folder / "outputs" / "data_files" / "sorted"
    check(result, rows, total)


def test_a_job_that_fits_spills_nothing(submit: Job, folder: Path) -> None:
    done = submit("data_files", "--megabytes", "20")
    assert done.returncode == 0, done.stdout + done.stderr
    (store, size, spilled, rows, total), result = numbers(done.stdout)
    assert (size, spilled, rows) == (20, 0, 2_000) and store > size
    assert result == folder / "outputs" / "data_files" / "sorted"
    check(result, rows, total)
