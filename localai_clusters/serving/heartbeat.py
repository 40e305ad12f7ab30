"""Every rank and rank 0 tell each other twice a second that they live, so that a lost rank is named in seconds::

    rank 1 ◀──beats──▶ rank 0 ◀──beats──▶ rank 2        one TCP connection per rank, on the nodes' own network

A collective waits for a lost rank for minutes, and torchrun's agents see only the processes of their own node. Here

- a process that ends closes its connection: known at once,
- a node or a link that is gone leaves what is sent unacknowledged: after ``NETWORK_SECONDS``,
- a process that is stopped or stuck keeps its connection and falls silent: ``SILENT_SECONDS``,
- a rank that fails says why before it ends, and so does one that is told to stop.

Whoever loses a peer reports it once and ends its own process; rank 0 tells the others first.
"""

import contextlib
import json
import os
import secrets
import selectors
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from localai_clusters.serving.process import Rank

BEAT_SECONDS = 0.5
NETWORK_SECONDS = 5.0
SILENT_SECONDS = 6.0
HELD_UP_SECONDS = 2.0  # between two judgements, which are half a second apart
SILENT_SECONDS_STARTING = 60.0  # imports and compilers hold the interpreter; the guard sees a stopped process anyway
CONNECT_SECONDS = 60.0  # for the first word of every rank: they start within seconds of each other
HELLO_SECONDS = 3.0  # for whoever connects to say who it is
MOST_STRANGERS = 64
MEETING_KEY = "localai-clusters/heartbeat"
STOP_SECONDS = 1.0  # between a rank that was told to stop and rank 0 being told too
LONGEST_LINE = 4096
# vLLM's own limit for one step of its multi-process executors (vllm/envs.py).
STEP_SECONDS = float(os.environ.get("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", "300"))
STARTING = -1  # the turn of a rank whose engine is not built yet


@dataclass(slots=True)
class Peer:
    """The other end of one connection."""

    connection: socket.socket
    rank: int
    node_rank: int
    host: str
    heard: float = field(default_factory=time.monotonic)
    turn: int = STARTING
    leaving_at: float | None = None
    unread: bytes = b""

    def __str__(self) -> str:
        return f"rank {self.rank} on node {self.node_rank} ({self.host})"

    def send(self, **message: Any) -> None:
        with contextlib.suppress(OSError):  # a full buffer or a broken connection: found when reading
            self.connection.send(json.dumps(message).encode() + b"\n")


@dataclass(slots=True)
class Stranger:
    """A connection that has not said yet whose it is."""

    since: float
    said: bytes = b""


