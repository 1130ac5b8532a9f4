"""Small networks, each with one thing that couples channels in its own way."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 11), nn.PReLU(11), nn.Linear(11, 5))


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for width in (8, 0, 16, 16, 0):
        if width:
            layers += [
                nn.Conv2d(channels, width, 3, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 5))


class Residual(nn.Module):
    """Two writers to one stream, pooled to 4 × 4 and flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.last, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, 12, 1), nn.Linear(12 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = F.relu(x + self.norm(self.conv(x)))
        return self.head(F.adaptive_avg_pool2d(self.last(x), 4).flatten(1))


class Concatenation(nn.Module):
    """The second convolution reads the first, the third reads both."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.both = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1), nn.Conv2d(14, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x).relu()
        both = torch.cat([one, self.two(one).relu()], dim=1)
        return self.head(self.both(both).relu().mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution between two others; as many groups as channels make it depthwise."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.first, self.grouped = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 3, groups=groups, padding=1)
        self.norm, self.last, self.head = nn.BatchNorm2d(32), nn.Conv2d(32, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.grouped(self.first(x).relu())).relu()
        return self.head(self.last(x).mean((2, 3)))


class Shuffled(nn.Module):
    """Half of the channels is worked on, then the two halves are interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 8, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).chunk(2, dim=1)
        x = torch.cat([left, self.second(right).relu()], dim=1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)
        return self.head(x.mean((2, 3)))


class Gate(nn.Module):
    """Squeeze and excitation: each channel scaled by a number made from all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down, self.up = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        scale = self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))).sigmoid()
        return self.last(x * scale).mean((2, 3))


class Excited(nn.Module):
    """Residual blocks of three kinds in a list: a gate, a sum with a gate inside, and layers without a path past."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 5)
        self.layers = nn.ModuleList([Gating(), Adding(), nn.Sequential(nn.Linear(8, 8), nn.ReLU())])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Gating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale(x).sigmoid()


class Adding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(nn.Linear(8, 8), Gating())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.parts(x)


class UNet(nn.Module):
    """A strided convolution, a transposed one, and the skip joined on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.up, self.last = nn.ConvTranspose2d(12, 10, 2, stride=2), nn.Conv2d(18, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.last(torch.cat([x, self.up(self.down(x).relu()).relu()], dim=1))


class PaddedShortcut(nn.Module):
    """The shortcut gets zero channels on both sides instead of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.wide, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.head((self.wide(x) + F.pad(x, (0, 0, 0, 0, 4, 4))).mean((2, 3)))


class GatedMLP(nn.Module):
    """One half gates the other: two layers, or one whose output is cut in half."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused, self.up = fused, nn.Linear(6, 32 if fused else 16)
        self.gate = nn.Identity() if fused else nn.Linear(6, 16)
        self.down = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        up, gate = self.up(x).chunk(2, dim=-1) if self.fused else (self.up(x), self.gate(x))
        return self.down(up * F.silu(gate))


class TiedAutoencoder(nn.Module):
    """The decoder is the encoder's weight, transposed; one more parameter is held under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.again, self.head = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(6, 5)
        self.again.weight = self.encoder.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.encoder(x).relu() + self.again(x).tanh()
        return self.head(F.linear(hidden, self.encoder.weight.t()))


class Recurrent(nn.Module):
    """One layer used three times on its own output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(3):
            x = torch.tanh(self.again(x))
        return self.last(x)


class FusedAttention(nn.Module):
    """Query, key and value from one layer, taken apart in one of many ways, beside a residual path."""

    def __init__(self, style: str, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.style, self.heads, self.head_width, self.width = style, heads, width // heads, width
        self.first, self.qkv = nn.Linear(6, width), nn.Linear(width, 3 * width)
        self.out, self.last = nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        batch, tokens, width = x.shape
        qkv = self.qkv(x)
        if self.style == "reshape":
            parts = (
                qkv.reshape(batch, tokens, 3, self.heads, self.head_width).permute(2, 0, 3, 1, 4).unbind(0)
            )
        elif self.style == "split":
            parts = qkv.split(self.width, dim=2)
            parts = [p.view(batch, tokens, self.heads, self.head_width).transpose(1, 2) for p in parts]
        elif self.style == "slice":
            parts = [qkv[..., i * self.width : (i + 1) * self.width] for i in range(3)]
            parts = [p.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for p in parts]
        elif self.style == "ratio":  # right only while heads and width shrink alike
            parts = [
                p.unflatten(-1, (self.heads, width // self.heads)).transpose(1, 2) for p in qkv.chunk(3, -1)
            ]
        else:
            parts = [p.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for p in qkv.chunk(3, dim=-1)]
        query, key, value = parts
        if self.style == "einsum":
            weights = torch.einsum("bhqd,bhkd->bhqk", query, key).softmax(-1)
            mixed = torch.einsum("bhqk,bhkd->bhqd", weights, value)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value)
        return self.last(x + self.out(mixed.transpose(1, 2).flatten(-2)))


class GroupedQuery(nn.Module):
    """Eight query heads on two key-value heads, repeated by torch."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(6, 32), nn.Linear(6, 8), nn.Linear(6, 8)
        self.out = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        parts = (
            layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(*parts, enable_gqa=True)
        return self.out(mixed.transpose(1, 2).flatten(-2))


class Masked(nn.Module):
    """A weight times a buffer of its shape, as masks are, and a table of constants added to what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 5)
        self.register_buffer("mask", (torch.rand(16, 6) > 0.3).float())
        self.register_buffer("angles", torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.outer(torch.arange(x.shape[1]).float(), self.get_buffer("angles")).cos()
        return self.last(F.linear(x, self.first.weight * self.get_buffer("mask"), self.first.bias).relu())


class WrittenSize(nn.Module):
    """A size written into the code, which nothing can change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.last = nn.Conv2d(3, 6, 3), nn.Linear(216, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.hidden(self.conv(x).relu().view(-1, 216)).relu())


class UnknownOperation(nn.Module):
    """Channels through an operation without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.hidden, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(
            self.hidden(torch.cdist(self.first(x), self.first(x)).mean(-1, keepdim=True) + self.first(x))
        )


class LooksAtValues(nn.Module):
    """Another path where the sum is positive."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return x * 2 if x.sum() > 0 else x
