"""The callback in Lightning's Trainer comes to the weights of a plain loop; also after a resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from forgepress.compression import build
from forgepress.compression.integrations import Compressor, Phase, lightning_callback
from forgepress.compression.pruning.magnitude import Magnitude
from forgepress.errors import ConfigError
from forgepress.tests.compression.integrations import hosts
from forgepress.tests.compression.integrations.hosts import (
    CLIP,
    INPUTS,
    LABELS,
    RATE,
    STEPS,
    Net,
    assert_same,
)
from forgepress.tests.sessions import torchvision_operators
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

torchvision_operators()
pl = pytest.importorskip("lightning.pytorch", reason="the callback for Lightning needs lightning")
pytestmark = pytest.mark.filterwarnings("ignore")


class Module(pl.LightningModule):
    """A `Net` inside: its parameters are called ``net.…``."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return self.net(inputs, labels)["loss"]

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self(batch[0], batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=RATE, momentum=0.9)


def fit(
    folder: Path,
    model: Any,
    compressor: Compressor,
    *,
    steps: int = STEPS,
    resume: Any = None,
    **settings: Any,
) -> None:
    values: dict[str, Any] = {
        "default_root_dir": str(folder),
        "max_epochs": steps,
        "accelerator": "cpu",
        "devices": 1,
        "accumulate_grad_batches": 2,
        "gradient_clip_val": CLIP,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(
        **{
            **values,
            **settings,
            "callbacks": [lightning_callback(compressor), *settings.get("callbacks", [])],
        }
    )
    trainer.fit(model, DataLoader(TensorDataset(INPUTS, LABELS), 12), ckpt_path=resume)


def test_accumulation_clipping_and_phases_come_to_the_weights_of_a_plain_loop(tmp_path: Path) -> None:
    model, alone = Module(), Net()
    compressor = Compressor(model, [*_renamed(hosts.phases())])
    fit(tmp_path, model, compressor)
    hosts.plain(alone)
    assert_same(hosts.weights(model.net), hosts.weights(alone), rtol=1e-4, atol=1e-6)


def _renamed(phases: list[Phase]) -> list[Phase]:
    """The one glob over module names looks for them below ``net.``."""
    first = phases[0]
    techniques = [
        dataclasses.replace(t, match="net.relu") if t.match == "relu" else t for t in first.techniques
    ]
    return [dataclasses.replace(first, techniques=techniques), *phases[1:]]


def test_a_resumed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = Module()
    fit(tmp_path, whole, Compressor(whole, _renamed(hosts.phases())))
    first = Module()
    saving = pl.callbacks.ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    fit(
        tmp_path,
        first,
        Compressor(first, _renamed(hosts.phases()), steps=STEPS),
        enable_checkpointing=True,
        callbacks=[saving],
    )
    again = Module()
    compressor = Compressor(again, _renamed(hosts.phases()))
    fit(
        tmp_path, again, compressor, resume=str(tmp_path / "epoch=4.ckpt")
    )  # five steps: in the middle of splicing
    assert_same(hosts.weights(again.net), hosts.weights(whole.net), rtol=0, atol=0)


def test_bfloat16_training_keeps_the_zeros(tmp_path: Path) -> None:
    model = Module()
    compressor = Compressor(model, [Phase(techniques=[Magnitude(sparsity=0.75, every=2)])])
    fit(tmp_path, model, compressor, precision="bf16-mixed")
    assert int((model.net.fc1.weight == 0).sum() + (model.net.fc2.weight == 0).sum()) == round(0.75 * 176)


class ByHand(Module):
    """Steps its optimizer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


def test_what_the_callback_cannot_follow_is_refused(tmp_path: Path) -> None:
    logits = build("distillation.logits", {"teacher": {"phase": "dense"}})
    with pytest.raises(ConfigError, match="works on outputs or batches, which a callback does not see"):
        lightning_callback(Compressor(Net(), [Phase(techniques=[logits])], steps=1))
    model = ByHand()
    with pytest.raises(ConfigError, match="automatic_optimization=False"):
        fit(tmp_path, model, Compressor(model, [Phase()]), accumulate_grad_batches=1, gradient_clip_val=None)
