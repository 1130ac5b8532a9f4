"""A plain training loop around a chain, for the tests of techniques on one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from forgepress.compression import Chain, Run, Technique, weights_of
from torch import Tensor, nn

Loss = Callable[[Tensor], Tensor]


def parameters(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, nn.Parameter]:
    """Random parameters by name (a ``__`` in the argument is a dot)."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name.replace("__", "."): nn.Parameter(torch.randn(shape, generator=generator))
        for name, shape in shapes.items()
    }


def chain_of(held: dict[str, nn.Parameter], *techniques: Technique, steps: int, seed: int = 0) -> Chain:
    return Chain(techniques, Run(weights_of(held), steps=steps, seed=seed))


def gradient(weight: Tensor, step: int) -> Tensor:
    """A gradient that depends on the weight and on the step: none is zero, all are reproducible."""
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
    return 0.3 * weight.detach() + noise


def training(
    chain: Chain,
    held: dict[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    first: int = 1,
) -> Iterator[int]:
    """Train; yields the number of each step when it is done."""
    for step in range(first, first + steps):
        chain.before_step(optimizer.param_groups[0]["lr"])
        for parameter in held.values():
            parameter.grad = gradient(parameter, step)
        chain.after_backward()
        chain.before_update()
        optimizer.step()
        chain.after_step()
        yield step


def one_step(chain: Chain, held: dict[str, nn.Parameter], lr: float, grads: Sequence[Tensor] = ()) -> None:
    """One step whose optimizer moves nothing: what the technique itself does to gradients and weights."""
    chain.before_step(lr)
    for parameter, grad in zip(
        held.values(), grads or [torch.zeros_like(p) for p in held.values()], strict=True
    ):
        parameter.grad = grad.clone()
    chain.after_backward()
    chain.before_update()
    chain.after_step()


def zeros(held: dict[str, nn.Parameter], *names: str) -> int:
    """Exact zeros among the named parameters (all, where none is named)."""
    return sum(int((held[name] == 0).sum()) for name in names or held)
