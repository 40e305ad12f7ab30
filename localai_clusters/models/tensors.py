"""Does a config.json describe the weights beside it? Read from the headers of the safetensors files alone.

vLLM finds out while it loads them, after ten seconds and in its own words: a parameter that is never filled
(model_loader/default_loader.py), a slice that does not fit (linear.py), a name that no module has (models/utils.py).
"""

import re
from collections.abc import Mapping
from typing import Any

from localai_clusters.models.linears import layer_linears
from localai_clusters.models.shape import ModelShape

PACKED = (".qweight", ".weight_packed", ".weight_scale", ".weight_scale_inv")
FLOATS = ("F64", "F32", "F16", "BF16")


def contradiction(shape: ModelShape, tensors: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What config.json says that the weights do not bear out, None if nothing is known to be wrong.

    ``tensors``: name to {"dtype", "shape"}. Names that are not those of the family, or of Llama, are not judged.
    """
    packed = next((name for name in tensors if name.endswith(PACKED)), None)
    if packed and shape.quantized is None:
        return f"the weights are quantized ({packed}), and config.json has no quantization_config"
    prefix = shape.family.prefix if shape.family else "model.layers.{}"
    pattern = re.compile(re.escape(prefix).replace(re.escape("{}"), r"(\d+)") + r"\.")
    layers = {int(found[1]) for name in tensors if (found := pattern.match(name))}
    missing = sorted(set(range(shape.num_hidden_layers)) - layers)
    if layers and missing:
        said = f"num_hidden_layers is {shape.num_hidden_layers}"
        return f"{said}, and the weights hold {len(layers)} of them: none is of layer {missing[0]}"
    return None if shape.quantized else _another_shape(shape, tensors, prefix)


def _another_shape(shape: ModelShape, tensors: Mapping[str, Mapping[str, Any]], prefix: str) -> str | None:
    """A matrix that is there under its name and in another shape. Some families store them transposed."""
    for layer in range(shape.num_hidden_layers):
        for linear in layer_linears(shape, layer):
            for part in linear.parts if linear.copies == 1 else ():
                name = f"{prefix.format(layer)}.{linear.module}.{part.name}.weight"
                tensor = tensors.get(name)
                if tensor is None or tensor.get("dtype") not in FLOATS:
                    continue
                wanted = [part.units * part.width, linear.inputs]
                if sorted(tensor["shape"]) != sorted(wanted):
                    found, by = (" x ".join(map(str, sizes)) for sizes in (tensor["shape"], wanted))
                    return f"{name} is {found}; by config.json it is {by}"
    return None
