"""Quantized layers run as integers in onnxruntime and give what the training graph gives; what cannot is refused."""

import copy
from typing import Any

import pytest
import torch
from forgepress.compression.integer.agreement import compare
from forgepress.errors import ConfigError, NoOpError
from forgepress.tests.quantized import Pictures, Words, made, pictures, quantize, words
from torch import nn

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'forgepress[onnx]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'forgepress[onnx]'")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'forgepress[onnx]'")

from forgepress.compression.integer.onnx_export import export_onnx  # noqa: E402
from forgepress.trainer.artifact_onnx import OnnxModel  # noqa: E402


def runner(exported: Any, folder: Any) -> OnnxModel:
    onnx.save(exported.model, str(folder / "model.onnx"))
    return OnnxModel(folder / "model.onnx", list(exported.inputs), exported.outputs)


def kinds(exported: Any) -> dict[str, str]:
    return {name: layer.arithmetic for name, layer in exported.layers.items()}


INTEGERS = {
    Pictures: dict.fromkeys(["first", "depthwise", "beside", "hidden", "head"], "integer"),
    Words: {"table": "lookup", **dict.fromkeys(["up", "down", "head"], "integer")},
}


@pytest.mark.parametrize("kind", [Pictures, Words])
@pytest.mark.parametrize("operators", ["standard", "onnxruntime"])
def test_every_layer_runs_in_integers_and_the_outputs_are_those_of_the_model(tmp_path, kind, operators):
    model, rows = made(kind)
    exported = export_onnx(model, rows, operators=operators)
    assert kinds(exported) == INTEGERS[kind]
    found = compare(model, runner(exported, tmp_path), rows, what="onnx")
    assert found.difference < 0.01 and found.rows == 6


def test_no_two_weights_share_a_zero_point_which_processors_without_vnni_want_to_move(tmp_path):
    rows = torch.randn(6, 8)
    model = quantize(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), rows)  # zeros of one size
    exported = export_onnx(model, rows)
    graph = exported.model.graph
    signed = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    points = [node.input[2] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[2:]]
    moved = [name for name in points if name in signed]
    assert len(moved) == len(set(moved)) == 2
    assert compare(model, runner(exported, tmp_path), rows, what="onnx").difference < 0.01


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
def test_few_bits_are_stored_as_few_bits_and_run_in_integers(tmp_path, bits, symmetric):
    model, rows = made(Words, bits=bits, symmetric=symmetric)
    exported = export_onnx(model, rows)
    assert kinds(exported) == INTEGERS[Words]
    assert {layer.bits for layer in exported.layers.values()} == {bits}
    stored = {tensor.name: len(tensor.raw_data) for tensor in exported.model.graph.initializer}
    assert stored["model.up.levels.packed"] == 16 * 24 * bits // 8
    assert compare(model, runner(exported, tmp_path), rows, what="onnx").difference < 0.01


