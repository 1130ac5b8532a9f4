"""The native engine: one model on any product of pipeline, replicate, shard and tensor axes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .data_parallel import WholeModel
from .engine import Inputs, Loss
from .layout import Layout
from .materialise import is_shapes
from .mesh import Mesh
from .microbatches import InHand, cut, row_counts


class NativeEngine:
    """Runs forward and backward of a model that is spread over a mesh; gradients equal those of one process."""

    masters = None
    coordinates = None

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        mesh: Mesh,
        *,
        schedule: str = "1f1b",
        microbatches: int = 1,
        stages: Sequence[Sequence[str]] | None = None,
        costs: Sequence[float] | None = None,
        offload: bool = False,
        sequence_parallel: bool = False,
        loss_parallel: bool = False,
    ) -> None:
        """Spread `model` (whole, equal on all ranks or made so) over `mesh`; it is taken over, do not use it after.

        A model of several ranks may be on the meta device: its parts get room, and whoever has the values writes them.
        microbatches: pieces of a step, run one after the other (without pipeline: gradient accumulation with
        one reduction).   schedule, stages, costs: pipeline only, see `pipeline` and `split`.
        offload: shards live in host memory (needs mesh.shard above 1).
        sequence_parallel, loss_parallel: tensor axis only: between divided layers each of its ranks has a part of the
        tokens; outputs stay divided over the classes, as a DTensor.
        raises: ConfigError for what the mesh and the model cannot do together, before anything has run.
        """
        if type(microbatches) is not int or microbatches < 1:
            raise ConfigError(f"parallel.microbatches={microbatches!r}: want an integer, 1 or more")
        self.mesh, self.microbatches = mesh, microbatches
        if offload and mesh.shard == 1:
            raise ConfigError("parallel.offload=True: needs shards; use shard: 2 or more")
        if not offload and not is_shapes(model):  # else each unit goes by itself, and back as a shard
            model.to(mesh.device)
        self.parts: list[nn.Module] = [model]
        self._whole, self.now, self._pipeline = [WholeModel(model)], InHand(), None
        summed: set[str] = set()
        if mesh.world > 1:
            from .spread import spread  # its imports take a second that one process need not spend

            settings: Any = {"schedule": schedule, "stages": stages, "costs": costs, "offload": offload}
            settings |= {"sequence_parallel": sequence_parallel, "loss_parallel": loss_parallel}
            here = spread(model, layout, mesh, microbatches=microbatches, **settings)
            self.parts, self._whole = here.parts, here.wholes
            self.now, self._pipeline, summed = here.now, here.pipeline, here.summed
        self._first = self._whole[0]
        self._parameters = self._owned()
        self._summed = [p for name, p in self._parameters.items() if name in summed]

    def _owned(self) -> dict[str, nn.Parameter]:
        """What is held here; a tied parameter is its owner's only, stages that follow have it on loan."""
        stages = range(len(self.parts)) if self._pipeline is None else self._pipeline.here
        tied = None if self._pipeline is None else self._pipeline.followers
        loans = set() if tied is None else tied.loans
        return {
            name: parameter
            for stage, part in zip(stages, self.parts, strict=True)
            for name, parameter in part.named_parameters()
            if (stage, name) not in loans
        }

    def parameters(self) -> dict[str, nn.Parameter]:
        """Name → parameter, of what is held here: plain tensors, or DTensors where they are divided.

        The objects, and the storage under `to_local()`, stay the same for the life of the engine: what is
        written there in place between steps is what the next forward uses.
        """
        return dict(self._parameters)

    def buffers(self) -> dict[str, Tensor]:
        """Name → buffer, of what is held here; whole, and equal on all data ranks."""
        return {name: b for part in self.parts for name, b in part.named_buffers()}

    def modules(self) -> dict[str, nn.Module]:
        """Name → live module, of what is held here; what lives on another pipeline stage is absent.

        Hooks on them see one micro-batch at a time, described by `now`; a divided module's output is its part.
        """
        elsewhere = self._pipeline.elsewhere if self._pipeline is not None else [set()]
        return {
            name: module
            for part, absent in zip(self.parts, elsewhere, strict=True)
            for name, module in part.named_modules()
            if name and name not in absent
        }

    @property
    def home_of_outputs(self) -> int:
        """The pipeline rank on which `forward` gives outputs and the loss is computed."""
        return 0 if self._pipeline is None else self._pipeline.home_of_outputs

    def written(self, dense: Mapping[str, Tensor] | None = None) -> None:
        """As `Engine.written`: parameters are what the forward reads."""

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def forward_backward(
        self,
        columns: Mapping[str, Tensor],
        valid: Tensor | None,
        inputs: Inputs,
        loss: Loss,
        *,
        global_rows: int | None = None,
    ) -> Tensor:
        """One step's gradients, summed over micro-batches and data ranks into `.grad`.

        columns: this data rank's rows, micro-batch major.   valid: bool [rows], False = padding; None = all real.
        global_rows: real rows of the global batch; needed to cut a ragged batch into the very micro-batches of
        one process, which only batch normalisation can tell from others.
        returns: detached scalar, the sum of this rank's micro-batch losses (0 where the last stage is not).
        """
        if self._pipeline is not None:
            total = self._pipeline.forward_backward(columns, valid, inputs, loss)
        elif self.microbatches == 1:
            total = self._forward_loss(columns, valid, inputs, loss)
            self._first.backward(total)
        else:
            total = self._accumulate(columns, valid, inputs, loss, global_rows)
        for whole in self._whole:
            whole.finish()
        if self.mesh.tensor > 1 and self._pipeline is None:
            from .tensor import cut_gradients

            cut_gradients(self._parameters.values())
        if self._summed:
            from .tensor import sum_parts

            sum_parts(self._summed, self.mesh)
        return total.detach()

    def _forward_loss(self, columns: Any, valid: Tensor | None, inputs: Inputs, loss: Loss) -> Tensor:
        x = inputs(columns)
        self.now.columns, self.now.valid, self.now.seed = columns, valid, self._first.seed
        outputs = self._first.call(**x) if isinstance(x, dict) else self._first.call(x)
        return loss(outputs, columns, valid)

    def _accumulate(
        self, columns: Any, valid: Tensor | None, inputs: Inputs, loss: Loss, global_rows: int | None
    ) -> Tensor:
        pieces = cut(columns, valid, self._row_counts(columns, global_rows))
        losses = []
        for number, piece in enumerate(pieces, start=1):
            if number < len(pieces):
                with self._first.alone():
                    value = self._forward_loss(piece.columns, piece.valid, inputs, loss)
                    self._first.backward(value)
            else:
                value = self._forward_loss(piece.columns, piece.valid, inputs, loss)
                self._first.backward(value)
            losses.append(value.detach())
        return torch.stack(losses).sum()

    def _row_counts(self, columns: Mapping[str, Tensor], global_rows: int | None) -> list[int]:
        rows = next(iter(columns.values())).shape[0]
        rank, ranks = self.mesh.data_rank, self.mesh.data_ranks
        return row_counts(rows, self.microbatches, global_rows=global_rows, rank=rank, ranks=ranks)

    @torch.no_grad()
    def forward(
        self, columns: Mapping[str, Tensor], inputs: Inputs, valid: Tensor | None = None
    ) -> Any | None:
        """Outputs for this data rank's rows, without gradients; None on stages other than the last.

        valid: bool [rows], False = padding, for hooks that look at rows; None = all real.
        All ranks of the mesh must call it the same number of times.
        """
        if self._pipeline is not None:
            outputs = self._pipeline.forward(columns, inputs, valid)
        else:
            x = inputs(columns)
            self.now.columns, self.now.valid = columns, valid
            outputs = self._first.module(**x) if isinstance(x, dict) else self._first.module(x)
        for whole in self._whole:
            whole.release()
        return outputs

    def close(self) -> None:
        """As `Engine.close`."""
        self.zero_grad()
        self.parts, self._whole, self._pipeline, self._parameters = [], [], None, {}
