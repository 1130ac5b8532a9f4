"""What a run tells a technique: which weights, when, and random numbers that no mesh and no resume changes."""

from __future__ import annotations

import pytest
import torch
from forgepress.compression import Run, matching_names, weights_of
from forgepress.compression.ramp import ramped
from forgepress.tests.compression.loops import parameters

SHAPES = {"embed.weight": (4, 2), "fc.weight": (2, 2), "fc.bias": (2,), "norm.weight": (2,)}


@pytest.mark.parametrize(
    ("match", "names"),
    [
        ("weights", ["embed.weight", "fc.weight"]),
        ("fc.*", ["fc.weight", "fc.bias"]),
        (("weights", "!embed.*"), ["fc.weight"]),
        (("!embed.*",), ["fc.weight"]),
        (("*.bias", "norm.weight"), ["fc.bias", "norm.weight"]),
        ("FC.*", []),
    ],
)
def test_match_selects_by_name_and_shape(match: str | tuple[str, ...], names: list[str]) -> None:
    assert matching_names(SHAPES, match) == names


def test_a_list_from_yaml_matches_like_a_tuple_and_the_answer_is_kept() -> None:
    run = Run(weights_of(parameters(fc__weight=(2, 2), fc__bias=(2,))), steps=10)
    asked = run.weights(["*.bias"])  # pyright: ignore[reportArgumentType]
    assert [w.name for w in asked] == ["fc.bias"] and run.weights(("*.bias",)) is asked
    assert run.count(asked) == 2


def test_a_point_in_time_is_a_share_of_the_phase_or_a_step() -> None:
    run = Run([], steps=10)
    assert [run.at(when) for when in (0.0, 0.25, 0.75, 1.0, 1, 7)] == [0, 2, 8, 10, 1, 7]


def test_buffers_are_shaped_like_the_weight_and_belong_to_one_technique() -> None:
    run = Run(weights_of(parameters(w=(3, 2))), steps=1)
    run.scope = "0.a"
    first = run.buffer(run.all_weights[0], "mask", fill=True, dtype=torch.bool)
    assert first.shape == (3, 2) and first.all() and first.dtype == torch.bool
    assert run.buffer(run.all_weights[0], "mask", fill=False, dtype=torch.bool) is first
    run.scope = "1.a"
    assert run.buffer(run.all_weights[0], "mask", fill=False, dtype=torch.bool) is not first


def test_random_numbers_depend_on_seed_step_technique_and_label_alone() -> None:
    def draws(seed: int, scope: str, label: str) -> list[float]:
        run = Run([], steps=10, seed=seed)
        run.scope, numbers = scope, []
        for run.step in range(200):
            numbers.append(run.uniform(label))
        return numbers

    one = draws(1, "0.a", "fc1")
    torch.manual_seed(99)  # whatever torch's own generator has done
    assert draws(1, "0.a", "fc1") == one
    others = [draws(2, "0.a", "fc1"), draws(1, "1.a", "fc1"), draws(1, "0.a", "fc2")]
    assert all(other != one for other in others)
    assert all(0.0 <= x < 1.0 for x in one) and len(set(one)) == 200
    assert abs(sum(one) / 200 - 0.5) < 0.08  # four standard deviations of a uniform mean


@pytest.mark.parametrize(
    ("ramp", "values"),
    [
        ("linear", [0.0, 0.0, 0.2, 0.4, 0.8, 0.8]),
        # 0.8 · (1 - (1 - progress)³) at progress 0, 1/4, 1/2, 1
        ("cubic", [0.0, 0.0, 0.8 * (1 - 27 / 64), 0.8 * 7 / 8, 0.8, 0.8]),
        ("one_shot", [0.0, 0.8, 0.8, 0.8, 0.8, 0.8]),
    ],
)
def test_ramps_pass_through_points_computed_by_hand(ramp: str, values: list[float]) -> None:
    found = [ramped(step, begin=4, end=12, target=0.8, ramp=ramp) for step in (3, 4, 6, 8, 12, 50)]  # pyright: ignore[reportArgumentType]
    assert found == pytest.approx(values)
