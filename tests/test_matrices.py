"""What the ranks hold: the running ranks' own matrices, and the reading of what they wrote."""

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from localai_clusters import ServePlan, serve
from localai_clusters.matrices import COPIED, HEADS, ROW, MatricesError, matrices
from localai_clusters.slices import as_dtype

HIDDEN, WIDTH, HEADS_COUNT, KV_HEADS, MLP = 16, 4, 8, 2, 24


@pytest.fixture(scope="module")
def server():
    plan = ServePlan(tensor_parallel_size=2, port=0, master_port=0, max_model_len=512)
    with serve(plan) as running:
        yield running


def test_the_running_ranks_say_how_their_matrices_are_cut(server):
    found = server.matrices()
    cut = {matrix.short: (matrix.split, matrix.then, matrix.whole) for matrix in found.layer(0)}
    assert cut["self_attn.qkv_proj"] == (HEADS, "", (576, 1280))
    assert cut["self_attn.o_proj"] == (ROW, "all-reduce", (768, 576))
    assert cut["mlp.gate_up_proj"] == ("by column", "", (576, 3072))
    assert cut["mlp.down_proj"] == (ROW, "all-reduce", (1536, 576))
    assert cut["input_layernorm"] == (COPIED, "", (576,))
    assert {slice_.shape for slice_ in found["layers.7.mlp.down_proj"].slices} == {(768, 576)}
    assert found["embed_tokens"].split == "vocabulary" and found["embed_tokens"].whole == (49152, 576)
    assert len(found.layers()) == 30 and found.all_reduces() == 61


def test_they_add_up_to_the_bytes_that_each_rank_counted(server):
    found = server.matrices()
    for rank in server.ranks():
        assert found.bytes_on(rank.rank) == rank.facts["weights_bytes"]
        assert found.bytes_on(rank.rank, cut=False) == 61 * 576 * 2  # the norms
    assert found.seconds_to_write < 1  # of some 4 s of loading


def test_every_hashed_slice_is_cut_from_the_models_own_file(server):
    checked = server.matrices().check()
    assert (checked.equal, len(checked.rows)) == (12, 12)
    assert "12 of 12" in str(checked)


def test_they_are_shown_as_text_and_as_a_picture_with_words(server):
    found = server.matrices()
    page = found._repr_html_()
    assert "layer 0, and 29 like it" in str(found) and "RowParallelLinear" in str(found)
    assert "down_proj: 1536 inputs by 576 outputs, by row, 2 parts, then all-reduce" in page
    assert page.count("<svg") == 1 and "currentColor" in page
    with pytest.raises(KeyError, match=r"mlp\.down_proj"):
        found["down"]


# What ranks of another split write, and files to hold it against.


def entry(name: str, classes: list[str], tensor, tensor_size: int, **more) -> dict:
    return {
        "name": name,
        "classes": classes,
        "shape": list(tensor.shape),
        "dtype": "float32",
        "bytes": tensor.nbytes,
        "tensor_parallel_size": tensor_size,
        "sha256": hashlib.sha256(np.ascontiguousarray(tensor).tobytes()).hexdigest(),
        **more,
    }


