"""A TCP proxy that can cut all its connections at once."""

import contextlib
import socket
import threading
from collections.abc import Iterator


class Cutter:
    """Forwards all connections to one address; with `is_proxy`, it is an HTTP proxy that ignores the asked host."""

    def __init__(self, upstream: tuple[str, int], *, is_proxy: bool = False) -> None:
        self.asked: list[str] = []  # the CONNECT requests
        self._upstream, self._is_proxy = upstream, is_proxy
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def cut(self) -> int:
        """Close every connection. Returns their number."""
        sockets, self._open = self._open, []
        alive = 0
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
                alive += 1
        return alive // 2

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            there = socket.create_connection(self._upstream)
            self._open += [here, there]
            threading.Thread(target=self._join, args=(here, there), daemon=True).start()

    def _join(self, here: socket.socket, there: socket.socket) -> None:
        back = threading.Thread(target=_copy, args=(there, here), daemon=True)
        with here, there, contextlib.suppress(ConnectionError):
            if self._is_proxy:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    if not (byte := here.recv(1)):
                        return
                    head += byte
                self.asked.append(head.decode().partition(" HTTP/1.")[0])
                here.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            back.start()
            _copy(here, there)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def cutter(host: str, port: int, *, is_proxy: bool = False) -> Iterator[Cutter]:
    made = Cutter((host, port), is_proxy=is_proxy)
    try:
        yield made
    finally:
        made.close()
