"""Print numbered lines, to try out how a job's log is followed. This job does not use Ray.

On a cluster:  ray-workload submit jobs/progress.py --lines 100 --rate 10
Without one:   python jobs/progress.py --lines 100 --rate 10
One gigabyte:  python jobs/progress.py --lines 1000000 --size 1000 --rate 0
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence

BATCH_BYTES = 1 << 20


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description="Write numbered lines.")
    parser.add_argument("--lines", type=int, default=100, metavar="N", help="number of lines (default: 100)")
    parser.add_argument(
        "--rate", type=float, default=10, metavar="N", help="lines per second, 0: no limit (default: 10)"
    )
    parser.add_argument(
        "--size", type=int, default=0, metavar="BYTES", help="pad each line to this size, including its end"
    )
    parser.add_argument("--same", action="store_true", help="leave out the numbers, so that all lines are equal")
    parser.add_argument("--bars", action="store_true", help="draw each line over the last one, as a progress bar does")
    parser.add_argument(
        "--binary", action="store_true", help="write the bytes 0x00 to 0xFF and a newline in the middle"
    )
    parser.add_argument(
        "--long", type=int, default=0, metavar="BYTES", help="write one line of this size in the middle"
    )
    parser.add_argument("--exit-code", type=int, default=0, metavar="N", help="exit code (default: 0)")
    return parser.parse_args(argv)


def output(args: argparse.Namespace) -> Iterator[bytes]:
    """Yield the bytes to write: line by line if there is a rate, else in large batches."""
    start, end = (b"\r", b"") if args.bars else (b"", b"\n")
    number = b"" if args.same else b" %%0%dd of %d" % (len(str(args.lines)), args.lines)
    text = start + b"line" + number
    size = len(text + end) if args.same else len(text % 0 + end)
    line = text + b"." * (args.size - size) + end
    batch = 1 if args.rate else max(1, BATCH_BYTES // max(size, args.size))

    def lines(first: int, last: int) -> Iterator[bytes]:
        for low in range(first, last + 1, batch):
            high = min(low + batch, last + 1)
            # Formatting a whole batch at once is several times as fast as formatting each line.
            yield line * (high - low) % (() if args.same else tuple(range(low, high)))

    middle = args.lines // 2
    yield from lines(1, middle)
    if args.long:
        yield b"x" * (args.long - 1) + b"\n"
    if args.binary:
        yield bytes(range(256)) + b"\n"
    yield from lines(middle + 1, args.lines)
    if args.bars:
        yield b"\n"


def main() -> None:
    """Write the output at the chosen rate."""
    args = parse()
    begin = time.monotonic()
    for count, data in enumerate(output(args)):
        if args.rate:
            time.sleep(max(0.0, begin + count / args.rate - time.monotonic()))
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    sys.exit(args.exit_code)


if __name__ == "__main__":
    main()
