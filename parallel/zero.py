"""Where DeepSpeed's ZeRO keeps what this rank has of each parameter: flat intervals of values, gradients and states.

Everything here is a view of DeepSpeed's own memory: what is written into it is what DeepSpeed goes on with.
`update` of the working values is theirs too: half-precision or whole copies that the forward reads.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from .intervals import Interval, equal_intervals


class Partition(Protocol):
    """The flat share of this rank in every trainable parameter. Names are those of the whole model."""

    def interval(self, name: str) -> Interval:
        """Which elements of the flattened parameter lie here."""
        ...

    def master(self, name: str) -> Tensor:
        """Their values in full precision, those that the optimizer moves: flat, a view."""
        ...

    def gradient(self, name: str) -> Tensor:
        """Their gradients after a backward: flat, a view of what the next step takes."""
        ...

    def flat(self, name: str) -> Tensor:
        """The flat tensor, a key of the optimizer's state, in which the master values lie."""
        ...

    def start(self, name: str) -> int:
        """Where in `flat` they begin."""
        ...

    def show(self, working: Mapping[str, Tensor]) -> None:
        """Let the forward compute with these values (flat, of the interval). Collective, same names on all ranks."""
        ...

    def forget(self) -> None:
        """Drop the gradients of a step that is left out."""
        ...

    def flats(self) -> list[Tensor]:
        """All keys of the optimizer's state."""
        ...


class WholeCopies:
    """ZeRO-1 and -2: every rank computes with whole parameters, and moves a share of the flattened groups."""

    def __init__(self, optimizer: Any, parameters: Mapping[str, Tensor]) -> None:
        """optimizer: a DeepSpeedZeroOptimizer."""
        self._zero, self._parameters = optimizer, dict(parameters)
        if not optimizer.cpu_offload:
            # The run has its own norm, and takes no step whose gradient is not finite: once is enough.
            optimizer.compute_grad_norm = optimizer.check_grad_overflow = False
        self._groups = {id(p): i for i, group in enumerate(optimizer.bit16_groups) for p in group}
        self._none = torch.empty(0, device=optimizer.single_partition_of_fp32_groups[0].device)

    def interval(self, name: str) -> Interval:
        """As `Partition.interval`."""
        here = self._parameters[name]._hp_mapping  # pyright: ignore[reportAttributeAccessIssue]
        if here is None:
            return (0, 0)
        address = here.lp_fragment_address
        return (address.start, address.start + address.numel)

    def master(self, name: str) -> Tensor:
        """As `Partition.master`."""
        here = self._parameters[name]._hp_mapping  # pyright: ignore[reportAttributeAccessIssue]
        return self._none if here is None else here.hp_fragment.detach()

    def gradient(self, name: str) -> Tensor:
        """As `Partition.gradient`."""
        parameter: Any = self._parameters[name]
        if parameter._hp_mapping is None:
            return self._none
        found = parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group).detach()
        if not found.is_contiguous():
            raise RuntimeError(f"DeepSpeed keeps the gradient of {name} in a layout of its own")
        return found.view(-1)

    def flat(self, name: str) -> Tensor:
        """As `Partition.flat`."""
        return self._zero.single_partition_of_fp32_groups[self._groups[id(self._parameters[name])]]

    def start(self, name: str) -> int:
        """As `Partition.start`."""
        here = self._parameters[name]._hp_mapping  # pyright: ignore[reportAttributeAccessIssue]
        return 0 if here is None else here.hp_fragment_address.start

    def show(self, working: Mapping[str, Tensor]) -> None:
        """As `Partition.show`. cost: one all-gather of the groups that hold these names."""
        zero = self._zero
        touched = sorted({self._groups[id(self._parameters[name])] for name in working})
        for name, values in working.items():
            if values.numel():
                index = self._groups[id(self._parameters[name])]
                rank = dist.get_rank(zero.real_dp_process_group[index])
                mine = zero.parallel_partitioned_bit16_groups[index][rank]
                mine.data[self.start(name) : self.start(name) + values.numel()].copy_(values)
        for index in touched:
            group = zero.real_dp_process_group[index]
            pieces = [piece.data for piece in zero.parallel_partitioned_bit16_groups[index]]
            mine = pieces[dist.get_rank(group)].clone()
            dist.all_gather(pieces, mine, group=group)

    def forget(self) -> None:
        """As `Partition.forget`."""
        zero = self._zero
        zero.micro_step_id = -1  # what DeepSpeed's own step sets it to
        zero.zero_grad(set_to_none=True)
        for index in list(zero.averaged_gradients):
            zero.averaged_gradients[index] = None
            zero.all_grad_tensors[index] = None
        if zero.cpu_offload:
            zero.reset_cpu_buffers()

    def flats(self) -> list[Tensor]:
        """As `Partition.flats`."""
        return list(self._zero.single_partition_of_fp32_groups)


