"""The plan brings a fresh model into the shape that phases gave it, in the order of the run."""

from __future__ import annotations

import json

import pytest
import torch
from forgepress.compression import build, kept_zeros, replay
from forgepress.compression.replay import entry
from forgepress.errors import ConfigError
from forgepress.trainer.models import build_model

OWN = "forgepress.tests.techniques:"


def model(device: str = "cpu", seed: int = 0) -> torch.nn.Module:
    spec = {"name": "lenet_300_100", "input_shape": [64], "hidden": [16, 12]}
    return build_model(spec, seed=seed, device=device).module


def test_a_replayed_plan_gives_the_finalized_models_shapes_also_without_values() -> None:
    whole = model()
    remove, slope = build(f"{OWN}RemoveNeurons", {"keep": 5}), build(f"{OWN}LearnedSlope", {})
    slope.prepare(whole)
    plan = json.loads(json.dumps([entry("shrink", t, t.finalize(whole, {})) for t in (remove, slope)]))
    for fresh in (model(seed=1), model("meta")):
        replay(fresh, plan)
        assert {n: t.shape for n, t in fresh.state_dict().items()} == {
            n: t.shape for n, t in whole.state_dict().items()
        }
    loaded = model(seed=2)
    replay(loaded, plan)
    loaded.load_state_dict(whole.state_dict())
    rows = torch.randn(3, 64)
    assert torch.equal(loaded(rows), whole(rows))


def test_an_entry_says_phase_technique_settings_and_record() -> None:
    line = entry("prune", build("pruning.magnitude", {"sparsity": 0.25}), {"zeros": ["fc1.weight"]})
    assert line["phase"] == "prune" and line["technique"] == "pruning.magnitude"
    assert line["settings"]["sparsity"] == 0.25 and line["record"] == {"zeros": ["fc1.weight"]}


def test_zeros_to_keep_are_those_of_all_phases_each_once() -> None:
    lines = [{"zeros": ["a", "b"]}, {}, {"zeros": ["b", "c"]}]
    assert kept_zeros([{"record": record} for record in lines]) == ["a", "b", "c"]


def test_a_plan_with_a_technique_that_is_not_there_any_more_is_a_config_error() -> None:
    line = {"phase": "one", "technique": "pruning.of_the_future", "settings": {}, "record": {}}
    with pytest.raises(ConfigError, match=r"pruning\.of_the_future"):
        replay(model(), [line])
