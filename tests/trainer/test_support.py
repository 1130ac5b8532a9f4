"""The table of what is proven: complete, and what is not in it is refused at `check`."""

from typing import Any

import pytest
from forgepress.compression import techniques
from forgepress.tests.checked_run import report
from forgepress.tests.engines import ENGINES
from forgepress.tests.meshes import CONTEXT_MESHES, MESHES
from forgepress.trainer import preflight_rules
from forgepress.trainer.support import Support, kind_of, support

PLACES = {"shard=2": {"shard": 2}, "tensor=2": {"tensor": 2}, "both": {"shard": 2, "tensor": 2}}
FULL = {"a": [*PLACES], "b": ["shard=2"], "c": ["shard=2", "tensor=2"]}


def test_the_table_has_every_technique_of_the_contract_and_every_place() -> None:
    held = support()
    assert dict(held.places) == {**MESHES, **CONTEXT_MESHES, **ENGINES}
    assert set(held.proven) == {name for name, kind in techniques().items() if kind.contract or kind.traces}


@pytest.mark.parametrize(
    ("technique", "parallel", "refused"),
    [
        ("a", {"shard": 4, "tensor": 2}, False),
        ("b", {"shard": 4}, False),
        ("b", {"tensor": 2}, True),
        ("c", {"shard": 2, "tensor": 4}, True),
        ("b", {"engine": "deepspeed", "shard": 2, "deepspeed": {"stage": 3}}, True),
        ("mine.own", {"tensor": 2}, False),
        ("b", {}, False),
    ],
)
def test_what_no_test_has_shown_is_refused(technique: str, parallel: dict[str, Any], refused: bool) -> None:
    assert (Support(places=PLACES, proven=FULL).refusal(technique, parallel) is not None) == refused


def test_engines_that_divide_nothing_are_replicas() -> None:
    assert kind_of({"engine": "accelerate", "replicate": 2}) == ("replicate",)
    assert kind_of({"engine": "deepspeed", "replicate": 2, "deepspeed": {"stage": 0}}) == ("replicate",)


def test_check_names_the_technique_and_where_it_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Support(places=PLACES, proven={"pruning.magnitude": ["shard=2"]})
    monkeypatch.setattr(preflight_rules, "support", lambda: held)
    phases = [{"name": "prune", "steps": 5, "techniques": [{"name": "pruning.magnitude", "sparsity": 0.5}]}]
    messages = [p.message for p in report(2, parallel={"tensor": 2}, phases=phases).problems]
    assert messages == ["pruning.magnitude is not proven on tensor=2; use shard=2"]
