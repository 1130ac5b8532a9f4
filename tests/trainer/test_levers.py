"""The levers on memory and time in whole runs, and what `check` says of those that cannot work."""

from pathlib import Path
from typing import Any

import pytest
import torch
from forgepress.errors import ConfigError
from forgepress.parallel import Mesh
from forgepress.parallel.whole import gather
from forgepress.tests.checked_run import report
from forgepress.tests.ranks import run_on_ranks
from forgepress.tests.sessions import config_of, run
from forgepress.trainer import assembly as assembling
from forgepress.trainer.config import RunConfig
from forgepress.trainer.models import build_model
from forgepress.trainer.precision import compute_in, compute_modules_in, modules_of
from forgepress.trainer.verify import compare
from torch import Tensor, nn

GPT = {"name": "gpt", "vocabulary": 11, "context": 8, "layers": 4, "width": 16, "heads": 4, "tied": True}
REMOVAL = [
    {
        "name": "shrink",
        "steps": 3,
        "techniques": [{"name": "forgepress.tests.techniques:RemoveNeurons", "keep": 6}],
    },
    {"name": "tune", "steps": 2},
]


# ── one builds, all get their shards


def begun(values: dict[str, Any]) -> tuple[dict[str, Tensor], list[str], bool]:
    """With which weights a run begins, on which devices models were built, and whether the tied weight is one."""
    config, devices, build = RunConfig.model_validate(values), [], assembling.build_model

    def counting(*args: Any, device: Any = "cpu", **kwargs: Any) -> Any:
        devices.append(str(device))
        return build(*args, device=device, **kwargs)

    assembling.build_model = counting  # pyright: ignore[reportAttributeAccessIssue]
    try:
        mesh = Mesh.build(config.parallel.degrees)
        made = assembling.assemble(config, config.phases[0], [], mesh, {}, steps=1)
    finally:
        assembling.build_model = build
    names = dict(made.engine.parts[0].named_parameters(remove_duplicate=False))
    ends = {id(names[name]) for name in ("embed.tokens.weight", "head.weight") if name in names}
    return gather(made.engine, mesh), devices, len(ends) == 1


@pytest.mark.parametrize(
    "degrees", [{"shard": 3}, {"tensor": 2, "shard": 2}, {"pipeline": 2}, {"replicate": 2}], ids=str
)
def test_only_rank_0_builds_values_and_all_begin_with_them(degrees: dict[str, int], tmp_path: Path) -> None:
    config = config_of(
        tmp_path, {**degrees, "build_once": True}, model=GPT, phases=[{"steps": 1, "name": "a"}]
    )
    ranks = run_on_ranks(begun, config.model_dump(mode="json"), ranks=config.parallel.ranks)
    assert [devices for _, devices, _ in ranks] == [["cpu", "meta"], *[["meta"]] * (len(ranks) - 1)]
    assert all(tied for *_, tied in ranks)
    whole = build_model(GPT, seed=config.seed).module
    assert len(ranks[0][0]) == len(list(whole.parameters())) + len(list(whole.buffers()))
    assert all(torch.equal(tensor, ranks[0][0][name]) for name, tensor in whole.named_parameters())


def test_a_run_whose_model_is_built_once_has_the_same_bits_through_a_removal(tmp_path: Path) -> None:
    traces = [
        run(config_of(tmp_path / str(once), {"shard": 2, "build_once": once}, phases=REMOVAL))
        for once in (False, True)
    ]
    difference = compare(*traces)
    assert difference.within(exact=True), difference


# ── precision of single modules


class Deep(nn.Module):
    """Notes in which precision each of its layers computes."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 2)
        self.seen: dict[str, torch.dtype] = {}
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_hook(lambda _, args, y, name=name: self.seen.update({name: y.dtype}))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.mark.parametrize(
    ("precision", "by_module", "wanted"),
    [
        ("bf16", {"blocks.1": "fp32"}, "bf16 fp32 bf16 bf16"),
        (
            "fp32",
            {"blocks.*": "bf16", "blocks.2": "fp16"},
            "fp32 fp32 fp32 fp32",
        ),  # what leaves them is float32
        ("bf16", {"*": "fp32", "head": "fp16"}, "fp32 fp32 fp32 fp16"),
    ],
)
def test_single_modules_compute_in_their_own_precision(
    precision: str, by_module: dict[str, str], wanted: str
) -> None:
    torch.manual_seed(0)
    model, device = Deep(), torch.device("cpu")
    inside: dict[str, torch.dtype] = {}
    for name, layer in [("blocks.0", model.blocks[0]), ("blocks.2", model.blocks[2])]:
        plain = layer.forward

        def noted(x: Tensor, plain: Any = plain, name: str = name) -> Tensor:
            y = plain(x)
            inside[name] = y.dtype
            return y

        layer.forward = noted
    compute_modules_in(model, modules_of(model, by_module), device)
    compute_in(model, precision, device)
    model(torch.randn(3, 4)).float().sum().backward()
    short = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    assert " ".join(short[dtype] for dtype in model.seen.values()) == wanted
    if precision == "fp32":
        assert inside == {"blocks.0": torch.bfloat16, "blocks.2": torch.float16}
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_a_glob_that_names_no_module_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"precision_by_module: 'block' names no module; .*blocks\.0"):
        modules_of(Deep(), {"block": "fp32"})


# ── what check refuses


@pytest.mark.parametrize(
    ("changes", "key", "why"),
    [
        ({"parallel": {"offload": True}}, "parallel.offload", "without shards"),
        ({"parallel": {"recompute_keep": ["matmul"]}}, "parallel.recompute_keep", "without recompute"),
        (
            {"parallel": {"compile": True}, "phases": "quantization"},
            "parallel.compile",
            "look at activations",
        ),
        (
            {"parallel": {"compile": True, "pipeline": 2, "schedule": "zbv", "microbatches": 4}},
            "parallel.compile",
            "takes a block's backward apart",
        ),
        (
            {"parallel": {"precision_by_module": {"layer9": "fp32"}}},
            "parallel.precision_by_module",
            "'layer9' names no module",
        ),
        (
            {"parallel": {"pipeline": 2, "microbatches": 2, "precision_by_module": {"fc1": "fp32"}}},
            "parallel.precision_by_module",
            "stages send one precision",
        ),
        (
            {"model": "conv_bn", "parallel": {"compile": True, "recompute": 1}},
            "parallel.compile",
            "has batch normalisation",
        ),
        (
            {"parallel": {"engine": "accelerate", "shard": 2, "compile": True}},
            "parallel.compile",
            "native alone does it",
        ),
    ],
)
def test_check_refuses_levers_that_cannot_work(changes: dict[str, Any], key: str, why: str) -> None:
    if changes.get("phases") == "quantization":
        technique = {"name": "quantization.aware_training"}
        changes = {**changes, "phases": [{"name": "q", "steps": 1, "techniques": [technique]}]}
    parallel = changes.get("parallel", {})
    ranks = parallel.get("pipeline", 1) * parallel.get("shard", 1)
    found = {".".join(map(str, p.path)): p.message for p in report(ranks, **changes).problems}
    assert why in found[key]
