"""Batch normalisation over all data ranks: the statistics, gradients and running averages of one process."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ConfigError
from .mesh import DATA_AXES, Mesh
from .microbatches import InHand

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def make_global(model: nn.Module, mesh: Mesh) -> InHand:
    """Turn every batch normalisation of `model` into one over mesh.replicate × mesh.shard, in place.

    The modules stay the same objects with the same parameters and buffers; only their class changes.
    returns: what the caller says of each micro-batch before its forward.
    raises:  ConfigError for a subclass of BatchNorm whose own forward is not known here.
    cost:    one all-reduce of (2 · channels + 1) · data ranks numbers forward, one of 2 · channels backward.
    """
    now = InHand()
    if mesh.data_ranks == 1 and mesh.pipeline == 1:
        return now
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm) or isinstance(module, _GlobalBatchNorm):
            continue
        kind = type(module)
        own_forward = kind not in _PLAIN and kind.forward is not _BatchNorm.forward
        if own_forward and not _has_activation(module):
            raise ConfigError(
                f"{name} is a {kind.__name__}, whose statistics would be those of one rank only; use BatchNorm2d "
                "itself or a normalisation that does not look at other rows (GroupNorm, LayerNorm)"
            )
        module.__class__ = type(f"Global{kind.__name__}", (_GlobalBatchNorm, kind), {})
        module.__dict__["_across"] = _Across(mesh, now)
    return now


def _has_activation(module: nn.Module) -> bool:
    """timm's BatchNormAct2d and its relatives run their `drop` and `act` after the normalisation."""
    return hasattr(module, "act") and hasattr(module, "drop")


class _Across:
    """Mesh and micro-batch in hand of a module; a deep copy of the module shares them."""

    def __init__(self, mesh: Mesh, now: InHand) -> None:
        self.mesh, self.now = mesh, now

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Across":
        return self


class _GlobalBatchNorm(_BatchNorm):
    """Mixed in before a BatchNorm class by `make_global`."""

    _across: _Across

    def forward(self, input: Tensor) -> Tensor:
        """As the class it replaces; in training with the statistics of all data ranks."""
        if not self.training and self.running_mean is not None:
            return super().forward(input)
        self._check_input_dim(input)
        y, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps, self._across)
        if self.training and self.track_running_stats:
            self._update(mean, variance, count)
        after: Any = self
        return after.act(after.drop(y)) if _has_activation(self) else y

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        unbiased = variance * (count / (count - 1).clamp(min=1))
        assert self.running_mean is not None and self.running_var is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


class _Normalise(torch.autograd.Function):
    """y = (x - mean) / sqrt(variance + eps) · weight + bias, mean and variance over the rows of all data ranks.

    Each rank contributes its count, mean and sum of squared differences FROM ITS OWN MEAN: sums of squares
    would lose all digits where the mean is large against the spread.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, across: _Across
    ) -> Any:
        dims = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]  # a vector of channels against [B, C, ...]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        valid = across.now.valid
        real = None if valid is None else valid.to(wide.dtype).view(-1, *[1] * (x.ndim - 1))  # [B, 1, ...]
        mean, variance, count = _statistics(wide, real, dims, shape, across.mesh)
        scale = (variance + eps).rsqrt()
        normal = (wide - mean.view(shape)) * scale.view(shape)
        y = normal if weight is None else normal * weight.view(shape)
        y = y if bias is None else y + bias.view(shape)
        ctx.save_for_backward(normal, scale, weight, count, real)
        ctx.dims, ctx.shape, ctx.mesh, ctx.dtype, ctx.has_bias = (
            dims,
            shape,
            across.mesh,
            x.dtype,
            bias is not None,
        )
        ctx.mark_non_differentiable(mean, variance, count)
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        normal, scale, weight, count, real = ctx.saved_tensors
        dy = gradients[0].to(normal.dtype)
        here = torch.stack([dy.sum(ctx.dims), (dy * normal).sum(ctx.dims)])  # [2, C]
        total = ctx.mesh.reduce(here, over=DATA_AXES) / count
        through = total[0].view(ctx.shape) + normal * total[1].view(ctx.shape)  # by way of mean and variance
        dx = dy - (through if real is None else through * real)
        dx = dx * (scale if weight is None else scale * weight).view(ctx.shape)
        return (
            dx.to(ctx.dtype),
            here[1] if weight is not None else None,
            here[0] if ctx.has_bias else None,
            None,
            None,
        )


def _statistics(
    x: Tensor, real: Tensor | None, dims: list[int], shape: list[int], mesh: Mesh
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C], biased variance [C] and count (a scalar tensor) over the real rows of all data ranks."""
    rows = x.new_tensor(float(len(x))) if real is None else real.sum()
    count = rows * x.shape[2:].numel()
    own_mean = (x if real is None else x * real).sum(dims) / count.clamp(min=1)
    squares = (x - own_mean.view(shape)).square()
    own = torch.cat([own_mean, (squares if real is None else squares * real).sum(dims), count.view(1)])
    everyone = x.new_zeros(mesh.data_ranks, own.numel())
    everyone[mesh.data_rank] = own
    everyone = mesh.reduce(everyone, over=DATA_AXES)  # a gather: each row is one rank's, the rest adds zeros
    channels = own_mean.numel()
    means, squares, counts = everyone[:, :channels], everyone[:, channels:-1], everyone[:, -1:]
    total = counts.sum()
    if total.device.type == "cpu" and total <= 1:
        raise ValueError(
            f"batch normalisation wants more than 1 value per channel when training, got {int(total)}"
        )
    mean = (counts * means).sum(0) / total
    variance = (squares.sum(0) + (counts * (means - mean).square()).sum(0)) / total
    return mean, variance, total
