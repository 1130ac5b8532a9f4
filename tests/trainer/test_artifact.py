"""An artifact gives the same model back, is as small as it says, and refuses what is damaged or not trusted."""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from forgepress import compression
from forgepress.errors import CheckpointError, ConfigError
from forgepress.trainer import artifact
from forgepress.trainer.artifact import (
    find_artifact,
    folder_bytes,
    load,
    read_artifact,
    record,
    save_artifact,
)
from safetensors.torch import load_file
from torch import nn

SPEC = {"name": "lenet_300_100"}


def lenet(density: float = 0.05) -> nn.Module:
    from forgepress.trainer.models import build_model

    module = build_model(SPEC, seed=1).module
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:  # a product: it leaves -0.0, as masks do
                parameter.mul_(torch.rand(parameter.shape, generator=generator) < density)
    return module


def save(folder: Path, module: nn.Module, format="packed", **changes) -> int:
    given = {"tensors": module.state_dict(), "model_spec": SPEC, "plan": [], "format": format, **changes}
    return save_artifact(folder, **given)


@pytest.mark.parametrize("format", ["safetensors", "packed"])
def test_the_loaded_model_computes_the_same(tmp_path, format):
    module = lenet().eval()
    save(tmp_path / "a", module, format)
    loaded = load(tmp_path / "a")
    rows = torch.randn(5, 784, generator=torch.Generator().manual_seed(3))
    assert torch.equal(loaded(rows), module(rows))
    assert not loaded.training


def test_the_bytes_given_are_those_on_disk_and_packed_is_far_smaller(tmp_path):
    module = lenet()
    dense = save(tmp_path / "dense", module, "safetensors")
    packed = save(tmp_path / "packed", module, "packed")
    assert packed == sum(file.stat().st_size for file in (tmp_path / "packed").iterdir())
    assert dense > 4 * 266_610 and packed < dense / 12  # 5 % are kept, about 38 bits each
    assert sorted(file.name for file in tmp_path.iterdir()) == ["dense", "packed"]


def test_negative_zeros_of_a_mask_are_not_stored_as_values(tmp_path):
    save(tmp_path / "a", lenet(), "packed")
    streams = load_file(tmp_path / "a/model.safetensors")
    kept = int((lenet().state_dict()["fc1.weight"] != 0).sum())
    values = streams["fc1.weight::values"]
    assert int((values != 0).sum()) == kept
    assert int((values == 0).sum()) < kept / 4  # fillers only


def test_the_plain_format_can_be_read_by_safetensors_alone(tmp_path):
    module = lenet()
    save(tmp_path / "a", module, "safetensors")
    stored = load_file(tmp_path / "a/model.safetensors")
    assert stored.keys() == module.state_dict().keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in module.state_dict().items())


