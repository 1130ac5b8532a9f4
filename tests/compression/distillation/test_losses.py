"""The losses against torch's own, and what top-k promises."""

import pytest
import torch
import torch.nn.functional as F
from forgepress.compression.distillation._losses import (
    cosine_distance,
    divergence,
    kept,
    map_distance,
    packed,
    relation,
    relation_divergence,
    squared_distance,
    unpacked,
)


def logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("reverse", [False, True])
def test_divergence_and_its_gradient_are_torchs_own(reverse):
    teacher, student = logits(0, 3, 5, 7), logits(1, 3, 5, 7).requires_grad_()
    p, q = teacher.log_softmax(-1), student.log_softmax(-1)
    target, given = (q, p) if reverse else (p, q)
    wanted = F.kl_div(given, target, reduction="none", log_target=True).sum(-1)
    found = divergence(teacher, student, reverse=reverse)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        *(torch.autograd.grad(x.sum(), student, retain_graph=True)[0] for x in (found, wanted))
    )


@pytest.mark.parametrize("reverse", [False, True])
def test_all_classes_kept_give_the_whole_divergence(reverse):
    teacher, student = logits(0, 4, 6), logits(1, 4, 6)
    indices = teacher.topk(5, -1).indices  # the sixth is "all others"
    found = divergence(kept(teacher, indices), kept(student, indices), reverse=reverse)
    torch.testing.assert_close(found, divergence(teacher, student, reverse=reverse))


def test_fewer_kept_classes_give_their_true_probabilities_and_never_more_divergence():
    teacher, student = logits(0, 50, 40), logits(1, 50, 40)
    indices = teacher.topk(4, -1).indices
    probabilities = kept(teacher, indices).softmax(-1)
    torch.testing.assert_close(probabilities[:, :4], teacher.softmax(-1).gather(-1, indices))
    part = divergence(kept(teacher, indices), kept(student, indices))
    assert (part > 0).all() and (part <= divergence(teacher, student) + 1e-5).all()


def test_a_certain_teacher_and_a_certain_student_give_finite_gradients():
    teacher = torch.tensor([[80.0, 0.0, -80.0, 1.0]])
    for reverse in (False, True):
        student = torch.tensor([[-90.0, 90.0, 0.0, 0.0]], requires_grad=True)
        indices = teacher.topk(2, -1).indices
        loss = divergence(kept(teacher, indices), kept(student, indices), reverse=reverse).sum()
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(student.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packing_keeps_every_bit(dtype):
    x = logits(2, 3, 5, 70_000).to(dtype)  # more classes than 16 bits count
    values, indices = unpacked(packed(x, 6))
    assert values.shape == (3, 5, 7) and indices.shape == (3, 5, 6)
    assert torch.equal(indices, x.topk(6, -1).indices)
    assert torch.equal(values, kept(x, indices))


def test_distances_are_torchs_own():
    teacher, student = logits(0, 3, 5, 8), logits(1, 3, 5, 8)
    wanted = F.mse_loss(student, teacher, reduction="none").mean(-1)
    torch.testing.assert_close(squared_distance(teacher, student), wanted)
    ends = F.normalize(teacher, dim=-1) - F.normalize(student, dim=-1)
    torch.testing.assert_close(2 * cosine_distance(teacher, student), ends.square().sum(-1))


def test_relations_are_scaled_dot_products_of_each_head():
    x = logits(0, 2, 5, 6) / 3
    for head in range(3):
        part = x[..., 2 * head : 2 * head + 2]
        wanted = torch.softmax(part @ part.mT / 2**0.5, -1)
        torch.testing.assert_close(relation(x, 3, None)[:, head].exp(), wanted)


def test_relations_do_not_see_padding_and_widths_may_differ():
    teacher, student = logits(0, 2, 5, 12) / 3, logits(1, 2, 5, 6) / 3
    real = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    found = relation_divergence(teacher, student, 3, real)
    cut = relation_divergence(teacher[:1, :3], student[:1, :3], 3, None)
    torch.testing.assert_close(found[:1, :3], cut)
    assert torch.isfinite(found).all()
    assert relation_divergence(teacher, teacher, 4, real).abs().max() < 1e-6


def test_maps_forget_channels_and_scale():
    teacher = logits(0, 2, 8, 6, 6)
    same = torch.cat([teacher[:, :8], teacher[:, :8]], 1) * 0.5
    assert map_distance(teacher, same).abs().max() < 1e-6
    a, b = (F.normalize(x.square().mean(1).flatten(1)) for x in (teacher, logits(1, 2, 3, 6, 6)))
    torch.testing.assert_close(map_distance(teacher, logits(1, 2, 3, 6, 6)), (a - b).square().sum(-1))
    assert map_distance(teacher, logits(1, 2, 3, 4, 4)).shape == (2,)
