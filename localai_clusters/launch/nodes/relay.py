"""Carries frames between the switch's ports, each after a delay, where the kernel has no netem (or no bridge).

``python -m localai_clusters.launch.nodes.relay TOKEN SPEC``. Frames pass with the kernel's own notes on them
(PACKET_VNET_HDR): a segment of up to 64 KiB with its checksum still to do is read and written once, not as 45 frames,
so one core carries several Gbit/s and no offload has to be turned off.
"""

import collections
import contextlib
import ctypes
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from localai_clusters.launch.nodes import detached, namespaces

SOL_PACKET, PACKET_VNET_HDR, PACKET_QDISC_BYPASS, PACKET_IGNORE_OUTGOING = 263, 15, 20, 23  # linux/if_packet.h
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
ETH_P_ALL = 3
PR_SET_TIMERSLACK = 29
NOTE_BYTES = 10  # struct virtio_net_hdr
LARGEST = NOTE_BYTES + 14 + (1 << 16)
BUFFER_BYTES = 64 << 20
FRAMES_IN_A_ROW = 32


def relay(spec: dict[str, Any]) -> Callable[[], None]:
    """In the switch's network, be ready to carry between ``spec["ports"]``: port name -> MAC behind it, as hex."""
    namespaces.join(spec["switch"], ["user", "net"])
    os.chdir("/")
    be_on_time()
    sockets = [open_port(name) for name in spec["ports"]]
    macs = [bytes.fromhex(mac) for mac in spec["ports"].values()]
    return lambda: carry(sockets, macs, spec["delay_ms"] / 1000)


def be_on_time() -> None:
    """Ahead of programs that spin on every core, where that is allowed; timers to the microsecond."""
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, -10)


def open_port(name: str) -> socket.socket:
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)  # 0: nothing is received before it is bound
    port.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    for option in (PACKET_IGNORE_OUTGOING, PACKET_QDISC_BYPASS):
        with contextlib.suppress(OSError):  # a matter of speed only
            port.setsockopt(SOL_PACKET, option, 1)
    for forced, plain in ((SO_RCVBUFFORCE, socket.SO_RCVBUF), (SO_SNDBUFFORCE, socket.SO_SNDBUF)):
        try:
            port.setsockopt(socket.SOL_SOCKET, forced, BUFFER_BYTES)
        except PermissionError:  # without root: as much as the system allows
            port.setsockopt(socket.SOL_SOCKET, plain, BUFFER_BYTES)
    port.bind((name, ETH_P_ALL))
    port.setblocking(False)
    return port


def carry(ports: Sequence[socket.socket], macs: Sequence[bytes], delay: float) -> None:
    """Every frame goes to the port its MAC is behind, or to all others, ``delay`` seconds after it came."""
    behind = dict(zip(macs, ports, strict=True))
    others = {port: [other for other in ports if other is not port] for port in ports}
    waiting: collections.deque[tuple[float, bytes, socket.socket]] = collections.deque()
    while True:
        patience = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select(ports, [], [], patience)
        for port in readable:
            with contextlib.suppress(OSError):  # nothing more for now, or the port is gone
                for _ in range(FRAMES_IN_A_ROW):
                    frame = port.recv(LARGEST)
                    waiting.append((time.monotonic() + delay, frame, port))
        for _ in range(FRAMES_IN_A_ROW):
            if not waiting or waiting[0][0] > time.monotonic():
                break
            _, frame, source = waiting.popleft()
            target = behind.get(frame[NOTE_BYTES : NOTE_BYTES + 6])
            for port in others[source] if target is None else (target,):
                with contextlib.suppress(OSError):  # a full or broken port loses the frame, as a switch would
                    port.send(frame)


if __name__ == "__main__":
    detached.live(relay)
