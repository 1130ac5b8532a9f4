"""A learned matrix from the student's width to the teacher's, as a parameter of the student's own module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

PROJECTION = "_teacher_projection"
"""Its name in the module. It is a bare parameter and no child: a Sequential would run a child."""


class _Projected(nn.Module):
    """Mixed in before a module's own class: shows its output, with the matrix, to whoever looks.

    That must happen inside the forward: only there are the parameters of a sharded module whole.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the class it is mixed into."""
        output = super().forward(*args, **kwargs)
        after: Callable[[Any, Any], Any] | None = self.__dict__.get("_after")
        return output if after is None else after(getattr(self, PROJECTION), output)


def project(model: nn.Module, name: str, student: int, teacher: int) -> None:
    """Give module `name` a matrix [teacher, student] and a class that shows it; the object stays the same.

    The matrix begins as the same numbers everywhere, with rows of length about one.
    """
    module = model.get_submodule(name)
    if isinstance(module, _Projected):
        return
    numbers = torch.randn(teacher, student, generator=torch.Generator().manual_seed(0)) / student**0.5
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    module.register_parameter(PROJECTION, nn.Parameter(numbers.to(device)))
    kind = type(module)
    module.__class__ = type(f"Projected{kind.__name__}", (_Projected, kind), {"_own": kind})


def unproject(model: nn.Module, name: str) -> None:
    """Take the matrix out and give the module its own class back."""
    module = model.get_submodule(name)
    if isinstance(module, _Projected):
        delattr(module, PROJECTION)
        module.__class__ = module._own  # pyright: ignore[reportAttributeAccessIssue]
