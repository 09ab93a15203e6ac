"""client/kube/stream.py, on real sockets."""

import json
import select
import socket
import struct

from client.kube.stream import Stream
from tests.client.test_embedded import until

PART, PARTS = b"x" * 60_000, 3
STATUS = json.dumps({"status": "Success"}).encode()


def frame(channel: int, data: bytes) -> bytes:
    """Return an unmasked WebSocket message, as a server sends it."""
    return struct.pack("!BBH", 0x82, 126, len(data) + 1) + bytes([channel]) + data


def _here(connection: socket.socket) -> int:
    """Return how many received bytes have not been read."""
    try:
        return len(connection.recv(1 << 20, socket.MSG_PEEK))
    except BlockingIOError:
        return 0


def _events(connection: socket.socket) -> int:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return sum(event for _, event in poll.poll(0))


def test_what_the_server_sent_is_read_though_it_takes_no_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname())
        there, _ = listener.accept()
        said = b"".join(frame(1, PART) for _ in range(PARTS)) + frame(3, STATUS)
        here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)  # the kernel may give less
        with there, Stream(here, "v5.channel.k8s.io") as stream:
            stream.send(0, b"unread")
            stream.write()
            there.sendall(said)
            until(lambda: _here(here) == len(said), 10)
            there.close()  # sends a reset, because there is unread input
            until(lambda: _events(here) & (select.POLLHUP | select.POLLERR), 10)
            stream.send(0, b"more")
            stream.write()
            read: list[tuple[int, bytes]] = []
            while not stream.closed:
                read += stream.read()
    assert b"".join(data for channel, data in read if channel == 1) == PART * PARTS
    assert [data for channel, data in read if channel == 3] == [STATUS]
