"""Parameters that work on parts: whole on every rank of the tensor axis, used between a column and a row layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..errors import ConfigError
from .heads import divide_counts, part_of_heads
from .layout import COLUMN_STYLES
from .shadow import share_tensors


def find_between(
    model: nn.Module,
    plan: Mapping[str, str],
    degree: int,
    call: Callable[[nn.Module, FakeTensorMode], Any],
    gathered: frozenset[str] = frozenset(),
    counts: Sequence[str] = (),
) -> tuple[str, ...]:
    """Names of the undivided parameters whose gradient on a rank is that of its part alone: it must be summed.

    The model is run on shapes alone, each divided layer with one rank's part of its features.
    plan:     module → its cut, as `resolve_plan` gives it.   call: as for `find_links`.
    gathered: columns whose output is made whole at once.   counts: as `Layout.counts`.
    raises:   ConfigError where the model cannot go on with a part of the features.   cost: one forward and one
        backward without numbers.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    shadow = share_tensors(model, mode.from_tensor).eval()
    try:
        with mode, torch.no_grad():
            call(shadow, mode)
    except Exception:  # whatever a model does on shapes alone: nothing can be said of it
        return ()
    for parameter in shadow.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    before_rows: list[Tensor] = []
    for name, style in plan.items():
        if name not in gathered:
            _take_part(shadow.get_submodule(name), style, degree, before_rows)
    divide_counts(shadow, {n: style for n, style in plan.items() if n not in gathered}, counts, degree)
    last: list[str] = []
    for name, module in shadow.named_modules():
        module.register_forward_pre_hook(lambda _, args, name=name: last.append(name))
    try:
        with mode, torch.enable_grad():
            call(shadow, mode)
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"tensor plan: {last[-1] if last else 'the model'} cannot go on with 1/{degree} of the features that a "
            f"column layer gives ({reason}); leave that layer out of the plan, and its row layer"
        ) from error
    named = dict(shadow.named_parameters())
    wanted = {name: p for name, p in named.items() if name.rpartition(".")[0] not in plan and p.requires_grad}
    given = [x for x in before_rows if x.requires_grad]
    if not given or not wanted:
        return ()
    with mode:
        found = torch.autograd.grad(
            given, list(wanted.values()), [torch.ones_like(x) for x in given], allow_unused=True
        )
    return tuple(name for name, gradient in zip(wanted, found, strict=True) if gradient is not None)


def _take_part(module: nn.Module, style: str, degree: int, before_rows: list[Tensor]) -> None:
    """One rank's part of a divided layer; what a column gives starts a new graph, so that what is found lies behind."""

    plain = module.forward

    def column(x: Tensor) -> Tensor:
        y = plain(x)
        y = part_of_heads(y, degree) if style == "qkv" else y.chunk(degree, dim=-1)[0]
        y = y.detach().requires_grad_()
        return y.clone()  # a clone may be written to

    def row(x: Tensor) -> Tensor:
        before_rows.append(x)
        return plain(torch.cat([x] * degree, dim=-1))

    if style in COLUMN_STYLES:
        module.forward = column
    elif not isinstance(module, nn.Embedding):
        module.forward = row