class Shares:
    """ZeRO-3: every rank keeps an equal share of each flattened parameter, filled up at the end."""

    def __init__(self, optimizer: Any, parameters: Mapping[str, Tensor]) -> None:
        """optimizer: a DeepSpeedZeroOptimizer_Stage3."""
        self._zero, self._parameters = optimizer, dict(parameters)
        if not optimizer.offload_optimizer:
            # As above. ZeRO-3 has no setting for it; what it makes of the norm is the factor of a clipping that is off.
            finite = torch.ones((), device=optimizer.device)
            optimizer._get_norm_groups = lambda: [finite]

    def interval(self, name: str) -> Interval:
        """As `Partition.interval`."""
        return share_of(self._parameters[name])

    def master(self, name: str) -> Tensor:
        """As `Partition.master`."""
        flat, start = self.flat(name), self.start(name)
        return flat.detach()[start : start + self._length(name)]

    def gradient(self, name: str) -> Tensor:
        """As `Partition.gradient`."""
        parameter = self._parameters[name]
        found, _ = self._zero._get_fp32_grad_state_partition(parameter, release_swap_buffers=True)
        return found.detach().view(-1)[: self._length(name)]

    def flat(self, name: str) -> Tensor:
        """As `Partition.flat`."""
        return self._zero.fp32_partitioned_groups_flat[self._position(name)[0]]

    def start(self, name: str) -> int:
        """As `Partition.start`."""
        return self._position(name)[1]

    def show(self, working: Mapping[str, Tensor]) -> None:
        """As `Partition.show`. Small parameters stay whole on every rank between steps: these are gathered anew.

        cost: a copy; one all-gather of the parameters below stage3_param_persistence_threshold.
        """
        for name, values in working.items():
            share = self._parameters[name].ds_tensor.data  # pyright: ignore[reportAttributeAccessIssue]
            share.view(-1)[: values.numel()].copy_(values)
        gather_whole([self._parameters[name] for name in working])

    def forget(self) -> None:
        """As `Partition.forget`."""
        self._zero._pre_step()
        self._zero._partition_all_parameters()
        self._zero._overflow_clean_up(self._zero.loss_scale)
        gather_whole(list(self._parameters.values()))

    def flats(self) -> list[Tensor]:
        """As `Partition.flats`."""
        return list(self._zero.fp32_partitioned_groups_flat)

    def _position(self, name: str) -> tuple[int, int, int]:
        return self._zero.grad_position[self._zero.get_param_id(self._parameters[name])]

    def _length(self, name: str) -> int:
        start, end = self.interval(name)
        return end - start


def share_of(parameter: Any) -> Interval:
    """This rank's share of a parameter that ZeRO-3 has divided."""
    group = parameter.ds_process_group
    shares = equal_intervals(parameter.ds_numel, parameter.partition_numel(), dist.get_world_size(group))
    return shares[dist.get_rank(group)]


def gather_whole(parameters: Sequence[Any]) -> None:
    """Renew the whole copies that ZeRO-3 keeps of small parameters from all ranks' shares. Collective.

    Without it a written share changes nothing in the forward: DeepSpeed gathers such parameters only after its steps.
    """
    kept = [p for p in parameters if p.ds_persist]
    if kept:
        kept[0].partition(kept)  # lets the old whole copy go; the shares are as they were written
        kept[0].all_gather(kept)
