"""The checkpoint: one JSON file that says what a student ran and what came out.

    checkpoint = build(student="s123", chapter=7, lab="vllm_distributed_serving", ...)
    path = write(checkpoint, "checkpoints")
    show(read(path), Console())

Nothing here imports torch or vLLM, and nothing here starts a process.
"""

from .building import build, canonical_json, digest_of, prompt, to_json, utc
from .comparing import compare
from .consistency import verify
from .finding import Finding
from .json_schema import schema
from .page import show
from .privacy import scrub_arguments, scrub_environment, shorten_home
from .record import (
    SCHEMA_VERSION,
    Checkpoint,
    CheckpointError,
    Comparison,
    Completion,
    Constraint,
    Data,
    Device,
    Evidence,
    Figure,
    Gpu,
    Load,
    Machine,
    Memory,
    Observed,
    Plan,
    Preflight,
    Prompt,
    Rank,
    Run,
    Versions,
)
from .store import path_of, read, write
from .summary import plain_text, what_it_proves

__all__ = [
    "SCHEMA_VERSION",
    "Checkpoint",
    "CheckpointError",
    "Comparison",
    "Completion",
    "Constraint",
    "Data",
    "Device",
    "Evidence",
    "Figure",
    "Finding",
    "Gpu",
    "Load",
    "Machine",
    "Memory",
    "Observed",
    "Plan",
    "Preflight",
    "Prompt",
    "Rank",
    "Run",
    "Versions",
    "build",
    "canonical_json",
    "compare",
    "digest_of",
    "path_of",
    "plain_text",
    "prompt",
    "read",
    "schema",
    "scrub_arguments",
    "scrub_environment",
    "shorten_home",
    "show",
    "to_json",
    "utc",
    "verify",
    "what_it_proves",
    "write",
]
