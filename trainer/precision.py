"""Precision of the arithmetic: autocast around the forward pass, and the loss scale that fp16 needs."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, DivergenceError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device | str = "cpu") -> AbstractContextManager[Any]:
    """The context for forward and loss: parameters stay float32, matrix products run in the lower precision.

    raises: ConfigError for another precision than fp32, bf16, fp16.
    """
    if precision not in DTYPES:
        raise ConfigError(f"precision: {precision!r} is not known; want one of {', '.join(DTYPES)}")
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=DTYPES[precision])


def emulated(config: Any, device: torch.device | None = None) -> str:
    """What to say where half precision has no instructions on a device and is emulated; empty where all is well.

    device: where the run computes; None: where it would on this machine.
    """
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    asked = {config.precision, *config.parallel.precision_by_module.values()}
    if device.type != "cpu" or "bf16" not in asked:
        return ""
    if _computes_bf16():
        return ""
    return (
        "precision: bf16 is emulated on this processor, which has no instructions for it; matrix products can take "
        "fifty times as long as with precision=fp32"
    )


def computes_fp16() -> bool:
    """Whether this machine's GPU, or else its CPU, multiplies fp16 by itself."""
    return torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_fp16_supported()


def _computes_bf16() -> bool:
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def compute_in(part: nn.Module, precision: str, device: torch.device) -> None:
    """Run the part's forward under `autocast`, in place; the backward outside it, as torch advises."""
    if precision == "fp32":
        return
    forward = part.forward

    def narrow(*args: Any, **kwargs: Any) -> Any:
        with autocast(precision, device):
            return forward(*args, **kwargs)

    part.forward = narrow
    part.__dict__["computes_in"] = DTYPES[precision]  # a pipeline must know what its stages send


def needs_scaler(config: Any) -> bool:
    """Whether anything of a run computes in fp16, whose gradients want a loss scale."""
    return "fp16" in (config.precision, *config.parallel.precision_by_module.values())


def modules_of(model: nn.Module, by_module: Mapping[str, str]) -> dict[str, str]:
    """Module name → precision, for the modules that globs name; where several do, the last one counts.

    raises: ConfigError for a glob that names no module of the (whole) model.
    """
    names = [name for name, _ in model.named_modules() if name]
    found: dict[str, str] = {}
    for glob, precision in by_module.items():
        here = [name for name in names if fnmatchcase(name, glob)]
        if not here:
            raise ConfigError(
                f"parallel.precision_by_module: {glob!r} names no module; the model has {', '.join(names[:12])}"
                + (f", … ({len(names)} in all)" if len(names) > 12 else "")
            )
        found |= dict.fromkeys(here, precision)
    return found


def compute_modules_in(part: nn.Module, precisions: Mapping[str, str], device: torch.device) -> None:
    """Run the forward of single modules in another precision than what is around them, in place.

    precisions: module name → fp32, bf16 or fp16; names that live elsewhere are passed over. fp32: what comes in is
    made float32 first. Where nothing around computes in half precision, what comes out is float32 again.
    """
    present = dict(part.named_modules())
    for name, precision in precisions.items():
        if name in present:
            _compute_alone(present[name], DTYPES[precision], device.type)


def _compute_alone(module: nn.Module, dtype: torch.dtype, device: str) -> None:
    forward = module.forward
    wide = dtype == torch.float32

    def alone(*args: Any, **kwargs: Any) -> Any:
        around = torch.is_autocast_enabled(device)
        if wide:
            args, kwargs = _as_float32(args), _as_float32(kwargs)
        with torch.autocast(device, enabled=not wide, dtype=None if wide else dtype):
            outputs = forward(*args, **kwargs)
        return outputs if around or wide else _as_float32(outputs)

    module.forward = alone


def _as_float32(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(_as_float32(value) for value in x))
    if isinstance(x, list | tuple):
        return type(x)(_as_float32(value) for value in x)
    if isinstance(x, dict):
        for key in list(x):  # in place: transformers' outputs are dicts of a kind of their own
            x[key] = _as_float32(x[key])
    return x


