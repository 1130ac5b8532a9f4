"""Schedules at points that were worked out by hand."""

import pytest
from forgepress.errors import ConfigError
from forgepress.trainer.config import ScheduleConfig
from forgepress.trainer.schedules import CURVES, factor


def at(steps: int, *points: int, **settings) -> list[float]:
    return [factor(ScheduleConfig(**settings), point, steps) for point in points]


def test_constant_stays():
    assert at(10, 0, 5, 9, 10, name="constant") == [1.0] * 4


def test_linear_falls_evenly_to_final():
    assert at(10, 0, 5, 9, 10, name="linear") == pytest.approx([1.0, 0.5, 0.1, 0.0])
    assert at(10, 0, 5, 10, name="linear", final=0.2) == pytest.approx([1.0, 0.6, 0.2])


def test_cosine_is_half_way_down_in_the_middle():
    assert at(12, 0, 4, 6, 8, 12, name="cosine") == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
    assert at(12, 6, 12, name="cosine", final=0.1) == pytest.approx([0.55, 0.1])


def test_wsd_falls_in_its_last_share_only():
    assert at(100, 0, 79, 80, 90, 99, 100, name="wsd", decay=0.2) == pytest.approx(
        [1.0, 1.0, 1.0, 0.5, 0.05, 0.0]
    )
    assert at(100, 50, 99, name="wsd", decay=0.0, final=0.3) == [1.0, 1.0]


@pytest.mark.parametrize("name", CURVES)
def test_warm_up_rises_from_above_zero_to_one(name):
    assert at(100, 0, 1, 2, 3, 4, name=name, warmup=4) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_the_fall_begins_after_the_warm_up():
    assert at(14, 4, 9, 14, name="linear", warmup=4) == pytest.approx([1.0, 0.5, 0.0])
    assert at(10, 7, 8, 9, name="wsd", decay=1.0, warmup=8) == pytest.approx([8 / 9, 1.0, 0.5])


@pytest.mark.parametrize("name", CURVES)
def test_a_phase_shorter_than_its_warm_up_never_reaches_the_full_rate(name):
    assert max(at(3, 0, 1, 2, name=name, warmup=5)) == pytest.approx(0.5)


@pytest.mark.parametrize("name", CURVES)
def test_every_factor_lies_between_final_and_one(name):
    factors = at(37, *range(45), name=name, warmup=5, final=0.05)
    assert min(factors) >= 0.05 - 1e-12 and max(factors) == 1.0
    assert factors[5:] == sorted(factors[5:], reverse=True)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ConfigError, match="'polynomial' is not known"):
        factor(ScheduleConfig.model_construct(name="polynomial"), 0, 10)
