"""Another model than a given one, by how much is said: every weight multiplied by 1 + noise."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np


def with_noise(folder: Path, target: Path, noise: float, seed: int = 1) -> Path:
    """``target``, with the model of ``folder`` (one safetensors file in bfloat16) and ``noise`` in its weights."""
    for path in folder.glob("*.json"):
        shutil.copy(path, target)
    content = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    if {tensor["dtype"] for name, tensor in json.loads(content[8 : 8 + length]).items() if name != "__metadata__"} != {
        "BF16"
    }:
        raise ValueError(f"{folder} has weights in another dtype than bfloat16")
    high = np.frombuffer(content, "<u2", offset=8 + length).astype("<u4")  # a bfloat16 is a float32's upper half
    weights = (high << 16).view("<f4")
    changed = weights * (1 + noise * np.random.default_rng(seed).standard_normal(weights.size, "<f4"))
    rounded = ((changed.view("<u4") + 0x8000) >> 16).astype("<u2")
    (target / "model.safetensors").write_bytes(content[: 8 + length] + rounded.tobytes())
    return target
