"""Batch normalisation folded away: found where it directly follows, the same outputs, nothing else touched."""

import torch
import torch.nn.functional as F
from forgepress.compression.quantization.fold import fold, foldable_pairs, make_room
from forgepress.tests.compression.quantization.small import convolutions, rows
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block with a decision that cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.shared = nn.Conv2d(4, 4, 1)
        self.bn3 = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        z = self.conv2(y)
        y = self.bn2(z) + z  # the layer's own output is used as well
        return self.bn3(self.shared(y)) + self.shared(x)  # called twice


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) > 1e9:
            return x
        return self.block(x)


def test_only_a_layer_whose_output_goes_nowhere_else_is_found_also_inside_what_cannot_be_traced() -> None:
    assert foldable_pairs(Untraceable()) == [("block.conv1", "block.bn1")]
    assert foldable_pairs(convolutions()) == [("0", "1"), ("3", "4")]
    assert foldable_pairs(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False))) == []


def test_folding_leaves_the_outputs_as_they_were() -> None:
    model = convolutions().eval()
    x, _ = rows(1, 1, 8, 8)
    before = model(x)
    for pair in foldable_pairs(model):
        fold(model, *pair)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    torch.testing.assert_close(model(x), before)


def test_the_shape_alone_takes_the_folded_weights() -> None:
    model, fresh = convolutions().eval(), convolutions(seed=9).eval()
    pairs = foldable_pairs(model)
    for pair in pairs:
        fold(model, *pair)
        make_room(fresh, *pair)
    fresh.load_state_dict(model.state_dict())
    x, _ = rows(1, 1, 8, 8)
    assert torch.equal(fresh(x), model(x))