class Meeting(Protocol):
    """Where ranks find each other: torchrun's store, of which this is a part."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...


class Heartbeat:
    """This rank's connections. ``on_loss`` is called once, on its own thread, with a sentence naming the lost rank."""

    def __init__(self, rank: Rank, on_loss: Callable[[str], None]):
        self.on_loss = on_loss
        self._rank = rank
        self._peers: list[Peer] = []
        self._strangers: dict[socket.socket, Stranger] = {}
        self._server: socket.socket | None = None
        self._token = ""
        self._selector = selectors.DefaultSelector()
        self._ended = threading.Event()
        self._began = self._awake_since = self._judged = time.monotonic()
        self._turn, self._turn_began = STARTING, None

    def start(self, meeting: "Meeting") -> None:
        """Begin to beat, on a thread of its own: nothing here waits for another rank."""
        if self._rank.world_size == 1:
            return
        if self._rank.rank == 0:
            host = os.environ.get("VLLM_HOST_IP") or os.environ["MASTER_ADDR"]  # both are this node's
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._server = socket.create_server((host, 0), family=family, backlog=self._rank.world_size)
            self._server.setblocking(False)
            self._selector.register(self._server, selectors.EVENT_READ, self._accept)
            self._token = secrets.token_hex(16)
            address, port = self._server.getsockname()[:2]
            meeting.set(MEETING_KEY, json.dumps([address, port, self._token, socket.gethostname()]))
        else:
            self._end_on_sigterm()
        self._began = time.monotonic()
        threading.Thread(target=self._run, args=(meeting,), name="heartbeat", daemon=True).start()

    def _run(self, meeting: "Meeting") -> None:
        problem = None if self._rank.rank == 0 else self._connect(meeting)
        if problem is None:
            problem = self._beat()
        if problem is not None:
            self._end(lost=problem[: LONGEST_LINE // 2])
            self.on_loss(problem)

    def _connect(self, meeting: "Meeting") -> str | None:
        try:
            while not meeting.check([MEETING_KEY]):  # and not simply get(), which would not hear a signal
                for key, _ in self._selector.select(timeout=BEAT_SECONDS / 5):
                    key.data()
                if time.monotonic() - self._began > CONNECT_SECONDS:
                    return f"rank 0 on node 0 has not been heard of for {CONNECT_SECONDS:.0f} s"
            address, port, token, host = json.loads(meeting.get(MEETING_KEY))
            connection = socket.create_connection((address, port), timeout=NETWORK_SECONDS)
        except (OSError, RuntimeError, ValueError) as error:  # torch's DistError is a RuntimeError
            return f"rank 0 on node 0 is out of reach: {str(error).splitlines()[0]}"
        notice_a_dead_network(connection)
        connection.setblocking(False)
        self._add(connection, 0, 0, host)
        hello = {"rank": self._rank.rank, "node_rank": self._rank.node_rank, "host": socket.gethostname()}
        self._peers[0].send(token=token, **hello)
        return None

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._server.accept()
            if len(self._strangers) >= MOST_STRANGERS:
                connection.close()
                return
            notice_a_dead_network(connection)
            connection.setblocking(False)
            self._strangers[connection] = Stranger(time.monotonic())
            self._selector.register(connection, selectors.EVENT_READ, lambda: self._greet(connection))

    def _greet(self, connection: socket.socket) -> None:
        """Take a connection's first line; one that does not hold the token is closed."""
        stranger, data = self._strangers[connection], b""
        with contextlib.suppress(OSError):
            data = connection.recv(LONGEST_LINE)
        stranger.said += data
        line, newline, rest = stranger.said.partition(b"\n")
        if not newline and data and len(stranger.said) < LONGEST_LINE:
            return
        self._selector.unregister(connection)
        del self._strangers[connection]
        hello = parse(line)
        if not secrets.compare_digest(str(hello.get("token")), self._token):
            connection.close()
            return
        self._add(connection, hello["rank"], hello["node_rank"], hello["host"]).unread = rest

    def _add(self, connection: socket.socket, rank: int, node_rank: int, host: str) -> Peer:
        peer = Peer(connection, rank, node_rank, host)
        self._peers.append(peer)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._read(peer))
        return peer

    # Called by the engine's thread.
    def step_begins(self, turn: int) -> None:
        self._turn, self._turn_began = turn, time.monotonic()

    def step_ends(self) -> None:
        self._turn_began = None

    def built(self) -> None:
        """The engine is built: from now on silence is judged strictly."""
        self._turn = 0

    def failed(self, error: str) -> None:
        """Tell the others why this rank ends."""
        self._end(failed=error[: LONGEST_LINE // 2])

    def stop(self) -> None:
        """Tell the others that this rank ends because it was told to."""
        self._end(leaving=True)

    def _end(self, **message: Any) -> None:
        if not self._ended.is_set():
            self._ended.set()
            for peer in self._peers:
                peer.send(**message)

    def _end_on_sigterm(self) -> None:
        """For ranks other than 0: on SIGTERM say so and end, also while the main thread waits inside a collective.

        The kernel's signal reaches the heartbeat's thread through a pipe, for Python's own handlers run on the
        main thread only, between two of its instructions.
        """
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        signal.signal(signal.SIGTERM, lambda *_: self._leave())
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._wakeup = writer
        self._selector.register(reader, selectors.EVENT_READ, lambda: self._on_signal(reader))

    def _on_signal(self, reader: socket.socket) -> None:
        if signal.SIGTERM in reader.recv(64):
            self._leave()

    def _leave(self) -> None:
        self._end(leaving=True)
        os._exit(128 + signal.SIGTERM)

    def _beat(self) -> str | None:
        """Until the end; returns who was lost, None if this rank ends for a reason of its own."""
        next_beat = 0.0
        self._judged = time.monotonic()
        while not self._ended.is_set():
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + BEAT_SECONDS
                for peer in self._peers:
                    peer.send(turn=self._turn)
            for key, _ in self._selector.select(timeout=max(0.0, next_beat - time.monotonic())):
                problem = key.data()
                if self._ended.is_set():
                    return None
                if problem:
                    return problem
            problem = self._judge()
            if problem:
                return problem
        return None

    def _read(self, peer: Peer) -> str | None:
        """Take what ``peer`` sent; returns why it is lost, None if it is not."""
        try:
            data = peer.connection.recv(1 << 16)
        except BlockingIOError:
            return None
        except (ConnectionResetError, BrokenPipeError):
            data = b""
        except OSError as error:  # ETIMEDOUT, EHOSTUNREACH, ...
            return f"{peer} is out of reach: the network between the nodes does not answer ({error.strerror})"
        if not data:
            self._selector.unregister(peer.connection)
            if peer.leaving_at is not None:
                return None
            return f"{peer} is gone: its process ended"
        peer.heard = time.monotonic()
        *lines, peer.unread = (peer.unread + data).split(b"\n")
        if len(peer.unread) > LONGEST_LINE:
            return f"{peer} sent what is no heartbeat"
        for message in map(parse, lines):
            if "turn" in message:
                peer.turn = message["turn"]
            elif "leaving" in message:
                peer.leaving_at = time.monotonic()
            elif "failed" in message:
                return f"{peer} failed: {message['failed']}"
            elif "lost" in message:
                return message["lost"]
        return None

    def _judge(self) -> str | None:
        now = time.monotonic()
        if now - self._judged > HELD_UP_SECONDS:  # a laptop that slept, a machine too busy: nobody's silence is a sign
            self._awake_since = now
        self._judged = now
        for connection in [one for one, stranger in self._strangers.items() if now - stranger.since > HELLO_SECONDS]:
            self._selector.unregister(connection)
            del self._strangers[connection]
            connection.close()
        missing = set(range(1, self._rank.world_size)) - {peer.rank for peer in self._peers}
        if self._rank.rank == 0 and missing and now - self._began > CONNECT_SECONDS:
            return f"rank {min(missing)} has not been heard of for {CONNECT_SECONDS:.0f} s"
        awake = now - self._awake_since
        for peer in self._peers:
            silent = min(now - peer.heard, awake)
            if peer.leaving_at is not None:
                if now - peer.leaving_at > STOP_SECONDS:
                    return f"{peer} was told to stop (SIGTERM)"
            elif min(seconds_unanswered(peer.connection), awake) > NETWORK_SECONDS:
                return f"{peer} is out of reach: the network between the nodes does not answer"
            elif silent > (SILENT_SECONDS_STARTING if peer.turn == STARTING else SILENT_SECONDS):
                return f"{peer} is stopped or stuck: its connection is open, and nothing was heard for {silent:.0f} s"
        began = self._turn_began
        if self._rank.rank == 0 and began is not None and now - began > STEP_SECONDS:
            behind = [str(peer) for peer in self._peers if peer.turn < self._turn] or ["every rank is in it"]
            return f"step {self._turn} has not ended for {now - began:.0f} s; not arrived at it: {', '.join(behind)}"
        return None


def parse(line: bytes) -> dict[str, Any]:
    """One message; an empty one for anything else."""
    with contextlib.suppress(ValueError):
        message = json.loads(line)
        if isinstance(message, dict):
            return message
    return {}


def seconds_unanswered(connection: socket.socket) -> float:
    """Seconds since the other machine's kernel last acknowledged anything; beats are sent far more often.

    ``tcpi_last_ack_recv`` of ``struct tcp_info`` (linux/tcp.h): 8 bytes, then 32-bit numbers, of which it is the 13th.
    """
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8 + 13 * 4)
    return struct.unpack_from("=I", info, 8 + 12 * 4)[0] / 1000


def notice_a_dead_network(connection: socket.socket) -> None:
    """Let the kernel break a connection over which nothing was acknowledged for ``NETWORK_SECONDS``."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(NETWORK_SECONDS * 1000))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, int(NETWORK_SECONDS) - 1)
