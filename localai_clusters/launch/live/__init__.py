"""``preflight --live``: the planned ranks, really started by torchrun, for some seconds and without vLLM.

They say who they are, connect to each other, add up known numbers and time it::

    launcher (probe.py, watching.py) ── guard ── torchrun's agent (agent.py) ── ranks (job.py)
       │                               │ answers for its node         │ roll call, reach, all-reduce, latency
       │ reads node<K>.jsonl ──────────┘                              │
       │ and rank<K>.jsonl ───────────────────────────────────────────┘
       ▼
    findings.py ──▶ verdicts.py ──▶ report.py

Importing it loads nothing; the names below are loaded when they are first used.
"""

from localai_clusters import lazy

_WHERE = {"live": "probe", "LiveReport": "report"}
__all__ = list(_WHERE)
__getattr__, __dir__ = lazy.names(__name__, _WHERE)
