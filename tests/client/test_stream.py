"""client/targets/stream.py and the threads of a port-forward, on real sockets."""

import json
import select
import signal
import socket
import struct
import threading
import time
from pathlib import Path

from client.errors import Unreachable
from client.targets import port_forward
from client.targets.stream import Stream

PART, PARTS = b"x" * 60_000, 8
STATUS = json.dumps({"status": "Success"}).encode()


def frame(channel: int, data: bytes) -> bytes:
    """A message of a server, unmasked."""
    return struct.pack("!BBH", 0x82, 126, len(data) + 1) + bytes([channel]) + data


def test_what_the_server_sent_is_read_though_it_takes_no_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname())
        there, _ = listener.accept()
        said = b"".join(frame(1, PART) for _ in range(PARTS)) + frame(3, STATUS)
        here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        with Stream(here, "v5.channel.k8s.io") as stream:
            stream.send(0, b"unread")
            stream.write()
            there.sendall(said)
            poll = select.poll()
            poll.register(here, select.POLLIN)
            assert poll.poll(5000)
            while len(here.recv(1 << 20, socket.MSG_PEEK)) < len(said):
                pass  # all of it has come
            there.close()  # with input that nobody has read: a reset
            while not poll.poll(5000)[0][1] & (select.POLLHUP | select.POLLERR):
                pass
            stream.send(0, b"more")
            stream.write()
            read: list[tuple[int, bytes]] = []
            while not stream.closed:
                read += stream.read()
    assert b"".join(data for channel, data in read if channel == 1) == PART * PARTS
    assert [data for channel, data in read if channel == 3] == [STATUS]


def test_ctrl_c_is_not_for_the_threads_of_a_port_forward() -> None:
    """One of them would be given it while the main thread has it blocked, to write a log's bytes and count them."""

    def reach() -> Stream:
        raise Unreachable("nothing is there")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=port_forward._accept, args=(listener, reach))
        thread.start()
        with socket.create_connection(listener.getsockname()):
            pass  # taken, so the thread has come that far
        blocked, end = 0, time.monotonic() + 5
        while not blocked and time.monotonic() < end:
            status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
            blocked = int(next(line for line in status.splitlines() if line.startswith("SigBlk")).split()[1], 16)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert blocked & 1 << signal.SIGINT - 1
