"""Encodings give back every bit, and the chosen one is the smallest."""

import numpy as np
import pytest
import torch
from forgepress.compression.encodings import (
    Encoded,
    choose,
    decode,
    encode,
    index_gap,
    positive_zeros,
    selection,
    sizes,
)
from torch import Tensor

NAMES = ("raw", "bitmap", "index_gap")
DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.int8,
    torch.int64,
    torch.bool,
    torch.complex64,
)


def sparse(
    shape: tuple[int, ...], density: float, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(shape, generator=generator) < density
    return positive_zeros(torch.randn(shape, generator=generator) * 50 * kept).to(dtype)


def same_bits(left: Tensor, right: Tensor) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return torch.equal(
        left.contiguous().reshape(-1).view(torch.uint8), right.contiguous().reshape(-1).view(torch.uint8)
    )


@pytest.mark.parametrize("encoding", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (7,), (17, 31), (3, 5, 3, 3)], ids=str)
@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_every_shape_dtype_and_density_comes_back_bit_for_bit(encoding, dtype, shape, density):
    tensor = sparse(shape, density, dtype)
    encoded = encode(tensor, encoding)
    assert encoded.shape == shape and encoded.dtype == dtype
    assert same_bits(decode(encoded), tensor)


@pytest.mark.parametrize("encoding", NAMES)
def test_negative_zero_infinities_and_nan_payloads_keep_their_bits(encoding):
    patterns = np.array(
        [0, 0x80000000, 0x7FC00001, 0x7F800001, 0xFFC12345, 0x7F800000, 1, 0, 0], dtype=np.uint32
    )
    tensor = torch.from_numpy(patterns.view(np.float32))
    assert same_bits(decode(encode(tensor, encoding)), tensor)
    assert same_bits(decode(choose(tensor)), tensor)


@pytest.mark.parametrize("encoding", NAMES)
def test_a_transposed_view_is_stored_in_its_own_row_major_order(encoding):
    tensor = sparse((9, 14), 0.3).t()
    assert same_bits(decode(encode(tensor, encoding)), tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_masked_negative_weights_cost_nothing_once_their_zeros_are_positive(dtype):
    masked = torch.tensor([-3.0, -2.0, -1.0, 5.0], dtype=dtype) * torch.tensor([0, 1, 0, 0], dtype=dtype)
    assert encode(masked, "bitmap").streams["values"].numel() == 3  # -0.0 twice: bits decide
    cleaned = positive_zeros(masked)
    assert torch.equal(cleaned, masked)
    assert encode(cleaned, "bitmap").streams["values"].tolist() == [-2.0]


def test_positive_zeros_leaves_nan_payloads_and_integers_alone():
    payloads = torch.from_numpy(np.array([0x7F800001, 0xFFC12345, 1], dtype=np.uint32).view(np.float32))
    assert same_bits(positive_zeros(payloads), payloads)
    integers = torch.tensor([0, -1, 5])
    assert positive_zeros(integers) is integers


def test_complex128_has_no_integer_twin_but_round_trips():
    tensor = torch.tensor([0j, 1 + 0j, 0 + 2j, 0j], dtype=torch.complex128)
    for encoding in NAMES:
        assert same_bits(decode(encode(tensor, encoding)), tensor)


@pytest.mark.parametrize("bits", index_gap.WIDTHS)
def test_every_gap_width_round_trips_and_takes_the_bytes_it_announces(bits):
    tensor = sparse((401, 77), 0.01, torch.bfloat16)
    encoded = index_gap.encode(tensor, bits)
    gaps = index_gap.gaps_between(np.flatnonzero(tensor.flatten().view(torch.int16).numpy()))
    assert encoded.bytes == index_gap.size(gaps, bits, 2)
    assert same_bits(decode(encoded), tensor)


def test_the_gap_stream_is_the_one_of_the_paper():
    # Han et al. 2015, figure 2: 3 bits, values at 1, 4, 15; between 4 and 15 lie 10 zeros: a filler at 12.
    tensor = torch.zeros(16)
    tensor[[1, 4, 15]] = torch.tensor([3.4, 0.9, 1.7])
    encoded = index_gap.encode(tensor, bits=3)
    assert torch.equal(encoded.streams["values"], torch.tensor([3.4, 0.9, 0.0, 1.7]))
    codes = [1, 2, 7, 2]  # zeros before each entry
    assert int.from_bytes(bytes(encoded.streams["gaps"].tolist()), "little") == sum(
        c << 3 * i for i, c in enumerate(codes)
    )


def test_packing_is_the_same_across_block_borders(monkeypatch):
    tensor = sparse((5000,), 0.2)
    whole = index_gap.encode(tensor, 3)
    monkeypatch.setattr(index_gap, "_BLOCK", 64)
    assert torch.equal(index_gap.encode(tensor, 3).streams["gaps"], whole.streams["gaps"])
    assert same_bits(decode(whole), tensor)


@pytest.mark.parametrize(
    ("density", "expected"), [(1.0, "raw"), (0.5, "bitmap"), (0.005, "index_gap"), (0.0, "index_gap")]
)
def test_the_choice_follows_the_density(density, expected):
    assert choose(sparse((300, 784), density)).encoding == expected


@pytest.mark.parametrize("density", [0.0, 0.003, 0.05, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_announced_sizes_are_those_of_the_streams_and_the_choice_is_the_smallest(density, dtype):
    tensor = sparse((123, 77), density, dtype)
    announced = sizes(tensor)
    real = {name: encode(tensor, name).bytes + selection.STREAM_OVERHEAD * (name != "raw") for name in NAMES}
    assert announced == real
    assert real[choose(tensor).encoding] == min(real.values())


def test_two_percent_of_a_large_layer_costs_less_than_a_thirtyseventh():
    tensor = sparse((1000, 1000), 0.02)
    assert choose(tensor).bytes < 4_000_000 / 37  # 32 + 7 bits each, and 8 % fillers


def damaged(encoded: Encoded, **changes) -> Encoded:
    return Encoded(**{**{name: getattr(encoded, name) for name in encoded.__dataclass_fields__}, **changes})


@pytest.mark.parametrize("encoding", NAMES)
def test_streams_that_do_not_fit_the_shape_are_refused(encoding):
    encoded = encode(sparse((40, 10), 0.3), encoding)
    with pytest.raises(ValueError, match=r"element|shape|want"):
        decode(damaged(encoded, shape=(3, 10)))
    with pytest.raises(ValueError, match=r"is missing|is none"):
        decode(damaged(encoded, streams={}))


def test_a_mask_that_promises_other_values_is_refused():
    encoded = encode(sparse((40, 10), 0.3), "bitmap")
    fewer = {**encoded.streams, "values": encoded.streams["values"][:-1].clone()}
    with pytest.raises(ValueError, match="values"):
        decode(damaged(encoded, streams=fewer))


def test_bits_after_the_last_element_are_refused():
    encoded = encode(torch.ones(3), "bitmap")
    with pytest.raises(ValueError, match="after its 3 elements"):
        decode(damaged(encoded, streams={**encoded.streams, "mask": torch.tensor([255], dtype=torch.uint8)}))


@pytest.mark.parametrize("bits", [0, 17, -1])
def test_a_gap_width_out_of_range_is_refused(bits):
    with pytest.raises(ValueError, match="1 to 16 bits"):
        index_gap.encode(torch.ones(3), bits)


def test_an_unknown_encoding_names_the_known_ones():
    with pytest.raises(ValueError, match="raw, bitmap, index_gap"):
        encode(torch.ones(3), "huffman")
