"""The optimizer's step without what torch does around its kernel."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

_KERNELS = {Adam: torch._fused_adam_, AdamW: torch._fused_adamw_}  # pyright: ignore[reportAttributeAccessIssue]


def update_of(optimizer: Optimizer) -> Callable[[], Any]:
    """What to call in place of ``optimizer.step()``: the same bits in the same state.

    For fused Adam and AdamW torch collects the tensors anew in each step, groups them by device and dtype, and opens a
    profiler range: for LeNet-300-100 that takes half as long as the kernel, which has just emptied the caches. Here the
    state is looked up once. Whoever replaces the optimizer's state or groups (not their values) asks anew; hooks
    on ``step`` are not called. Other optimizers: ``optimizer.step`` itself.
    """
    kernel = _KERNELS.get(type(optimizer))
    groups = optimizer.param_groups
    if kernel is None or not all(_is_plain(group) for group in groups):
        return optimizer.step
    known: list[list[tuple[Tensor, dict[str, Tensor]]]] = []

    def update() -> None:
        if not known:
            optimizer.step()  # makes the state of weights that have a gradient
            found = [[(p, optimizer.state.get(p, {})) for p in group["params"]] for group in groups]
            known.extend(found if all(state for pairs in found for _, state in pairs) else [])
            return
        with torch.no_grad():
            for group, pairs in zip(groups, known, strict=True):
                _step(kernel, group, pairs)

    return update


def _is_plain(group: dict[str, Any]) -> bool:
    kinds = {(p.device, p.dtype) for p in group["params"]}
    rare = ("amsgrad", "maximize", "capturable", "differentiable")
    return bool(group["fused"]) and len(kinds) == 1 and not any(group[word] for word in rare)


def _step(kernel: Any, group: dict[str, Any], pairs: list[tuple[Tensor, dict[str, Tensor]]]) -> None:
    parameters, gradients, states = [], [], []
    for parameter, state in pairs:
        gradient = parameter.grad
        if gradient is not None:
            parameters.append(parameter)
            # The kernel walks through memory and takes no notice of strides.
            gradients.append(gradient if gradient.is_contiguous() else gradient.contiguous())
            states.append(state)
    if not parameters:
        return
    counts = [state["step"] for state in states]
    torch._foreach_add_(counts, 1)
    kernel(
        parameters,
        gradients,
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        counts,
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
        grad_scale=None,
        found_inf=None,
    )
