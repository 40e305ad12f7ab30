"""What every rank says, brought to every rank through torchrun's store: no collective, so a mute rank can be named.

    everything = gather(store, "roll-call", rank, {"host": "node0"}, among=range(4), seconds=10)

The store is a process on node 0 that all ranks have reached already. Rank 0 collects and hands out; it alone waits for
each of the others, and what it has when the time is over is what everybody gets.
"""

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

PREFIX = "localai-clusters/live"  # of every key, for torchrun has its own there
POLL_SECONDS = 0.02
SECONDS_FOR_RANK_0 = 5.0  # more than rank 0 gives to the others, for it starts to wait later than some of them


class Store(Protocol):
    """The part of torch.distributed.Store that is used here."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...


class Mute(RuntimeError):
    """Ranks that did not say anything in time."""

    def __init__(self, stage: str, ranks: Sequence[int], seconds: float):
        self.stage, self.ranks, self.seconds = stage, tuple(ranks), seconds
        listed = ", ".join(map(str, ranks))
        super().__init__(f"rank{'s' * (len(ranks) > 1)} {listed} silent for {seconds:.0f} s at {stage}")


def gather(store: Store, stage: str, rank: int, said: Any, among: Iterable[int], seconds: float) -> dict[int, Any]:
    """rank -> what it said (JSON values) of every rank in ``among``, 0 and this one included.

    Raises ``Mute`` on every rank if one of them says nothing within ``seconds``.
    """
    among = sorted(among)
    store.set(f"{stage}/{rank}", json.dumps(said))
    if rank == 0:
        heard = collect(store, {other: f"{stage}/{other}" for other in among}, seconds)
        store.set(f"{stage}/all", json.dumps(heard))
    else:
        found = collect(store, {0: f"{stage}/all"}, seconds + SECONDS_FOR_RANK_0)
        if not found:
            raise Mute(stage, [0], seconds + SECONDS_FOR_RANK_0)
        heard = {int(other): word for other, word in found[0].items()}
    if missing := [other for other in among if other not in heard]:
        raise Mute(stage, missing, seconds)
    return heard


def collect(store: Store, keys: dict[int, str], seconds: float) -> dict[int, Any]:
    """What was written under ``keys`` (rank -> key) within ``seconds``, parsed."""
    found, deadline = {}, time.monotonic() + seconds
    while True:
        for rank in keys.keys() - found.keys():
            if store.check([keys[rank]]):
                found[rank] = json.loads(store.get(keys[rank]))
        if len(found) == len(keys) or time.monotonic() > deadline:
            return found
        time.sleep(POLL_SECONDS)
