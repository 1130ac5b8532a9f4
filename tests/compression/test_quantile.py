"""exact_quantile is `kthvalue` of all magnitudes, whatever the cut over tensors and ranks."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from forgepress.compression import exact_quantile
from forgepress.tests.ranks import run_on_ranks
from torch import Tensor

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def values(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Ties, exact zeros of both signs, numbers too small to be normal, and infinities among normal ones."""
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, generator=generator)
    x[::3] = (x[::3] * 4).round() / 4
    x[::7] = 0.0
    x[1::7] = -0.0
    x[2::11] *= 1e-41
    x[-1] = -float("inf")
    return x.to(dtype)


def kth(x: Tensor, k: int) -> Tensor:
    return x.float().abs().flatten().kthvalue(k).values


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_k_is_the_kth_smallest_magnitude(dtype: torch.dtype) -> None:
    x = values(97, dtype)
    pieces = [x[:1], x[1:1], x[1:60].view(59, 1), x[60:].view(1, 37)]
    for k in range(1, 98):
        found = exact_quantile(pieces, k)
        assert found.dtype == torch.float32 and found.ndim == 0
        assert torch.equal(found, kth(x, k))


def test_tensors_larger_than_one_piece_of_work_are_counted_whole() -> None:
    x = values(300_001)
    for k in (1, 131_072, 131_073, 299_999, 300_001):
        assert torch.equal(exact_quantile([x[:7], x[7:].view(2, -1)], k), kth(x, k))


def test_a_tensor_that_is_not_contiguous_is_read_in_full() -> None:
    x = values(60).view(6, 10)
    assert torch.equal(exact_quantile([x.t()[::2]], 30), kth(x.t()[::2], 30))


def bits_on_this_rank(count: int, dtype: torch.dtype, ks: list[int]) -> list[int]:
    """This rank's uneven part of the values, in two tensors; the last of four ranks has none."""
    ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    cuts = [0, *[count * (r + 1) // (r + 3) for r in range(min(ranks, 3) - 1)], count]
    mine = values(count, dtype)[cuts[rank] : cuts[rank + 1]] if rank < 3 else values(count, dtype)[:0]

    def reduce(counts: Tensor) -> Tensor:
        if ranks > 1:
            dist.all_reduce(counts)
        return counts

    return [int(exact_quantile([mine[:5], mine[5:]], k, reduce).view(torch.int32)) for k in ks]


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_to_four_ranks_get_the_same_bits_as_kthvalue(dtype: torch.dtype) -> None:
    count, ks = 1003, [1, 2, 287, 288, 500, 999, 1003]
    wanted = [int(kth(values(count, dtype), k).view(torch.int32)) for k in ks]
    for ranks in (1, 2, 3, 4):
        assert run_on_ranks(bits_on_this_rank, count, dtype, ks, ranks=ranks) == [wanted] * ranks


@pytest.mark.parametrize("k", [0, -1, 6])
def test_a_k_outside_the_values_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k={k} given; want 1 to 5"):
        exact_quantile([torch.ones(5)], k)


def test_no_values_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="want 1 to 0"):
        exact_quantile([], 1)


def test_float64_is_refused_because_its_order_is_finer() -> None:
    with pytest.raises(TypeError, match="float64"):
        exact_quantile([torch.ones(5, dtype=torch.float64)], 1)
