"""The callback for Hugging Face's Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import CheckpointError, ConfigError
from ..technique import Technique
from .compressor import Compressor


class _Calls:
    """What the Trainer's events mean to a `Compressor`.

    The Trainer clips gradients before any callback sees them, so that penalties would escape clipping and masked
    gradients count in its norm: the callback takes the Trainer's ``max_grad_norm`` over and clips itself.
    """

    def __init__(self, compressor: Compressor) -> None:
        refuse_outputs(compressor)
        self.compressor = compressor
        self._clip_norm = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        self._clip_norm, args.max_grad_norm = args.max_grad_norm, 0.0
        self.compressor.micro_batches = args.gradient_accumulation_steps
        self.compressor.start(model, steps=state.max_steps)
        if state.global_step:
            self.compressor.load(_folder(args, state))

    def on_step_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **others: Any
    ) -> None:
        scaler = getattr(optimizer, "scaler", None)
        scale = scaler.get_scale() if scaler is not None else 1.0
        self.compressor.before_step(optimizer.param_groups[0]["lr"], loss_scale=scale)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.compressor.after_backward(self._clip_norm)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.compressor.after_step()

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.compressor.save(Path(args.output_dir, f"checkpoint-{state.global_step}"))

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        args.max_grad_norm = self._clip_norm
        self.compressor.finish()


def transformers_callback(compressor: Compressor) -> Any:
    """A ``transformers.TrainerCallback``, for the Trainer's ``callbacks=[…]``, that compresses while it trains.

    Right with gradient accumulation, mixed precision (float16 and bfloat16), clipping (the callback does it, see
    `_Calls`), DistributedDataParallel and FSDP2 (``fsdp_version: 2``). Its state lies in the Trainer's checkpoint
    folders, two files each, and is found again by ``train(resume_from_checkpoint=…)`` in ``output_dir``.
    raises: ConfigError for a technique that needs the model's outputs, which no callback sees.
    """
    from transformers import TrainerCallback

    return type("CompressionCallback", (_Calls, TrainerCallback), {"__doc__": _Calls.__doc__})(compressor)


def _folder(args: Any, state: Any) -> Path:
    folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
    if isinstance(args.resume_from_checkpoint, str) and Path(args.resume_from_checkpoint).is_dir():
        folder = Path(args.resume_from_checkpoint)
    if not folder.is_dir():
        raise CheckpointError(
            f"the Trainer goes on from step {state.global_step}, but {folder} is not there; want the checkpoint in"
            " output_dir, or its folder in TrainingArguments(resume_from_checkpoint=…)"
        )
    return folder


def refuse_outputs(compressor: Compressor) -> None:
    """raises: ConfigError for a technique that works on what no callback sees."""
    for phase in compressor.phases:
        for technique in phase.techniques:
            for call in ("add_loss", "add_columns"):
                if getattr(type(technique), call) is not getattr(Technique, call):
                    raise ConfigError(
                        f"{type(technique).__name__} works on outputs or batches, which a callback does not see; call"
                        " Compressor.add_loss in a loop of your own, or train with Forgepress' own Trainer"
                    )
