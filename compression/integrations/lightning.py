"""The callback for Lightning's Trainer."""

from __future__ import annotations

from typing import Any

from ...errors import ConfigError
from .compressor import Compressor
from .transformers import refuse_outputs


class _Calls:
    """What the Trainer's hooks mean to a `Compressor`, with automatic optimization.

    Lightning calls ``on_before_optimizer_step`` with unscaled gradients and clips after it: the order that penalties
    and masks want.
    """

    def __init__(self, compressor: Compressor) -> None:
        refuse_outputs(compressor)
        self.compressor = compressor
        self._stepped = False

    @property
    def state_key(self) -> str:
        return "forgepress_compression"

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if len(trainer.optimizers) != 1 or not pl_module.automatic_optimization:
            raise ConfigError(
                f"compression in Lightning: {len(trainer.optimizers)} optimizers, automatic_optimization="
                f"{pl_module.automatic_optimization}; want one optimizer and automatic optimization, or call"
                " Compressor in your training_step"
            )
        self.compressor.micro_batches = trainer.accumulate_grad_batches
        steps = trainer.estimated_stepping_batches
        if steps != int(steps):
            raise ConfigError(
                "compression in Lightning: the training has no end; want max_steps or max_epochs"
            )
        self.compressor.start(pl_module, steps=int(steps))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale() if scaler is not None else 1.0
        self.compressor.before_step(trainer.optimizers[0].param_groups[0]["lr"], loss_scale=scale)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.compressor.after_backward()
        self._stepped = True

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._stepped:  # not after a micro-batch that only accumulates
            self.compressor.after_step()
            self._stepped = False

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.compressor.finish()

    def state_dict(self) -> dict[str, Any]:
        return self.compressor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.compressor.load_state_dict(state_dict)


def lightning_callback(compressor: Compressor) -> Any:
    """A ``lightning.pytorch.Callback``, for the Trainer's ``callbacks=[…]``, that compresses while it trains.

    Right with gradient accumulation, clipping, mixed precision, DistributedDataParallel and FSDP2
    (``ModelParallelStrategy``); its state is in Lightning's checkpoints.
    raises: ConfigError for a technique that needs the model's outputs, which no callback sees.
    """
    from lightning.pytorch import Callback

    return type("CompressionCallback", (_Calls, Callback), {"__doc__": _Calls.__doc__})(compressor)
