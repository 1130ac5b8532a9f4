"""What a student is told to come near to, as plain functions on tensors.

B rows, T places (tokens), C classes or vocabulary, W width, K kept classes. All compute in float32. Nothing here
takes a mean over rows: whoever knows the global counts divides by them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def divergence(teacher: Tensor, student: Tensor, *, reverse: bool = False) -> Tensor:
    """Kullback-Leibler divergence of two distributions given as logits [..., C] → [...], in nats.

    forward: Σ p (log p - log q), p the teacher's: the student must cover all that the teacher holds for likely.
    reverse: Σ q (log q - log p): the student must not hold for likely what the teacher does not.
    source: Hinton et al. 2015, arXiv:1503.02531 (forward); Gu et al. 2023, arXiv:2306.08543 (reverse).
    """
    p, q = F.log_softmax(teacher.float(), -1), F.log_softmax(student.float(), -1)
    if reverse:
        p, q = q, p
    return (p.exp() * (p - q)).sum(-1)


def kept(logits: Tensor, indices: Tensor) -> Tensor:
    """Logits [..., C] of the classes `indices` [..., K], and one logit for all others together: [..., K + 1].

    The last is the logarithm of the others' summed exponentials, so that a softmax over the K + 1 gives each kept
    class its true probability. To renormalise over the K alone would tell the student that the others are
    impossible, which is a biased teacher.
    source: Anshumann et al. 2025, arXiv:2503.16870 (what is wrong with the K alone).
    """
    logits = logits.float()
    others = logits.scatter(-1, indices, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.cat([logits.gather(-1, indices), others], -1)


def packed(logits: Tensor, top_k: int) -> Tensor:
    """The `top_k` largest of logits [..., C] with their classes, as one int32 tensor [..., 2K + 1]; see `unpacked`.

    The values are the very bits of `kept`; one tensor, because it is sent and stored as one.
    """
    indices = logits.topk(top_k, dim=-1).indices
    return torch.cat([kept(logits, indices).view(torch.int32), indices.int()], -1)


def unpacked(column: Tensor) -> tuple[Tensor, Tensor]:
    """`packed` taken apart: logits [..., K + 1] and classes int64 [..., K]."""
    values, indices = column.tensor_split([column.shape[-1] // 2 + 1], -1)
    return values.contiguous().view(torch.float32), indices.long()


def squared_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean over the last dim of squared differences: [..., W] → [...]. source: Jiao et al. 2020, arXiv:1909.10351."""
    return (teacher.float() - student.float()).square().mean(-1)


def cosine_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """One minus the cosine of two vectors: [..., W] → [...]; 0 for the same direction, 2 for the opposite.

    Half the squared distance of the vectors made one long, which is the loss of patient distillation.
    source: Sanh et al. 2019, arXiv:1910.01108; Sun et al. 2019, arXiv:1908.09355.
    """
    return 1.0 - F.cosine_similarity(teacher.float(), student.float(), dim=-1, eps=1e-8)


def relation(
    x: Tensor, heads: int, real: Tensor | None, gather: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """How every place relates to every other: log of softmax(x xᵀ / √d) for each head, [B, L, W] → [B, heads, L, T].

    heads:  relation heads, parts of W that need not be the attention's own heads; d = W / heads.
    real:   bool [B, T], False = padding, which nothing relates to; None: all are real.
    gather: [B, L, W] of the places that are here → [B, T, W] of all; None: all are here, L = T.
    """
    split = x.float().unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, heads, L, d]
    whole = split if gather is None else gather(x.float()).unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = split @ whole.transpose(-1, -2) / split.shape[-1] ** 0.5
    if real is not None:
        scores = scores.masked_fill(~real[:, None, None, :], torch.finfo(torch.float32).min)
    return F.log_softmax(scores, -1)


def relation_divergence(
    teacher: Tensor,
    student: Tensor,
    heads: int,
    real: Tensor | None,
    gather: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Forward divergence of the relations among a row's places, averaged over heads: [B, L, W] → [B, L].

    real, gather: see `relation`. Widths and attention heads may differ; only `heads` must divide both widths.
    source: Wang et al. 2021, MiniLMv2, arXiv:2012.15828, section 3.1.   cost: O(B · T² · W), [B, heads, T, T] twice.
    """
    p, q = (relation(x, heads, real, gather) for x in (teacher, student))
    return (p.exp() * (p - q)).sum(-1).mean(1)


def map_distance(teacher: Tensor, student: Tensor) -> Tensor:
    """Squared distance of two activation maps: [B, C, H, W] each → [B]. Channels may differ, and so may sizes.

    A map is the mean over channels of squared activations, made one long: where the network looks. The larger one
    is averaged down to the smaller one's size first.
    source: Zagoruyko and Komodakis 2017, arXiv:1612.03928, section 3.1.
    """
    size = (min(teacher.shape[2], student.shape[2]), min(teacher.shape[3], student.shape[3]))
    maps = [F.adaptive_avg_pool2d(x.float().square().mean(1, keepdim=True), size) for x in (teacher, student)]
    first, second = (F.normalize(x.flatten(1), dim=-1) for x in maps)
    return (first - second).square().sum(-1)
