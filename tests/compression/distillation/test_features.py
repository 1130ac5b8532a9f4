"""Distillation of hidden states: gradients of a hand-written step, and matrices that come and go."""

import copy

import pytest
import torch
import torch.nn.functional as F
from forgepress.compression import Chain, Run, Teacher, build, matching_names, replay, weights_of
from forgepress.compression.distillation.features import FeatureDistillation
from forgepress.compression.replay import entry
from forgepress.errors import ConfigError
from torch import nn


def network(seed: int, width: int) -> nn.Sequential:
    torch.manual_seed(seed)
    block = nn.Sequential(nn.Linear(width, width), nn.Tanh())
    return nn.Sequential(nn.Linear(6, width), block, nn.Linear(width, 4))


TEACHER = network(1, 10)
INPUTS = torch.randn(5, 3, 6, generator=torch.Generator().manual_seed(2))  # rows, tokens, features


def attached(technique, student: nn.Module, teacher: nn.Module = TEACHER, **columns: torch.Tensor) -> Run:
    """One step whose only loss is the technique's; gradients are left in the student."""
    columns = {"inputs": INPUTS, **columns}
    parameters, modules = dict(student.named_parameters()), dict(student.named_modules())
    run = Run(weights_of(parameters), steps=3, modules=modules, teacher=Teacher(copy.deepcopy(teacher)))
    chain = Chain([technique], run)
    chain.set_up()
    run.rows = float(len(INPUTS))
    chain.before_step()
    run.now.columns = chain.add_columns(columns)
    (student(columns["inputs"]).sum() * 0.0).backward()
    chain.after_backward()
    return run


def hand_written(student: nn.Module, layers: dict[str, str], distance, weights: torch.Tensor) -> torch.Tensor:
    """Sum over pairs of the weighted distances; weights: [rows, tokens]."""
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda m, a, output, key=key: seen.__setitem__(key, output)
        )
        for ours, theirs in layers.items()
        for model, name, key in ((student, ours, f"s{ours}"), (TEACHER, theirs, f"t{ours}"))
    ]
    student(INPUTS)
    with torch.no_grad():
        TEACHER(INPUTS)
    for hook in hooks:
        hook.remove()
    return sum(((distance(seen[f"t{n}"], seen[f"s{n}"]) * weights).sum() for n in layers), torch.zeros(()))


@pytest.mark.parametrize("distance", ["mse", "cosine"])
@pytest.mark.parametrize("padded", [False, True])
def test_gradients_are_those_of_a_hand_written_loss(distance, padded):
    reference = {
        "mse": lambda t, s: (t - s).square().mean(-1),
        "cosine": lambda t, s: 1 - F.cosine_similarity(t, s, dim=-1),
    }[distance]
    layers = {"0": "1", "1.1": "0", "2": "2"}
    mask = torch.ones(5, 3, dtype=torch.long)
    mask[1, 2:], mask[4, 1:] = (0, 0) if padded else (1, 1)
    mine, by_hand = network(0, 10), network(0, 10)
    columns = {"attention_mask": mask} if padded else {}
    run = attached(FeatureDistillation(layers=layers, distance=distance, weight=0.4), mine, **columns)
    wanted = 0.4 * hand_written(by_hand, layers, reference, mask / mask.sum(1, keepdim=True) / 5)
    wanted.backward()
    torch.testing.assert_close(sum(run.attached.values()), wanted.detach())
    for ours, theirs in zip(mine.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad if theirs.grad is not None else torch.zeros(()))


def test_a_module_behind_may_change_what_was_looked_at_in_place():
    torch.manual_seed(0)
    student, teacher = (nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True)) for _ in range(2))
    run = attached(FeatureDistillation(layers={"0": "0"}), student, teacher)
    wanted = F.mse_loss(student[0](INPUTS), teacher[0](INPUTS))
    torch.testing.assert_close(run.attached["0.distillation.features/0"], wanted.detach())


def fitted(**settings) -> FeatureDistillation:
    layers = {"1": "1", "0": "0", "2": "2"}
    shapes = [
        {name: (2, 3, width) for name, width in zip("012", (7, 7, 4), strict=True)},
        {name: (2, 3, width) for name, width in zip("012", (10, 10, 4), strict=True)},
    ]
    return FeatureDistillation(layers=layers, **settings).fitted(*shapes)


def test_a_matrix_is_learned_where_widths_differ_and_gone_at_the_end():
    student = network(0, 7)
    names, before = list(student.state_dict()), copy.deepcopy(student)
    technique = fitted()
    technique.prepare(student)
    new = [name for name, _ in student.named_parameters() if name not in names]
    assert new == ["0._teacher_projection", "1._teacher_projection"]
    assert isinstance(student[0], nn.Linear) and isinstance(student[1], nn.Sequential)
    assert torch.equal(student(INPUTS), before(INPUTS))
    run = attached(technique, student)
    parameters = dict(student.named_parameters())
    for name in new:
        assert parameters[name].shape == (10, 7) and parameters[name].grad.abs().max() > 0
    assert technique.checks(run)[0].holds
    record = technique.finalize(student, {})
    assert list(student.state_dict()) == names and type(student[0]) is nn.Linear
    assert torch.equal(student(INPUTS), before(INPUTS))
    fresh = network(3, 7)
    replay(fresh, [entry("distil", technique, record)])
    assert list(fresh.state_dict()) == names


def test_a_matrix_is_no_weight_that_pruning_means():
    student = network(0, 7)
    fitted(projection="always").prepare(student)
    shapes = {name: p.shape for name, p in student.named_parameters()}
    assert "2._teacher_projection" in shapes
    assert matching_names(shapes, "weights") == ["0.weight", "1.0.weight", "2.weight"]


def test_channels_of_pictures_are_their_width():
    torch.manual_seed(0)
    student, teacher = nn.Conv2d(1, 3, 3), nn.Conv2d(1, 5, 3)
    technique = FeatureDistillation(layers={"conv": "conv"}).fitted(
        {"conv": (2, 3, 6, 6)}, {"conv": (2, 5, 6, 6)}
    )
    assert technique.widths == {"conv": (3, 5)}
    whole = nn.Sequential()
    whole.add_module("conv", student)
    technique.prepare(whole)
    other = nn.Sequential()
    other.add_module("conv", teacher)
    pictures = torch.randn(5, 1, 8, 8)
    run = attached(technique, whole, other, inputs=pictures)
    mine = torch.einsum("tc,bchw->bthw", whole.conv._teacher_projection, student(pictures))
    torch.testing.assert_close(
        run.attached["0.distillation.features/conv"], F.mse_loss(mine, teacher(pictures))
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"layers": {}}, "want at least one pair"),
        ({"layers": {"0": "0"}, "weight": 0.0}, "weight=0.0: want more than 0"),
        ({}, "layers"),
    ],
)
def test_wrong_settings_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        build("distillation.features", settings)


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(
        ConfigError, match=r"0 gives \[2, 3, 7\] and the teacher's 0 \[2, 4, 7\]; only their widths"
    ):
        FeatureDistillation(layers={"0": "0"}).fitted({"0": (2, 3, 7)}, {"0": (2, 4, 7)})
    with pytest.raises(ConfigError, match="the tensor axis divides them"):
        attached(fitted(), network(0, 8))
    with pytest.raises(ConfigError, match="the teacher has no module '9'; it has 0, 1"):
        attached(FeatureDistillation(layers={"0": "9"}), network(0, 10))
    with pytest.raises(ConfigError, match="give Run"):
        Chain([FeatureDistillation(layers={"0": "0"})], Run([], steps=1)).set_up()
