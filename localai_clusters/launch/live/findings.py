"""What a live run has found, read from its folder: the ranks' own words, and those of torchrun's agents."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localai_clusters.launch import journal
from localai_clusters.launch.live.answer import Answer
from localai_clusters.launch.live.measurement import Measurement
from localai_clusters.launch.live.reach import Connection
from localai_clusters.launch.run import read_rank
from localai_clusters.models import ModelShape
from localai_clusters.plan import ServePlan
from localai_clusters.preflight.report import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """None: the run did not come so far. ``problem`` is what ended it."""

    plan: ServePlan
    shape: ModelShape | None = None
    answers: tuple[Answer, ...] | None = None
    connections: tuple[Connection, ...] | None = None
    wrong_sums: tuple[str, ...] | None = None
    measurements: tuple[Measurement, ...] | None = None
    problem: Verdict | None = None


def read_findings(
    run_dir: Path, plan: ServePlan, shape: ModelShape | None, first_rank: int, problem: Verdict | None
) -> Findings:
    """From the words of ``first_rank``, the first one of a node, which hold those of all ranks."""
    facts = read_rank(run_dir, first_rank).facts

    def each(name: str, make: Any) -> tuple | None:
        return tuple(make(one) for one in facts[name]) if name in facts else None

    return Findings(
        plan=plan,
        shape=shape,
        answers=each("answers", Answer.from_dict),
        connections=each("connections", lambda one: Connection(**one)),
        wrong_sums=each("wrong_sums", str),
        measurements=each("measurements", Measurement.from_dict),
        problem=problem,
    )


@dataclass(frozen=True, slots=True)
class Agent:
    """What torchrun's agent of one node has noted. ``nodes``: node rank -> host, pid and plan of those who answered."""

    started_at: float | None  # Unix time at which it was ready to meet the others
    nodes: dict[int, dict[str, Any]]
    unreachable: str  # why node 0 cannot be reached from there, "" if it was not tried or could be
    twice: str  # the host that says it is this node too
    heard_at: float  # Unix time at which the last node answered


def read_agent(run_dir: Path, node_rank: int) -> Agent:
    lines = journal.read(run_dir / f"node{node_rank}.jsonl")
    facts = {key: value for line in lines for key, value in line.items()}
    started = next((line["time"] for line in lines if "step" in line), None)
    nodes = {int(node): said for node, said in facts.get("nodes", {}).items()}
    heard_at = max((line["time"] for line in lines if "nodes" in line), default=0.0)
    return Agent(started, nodes, "" if nodes else facts.get("unreachable", ""), facts.get("twice", ""), heard_at)
