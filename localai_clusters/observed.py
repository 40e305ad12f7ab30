"""What a lab observes beside answers and load, as plain data: the measuring modules make it, ``record`` takes it."""

from dataclasses import dataclass
from typing import Any, Literal

from localai_clusters.plan import ServePlan

MAX_POINTS = 512  # of one timeline


@dataclass(frozen=True, slots=True)
class Timeline:
    """One quantity of one rank, or of the whole server (``rank`` None), while it served.

    ``points`` are (seconds since the run was started, value) in the order of time, at most ``MAX_POINTS``; values and
    ``capacity``, the most that there can be, are in ``unit``.
    """

    run_id: str
    rank: int | None
    quantity: Literal["resident", "gpu", "kv-blocks"]
    unit: Literal["bytes", "blocks"]
    points: tuple[tuple[float, int], ...]
    capacity: int | None = None


@dataclass(frozen=True, slots=True)
class Traffic:
    """What crossed the link between nodes while ``output_tokens`` were generated in ``seconds``.

    ``bytes_sent`` by node are frames: packet heads, acknowledgements and whatever else the link carried are in it.
    ``predicted_bytes_per_token`` is one node's payload alone. ``rate_mbit`` None: no limit. ``delay_ms`` is one way.
    """

    run_id: str
    layout: str
    output_tokens: int
    seconds: float
    bytes_sent: tuple[int, ...]
    rate_mbit: float | None = None
    delay_ms: float = 0.0
    predicted_bytes_per_token: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that was made to fail, and who said so.

    ``name`` is the experiment's; ``cause`` the preflight check or the entry of diagnose/ that named it. ``rank`` is the
    first that failed, ``seconds`` the time until it was known. ``run_id`` is None if nothing was started;
    ``repaired_run_id`` is the run that served after the repair.
    """

    name: str
    how: Literal["refused by preflight", "launch failed", "lost while serving"]
    cause: str
    message: str
    seconds: float
    plan: ServePlan | None = None
    rank: int | None = None
    run_id: str | None = None
    repaired_run_id: str | None = None


@dataclass(frozen=True, slots=True)
class Collective:
    """One operation between the ranks of ``layout``, measured: the seconds of one message of ``message_bytes``.

    ``bytes_per_second`` is the bus bandwidth as nccl-tests define it, None where it was not taken.
    """

    layout: str
    operation: Literal["all-reduce", "all-gather", "send"]
    message_bytes: int
    seconds: float
    bytes_per_second: float | None = None
    nodes: int = 1


@dataclass(frozen=True, slots=True)
class ExerciseOutcome:
    """How far a student came with one exercise. ``answer`` is the last one given, None if there was none."""

    id: str
    status: Literal["right", "wrong", "not-tried", "by-hand"]
    answer: str | int | float | bool | None = None
    attempts: int = 0
    hints: int = 0
    solution_shown: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__ if name != "answer"}
