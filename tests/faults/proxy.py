"""A TCP relay that breaks connections on demand, in the middle of whatever they carry."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading


class Proxy:
    """Relays to ``target``, a port on this machine, from a port of its own."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._cut_after: int | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> bool:
        """Resets every connection now; False where there was none."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                _reset(end)
        return bool(pairs)

    def cut_upload(self, after_bytes: int) -> None:
        """Resets every connection once so many more bytes have gone to the target."""
        with self._lock:
            self._cut_after = after_bytes

    @property
    def upload_cut(self) -> bool:
        """Whether that has happened."""
        with self._lock:
            return self._cut_after is None

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                try:
                    agent = socket.create_connection(("127.0.0.1", self._target), timeout=5)
                    agent.settimeout(None)
                except OSError:  # the agent is not there: nor is the connection
                    _reset(client)
                    continue
                with self._lock:
                    self._pairs.append((client, agent))
                for source, sink, upwards in ((client, agent, True), (agent, client, False)):
                    threading.Thread(
                        target=self._relay, args=(source, sink, upwards), daemon=True
                    ).start()

    def _relay(self, source: socket.socket, sink: socket.socket, upwards: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if upwards and self._due(len(data)):
                    sink.sendall(data[: len(data) // 2])
                    self.cut()
                    return
                sink.sendall(data)
        for end in (source, sink):
            _reset(end)

    def _due(self, sent: int) -> bool:
        with self._lock:
            if self._cut_after is None:
                return False
            self._cut_after -= sent
            if self._cut_after > 0:
                return False
            self._cut_after = None
            return True


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        end.close()
