"""Distillation of attention: relations and maps of the modules that are named, in a plain loop."""

import copy

import pytest
import torch
import torch.nn.functional as F
from forgepress.compression import Chain, Run, Teacher, build, weights_of
from forgepress.compression.distillation.attention import AttentionDistillation
from forgepress.errors import ConfigError
from torch import nn

INPUTS = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(2))  # rows, tokens, features


class Attention(nn.Module):
    """A fused projection and a separate key, of which only the output of the former goes on."""

    def __init__(self, seed: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.fused, self.key = nn.Linear(6, 3 * width), nn.Linear(6, width)

    def forward(self, x):
        return self.fused(x).sum(-1) + self.key(x).sum(-1)


def attached(technique, student: nn.Module, teacher: nn.Module, **columns: torch.Tensor) -> Run:
    columns = {"inputs": INPUTS, **columns}
    parameters, modules = dict(student.named_parameters()), dict(student.named_modules())
    run = Run(weights_of(parameters), steps=3, modules=modules, teacher=Teacher(copy.deepcopy(teacher)))
    chain = Chain([technique], run)
    chain.set_up()
    run.rows = float(len(columns["inputs"]))
    chain.before_step()
    run.now.columns = chain.add_columns(columns)
    (student(columns["inputs"]).sum() * 0.0).backward()
    chain.after_backward()
    return run


def relations(x: torch.Tensor, heads: int) -> torch.Tensor:
    parts = torch.stack(x.chunk(heads, -1), 1)
    return torch.softmax(parts @ parts.mT / parts.shape[-1] ** 0.5, -1)


def test_relations_of_named_projections_and_of_parts_of_fused_ones():
    student, teacher = Attention(0, 4), Attention(1, 8)
    layers = {"key": "fused[2/3]", "fused[3/3]": "key"}
    technique = AttentionDistillation(layers=layers, heads=2, weight=0.7)
    by_hand = copy.deepcopy(student)
    run = attached(technique, student, teacher)
    pairs = [
        (by_hand.key(INPUTS), teacher.fused(INPUTS)[..., 8:16]),
        (by_hand.fused(INPUTS)[..., 8:], teacher.key(INPUTS)),
    ]
    terms = [
        0.7 * F.kl_div(relations(s, 2).log(), relations(t.detach(), 2), reduction="sum") / (2 * 5 * 3)
        for s, t in pairs
    ]
    found = [run.attached[f"0.distillation.attention/{name}"] for name in layers]
    torch.testing.assert_close(torch.stack(found), torch.stack(terms).detach())
    sum(terms).backward()
    for ours, theirs in zip(student.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_padding_neither_relates_nor_is_related_to():
    student, teacher = Attention(0, 4), Attention(1, 4)
    mask = torch.ones(3, 5, dtype=torch.long)
    mask[:, 3:] = 0
    technique = AttentionDistillation(layers={"key": "key"})
    run = attached(technique, student, teacher, attention_mask=mask)
    short = relations(student.key(INPUTS[:, :3]), 1).log(), relations(teacher.key(INPUTS[:, :3]), 1)
    torch.testing.assert_close(
        run.attached["0.distillation.attention/key"], F.kl_div(*short, reduction="sum") / (3 * 3)
    )


def test_maps_of_convolutions():
    torch.manual_seed(0)
    student, teacher = (nn.Sequential(nn.Conv2d(1, n, 3)) for n in (2, 6))
    pictures = torch.randn(4, 1, 7, 7)
    run = attached(AttentionDistillation(layers={"0": "0"}), student, teacher, inputs=pictures)
    a, b = (F.normalize(m(pictures).square().mean(1).flatten(1)) for m in (student, teacher))
    torch.testing.assert_close(run.attached["0.distillation.attention/0"], (a - b).square().sum(-1).mean())
    assert student[0].weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"layers": {}}, "want at least one pair"),
        ({"layers": {"a": "b"}, "heads": 0}, "heads=0: want 1 or more"),
        ({"layers": {"a": "b"}, "weight": -1.0}, "weight=-1.0: want more than 0"),
        ({"layers": {"a[4/3]": "b"}}, "want a part from 1 to 3"),
        ({"layers": {"a": "b[x]"}}, "or with one of its parts"),
    ],
)
def test_wrong_settings_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        build("distillation.attention", settings)


@pytest.mark.parametrize(
    ("mine", "other", "heads", "said"),
    [
        ((2, 5), (2, 5), 1, "want .rows, tokens, width. of both"),
        ((2, 5, 4), (2, 4, 6, 6), 1, "of both"),
        ((2, 5, 4), (2, 6, 4), 1, "want the same tokens in both"),
        ((2, 5, 4), (2, 5, 6), 4, "want heads that divide both widths, but heads is 4"),
    ],
)
def test_what_cannot_be_compared_is_refused(mine, other, heads, said):
    with pytest.raises(ConfigError, match=said):
        AttentionDistillation(layers={"a": "b"}, heads=heads).fitted({"a": mine}, {"b": other})
    with pytest.raises(ConfigError, match="4 features have no 3 equal parts"):
        AttentionDistillation(layers={"a[1/3]": "b"}).fitted({"a": (2, 5, 4)}, {"b": (2, 5, 4)})
