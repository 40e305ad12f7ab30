"""What a rank's model is made of, as its own layers say it: written once, before vLLM packs the tensors away."""

import hashlib
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger("vllm.localai_clusters.weights")

MOST_HASHED_BYTES = 256 << 20  # per tensor; an embedding is left to its shape


def write(model: torch.nn.Module, path: Path) -> None:
    """Write every parameter's name, shape and layer to ``path``, and the SHA-256 of those of the first layer here.

    For labs only: whatever goes wrong is logged, and the rank serves all the same.
    """
    started = time.perf_counter()
    try:
        parameters = describe(model)
    except Exception:
        logger.warning("what this rank's matrices are is not written", exc_info=True)
        return
    about = {
        "packed": getattr(model, "packed_modules_mapping", None) or {},
        "parameters": parameters,
        "seconds": round(time.perf_counter() - started, 4),
    }
    try:
        path.write_text(json.dumps(about), encoding="utf-8")
    except OSError as error:  # a full disk
        logger.warning("what this rank's matrices are is not written: %s", error)


def describe(model: torch.nn.Module) -> list[dict[str, Any]]:
    found, seen, hashed_layer = [], {}, None
    for module_name, module in model.named_modules():
        for name, tensor in module.named_parameters(recurse=False):
            whole = f"{module_name}.{name}" if module_name else name
            entry = {
                "name": whole,
                "classes": [kind.__name__ for kind in type(module).__mro__ if "vllm" in kind.__module__],
                "shape": list(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "bytes": tensor.numel() * tensor.element_size(),
                "tensor_parallel_size": getattr(module, "tp_size", 1),
            }
            for attribute in ("output_sizes", "total_num_heads", "total_num_kv_heads", "head_size", "reduce_results",
                              "org_vocab_size"):  # fmt: skip
                value = getattr(module, attribute, None)
                if isinstance(value, (int, list, tuple, bool)):
                    entry[attribute] = list(value) if isinstance(value, tuple) else value
            storage = tensor.untyped_storage().data_ptr()
            if storage in seen:
                entry["tied_to"] = seen[storage]
            seen.setdefault(storage, whole)
            if number := next((part for part in whole.split(".") if part.isdigit()), None):
                hashed_layer = hashed_layer or number
                if number == hashed_layer and entry["bytes"] <= MOST_HASHED_BYTES:
                    entry["sha256"] = sha256_of(tensor)
            found.append(entry)
    return found


def sha256_of(tensor: torch.Tensor) -> str:
    data = tensor.detach().reshape(-1).cpu().view(torch.uint8).numpy()  # a scale has no dimension to view
    return hashlib.sha256(data).hexdigest()
