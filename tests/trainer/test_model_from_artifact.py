"""`model: {artifact: …}` goes on from the weights of a dense artifact."""

import shutil

import pytest
import torch
from forgepress.errors import ConfigError
from forgepress.trainer.artifact import load, save_artifact
from forgepress.trainer.models import build_model

SPEC = {"name": "lenet_300_100", "hidden": [7, 5]}


@pytest.fixture
def folder(tmp_path):
    """An artifact, and the weights in it."""

    def save(plan: list) -> dict[str, torch.Tensor]:
        built = build_model(SPEC, seed=4)
        weights = built.module.state_dict()
        save_artifact(tmp_path / "a", tensors=weights, model_spec=built.spec, plan=plan, format="packed")
        return weights

    return tmp_path / "a", save


def test_the_model_has_the_artifacts_weights_whatever_the_seed_and_its_spec_names_no_artifact(folder):
    path, save = folder
    weights = save([])
    built = build_model({"artifact": str(path)}, seed=9, data={"classes": 3})
    assert built.module.training
    state = built.module.state_dict()
    assert state.keys() == weights.keys() and all(torch.equal(state[name], weights[name]) for name in weights)
    assert built.spec == build_model(SPEC).spec and built.layout.order
    shapes = build_model({"artifact": str(path)}, device="meta").module
    assert {n: (p.shape, p.device.type) for n, p in shapes.named_parameters()} == {
        n: (p.shape, "meta") for n, p in built.module.named_parameters()
    }


def test_a_compressed_or_missing_artifact_is_refused(folder):
    path, save = folder
    with pytest.raises(ConfigError, match=r"no artifact\.json"):
        build_model({"artifact": str(path)})
    save([{"technique": "pruning.magnitude", "record": {}}])
    with pytest.raises(ConfigError, match="was compressed, in 1 steps; want a dense one"):
        build_model({"artifact": str(path)})
    with pytest.raises(ConfigError, match="unknown setting 'layers'"):
        build_model({"artifact": str(path), "layers": [0]})


def test_a_model_that_began_with_pretrained_files_needs_them_no_more(tmp_path):
    pytest.importorskip("transformers")
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 12}
    bert = {"transformers": "bert", "task": "masked_lm", "config": {**sizes, "vocab_size": 31}}
    build_model(bert, seed=1).module.save_pretrained(tmp_path / "files")
    spec = {"transformers": str(tmp_path / "files"), "task": "sequence_classification", "layers": [0, 2]}
    began = build_model(spec, data={"classes": 3})
    assert began.spec["pretrained"]
    weights = began.module.state_dict()
    save_artifact(tmp_path / "a", tensors=weights, model_spec=began.spec, plan=[], format="packed")
    shutil.rmtree(tmp_path / "files")
    for module in (load(tmp_path / "a"), build_model({"artifact": str(tmp_path / "a")}).module):
        state = module.state_dict()
        assert state.keys() == weights.keys()
        assert all(torch.equal(state[name], weights[name]) for name in weights)
