"""Connects to addresses repeatedly, from a pod. Each `HOST PORT` line on stdin adds one; at EOF, prints the results.

It ends after SECONDS at the latest, and connects only to the given addresses.
"""

import asyncio
import json
import socket
import sys
import time

INTERVAL, SECONDS, ENOUGH = 0.08, 240, int(sys.argv[1])
tried: dict[str, dict[str, object]] = {}


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def attempt(address: tuple[str, int]) -> bool:
    """Try to connect once. Returns whether it succeeded."""
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as connection:
        connection.setblocking(False)
        try:
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(connection, address), 1)
        except (TimeoutError, OSError):
            return False
        return True


async def target(address: tuple[str, int], end: float) -> None:
    """Try one address at every INTERVAL, regardless of the results."""
    connects, running, due = list[float](), set[asyncio.Task[None]](), time.monotonic()
    started = ended = 0
    seen = tried["{} {}".format(*address)] = {"connects": connects, "first": time.time()}

    async def once() -> None:
        nonlocal ended
        if await attempt(address):
            connects.append(time.time())
        ended += 1
        seen["ended"] = ended
        if ended == ENOUGH:
            say("ENOUGH", *address)

    while due < end:
        task = asyncio.create_task(once())
        running.add(task)
        task.add_done_callback(running.discard)
        started += 1
        seen.update(started=started, last=time.time())
        due += INTERVAL
        await asyncio.sleep(max(0, due - time.monotonic()))


async def main() -> None:
    """Read addresses until stdin ends."""
    lines, targets = asyncio.StreamReader(), dict[str, asyncio.Task[None]]()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    end = time.monotonic() + SECONDS
    say("READY")
    while line := (await asyncio.wait_for(lines.readline(), end - time.monotonic())).decode().strip():
        host, _, port = line.partition(" ")
        if line not in targets:
            targets[line] = asyncio.create_task(target((host, int(port)), end))
    say("TRIED", json.dumps(tried))


asyncio.run(main())
