"""Whether each node can open a connection to each other one, on a port that the system chose, as Gloo and NCCL do.

torchrun's own port says nothing of that: all nodes connect to node 0 there, and a firewall may let just that through.
"""

import contextlib
import secrets
import socket
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from localai_clusters.launch.live.answer import Answer

CONNECT_SECONDS = 3.0  # a firewall that drops is silence; the kernel would try for two minutes
TIMES = 3  # the quickest of these round trips counts
MOST_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Connection:
    """From one node to another: ``seconds`` of a round trip over TCP, ``ahead`` by how much the other's clock is."""

    source: int  # node ranks
    target: int
    address: str
    seconds: float | None = None
    ahead: float | None = None
    problem: str = ""


class Listener:
    """Tells the time to whoever knows the token, until it is closed."""

    def __init__(self, host: str):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._server = socket.create_server((host, 0), family=family, backlog=MOST_AT_ONCE)
        self.port = self._server.getsockname()[1]

    def start(self, token: str) -> None:
        threading.Thread(target=self._serve, args=(token.encode(),), name="reach", daemon=True).start()

    def _serve(self, token: bytes) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection = self._server.accept()[0]
                threading.Thread(target=self._answer, args=(connection, token), daemon=True).start()

    @staticmethod
    def _answer(connection: socket.socket, token: bytes) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(CONNECT_SECONDS)
            while len(said := connection.recv(len(token), socket.MSG_WAITALL)) == len(token):
                if not secrets.compare_digest(said, token):
                    return
                connection.sendall(f"{time.time():020.6f}".encode())

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # accept() in another thread would wait on
        self._server.close()


def connections(here: Answer, answers: Iterable[Answer]) -> list[Connection]:
    """From this node to every other one, tried at the same time; ``CONNECT_SECONDS`` at most, and a little."""
    others = [other for other in answers if other.local_rank == 0 and other.node_rank != here.node_rank]
    if not others:
        return []
    with ThreadPoolExecutor(min(len(others), MOST_AT_ONCE)) as pool:
        return list(pool.map(lambda other: connect(here.node_rank, other), others))


def connect(source: int, other: Answer) -> Connection:
    try:
        with socket.create_connection((other.address, other.port), timeout=CONNECT_SECONDS) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            trips = [round_trip(connection, other.token) for _ in range(TIMES)]
    except (OSError, ValueError) as error:  # ValueError: what answers there is not a rank of this job
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return Connection(source, other.node_rank, other.address, problem=why)
    seconds, ahead = min(trips)
    return Connection(source, other.node_rank, other.address, seconds, ahead)


def round_trip(connection: socket.socket, token: str) -> tuple[float, float]:
    """(seconds there and back, by how many seconds the other's clock is ahead)."""
    sent, started = time.time(), time.perf_counter()
    connection.sendall(token.encode())
    told = float(connection.recv(20, socket.MSG_WAITALL))
    seconds = time.perf_counter() - started
    return seconds, told - (sent + seconds / 2)
