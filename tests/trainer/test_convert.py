"""Plain weights of a checkpoint are those of the run, and what cannot be converted is refused."""

from pathlib import Path

import pytest
import torch
from forgepress.errors import ConfigError
from forgepress.parallel import Mesh
from forgepress.tests.sessions import config_of
from forgepress.trainer.convert import convert
from forgepress.trainer.loop import Trainer
from safetensors.torch import load_file


def test_plain_weights_are_those_that_the_run_ended_with(tmp_path: Path) -> None:
    technique = {"name": "pruning.magnitude", "sparsity": 0.5, "end": 0.7, "every": 1}
    phases = [{"name": "prune", "steps": 3, "techniques": [technique]}]
    config = config_of(tmp_path / "run", {}, phases=phases)
    trainer = Trainer(config, mesh=Mesh())
    trainer.fit()
    written = load_file(convert(config.run_folder, tmp_path / "plain") / "model.safetensors")
    for name, weight in trainer.assembly.engine.parameters().items():
        assert torch.equal(written[name], weight.detach()), name
    with pytest.raises(ConfigError, match="holds files already"):
        convert(config.run_folder, tmp_path / "plain")
    with pytest.raises(ConfigError, match="not one of transformers"):
        convert(config.run_folder, tmp_path / "other", format="transformers")
