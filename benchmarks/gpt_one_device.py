"""How fast does a GPT of about a billion weights train on one GPU, bare and in the Trainer, with techniques?

bf16 autocast, torch.compile of every block, fused AdamW, random tokens. Bare loops keep all rows on the device and look
at nothing: one compiles blocks as the Trainer does, one the whole model. Each case takes turns with the bare loop of
compiled blocks, in processes of their own; a ratio is taken within a round, the table shows median and quartiles.
MFU counts 6 FLOPs a weight and token, and 12 · layers · width · length for attention, against --peak.

On a CPU only --tiny makes sense: it shows that the script runs.
"""

import argparse
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from forgepress.benchmarks import _gpt_device, _result
from forgepress.benchmarks._turns import milliseconds, ratios, take_turns
from forgepress.trainer.models import build_model

SIZE = {"vocabulary": 50304, "length": 1024, "layers": 20, "width": 2048, "heads": 16}  # 1.1 billion weights
TINY = {"vocabulary": 256, "length": 16, "layers": 2, "width": 16, "heads": 2}
TECHNIQUES: dict[str, Any] = {
    "forgepress": None,
    "forgepress, magnitude pruning": {"name": "pruning.magnitude", "sparsity": 0.5},
    "forgepress, network surgery": {"name": "pruning.network_surgery", "sparsity": 0.5},
    "forgepress, penalty on weights": {"name": "pruning.sparsity_penalty", "strength": 1e-6},
}
PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}  # dense bf16 TFLOP/s, from the makers' data sheets


def main() -> None:
    """Measure and write results/gpt_one_device.json."""
    options = _options()
    size = TINY if options.tiny else SIZE
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parameters = _parameters(size)
    rows: list[dict[str, Any]] = [{"case": "parameters", "value": parameters, "unit": ""}]
    every_round = {}
    with tempfile.TemporaryDirectory() as folder:
        base = {"size": size, "batch": options.batch, "device": device}
        for name in options.cases:
            peers, notes = _pair(name, base, options.compile, Path(folder))
            times = take_turns(peers, steps=options.steps, rounds=options.rounds, settle=1)
            rows += _rows(name, times, notes, size, parameters, options)
            every_round[name] = {peer: vars(timing) for peer, timing in times.items()}
    if options.show:
        for row in rows:
            print(f"{row['case']:<60} {row['value']:14.4f} {row.get('unit', '')}")
        return
    question = "How fast does a GPT train on one device, bare and in the Trainer, with techniques?"
    _result.write(__file__, question, rows, size=size, batch=options.batch, milliseconds_a_step=every_round)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10, help="of one turn")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--cases", nargs="+", default=["bare, whole", *TECHNIQUES])
    parser.add_argument("--no-compile", dest="compile", action="store_const", const="", default="blocks")
    parser.add_argument(
        "--peak", type=float, help="TFLOP/s; by default of the device's name where it is known"
    )
    parser.add_argument("--tiny", action="store_true", help="a model that a CPU trains too")
    parser.add_argument("--show", action="store_true", help="print only")
    return parser.parse_args()


def _parameters(size: dict[str, int]) -> int:
    module = build_model(_gpt_device.model_of(size), device="meta").module
    return sum(parameter.numel() for parameter in module.parameters())


def _pair(
    name: str, base: dict[str, Any], compile: str, folder: Path
) -> tuple[dict[str, Any], dict[str, Path]]:
    """The case and the bare loop that it takes turns with, and where each notes its memory."""
    notes = {"bare": folder / f"{name}-bare.json", name: folder / f"{name}.json"}
    bare = functools.partial(_gpt_device.bare, **base, compile=compile, notes=str(notes["bare"]))
    if name == "bare, whole":
        whole = "whole" if compile else ""
        case = functools.partial(_gpt_device.bare, **base, compile=whole, notes=str(notes[name]))
    else:
        asked = {**base, "compile": compile, "notes": str(notes[name]), "technique": TECHNIQUES[name]}
        case = functools.partial(_gpt_device.ours, **asked)
    return {"bare": bare, name: case}, notes


def _rows(
    name: str,
    times: dict[str, Any],
    notes: dict[str, Path],
    size: dict[str, int],
    parameters: int,
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    speed = ratios(times["bare"].wall, times[name].wall)
    rows = [{"case": f"{name}: tokens/s of it / of the bare loop", **speed}]
    for peer in ("bare", name) if name == "forgepress" else (name,):
        seconds = milliseconds(times[peer].wall)["value"] / 1e3
        tokens = options.batch * size["length"] / seconds
        rows.append({"case": f"{peer}: tokens a second", "value": tokens, "unit": "1/s"})
        work = 6 * parameters + 12 * size["layers"] * size["width"] * size["length"]
        peak = options.peak or _peak()
        if peak:
            rows.append({"case": f"{peer}: MFU", "value": tokens * work / (peak * 1e12), "unit": ""})
        if notes[peer].is_file():
            held = json.loads(notes[peer].read_text())["peak_bytes"]
            rows.append({"case": f"{peer}: peak memory", "value": held / 2**30, "unit": "GiB"})
    return rows


def _peak() -> float | None:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peak for key, peak in PEAKS.items() if key in name), None)


if __name__ == "__main__":
    main()
