"""Techniques are found by their file's path or by an own class's, and wrong settings are named with the nearest."""

from __future__ import annotations

from pathlib import Path

import forgepress.compression
import pytest
from forgepress.compression import build, name_of, technique_class, techniques
from forgepress.errors import ConfigError
from forgepress.tests import techniques as own

OWN = "forgepress.tests.techniques:RemoveNeurons"


def test_every_technique_is_found_by_its_public_file_which_holds_no_other() -> None:
    root = Path(forgepress.compression.__path__[0])
    holding = {
        f"{path.parent.name}.{path.stem}": path.read_text().count("Technique):\n")
        for path in root.glob("*/*.py")
        if not path.stem.startswith("_")
    }
    found = techniques()
    assert found.keys() >= {"pruning.magnitude", "quantization.aware_training"}
    assert [name for name, count in holding.items() if count and name not in found] == []
    assert all(holding[name] <= 1 for name in found)
    assert all(name_of(kind) == name and technique_class(name) is kind for name, kind in found.items())


def test_an_own_class_is_named_by_where_python_finds_it() -> None:
    built = build(OWN, {"keep": 3})
    assert type(built) is own.RemoveNeurons and built.keep == 3
    assert name_of(type(built)) == OWN


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pruning.magnitud", r"'pruning.magnitud' is not known; did you mean 'pruning.magnitude'\?"),
        ("no.such.module:Thing", r"'no.such.module:Thing' cannot be imported: .*want 'package.module:Class'"),
        ("forgepress.tests.techniques:Nothing", r"cannot be imported: .*Nothing"),
        ("torch:Tensor", r"want a subclass of forgepress.Technique"),
    ],
)
def test_a_name_that_is_no_technique_is_a_config_error(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        technique_class(name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsty": 0.5}, r"pruning.magnitude.sparsty: unknown setting; did you mean 'sparsity'\?"),
        ({"every": "often"}, r"pruning.magnitude.every: .*given 'often'"),
        ({"scope": "everywhere"}, r"pruning.magnitude.scope: .*'global', 'uniform', 'per_layer'"),
        ({"sparsity": 1.0}, r"pruning.magnitude: sparsity=1.0: want a share from 0 to below 1"),
    ],
)
def test_a_wrong_setting_is_a_config_error_that_names_it(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("pruning.magnitude", settings)


def test_several_wrong_settings_are_all_named() -> None:
    with pytest.raises(ConfigError, match=r"(?s)sparsty.*evry"):
        build("pruning.magnitude", {"sparsty": 0.5, "evry": 3})


def test_settings_survive_the_way_through_a_plan() -> None:
    import json

    given = {"sparsity": {"fc1.*": 0.9}, "scope": "per_layer", "match": ["fc1.*", "!fc1.bias"]}
    technique = build("pruning.magnitude", given)
    assert build("pruning.magnitude", json.loads(json.dumps(technique.settings()))) == technique
