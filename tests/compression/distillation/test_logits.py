"""Distillation of logits in a plain loop: the very loss and gradients that a hand-written step has."""

import copy

import pytest
import torch
import torch.nn.functional as F
from forgepress.compression import Chain, Run, Teacher, build, weights_of
from forgepress.compression.distillation.logits import LogitDistillation
from forgepress.errors import ConfigError
from torch import nn


def network(seed: int, hidden: int = 12) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, hidden), nn.Tanh(), nn.Dropout(0.5), nn.Linear(hidden, 9)).eval()


STUDENT, TEACHER = network(0), network(1, 20)
INPUTS = torch.randn(7, 6, generator=torch.Generator().manual_seed(2))
TARGETS = torch.tensor([0, 3, 8, 8, 1, 5, 2])


def step(
    technique, student: nn.Module, columns, *, items_mask=None, teacher=TEACHER
) -> tuple[torch.Tensor, Run]:
    """Loss of one step in a loop of one's own; gradients are left in the student."""
    parameters = dict(student.named_parameters())
    run = Run(weights_of(parameters), steps=3, teacher=Teacher(copy.deepcopy(teacher)), items_mask=items_mask)
    chain = Chain([technique], run)
    chain.set_up()
    run.items = float((columns["targets"] != -100).sum())
    chain.before_step()
    columns = chain.add_columns(columns)
    logits = student(columns["inputs"])
    loss = F.cross_entropy(logits.flatten(0, -2), columns["targets"].flatten(), ignore_index=-100)
    loss = chain.add_loss(logits, columns, loss)
    loss.backward()
    chain.after_backward()
    return loss.detach(), run


def gradients(module: nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in module.parameters()]


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_loss_and_gradients_are_those_of_a_hand_written_step(direction):
    technique = LogitDistillation(temperature=2.0, alpha=0.3, direction=direction)
    mine, by_hand = copy.deepcopy(STUDENT), copy.deepcopy(STUDENT)
    found, _ = step(technique, mine, {"inputs": INPUTS, "targets": TARGETS})
    logits = by_hand(INPUTS)
    with torch.no_grad():
        p = (TEACHER(INPUTS) / 2.0).log_softmax(-1)
    q = (logits / 2.0).log_softmax(-1)
    first, second = (q, p) if direction == "forward" else (p, q)
    kl = F.kl_div(first, second, reduction="batchmean", log_target=True)
    wanted = 0.7 * F.cross_entropy(logits, TARGETS) + 0.3 * 4.0 * kl
    wanted.backward()
    torch.testing.assert_close(found, wanted.detach())
    for ours, theirs in zip(gradients(mine), gradients(by_hand), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_tokens_that_the_loss_ignores_do_not_count():
    tokens = INPUTS.repeat(2, 1).view(2, 7, 6)
    targets = TARGETS.repeat(2).view(2, 7).clone()
    targets[0, 4:] = -100
    technique = LogitDistillation(temperature=1.5, alpha=1.0)

    def items(columns, valid, logits):
        return columns["targets"] != -100

    student = copy.deepcopy(STUDENT)
    found, run = step(technique, student, {"inputs": tokens, "targets": targets}, items_mask=items)
    p, q = ((model(tokens) / 1.5).log_softmax(-1) for model in (TEACHER, STUDENT))
    each = (p.exp() * (p - q)).sum(-1)
    torch.testing.assert_close(found, 1.5**2 * each[targets != -100].mean().detach())
    torch.testing.assert_close(run.attached["0.distillation.logits"], found / 1.5**2)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_all_but_one_class_kept_are_all_classes(direction):
    columns = {"inputs": INPUTS, "targets": TARGETS}
    some, every = copy.deepcopy(STUDENT), copy.deepcopy(STUDENT)
    found, _ = step(LogitDistillation(temperature=2.0, direction=direction, top_k=8), some, columns)
    wanted, _ = step(LogitDistillation(temperature=2.0, direction=direction), every, columns)
    torch.testing.assert_close(found, wanted)
    for ours, theirs in zip(gradients(some), gradients(every), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_student_that_is_its_teacher_has_nothing_to_learn_from_it():
    columns = {"inputs": INPUTS, "targets": TARGETS}
    for top_k in (None, 3):
        student = copy.deepcopy(TEACHER)
        loss, _ = step(LogitDistillation(alpha=1.0, top_k=top_k), student, columns)
        assert abs(loss) < 1e-6 and all(g.abs().max() < 1e-6 for g in gradients(student))


def test_a_check_fails_where_no_loss_ever_got_its_term():
    run = Run(weights_of(dict(STUDENT.named_parameters())), steps=3, teacher=Teacher(TEACHER))
    chain = Chain([LogitDistillation()], run)
    chain.set_up()
    chain.before_step()
    chain.add_columns({"inputs": INPUTS})
    assert not chain.checks()["0.distillation.logits"][0].holds


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"alpha": 0.0}, "alpha=0.0: want more than 0"),
        ({"alpha": 1.5}, "at most 1"),
        ({"temperature": 0.0}, "temperature=0.0: want more than 0"),
        ({"match": "fc1.*"}, "looks at outputs, not at parameters"),
        ({"top_k": 0}, "top_k=0: want 1 or more"),
        ({"direction": "sideways"}, "direction"),
        ({"teachr": "gpt"}, "did you mean 'teacher'"),
    ],
)
def test_wrong_settings_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        build("distillation.logits", settings)


def test_other_classes_are_refused_before_and_during_the_run():
    shapes = {"": (2, 9)}, {"": (2, 10)}
    with pytest.raises(ConfigError, match=r"the student gives logits \[2, 9\], the teacher \[2, 10\]"):
        LogitDistillation().fitted(*shapes)
    with pytest.raises(ConfigError, match="top_k=9, but the teacher has 9 classes"):
        LogitDistillation(top_k=9).fitted(shapes[0], shapes[0])
    with pytest.raises(ConfigError, match="the same items and classes"):
        columns = {"inputs": INPUTS, "targets": TARGETS}
        step(LogitDistillation(), copy.deepcopy(STUDENT), columns, teacher=nn.Linear(6, 4))