@contextmanager
def tiny_as_zero() -> Iterator[None]:
    """Until the block ends this thread's processor takes numbers below 1.2e-38 (float32) for zero.

    Processors work on such numbers a hundred times slower, and Adam's moments end there wherever an input is nearly
    always zero: on MNIST's margins the update of LeNet-300-100 took twice as long after 1,300 steps. No effect on
    GPUs, and on threads that exist already.
    """
    before = bool((torch.full((1,), 1e-40) * 1.0 == 0.0).item())
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


class LossScaler:
    """Keeps fp16 gradients within range: the loss is multiplied, the gradients divided again before the step.

    The factor grows after `interval` steps in a row without overflow and falls at each overflow. Whether
    there was one must be decided for all ranks together (`update` takes the answer), or their weights would
    part.
    source: Micikevicius et al. 2018, arXiv:1710.03740.
    """

    smallest = 2.0**-14
    """Below this factor the gradients overflow by themselves: no scale can help."""

    def __init__(
        self,
        *,
        factor: float = 2.0**16,
        growth: float = 2.0,
        backoff: float = 0.5,
        interval: int = 2000,
    ) -> None:
        if not (factor > 0 and growth >= 1 and 0 < backoff < 1 and interval >= 1):
            raise ValueError(
                f"LossScaler({factor=}, {growth=}, {backoff=}, {interval=}): want factor > 0, growth >= 1, "
                "0 < backoff < 1, interval >= 1"
            )
        self.factor, self.growth, self.backoff, self.interval = factor, growth, backoff, interval
        self.good_steps = 0

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to call backward on."""
        return loss * self.factor

    def unscale(self, gradients: Iterable[Tensor | None], device: torch.device | str = "cpu") -> Tensor:
        """Divides local gradients by the factor in place; 1.0 where one of them is not finite, else 0.0
        (0-d).

        Missing and empty gradients are passed over. The answer is this rank's own, on `device`: take its
        maximum over the ranks and give it to `update`. cost: one pass over the gradients, no wait for the
        device.
        """
        found = torch.zeros((), device=device)
        inverse = torch.tensor(1.0 / self.factor)
        for kind in _by_device_and_dtype(gradients):
            here, scale = found.new_zeros(1, device=kind[0].device), inverse.to(kind[0].device)
            # what torch's own GradScaler calls: scales and looks for inf and NaN in one pass
            torch._amp_foreach_non_finite_check_and_unscale_(kind, here, scale)  # pyright: ignore[reportPrivateImportUsage]
            found = torch.maximum(found, here[0].to(found.device))
        return found

    def update(self, found_inf: bool) -> None:
        """Adapts the factor after a step; `found_inf` is the answer of all ranks together.

        A step with `found_inf` must not move the weights. raises: DivergenceError where no factor is small
        enough.
        """
        if not found_inf:
            self.good_steps += 1
            if self.good_steps == self.interval:
                self.factor, self.good_steps = self.factor * self.growth, 0
            return
        self.factor, self.good_steps = self.factor * self.backoff, 0
        if self.factor < self.smallest:
            raise DivergenceError(
                f"precision fp16: gradients overflow even at a loss scale of {self.factor:g}; the model has diverged "
                "or its values exceed 65504: lower optimizer.lr or use precision: bf16"
            )

    def state_dict(self) -> dict[str, float | int]:
        """The factor and the count of good steps in a row, JSON-able."""
        return {"factor": self.factor, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`'s answer."""
        self.factor, self.good_steps = float(state["factor"]), int(state["good_steps"])


def _by_device_and_dtype(gradients: Iterable[Tensor | None]) -> list[list[Tensor]]:
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for gradient in gradients:
        if gradient is not None and gradient.numel():
            kinds.setdefault((gradient.device, gradient.dtype), []).append(gradient)
    return list(kinds.values())
