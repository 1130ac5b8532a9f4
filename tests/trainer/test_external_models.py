"""Models of others: own factories, transformers and timm, built from configs without any download."""

import json
import subprocess
import sys

import pytest
import torch
from forgepress.errors import ConfigError
from forgepress.parallel.layout import Layout
from forgepress.trainer.models import BuiltModel, build_model
from torch import nn


def states_equal(left: nn.Module, right: nn.Module) -> bool:
    one, other = left.state_dict(), right.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ── own factories


def small(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))


def with_layout(width: int) -> nn.Module:
    module = small(width)
    module.layout = Layout(order=("0", "1", "2"), tensor_plan={"0": "column", "2": "row"})
    return module


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 2)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.inner(rows)


@pytest.fixture
def factories(monkeypatch):
    monkeypatch.setitem(sys.modules, "own_models", sys.modules[__name__])


def test_a_factory_gets_its_args_and_a_sequential_its_order(factories):
    spec = {"factory": "own_models:small", "args": {"width": 5}}
    built = build_model(spec, seed=1, data={"input_shape": (4,)})
    assert built.layout.order == ("0", "1", "2") and built.task == "classification" and built.spec == spec
    assert built.module(*built.example(3)).shape == (3, 2)
    torch.manual_seed(8)
    assert states_equal(built.module, build_model(spec, seed=1).module)


def test_a_factorys_own_layout_counts_and_an_unknown_forward_has_no_order(factories):
    built = build_model({"factory": "own_models:with_layout", "args": {"width": 5}})
    assert built.layout.tensor_plan == {"0": "column", "2": "row"}
    unknown = build_model({"factory": "own_models:Own"})
    assert unknown.layout == Layout()
    with pytest.raises(ConfigError, match="shape of an input is unknown"):
        unknown.example(1)


# ── the libraries


def test_building_a_built_in_model_imports_no_model_library():
    code = (
        "import sys; from forgepress.trainer.models import build_model; build_model('lenet_5'); "
        "print([name for name in ('transformers', 'timm', 'torchvision', 'datasets') if name in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


TINY = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 12}
LIBRARY = {
    "bert": ("sequence_classification", TINY),
    "gpt2": ("causal_lm", {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}),
    "llama": ("causal_lm", {**TINY, "num_key_value_heads": 1}),
    "vit": ("image_classification", {**TINY, "image_size": 16, "patch_size": 8}),
}
FACTS = {"vocabulary": 31, "length": 6, "classes": 3}


def from_library(name: str, **options) -> BuiltModel:
    task, config = LIBRARY[name]
    return build_model({"transformers": name, "task": task, "config": config}, data=FACTS, **options)


@pytest.mark.parametrize("name", LIBRARY)
def test_a_transformers_model_from_its_config_has_the_datas_sizes(name):
    pytest.importorskip("transformers")
    built = from_library(name)
    logits = built.module(*built.example(2)).logits
    assert logits.shape == ((2, 6, 31) if name in ("gpt2", "llama") else (2, 3))
    assert built.task == f"transformers.{LIBRARY[name][0]}" and built.module.training
    assert len([unit for unit in built.layout.units if unit.endswith((".0", ".1"))]) == 2


@pytest.mark.parametrize("name", LIBRARY)
def test_a_transformers_model_is_rebuilt_from_its_spec(name):
    pytest.importorskip("transformers")
    built = from_library(name, seed=2)
    assert built.spec["pretrained"] is False
    torch.manual_seed(11)
    assert states_equal(built.module, build_model(json.loads(json.dumps(built.spec)), seed=2).module)
    shapes = from_library(name, device="meta")
    assert {n: t.shape for n, t in shapes.module.state_dict().items()} == {
        n: t.shape for n, t in built.module.state_dict().items()
    }


def test_a_pretrained_transformers_model_is_loaded_from_a_folder_in_float32(tmp_path):
    pytest.importorskip("transformers")
    saved = from_library("gpt2", seed=5).module
    saved.to(torch.bfloat16).save_pretrained(tmp_path)
    loaded = build_model({"transformers": str(tmp_path), "task": "causal_lm"}, seed=6)
    assert loaded.spec["pretrained"] is True and loaded.module.training
    for name, parameter in loaded.module.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, saved.get_parameter(name).float()), name


@pytest.fixture
def saved(tmp_path):
    """A BERT of five layers in a folder; its body's weights."""
    spec = {"transformers": "bert", "task": "masked_lm", "config": {**TINY, "num_hidden_layers": 5}}
    module = build_model(spec, data=FACTS, seed=3).module
    module.save_pretrained(tmp_path)
    return tmp_path, dict(module.named_parameters())