def test_two_bits_whose_number_does_not_fill_bytes_come_back_exactly(tmp_path):
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(7, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    from forgepress.tests.quantized import quantize

    rows = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    model = quantize(Odd(), rows, bits=2, inputs=None)  # weights alone: nothing else is rounded
    exported = export_onnx(model, rows)
    assert kinds(exported) == {"layer": "float"}
    torch.testing.assert_close(runner(exported, tmp_path)(rows), model(rows))


@pytest.mark.parametrize("inputs", ["static", "dynamic"])
def test_symmetric_and_dynamic_inputs_agree_too(tmp_path, inputs):
    model, rows = made(Words, inputs=inputs, inputs_symmetric=inputs == "static")
    exported = export_onnx(model, rows)
    assert kinds(exported) == INTEGERS[Words]
    compare(model, runner(exported, tmp_path), rows, what="onnx")


@pytest.mark.parametrize("group", [8, 5])
def test_groups_of_weights_alone_compute_in_float_exactly(tmp_path, group):
    model, rows = made(Words, bits=4, group=group, inputs=None)
    exported = export_onnx(model, rows)
    assert kinds(exported) == {"table": "lookup", "up": "float", "down": "float", "head": "float"}
    outputs = runner(exported, tmp_path)(**rows)
    torch.testing.assert_close(outputs.logits, model(**rows)["logits"], rtol=1e-4, atol=1e-5)


def test_a_layer_that_would_stay_in_float_fails_by_name_unless_it_is_allowed():
    model, rows = made(Words, group=8)
    with pytest.raises(NoOpError, match=r"layers down, head, up would compute in float.*one scale a channel"):
        export_onnx(model, rows)
    exported = export_onnx(model, rows, float_layers=["up", "down", "hea*"])
    assert kinds(exported) == {"table": "lookup", "up": "float", "down": "float", "head": "float"}


def test_rows_and_length_are_free(tmp_path):
    model, rows = made(Words)
    exported = export_onnx(model, rows)
    assert exported.inputs == {"input_ids": ["rows", "length"], "attention_mask": ["rows", "length"]}
    assert exported.outputs == ["logits", "hidden"]
    run = runner(exported, tmp_path)
    for other in (words(1, 4), words(17, 30)):
        compare(model, run, other, what="onnx")
    only_ids = {"input_ids": words(3, 5)["input_ids"]}
    torch.testing.assert_close(run(**only_ids)["logits"], model(**only_ids)["logits"], rtol=0.02, atol=0.02)


def test_rotary_positions_and_shared_key_heads_of_a_llama_run_with_any_rows(tmp_path):
    from forgepress.tests.quantized import quantize
    from forgepress.trainer.models import build_model

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 40}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}
    spec = {"transformers": "llama", "task": "causal_lm", "config": {**sizes, **heads}}
    model, rows = build_model(spec, seed=0).module.eval(), words()
    quantize(model, rows)
    exported = export_onnx(model, rows)
    assert set(kinds(exported).values()) == {"integer", "lookup"}
    for inputs in (rows, words(1, 5)):
        compare(model, runner(exported, tmp_path), inputs, what="onnx")


def test_a_float_model_is_written_as_it_is(tmp_path):
    torch.manual_seed(0)
    model, rows = Pictures().eval(), pictures()
    exported = export_onnx(model, rows)
    assert exported.layers == {} and exported.outputs == ["output"]
    run = runner(exported, tmp_path)
    torch.testing.assert_close(run(rows), model(rows), rtol=1e-4, atol=1e-5)
    assert run(pictures(1)).shape == (1, 5)


def test_the_file_names_nobodys_folders():
    model, rows = made(Words)
    assert b".py" not in export_onnx(model, rows).model.SerializeToString()


def test_an_export_with_other_weights_is_refused(tmp_path):
    model, rows = made(Pictures)
    run = runner(export_onnx(model, rows), tmp_path)
    other = copy.deepcopy(model)
    other.get_submodule("beside").bias.data += 0.3
    with pytest.raises(
        NoOpError, match=r"differ from those of the training graph by .*; want 1\.00% or less"
    ):
        compare(other, run, rows, what="onnx")


def test_a_grid_that_was_lost_or_never_written_is_refused():
    model, rows = made(Words)
    model.get_submodule("up").weight.data[3, 4] += 1e-4
    with pytest.raises(ConfigError, match=r"1 of 384 weights of layer up are not on its grid"):
        export_onnx(model, rows)
    model, rows = made(Words)
    model.get_submodule("up").weight_scale = None
    with pytest.raises(ConfigError, match=r"layer up .* grid was never written"):
        export_onnx(model, rows)
    model, rows = made(Words)
    model.get_submodule("up").input_quantizer.enabled = False
    with pytest.raises(ConfigError, match=r"inputs of layer up .* never switched on"):
        export_onnx(model, rows)


def test_a_model_that_torch_cannot_export_says_why():
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ConfigError, match="torch cannot export this model"):
        export_onnx(Branches(), torch.randn(3, 4))
