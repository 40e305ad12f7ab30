"""How many bytes a rank's weights take: of a matrix, a layer, and the embedding and output head at the model's ends.

Which matrices a layer has and how ranks share them: models/linears.py, with its sources. Norms are on every rank. The
embedding is split over the vocabulary, padded to a multiple of 64 (vllm/model_executor/layers/vocab_parallel_embedding
.py); learned positions are on every rank. A quantized matrix is its bits, and a scale (and a zero point) per group.
"""

from localai_clusters.models import ModelShape
from localai_clusters.models.linears import ROW, Linear, layer_linears, rest_of_layer
from localai_clusters.models.quantization import Quantization

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}
VOCAB_PADDING = 64
MXFP4_PADDING = (128, 256)  # of an expert's columns on a rank, of the hidden size


def layer_parameters(shape: ModelShape, tensor_parallel_size: int, layer: int = 0) -> int:
    """Parameters of one decoder layer on one rank."""
    linears = layer_linears(shape, layer)
    return sum(_elements(linear, tensor_parallel_size) for linear in linears) + rest_of_layer(
        shape, layer, tensor_parallel_size
    )


def _elements(linear: Linear, tensor: int) -> int:
    columns = sum(linear.columns(tensor))
    return linear.copies * columns * (linear.rows(tensor) + linear.bias)


def padded_vocab_size(shape: ModelShape) -> int:
    return _up(shape.vocab_size, VOCAB_PADDING)


def embedding_parameters(shape: ModelShape, tensor_parallel_size: int) -> int:
    return padded_vocab_size(shape) // tensor_parallel_size * shape.hidden_size


def matrix_bytes(rows: int, columns: int, quantization: Quantization | None, element: int) -> int:
    """Bytes of a matrix of ``rows`` inputs and ``columns`` outputs; ``element`` of one that is not quantized."""
    if quantization is None or quantization.bits is None:
        return rows * columns * element
    if quantization.block:
        outputs, inputs = quantization.block
        scales = -(-columns // outputs) * -(-rows // inputs)
    elif quantization.group_size > 0:
        scales = columns * -(-rows // quantization.group_size)
    else:
        scales = columns if quantization.group_size else 1
    zero_point = quantization.bits if quantization.zero_points else 0
    return (rows * columns * quantization.bits + scales * (quantization.scale_bits + zero_point)) // 8


def layer_bytes(shape: ModelShape, layer: int, tensor: int, dtype: str, expert_rank: int | None = None) -> int:
    """Bytes of one decoder layer on one rank; ``expert_rank`` of its experts with expert parallelism."""
    element, family = DTYPE_BYTES[dtype], shape.family
    prefix = (family.prefix if family else "model.layers.{}").format(layer)
    total = rest_of_layer(shape, layer, tensor) * element
    for linear in layer_linears(shape, layer):
        quantization, split, copies = shape.quantized, tensor, linear.copies
        if linear.copies > 1 and expert_rank is not None:  # whole experts: fused_moe/expert_map_manager.py
            split, copies = 1, linear.copies // tensor + (expert_rank < linear.copies % tensor)
        if linear.plain or (quantization and _skipped(quantization, prefix, linear)):
            quantization = None
        elif quantization and quantization.method == "mxfp4" and linear.copies == 1:
            quantization = None  # vLLM's MXFP4 is for experts only (quantization/mxfp4.py)
        rows, columns = linear.rows(split), linear.columns(split)
        if quantization and quantization.method == "mxfp4":
            rows, columns = _padded(linear, rows, columns)
        matrices = sum(matrix_bytes(rows, width, quantization, element) for width in columns)
        total += copies * (matrices + (sum(columns) * element if linear.bias else 0))
    return total


def _padded(linear: Linear, rows: int, columns: list[int]) -> tuple[int, list[int]]:
    """An expert in MXFP4 as the kernels for Ampere and Blackwell want it; those for Hopper pad less
    (fused_moe/oracle/mxfp4.py, mxfp4_round_up_hidden_size_and_intermediate_size)."""
    inner, outer = MXFP4_PADDING
    if linear.split == ROW:
        return _up(rows, inner), [_up(width, outer) for width in columns]
    return _up(rows, outer), [_up(width, inner) for width in columns]


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _skipped(quantization: Quantization, prefix: str, linear: Linear) -> bool:
    return any(quantization.skips(f"{prefix}.{linear.module}.{part.name}") for part in linear.parts)


def all_layers_bytes(shape: ModelShape, tensor: int, dtype: str, expert_rank: int | None) -> list[int]:
    """Layers that nothing tells apart are counted once."""
    known: dict[bool, int] = {}
    alike = not (shape.quantized and any(any(c.isdigit() for c in entry) for entry in shape.quantized.skipped))
    found = []
    for layer in range(shape.num_hidden_layers):
        kind = shape.has_experts(layer)
        if not alike or kind not in known:
            known[kind] = layer_bytes(shape, layer, tensor, dtype, expert_rank)
        found.append(known[kind])
    return found


def ends_bytes(shape: ModelShape, tensor: int, dtype: str, is_first: bool, is_last: bool) -> int:
    """The embedding and positions of the first pipeline stage, the final norm and output head of the last one; in some
    of vLLM's classes every stage has them all (``Family.ends_everywhere``)."""
    element, family, embedding = DTYPE_BYTES[dtype], shape.family, embedding_parameters(shape, tensor)
    if family and family.ends_everywhere:
        is_first = is_last = True
    total = 0
    if is_first or (is_last and shape.tie_word_embeddings):
        total += embedding * element
    if is_first and family and family.learned_positions is not None:
        total += (shape.max_position_embeddings + family.learned_positions) * shape.hidden_size * element
    if is_last:
        total += shape.hidden_size * (2 if family and family.norm_bias else 1) * element
        if not shape.tie_word_embeddings:
            head = shape.quantized if shape.quantized and shape.quantized.lm_head else None
            total += matrix_bytes(shape.hidden_size, padded_vocab_size(shape) // tensor, head, element)
    return total
