"""A model without data: the shapes that flow between its modules, found without computing or communicating."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode


def share_tensors(model: nn.Module, replace: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of the module tree whose parameters and buffers are `replace` of the original ones (once each)."""
    tensors = [*model.parameters(), *model.buffers()]
    memo = {id(tensor): replace(tensor) for tensor in tensors}
    return copy.deepcopy(model, memo)  # deepcopy takes what the memo has for copied


class Shadow:
    """A copy of a chain of modules that holds shapes and dtypes only; it runs on the real device's rules."""

    def __init__(self, model: nn.Module, order: Sequence[str]) -> None:
        self._mode = FakeTensorMode()
        # Evaluation mode: training mode updates averages, which looks at values, and changes no shape.
        self._model = share_tensors(model, self._mode.from_tensor).eval()
        self._order = tuple(order)

    def run(self, x: Tensor, step: Callable[[nn.Module, Any], Any] = nn.Module.__call__) -> list[Tensor]:
        """What goes into each module of the chain, and at the end what comes out: modules + 1 shapes.

        x: an input of the model, real.   step: how a module is called.
        """
        with self._mode:
            flow: list[Any] = [self._mode.from_tensor(x)]
            for name in self._order:
                flow.append(step(self._model.get_submodule(name), flow[-1]))
        return flow
