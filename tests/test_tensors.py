"""Whether a config.json and the headers of the weights beside it belong together."""

import json
from pathlib import Path

import pytest

from localai_clusters.models import BUILT_IN, ModelError, ModelShape, find, look_up
from localai_clusters.models.folder import check_files
from localai_clusters.models.tensors import contradiction
from localai_clusters.plan import ServePlan
from localai_clusters.preflight import preflight

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
    "max_position_embeddings": 32,
}  # fmt: skip
SHAPES = {
    "self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64), "mlp.gate_proj": (128, 64), "mlp.up_proj": (128, 64), "mlp.down_proj": (64, 128),
}  # fmt: skip


def tensors(layers=2, **changes):
    found = {f"model.layers.{layer}.{name}.weight": shape for layer in range(layers) for name, shape in SHAPES.items()}
    found |= {"model.embed_tokens.weight": (100, 64), **changes}
    return {name: {"dtype": "BF16", "shape": list(shape)} for name, shape in found.items()}


@pytest.mark.parametrize(
    ("config", "found", "says"),
    [
        ({}, tensors(), None),
        ({}, tensors(3), None),  # a layer for speculative decoding stands behind the others
        ({}, {}, None),
        ({}, {"x": {"dtype": "BF16", "shape": [3]}}, None),
        ({"num_hidden_layers": 3}, tensors(), "is 3, and the weights hold 2 of them: none is of layer 2"),
        ({"num_key_value_heads": 4}, tensors(), "0.self_attn.k_proj.weight is 32 x 64; by config.json it is 64 x 64"),
        ({"intermediate_size": 120}, tensors(), "gate_proj.weight is 128 x 64; by config.json it is 120 x 64"),
        ({}, tensors(**{"model.layers.1.mlp.down_proj.weight": (64, 127)}), "1.mlp.down_proj.weight is 64 x 127"),
        ({}, tensors(**{"model.layers.1.mlp.down_proj.weight": (128, 64)}), None),  # transposed, as gpt2 has it
        ({}, tensors(**{"model.layers.0.mlp.up_proj.qweight": (64, 16)}), "quantized (model.layers.0.mlp.up_proj.qw"),
        ({}, tensors(**{"model.layers.0.mlp.up_proj.weight_scale": (1,)}), "config.json has no quantization_config"),
        (
            {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True}},
            tensors(**{"model.layers.0.mlp.up_proj.qweight": (64, 16)}),
            None,
        ),
        ({"model_type": "made_up", "intermediate_size": 120}, tensors(), "120 x 64"),
    ],
)  # fmt: skip
def test_what_the_configuration_says_and_the_weights_do_not_bear_out(config, found, says):
    said = contradiction(ModelShape.from_config(LLAMA | config), found)
    assert said is None if says is None else says in said


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_the_built_in_models_bear_out_their_configuration(name):
    model = find(name)
    found = check_files(model.path)
    assert len(found) > 200
    assert contradiction(model.shape, found) is None


def written(folder: Path, found: dict) -> Path:
    """A folder with these tensors' header, and zeros."""
    end, header = 0, {}
    for name, tensor in found.items():
        size = 2
        for length in tensor["shape"] if isinstance(tensor["shape"], list) else []:
            size *= length if isinstance(length, int) else 1
        header[name] = {**tensor, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))
    (folder / "config.json").write_text(json.dumps(LLAMA))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_preflight_refuses_it_and_so_does_the_launch(tmp_path):
    folder = written(tmp_path, tensors(1))
    (verdict,) = (v for v in preflight(ServePlan(model=str(folder))).verdicts if v.check == "model")
    assert verdict.status == "fail"
    assert "none is of layer 1" in verdict.message
    with pytest.raises(ModelError, match="none is of layer 1"):
        find(str(folder))
    assert look_up(str(folder)) is not None


@pytest.mark.parametrize("shape", ["64", None, [64.5, 64], [[64]]])
def test_a_header_whose_shapes_are_none_is_no_safetensors_file(tmp_path, shape):
    folder = written(tmp_path, {"model.layers.0.mlp.up_proj.weight": {"dtype": "BF16", "shape": shape}})
    with pytest.raises(ModelError, match="is not a safetensors file"):
        check_files(folder)
