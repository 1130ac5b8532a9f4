"""Activation checkpointing changes memory and nothing else."""

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from forgepress.parallel import Layout
from forgepress.parallel.recompute import KEPT, blocks_of, kept_operators, recompute, recomputed
from forgepress.trainer.config import RunConfig
from forgepress.trainer.models import build_model
from forgepress.trainer.preflight_levers import check_levers
from forgepress.trainer.preflight_memory import activation_bytes
from forgepress.trainer.preflight_rules import Found
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

GPT = {"name": "gpt", "vocabulary": 31, "context": 8, "layers": 4, "width": 16, "heads": 2, "dropout": 0.1}


def kept_bytes(model: nn.Module, x: torch.Tensor) -> int:
    """What autograd holds between forward and backward, weights left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = model(x)
    del outputs
    return sum(size for key, size in kept.items() if key not in own)


@pytest.mark.parametrize("every", [1, 2])
def test_gradients_stay_and_memory_shrinks(every: int) -> None:
    built = build_model(GPT)
    plain, other = built.module.double(), copy.deepcopy(built.module).double()
    names = recomputed(other, built.layout, every)
    assert names == [f"blocks.{number}" for number in range(every - 1, 4, every)]
    recompute(other, names)
    x = torch.randint(0, 31, (3, 8))
    for model in (plain, other):
        torch.manual_seed(5)  # dropout draws the same numbers, also when a block runs again
        model(x).square().mean().backward()
    for (name, p), q in zip(plain.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=0.0, msg=name)
    assert kept_bytes(other, x) < kept_bytes(plain, x) * (0.4 if every == 1 else 0.7)


@pytest.mark.parametrize("keep", [("matmul",), ("attention",)])
def test_operators_that_are_kept_run_once_and_change_no_gradient(keep: tuple[str, ...]) -> None:
    built = build_model({**GPT, "dropout": 0.0})  # attention with dropout is no one operator
    plain, all_again, some = (
        built.module.double(),
        *(copy.deepcopy(built.module).double() for _ in range(2)),
    )
    names = recomputed(plain, built.layout, 1)
    recompute(all_again, names)
    recompute(some, names, keep)
    x = torch.randint(0, 31, (3, 8))
    counts = []
    for model in (plain, all_again, some):
        torch.manual_seed(5)
        with Counted() as counted:
            model(x).square().mean().backward()
        counts.append(counted.count[keep[0]])
    assert counts[0] == counts[2] < counts[1]  # what is kept does not run again
    for (name, p), q in zip(plain.named_parameters(), some.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q[1].grad, rtol=1e-12, atol=0.0, msg=name)


class Counted(TorchDispatchMode):
    """How often operators of each kind of `KEPT` run."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count.update(word for word in KEPT if func in kept_operators([word]))
        return func(*args, **(kwargs or {}))


def test_running_averages_move_once() -> None:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)) for _ in range(2)]
    plain = nn.Sequential(*blocks)
    other = copy.deepcopy(plain)
    recompute(other, blocks_of(other, Layout(order=("0", "1"))))
    x = torch.randn(6, 4)
    for model in (plain, other):
        model(x).square().sum().backward()
    for (name, b), c in zip(plain.named_buffers(), other.buffers(), strict=True):
        assert torch.equal(b, c), name


def test_the_estimate_counts_inputs_of_blocks_and_the_largest_inside() -> None:
    built = build_model(GPT, device="meta")
    full, half, none = (activation_bytes(built, 3, recompute=every) for every in (0, 2, 1))
    assert none < half < full
    inside = full - half  # two of four blocks spare theirs, one of the two comes back while it runs again
    assert none == pytest.approx(full - 3 * inside, rel=0.05)


@pytest.mark.parametrize(
    ("technique", "refused"),
    [
        ({"name": "quantization.aware_training"}, True),
        ({"name": "pruning.magnitude", "sparsity": 0.5}, False),
    ],
)
def test_what_looks_at_activations_is_refused(technique: dict[str, object], refused: bool) -> None:
    config = RunConfig.model_validate(
        {
            "model": GPT,
            "data": {"source": "digits", "batch": 8},
            "parallel": {"recompute": 1},
            "phases": [{"name": "a", "steps": 1, "techniques": [technique]}],
        }
    )
    found = Found()
    check_levers(config, found)
    assert [problem.path for problem in found.problems] == ([("parallel", "recompute")] if refused else [])
