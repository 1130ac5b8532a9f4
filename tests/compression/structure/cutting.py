"""Cut a model and hold it against the whole one with the same units silenced."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from forgepress.compression.structure import (
    CutRecord,
    Graph,
    Kept,
    cut,
    graph_macs,
    graph_parameters,
    macs,
    recut,
    trace,
)
from torch import Tensor, nn


def every_second(graph: Graph, *kinds: str) -> dict[str, list[int]]:
    """Keep units 0, 2, 4 … of every free group (of these kinds)."""
    return {g.name: list(range(0, g.size, 2)) for g in graph.free() if not kinds or g.kind in kinds}


def randomized(model: nn.Module) -> nn.Module:
    """No two channels alike: also the norms' scales, shifts and statistics, which are ones and zeros when made."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(
                    0.5 + noise if tensor.ndim == 1 else (noise - 0.5) * 2 / tensor[0].numel() ** 0.5
                )
    return model


def silenced(model: nn.Module, graph: Graph, kept: Kept) -> nn.Module:
    """A copy in which everything that belongs to removed units is zero."""
    model = copy.deepcopy(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, units in kept.items():
            group = graph.group(name)
            gone = sorted(set(range(group.size)) - set(units))
            for member in group.members:
                tensors[member.name].index_fill_(member.dim, member.indices(gone), 0)
    return model


def outputs(model: nn.Module, example: Any) -> Tensor:
    with torch.no_grad():
        out = model(**example) if isinstance(example, dict) else model(*example)
    return out if isinstance(out, Tensor) else out.logits


def check_cut(
    make: Callable[[], nn.Module],
    example: tuple[Tensor, ...],
    *,
    keep: Callable[[Graph], Kept] = every_second,
    blocks: Sequence[str] = (),
    exact: bool = True,
) -> tuple[Graph, nn.Module, CutRecord]:
    """Trace, cut, compare: with the silenced whole model (``exact``), with what was foretold, and with a recut one."""
    model = randomized(make()).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = trace(model, example)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    kept = keep(graph)
    assert kept, "nothing would be removed"
    want = outputs(silenced(model, graph, kept), example)
    foretold = graph_macs(graph, kept), graph_parameters(graph, kept)
    record = json.loads(json.dumps(cut(model, graph, kept, blocks=blocks)))
    got = outputs(model, example)
    assert got.shape == want.shape
    if exact:
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    if not blocks:
        assert foretold == (macs(model, example), sum(p.numel() for p in model.parameters()))
    again = make().eval()
    recut(again, record)
    assert {n: t.shape for n, t in again.state_dict().items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }
    again.load_state_dict(model.state_dict())
    for name, buffer in model.named_buffers():  # those that no file holds were randomized too
        again.get_buffer(name).copy_(buffer)
    assert torch.equal(outputs(again, example), got)
    assert [len(names) for names in ties(again)] == [len(names) for names in ties(make())]
    return graph, model, record


def ties(model: nn.Module) -> list[list[str]]:
    """Names that stand for one parameter."""
    holders: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(name)
    return [names for names in holders.values() if len(names) > 1]