class Mixed(nn.Module):
    """Tied weights, integer buffers, an empty and a scalar parameter, bf16 beside fp32."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.embedding = nn.Embedding(11, width)
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.norm = nn.BatchNorm1d(width)
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.nothing = nn.Parameter(torch.zeros(0, 3))
        self.half = nn.Linear(width, width).to(torch.bfloat16)


@pytest.mark.parametrize("format", ["safetensors", "packed"])
def test_ties_dtypes_buffers_and_odd_shapes_survive(tmp_path, format):
    module = Mixed()
    save(tmp_path / "a", module, format, model_spec={"factory": "x:y", "args": {"width": 6}})
    stored = json.loads((tmp_path / "a/artifact.json").read_text())
    assert stored["aliases"] == {"head.weight": "embedding.weight"}
    loaded = load(tmp_path / "a", factory=Mixed)
    assert loaded.head.weight is loaded.embedding.weight
    for name, tensor in module.state_dict().items():
        assert loaded.state_dict()[name].dtype == tensor.dtype
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_tied_weight_given_under_one_name_fills_both(tmp_path):
    module = Mixed()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}  # names each tie once
    save(tmp_path / "a", module, tensors=tensors)
    assert torch.equal(load(tmp_path / "a", factory=Mixed).head.weight, module.head.weight)


def test_an_artifact_in_bf16_gives_a_model_in_bf16(tmp_path):
    module = lenet().to(torch.bfloat16)
    save(tmp_path / "a", module)
    loaded = load(tmp_path / "a")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_slices_of_one_large_tensor_are_stored_apart(tmp_path):
    whole = torch.randn(4, 6)
    save(tmp_path / "a", nn.Module(), tensors={"top": whole[:2], "bottom": whole[2:], "turned": whole.t()})
    _, tensors = read_artifact(tmp_path / "a")
    assert torch.equal(torch.cat([tensors["top"], tensors["bottom"]]), whole)
    assert torch.equal(tensors["turned"], whole.t())


def test_the_plan_is_replayed_before_the_tensors_are_loaded(tmp_path, monkeypatch):
    def cut(model, plan):
        for line in plan:
            model.fc1, model.fc2 = nn.Linear(784, line["kept"]), nn.Linear(line["kept"], 100)

    monkeypatch.setattr(compression, "replay", cut)
    module = lenet()
    cut(module, [{"kept": 120}])
    save(tmp_path / "a", module, plan=[{"kept": 120}])
    loaded = load(tmp_path / "a")
    assert loaded.fc1.weight.shape == (120, 784) and torch.equal(loaded.fc2.weight, module.fc2.weight)


def test_values_are_added_later_and_counted(tmp_path):
    before = save(tmp_path / "a", lenet(), extra={"note": "first"})
    after = record(tmp_path / "a", metrics={"accuracy": 0.981})
    manifest, _ = read_artifact(tmp_path / "a")
    assert manifest["metrics"] == {"accuracy": 0.981} and manifest["note"] == "first"
    assert after == folder_bytes(tmp_path / "a") > before
    with pytest.raises(ValueError, match="sha256"):
        record(tmp_path / "a", sha256="0")


def test_a_run_folder_means_its_newest_artifact(tmp_path):
    module = lenet()
    for age, name in ((2, "old"), (1, "new")):
        save(tmp_path / "artifacts" / name, module)
        file = tmp_path / "artifacts" / name / "artifact.json"
        os.utime(file, (1e9 - age, 1e9 - age))
    shutil.copytree(tmp_path / "artifacts/new", tmp_path / "artifacts/.half.1.partial")
    assert find_artifact(tmp_path) == find_artifact(tmp_path / "artifacts") == tmp_path / "artifacts/new"
    assert isinstance(load(tmp_path), nn.Module)


def test_saving_again_replaces_the_whole_folder(tmp_path):
    save(tmp_path / "a", lenet())
    (tmp_path / "a/left-over").write_text("old")
    save(tmp_path / "a", lenet(), "safetensors")
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == ["artifact.json", "model.safetensors"]


def test_both_files_have_the_permissions_that_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        save(tmp_path / "a", lenet())
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "a").iterdir()} == {0o640}


def test_a_failed_save_leaves_the_older_artifact_whole(tmp_path, monkeypatch):
    save(tmp_path / "a", lenet())

    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(artifact, "write_manifest", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save(tmp_path / "a", lenet(0.5))
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    assert torch.equal(load(tmp_path / "a").fc1.weight, lenet().fc1.weight)


@pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
def test_one_changed_byte_is_found(tmp_path, where):
    save(tmp_path / "a", lenet())
    file = tmp_path / "a/model.safetensors"
    content = bytearray(file.read_bytes())
    content[int(where * len(content))] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"sha256.*export it again"):
        load(tmp_path / "a")


@pytest.mark.parametrize("name", ["model.safetensors", "artifact.json"])
def test_a_cut_off_or_missing_file_is_refused(tmp_path, name):
    save(tmp_path / "a", lenet())
    file = tmp_path / "a" / name
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="again"):
        load(tmp_path / "a")
    file.unlink()
    with pytest.raises(CheckpointError, match=r"again|artifact\.json"):
        load(tmp_path / "a")


def edit(folder: Path, **changes) -> None:
    file = folder / "artifact.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_later_version_says_to_update(tmp_path):
    save(tmp_path / "a", lenet())
    edit(tmp_path / "a", version=2)
    with pytest.raises(CheckpointError, match=r"version 2.*install"):
        load(tmp_path / "a")


@pytest.mark.parametrize("key", ["model", "plan", "tensors", "aliases", "sha256"])
def test_a_manifest_without_a_needed_key_names_it(tmp_path, key):
    save(tmp_path / "a", lenet())
    edit(tmp_path / "a", **{key: None})
    with pytest.raises(CheckpointError, match=key):
        load(tmp_path / "a")


def test_a_manifest_that_asks_for_endless_memory_is_refused_before_any_is_taken(tmp_path):
    save(tmp_path / "a", lenet())
    entries = json.loads((tmp_path / "a/artifact.json").read_text())["tensors"]
    entries["fc1.weight"]["shape"] = [1 << 40, 1 << 20]
    edit(tmp_path / "a", tensors=entries)
    with pytest.raises(CheckpointError, match="another shape"):
        load(tmp_path / "a")


def test_an_endless_safetensors_header_is_an_error_with_advice(tmp_path):
    save(tmp_path / "a", lenet())
    file = tmp_path / "a/model.safetensors"
    file.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    edit(tmp_path / "a", sha256=artifact.digest(file))
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(tmp_path / "a")


def test_a_model_that_does_not_fit_is_named_tensor_by_tensor(tmp_path):
    save(tmp_path / "a", lenet())
    with pytest.raises(CheckpointError, match=r"unknown: fc1\.bias.*missing: weight"):
        load(tmp_path / "a", factory=lambda: nn.Linear(3, 3, bias=False))


def test_a_python_factory_is_not_imported_unless_trusted(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"
        "from torch import nn\ndef make(width):\n    return nn.Linear(width, width)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = nn.Linear(4, 4)
    save(tmp_path / "a", module, model_spec={"factory": "planted:make", "args": {"width": 4}})
    with pytest.raises(CheckpointError, match=r"planted:make.*trust_factory=True"):
        load(tmp_path / "a")
    assert not (tmp_path / "ran").exists()
    assert torch.equal(
        load(tmp_path / "a", factory=lambda width: nn.Linear(width, width)).weight, module.weight
    )
    assert not (tmp_path / "ran").exists()
    assert torch.equal(load(tmp_path / "a", trust_factory=True).weight, module.weight)
    assert (tmp_path / "ran").exists()


def test_a_missing_artifact_says_what_is_wanted(tmp_path):
    with pytest.raises(CheckpointError, match="run folder"):
        load(tmp_path)


def test_an_unknown_format_names_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match="want safetensors, packed, torch_int8"):
        save(tmp_path / "a", lenet(), "zip")


def test_a_quantized_layer_is_stored_as_integers_and_its_scales_once(tmp_path):
    from forgepress.compression.quantization.grid import exact
    from forgepress.compression.quantization.modules import quantized

    torch.manual_seed(0)
    module = Mixed(width=8)
    module.embedding.weight.data = module.embedding.weight.data.div(0.03).round().clamp(-127, 127) * exact(
        torch.tensor([[0.03]])
    )
    for layer in (module.embedding, module.head):  # tied: one weight, a scale under each of its names
        made = quantized(layer, weight_bits=8, group_size=0, weight_symmetric=True, input_quantizer=None)
        made.deliver(exact(torch.full((11, 1), 0.03)), None)
    module.head.weight_scale = module.embedding.weight_scale
    save(tmp_path / "a", module, model_spec={"factory": "x:y"})
    stored = json.loads((tmp_path / "a/artifact.json").read_text())
    entry = stored["tensors"]["embedding.weight"]
    assert entry["encoding"] == "grid" and entry["scale"] == "embedding.weight_scale" and entry["bits"] == 8
    assert stored["aliases"] == {
        "head.weight": "embedding.weight",
        "head.weight_scale": "embedding.weight_scale",
    }
    streams = load_file(tmp_path / "a/model.safetensors")
    assert streams["embedding.weight::levels"].nbytes == 88
    _, tensors = read_artifact(tmp_path / "a")
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensors[name], tensor), name


def test_a_grid_whose_scale_is_not_there_is_damage(tmp_path):
    weight = torch.arange(-40.0, 40.0).reshape(8, 10) * 0.5
    tensors = {"weight": weight, "weight_scale": torch.full((8, 1), 0.5)}
    save(tmp_path / "a", nn.Module(), tensors=tensors)
    path = tmp_path / "a/artifact.json"
    stored = json.loads(path.read_text())
    stored["tensors"]["weight"]["scale"] = "elsewhere"
    path.write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_artifact(tmp_path / "a")