@pytest.fixture
def four_ranks(tmp_path):
    """TP=4 with 2 KV heads, each of which two ranks hold."""
    numbers = np.random.default_rng(1)
    whole = {
        name: numbers.standard_normal(shape).astype("f4")
        for name, shape in {
            "q_proj": (HEADS_COUNT * WIDTH, HIDDEN),
            "k_proj": (KV_HEADS * WIDTH, HIDDEN),
            "v_proj": (KV_HEADS * WIDTH, HIDDEN),
            "down_proj": (HIDDEN, MLP),
        }.items()
    }
    prefix = "model.layers.0"
    folder = tmp_path / "model"
    folder.mkdir()
    attention = {f"{prefix}.self_attn.{name}.weight": whole[name] for name in ("q_proj", "k_proj", "v_proj")}
    save_file({**attention, f"{prefix}.mlp.down_proj.weight": whole["down_proj"]}, folder / "model.safetensors")
    for rank in range(4):
        kv = slice(rank // 2 * WIDTH, (rank // 2 + 1) * WIDTH)
        qkv = np.concatenate(
            [whole["q_proj"][rank * 2 * WIDTH : (rank + 1) * 2 * WIDTH], whole["k_proj"][kv], whole["v_proj"][kv]]
        )
        heads = {"total_num_heads": HEADS_COUNT, "total_num_kv_heads": KV_HEADS, "head_size": WIDTH}
        sizes = {"output_sizes": [HEADS_COUNT * WIDTH, 4 * WIDTH, 4 * WIDTH]}
        down = whole["down_proj"][:, rank * MLP // 4 : (rank + 1) * MLP // 4]
        parameters = [
            entry(f"{prefix}.self_attn.qkv_proj.weight", ["QKVParallelLinear"], qkv, 4, **heads, **sizes),
            entry(f"{prefix}.mlp.down_proj.weight", ["RowParallelLinear"], down, 4, reduce_results=True),
        ]
        about = {"packed": {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}, "parameters": parameters, "seconds": 0.1}
        (tmp_path / f"rank{rank}.matrices.json").write_text(json.dumps(about))
    run = SimpleNamespace(dir=tmp_path, id="a-run", plan=ServePlan(tensor_parallel_size=4))
    return run, SimpleNamespace(path=folder)


def test_kv_heads_that_several_ranks_hold_count_once_and_are_found(four_ranks):
    found = matrices(*four_ranks, "TP=4")
    assert found["qkv_proj"].whole == (HIDDEN, (HEADS_COUNT + 2 * KV_HEADS) * WIDTH)
    assert (found.check().equal, found.check().different) == (8, 0)


def test_other_bytes_are_seen(four_ranks):
    run, model = four_ranks
    path = run.dir / "rank2.matrices.json"
    about = json.loads(path.read_text())
    about["parameters"][1]["sha256"] = "0" * 64
    path.write_text(json.dumps(about))
    checked = matrices(run, model, "TP=4").check()
    assert [(name, rank) for name, rank, _, verdict in checked.rows if verdict is False] == [
        ("layers.0.mlp.down_proj", 2)
    ]
    assert "OTHER bytes" in str(checked)


def test_a_file_that_names_its_tensors_otherwise_cannot_be_compared_and_says_so(four_ranks):
    run, model = four_ranks
    save_file({"another": np.zeros(2, "f4")}, model.path / "model.safetensors")
    checked = matrices(run, model, "TP=4").check()
    assert (checked.equal, checked.different) == (0, 0) and "is not in the files" in str(checked)


def test_ranks_of_other_machines_are_named_and_none_at_all_is_an_error(four_ranks):
    run, model = four_ranks
    for rank in (2, 3):
        (run.dir / f"rank{rank}.matrices.json").unlink()
    found = matrices(run, model, "TP=4")
    assert found.missing == (2, 3) and "other machines" in str(found)
    for rank in (0, 1):
        (run.dir / f"rank{rank}.matrices.json").unlink()
    with pytest.raises(MatricesError, match="a-run"):
        matrices(run, model, "TP=4")


def test_numbers_become_bfloat16_as_torch_rounds_them():
    import torch

    values = np.random.default_rng(2).standard_normal((64, 8)).astype("f4")
    values[0, :4] = (1.00390625, 1.01171875, 0.0, -1e-30)  # two that lie half-way between neighbours
    wanted = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    assert (as_dtype(values, "float32", "bfloat16") == wanted).all()
    halves = values.astype("f2")
    wanted = torch.from_numpy(halves).to(torch.bfloat16).view(torch.uint16).numpy()
    assert (as_dtype(halves, "float16", "bfloat16") == wanted).all()
    assert (
        as_dtype(wanted, "bfloat16", "float32") == torch.from_numpy(wanted.copy()).view(torch.bfloat16).float().numpy()
    ).all()