def test_chosen_layers_of_a_pretrained_model_stay_under_a_new_head(saved):
    pytest.importorskip("transformers")
    folder, weights = saved
    spec = {"transformers": str(folder), "task": "sequence_classification", "layers": [4, 1]}
    built = build_model(spec, data=FACTS)
    own = dict(built.module.named_parameters())
    for name, parameter in own.items():
        source = name.replace("layer.0.", "layer.4.")
        if "classifier" not in name and "pooler" not in name:
            assert torch.equal(parameter, weights[source]), name
    assert built.module(*built.example(2)).logits.shape == (2, 3)
    assert not any("layer.2" in name for name in own)
    assert built.module.config.num_hidden_layers == 2
    for again in (build_model(built.spec, device="meta"), build_model({**built.spec, "pretrained": False})):
        assert {n: p.shape for n, p in again.module.named_parameters()} == {
            n: p.shape for n, p in own.items()
        }


def test_changes_of_a_pretrained_models_own_config_keep_the_rest_of_it(saved):
    pytest.importorskip("transformers")
    folder, weights = saved
    changes = {"hidden_dropout_prob": 0.0, "num_hidden_layers": 1, "attn_implementation": "eager"}
    spec = {"transformers": str(folder), "task": "masked_lm", "pretrained": True, "config": changes}
    built = build_model(spec)
    config = built.module.config
    assert (config.hidden_dropout_prob, config.intermediate_size, config.num_hidden_layers) == (0.0, 12, 1)
    name = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(built.module.get_parameter(name), weights[name])
    again = build_model(json.loads(json.dumps(built.spec)), device="meta").module
    assert again.config._attn_implementation == config._attn_implementation == "eager"


def test_weights_that_a_folder_lacks_and_layers_that_there_are_not_are_config_errors(saved):
    pytest.importorskip("transformers")
    spec = {"transformers": str(saved[0]), "task": "sequence_classification", "pretrained": True}
    with pytest.raises(ConfigError, match=r"its weights lack 16 .*bert.encoder.layer.5"):
        build_model({**spec, "config": {"num_hidden_layers": 6}})
    for layers in ([5], [0, 0], [], [-1]):
        with pytest.raises(ConfigError, match="different numbers from 0 to 4"):
            build_model({**spec, "layers": layers})


def test_a_model_in_an_installed_package_is_found(saved, monkeypatch):
    pytest.importorskip("transformers")
    folder, weights = saved
    (folder / "carried").mkdir()
    for file in [file for file in folder.iterdir() if file.is_file()]:
        file.rename(folder / "carried" / file.name)
    (folder / "carried" / "__init__.py").touch()
    monkeypatch.syspath_prepend(folder)
    built = build_model({"transformers": "package:carried", "task": "masked_lm"})
    name = "bert.encoder.layer.3.output.dense.weight"
    assert torch.equal(built.module.get_parameter(name), weights[name])
    assert built.spec["transformers"] == "package:carried"
    assert str(folder) not in json.dumps(built.spec), (
        "an artifact names no folder of the machine it was made on"
    )


def test_llamas_own_tensor_plan_is_taken_and_gpt2_gets_ours():
    pytest.importorskip("transformers")
    layout = from_library("llama").layout
    assert layout.tensor_plan["model.layers.*.self_attn.q_proj"] == "column"
    assert layout.tensor_plan["model.layers.*.mlp.down_proj"] == "row"
    assert layout.divisible == {"attention heads": 2, "key-value heads": 1, "mlp features": 12}
    layout = from_library("gpt2").layout
    assert layout.tensor_plan["*.attn.c_attn"] == "qkv"
    assert layout.divisible == {"attention heads": 2, "key-value heads": 2}


def test_a_unit_that_shares_a_weight_with_outside_is_no_unit():
    pytest.importorskip("transformers")
    spec = {"transformers": "bert", "task": "masked_lm", "config": TINY}
    units = build_model(spec, data=FACTS).layout.units
    assert units == ("bert.encoder.layer.0", "bert.encoder.layer.1")  # embeddings are tied to the head


def test_a_config_that_transformers_refuses_is_a_config_error():
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match="'nonsense'"):
        build_model({"transformers": "nonsense", "task": "causal_lm", "config": {"n_layer": 1}})
    with pytest.raises(ConfigError, match="cannot be loaded"):
        build_model({"transformers": "./no/such/folder", "task": "causal_lm"})


def test_a_timm_model_gets_classes_and_channels_of_the_data():
    pytest.importorskip("timm")
    built = build_model({"timm": "test_vit"}, data={"classes": 3, "input_shape": (3, 160, 160)})
    assert built.module(*built.example(1)).shape == (1, 3)
    assert built.layout.units and all(unit.startswith("blocks.") for unit in built.layout.units)
    one = build_model({"timm": "test_resnet"}, data={"classes": 4, "input_shape": (1, 32, 32)}, seed=3)
    again = build_model(one.spec, seed=3)
    assert states_equal(one.module, again.module) and again.input_shape == (1, 160, 160)
    assert one.module(*one.example(2)).shape == (2, 4)
    with pytest.raises(ConfigError, match="refused by timm"):
        build_model({"timm": "resnet_of_nobody"})


def test_a_library_that_cannot_be_imported_is_a_config_error_that_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"timm cannot be imported.*forgepress\[models\]"):
        build_model({"timm": "resnet18"})
