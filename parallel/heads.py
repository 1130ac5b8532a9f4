"""Attention whose query, key and value are one matrix: its columns are divided like any others, then heads are dealt.

A part of the columns of [query | key | value] is no set of heads. So the layer's output goes through one exchange: each
rank of the tensor axis gives away what belongs to others' heads and gets query, key and value of its own. The parameter
itself stays cut into consecutive columns, as files, techniques and FSDP know it.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

QKV_MATRICES = 3

# Shapes: the whole output [.., 3·W] is 3·n pieces of W/n, n ranks. Rank r holds pieces 3r to 3r + 2; piece k belongs to
# the heads of rank k % n.


def deal_heads(layer: nn.Module, mesh: DeviceMesh) -> None:
    """Let `layer`, whose output columns are divided over `mesh`, give query, key, value of its own heads, [.., 3·W/n].

    cost: one all-to-all of the output forward and one of its gradient backward; half of what goes through them, or
        less, leaves a rank: together they are less than the all-reduce behind the attention.
    """
    rank, ranks, group = mesh.get_local_rank(), mesh.size(), mesh.get_group()
    held = [QKV_MATRICES * rank + number for number in range(QKV_MATRICES)]
    order = sorted(range(QKV_MATRICES), key=lambda number: held[number] % ranks)
    gives, gets = [0] * ranks, [0] * ranks
    for number in range(QKV_MATRICES):
        gives[held[number] % ranks] += 1
        gets[(number * ranks + rank) // QKV_MATRICES] += 1

    def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
        from torch.distributed._functional_collectives import all_to_all_single_autograd

        pieces = output.unflatten(-1, (QKV_MATRICES, -1)).movedim(-2, 0)  # [3, .., W/n]
        # What comes is ordered by the rank that it comes from, and so query, key, value.
        own = all_to_all_single_autograd(pieces[order], gets, gives, group)
        return own.movedim(0, -2).flatten(-2)

    layer.register_forward_hook(hook)


def part_of_heads(output: Tensor, degree: int) -> Tensor:
    """Of a whole output [.., 3·W] what the first rank of `degree` gets: [.., 3·W/degree]."""
    return output.unflatten(-1, (QKV_MATRICES, degree, -1))[..., 0, :].flatten(-2)


def divide_counts(model: nn.Module, plan: Mapping[str, str], counts: Sequence[str], degree: int) -> None:
    """Divide, in place, the numbers of heads and features that the attention around divided qkv layers goes by.

    counts: globs over "module.attribute", see `Layout.counts`; attributes of other modules stay.
    """
    modules = dict(model.named_modules())
    owners = {name.rpartition(".")[0] for name, style in plan.items() if style == "qkv"} & modules.keys()
    for owner in sorted(owners):
        for attribute, value in list(vars(modules[owner]).items()):
            named = f"{owner}.{attribute}".strip(".")
            if type(value) is int and any(fnmatchcase(named, glob) for glob in counts):
                setattr(modules[owner], attribute, value // degree)
