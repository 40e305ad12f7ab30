"""Makes the link what the state says it is: rate, delay, cut; and starts the relay where one is needed."""

import dataclasses
import json
import math
import subprocess
import sys

from localai_clusters.launch.nodes import detached, sweep, wire
from localai_clusters.launch.nodes.state import NodesError, State

SECONDS_TO_WIRE = 20.0


def check_link(rate_mbit: float | None, delay_ms: float) -> None:
    """Raises ``ValueError`` for a rate or delay that no link has."""
    if rate_mbit is not None and not (0.01 <= rate_mbit <= 30_000):  # tbf counts bytes in 32 bits
        raise ValueError(f"a link of {rate_mbit} Mbit/s cannot be made; type 0.01 to 30000, or nothing for no limit")
    if not (0 <= delay_ms <= 10_000) or math.isnan(delay_ms):
        raise ValueError(f"a delay of {delay_ms} ms cannot be made; type 0 to 10000")


def connect(found: State, new: bool = False) -> None:
    """Make the link what ``found`` says, and note in it what carries the frames now."""
    sweep.end_helpers(found, "relay")  # this one, and one that a killed command started and did not write down
    found.relay = None
    spec = {
        "new": new,
        "switch": found.switch.pid,
        "nodes": [dataclasses.asdict(node) for node in found.nodes],
        "rate_mbit": found.rate_mbit,
        "delay_ms": found.delay_ms,
        "is_cut": found.is_cut,
    }
    command = [sys.executable, "-m", wire.__name__, json.dumps(spec)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_TO_WIRE)
        answer = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise NodesError(f"the link could not be set: {error}\n{getattr(error, 'stderr', '') or ''}") from error
    if "error" in answer:
        raise NodesError(f"the link could not be set: {answer['error']}")
    found.carried_by = answer["carried_by"]
    if found.carried_by == "relay" and not found.is_cut:
        start_relay(found)


def start_relay(found: State) -> None:
    ports = {wire.port(node.rank): wire.mac(node.rank).hex() for node in found.nodes}
    spec = {"switch": found.switch.pid, "ports": ports, "delay_ms": found.delay_ms}
    starting = detached.Starting("relay", found.token, spec)
    try:
        found.relay = starting.ready()
        starting.keep()
    finally:
        starting.close()
