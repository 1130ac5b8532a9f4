"""Techniques in any training loop: phases one after the other, gradient clipping, state for a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ...errors import CheckpointError, ConfigError
from ..chain import Chain
from ..keep import between_keepers
from ..registry import name_of
from ..replay import PlanEntry, entry
from ..run import Run
from ..technique import EXAMPLE, Technique
from ..together import refusals
from .live import clip, live_weights, over_ranks, part_of, reduce_of, unwrapped, whole_of

_FILE = "forgepress_compression"


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Some steps of the training with their techniques; zeros that it delivers are kept in all that follow."""

    techniques: Sequence[Technique] = ()
    steps: int | float | None = None
    """A float is a fraction of all steps, an int a number of them; None, in the last phase: what is left."""


class Compressor:
    """What a training loop calls at each optimizer step, however many micro-batches that has::

        compressor = Compressor(model, [Phase(techniques=[NetworkSurgery(sparsity=0.95)])], steps=1000)
        for x, y in loader:
            compressor.before_step(optimizer.param_groups[0]["lr"])
            loss(model(x), y).backward()
            compressor.after_backward(clip_norm=1.0)
            optimizer.step()
            compressor.after_step()
            optimizer.zero_grad()

    Make it with the model as it was built, before optimizer and wrappers, so that techniques can swap modules.
    The gradients must be means over the global batch, as they are under DistributedDataParallel and FSDP2.
    cost: that of its techniques.
    """

    def __init__(
        self,
        model: nn.Module,
        phases: Sequence[Phase],
        *,
        steps: int = 0,
        seed: int = 0,
        micro_batches: int = 1,
        teacher: Any = None,
    ) -> None:
        """steps: optimizer steps of the whole training (0: told later, to `start`).
        teacher: a `Teacher` for techniques of distillation; then call `add_columns` for every micro-batch.

        micro_batches: backward passes in a step, for techniques that look at activations.
        raises: ConfigError for phases that a loop without an engine of ours cannot follow.
        """
        self.phases = list(phases)
        self.steps, self.seed, self.micro_batches = steps, seed, micro_batches
        self.teacher = teacher
        self.plan: list[PlanEntry] = []
        self.chain: Chain | None = None
        self._model = model
        self._index = 0
        self._in_step = self._finished = False
        self._waiting: Mapping[str, Any] | None = None
        self._example: dict[
            str, Tensor
        ] = {}  # one row of what the model is called with, for those that trace it
        _refuse(self.phases)
        for technique in self.phases[0].techniques:
            technique.prepare(model)

    # ── the calls of a step

    def start(self, model: nn.Module | None = None, steps: int | None = None) -> None:
        """The model stands as it will be trained, on its device and sharded. Called by the first `before_step`."""
        self._model = unwrapped(model if model is not None else self._model)
        self.steps = steps or self.steps
        if self.steps < 1:
            raise ConfigError(
                f"Compressor: steps={self.steps} given; want the optimizer steps of the training"
            )
        if sum(self._counts()) < self.steps:
            self.phases.append(Phase())  # the steps that are left keep what the phases delivered
        _refuse_together(self.phases, self._model)
        self._model.register_forward_pre_hook(self._count_rows, with_kwargs=True)
        self._begin_phase()
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            self.load_state_dict(waiting)

    def before_step(self, learning_rate: float, loss_scale: float = 1.0) -> None:
        """An optimizer step begins; within one, at its later micro-batches, nothing happens.

        loss_scale: that of float16 training.
        """
        if self._in_step:
            return
        if self.chain is None:
            self.start()
        assert self.chain is not None
        self._in_step = True
        self.chain.run.loss_scale = loss_scale
        self.chain.before_step(learning_rate)

    def add_columns(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The rows of a micro-batch with the teacher's answers, before its forward pass; give them to `add_loss`.

        Losses of logits are means over rows: for a model of tokens set ``chain.run.items`` after its forward pass.
        """
        run = self._chain().run
        run.now.columns = self._chain().add_columns(columns)
        return dict(run.now.columns)

    def add_loss(self, outputs: Any, batch: Mapping[str, Tensor], loss: Tensor) -> Tensor:
        """The loss of a micro-batch with the terms that need its outputs."""
        return self._chain().add_loss(outputs, batch, loss)

    def after_backward(self, clip_norm: float | None = None) -> Tensor:
        """Gradients of the step are there, unscaled: penalties go in, masked ones out, then they are clipped.

        Nothing may come between this and the optimizer's step that reads weights. Returns the norm before clipping.
        """
        chain = self._chain()
        chain.after_backward()
        chain.before_update()
        held = [w for w in chain.run.all_weights if w.grad is not None]
        with torch.no_grad():
            squares = [w.grad.float().square().sum() for w in held if w.grad is not None]
            total = chain.run.total(held, squares)
            if clip_norm:
                clip(held, total, clip_norm)
        return total.sqrt()

    def after_step(self) -> None:
        """Weights have moved. At the end of a phase: what was requested must be there, and the next one begins.

        raises: NoOpError where requested and achieved differ.
        """
        chain = self._chain()
        chain.after_step()
        self._in_step = False
        if chain.run.step != chain.run.steps:
            return
        if self._index < len(self.phases) - 1:
            self._end_phase()
            self._index += 1
            self._begin_phase()
        else:
            chain.demand()

    def finish(self) -> list[PlanEntry]:
        """The training is over, also before its last step: deliver, on a model that no rank shares with another.

        returns: the plan, what each technique has done: `forgepress.compression.replay` brings a fresh model into
            that shape.
        raises: NoOpError where requested and achieved differ.
        """
        if not self._finished:
            self._end_phase()
            self._finished = True
        return self.plan

    # ── phases

    def _chain(self) -> Chain:
        if self.chain is None:
            raise ConfigError("Compressor: before_step has not been called yet; call it when a step begins")
        return self.chain

    def _begin_phase(self) -> None:
        weights = live_weights(self._model)
        run = Run(
            weights,
            steps=self._counts()[self._index],
            seed=self.seed,
            reduce=reduce_of(weights),
            modules=dict(self._model.named_modules()),
            over_rows=over_ranks,
            teacher=self.teacher,
        )
        self.chain = Chain(between_keepers(self.phases[self._index].techniques, self.plan), run)
        self.chain.set_up()

    def _counts(self) -> list[int]:
        """Steps of each phase."""
        counts: list[int] = []
        for phase in self.phases:
            steps = round(phase.steps * self.steps) if isinstance(phase.steps, float) else phase.steps
            counts.append(self.steps - sum(counts) if steps is None else steps)
        return counts

    def _end_phase(self) -> None:
        chain = self._chain()
        chain.demand()
        chain.finish()
        for index, technique in enumerate(chain.techniques):
            if technique.changes_model and any(isinstance(p, DTensor) for p in self._model.parameters()):
                raise ConfigError(
                    f"{type(technique).__name__} changes the model's shape, but its parameters are sharded; gather"
                    " the model and call the technique's finalize on it, or train with Forgepress' own Trainer"
                )
            state = {
                key: {
                    name: whole_of(placed, local)
                    for name, (placed, local) in chain.buffers(index, key).items()
                }
                for key in technique.delivers
            }
            if technique.traces and self._example:
                state[EXAMPLE] = self._example
            record = technique.finalize(self._model, state)
            self.plan.append(entry(f"phase {self._index + 1}", technique, record))

    def _count_rows(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Local rows × micro-batches: hosts average gradients over ranks and micro-batches, so local means do it."""
        if self.chain is None or not self.chain.run.in_step:
            return
        if not self._example:
            inputs = {str(place): x for place, x in enumerate(args)} or {
                k: x for k, x in kwargs.items() if k != "labels"
            }
            self._example = {
                name: x[:1].detach() for name, x in inputs.items() if isinstance(x, Tensor) and x.ndim
            }
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.ndim]
        if tensors:
            self.chain.run.rows = float(tensors[0].shape[0] * self.micro_batches)
            self.chain.run.items = self.chain.run.rows

    # ── state

    def state_dict(self) -> dict[str, Any]:
        """All that the techniques must find again, as JSON and whole tensors, for any number of ranks. Collective."""
        chain = self._chain()
        return {
            "index": self._index,
            "plan": self.plan,
            "chain": chain.state(),
            "tensors": {key: whole_of(placed, local) for key, (placed, local) in chain.tensors().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; the model's own weights are the loop's to restore."""
        if self.chain is None:
            self._waiting = state
            return
        self._index, self.plan = state["index"], list(state["plan"])
        self.chain.finish()
        self._begin_phase()
        chain, by_name = self.chain, {w.name: w for w in self.chain.run.all_weights}
        local: dict[str, Tensor] = {}
        for key, whole in state["tensors"].items():
            weight = by_name.get(key.split("/", 2)[2])
            if weight is None:
                raise CheckpointError(
                    f"the compression state has {key}, but the model trains no such parameter"
                )
            chain.empty(key, whole.shape, whole.dtype)  # says where it lies on this mesh
            local[key] = part_of(weight, whole)
        chain.load(state["chain"], local)

    def save(self, folder: str | Path) -> None:
        """`state_dict` as two files, JSON and safetensors, written by rank 0. Collective."""
        from safetensors.torch import save_file

        state = self.state_dict()
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            tensors = {key: tensor.contiguous() for key, tensor in state.pop("tensors").items()}
            save_file(tensors, str(Path(folder, f"{_FILE}.safetensors")))
            Path(folder, f"{_FILE}.json").write_text(json.dumps(state))

    def load(self, folder: str | Path) -> None:
        """What `save` has written. raises: CheckpointError where it is not there."""
        from safetensors.torch import load_file

        path = Path(folder, f"{_FILE}.json")
        if not path.is_file():
            raise CheckpointError(f"{path} is not there: that checkpoint was saved without this compression")
        tensors = load_file(str(path.with_suffix(".safetensors")))
        self.load_state_dict({**json.loads(path.read_text()), "tensors": tensors})


def _refuse(phases: Sequence[Phase]) -> None:
    if not phases:
        raise ConfigError("Compressor: no phases given; want at least one")
    for index, phase in enumerate(phases):
        if phase.steps is None and index < len(phases) - 1:
            raise ConfigError(
                f"Compressor: phase {index + 1} has no steps; only the last one may leave that open"
            )
        for technique in phase.techniques:
            what = type(technique).__name__
            if index and type(technique).prepare is not Technique.prepare:
                raise ConfigError(
                    f"{what} changes modules before its phase, which is number {index + 1}: in a loop of your own"
                    " that is possible in the first phase only; put it there, or train with Forgepress' own Trainer"
                )
            if index < len(phases) - 1 and technique.changes_model:
                raise ConfigError(
                    f"{what} changes the model's shape when phase {index + 1} of {len(phases)} ends, which the loop's"
                    " optimizer would not follow; put it into the last phase, or train with Forgepress' own Trainer"
                )
            if not technique.trains:
                raise ConfigError(
                    f"{what} looks at the model and trains nothing; apply it after the training"
                )


def _refuse_together(phases: Sequence[Phase], model: nn.Module) -> None:
    touched = [[(t, frozenset(t.matched(model))) for t in phase.techniques] for phase in phases]
    for number, phase in enumerate(touched):
        for technique, names in phase:
            if not names:
                raise ConfigError(
                    f"phase {number + 1}: {name_of(type(technique))} matches nothing with match={technique.match!r};"
                    f" the model has {', '.join([name for name, _ in model.named_parameters()][:8])}, …"
                )
    for refusal in refusals(touched):
        raise ConfigError(f"phase {refusal.phase + 1}: {refusal.message}")
