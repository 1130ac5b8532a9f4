"""The callback in Hugging Face's Trainer comes to the weights of a plain loop; also after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from forgepress.compression.integrations import Compressor, Phase, transformers_callback
from forgepress.compression.pruning.magnitude import Magnitude
from forgepress.errors import CheckpointError, ConfigError
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

torchvision_operators()
transformers = pytest.importorskip("transformers", reason="the callback for transformers needs transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

ROWS = [{"inputs": x, "labels": y} for x, y in zip(INPUTS, LABELS, strict=True)]


def trainer(folder: Path, model: Net, compressor: Compressor, steps: int = STEPS, **settings: Any) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": 12,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": CLIP,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(**{**values, **settings}),
        train_dataset=ROWS,
        optimizers=(optimizer, schedule),
        callbacks=[transformers_callback(compressor)],
    )


def test_accumulation_clipping_and_phases_come_to_the_weights_of_a_plain_loop(tmp_path: Path) -> None:
    model, alone = Net(), Net()
    compressor = Compressor(model, hosts.phases())
    run = trainer(tmp_path, model, compressor)
    run.train()
    reference = hosts.plain(alone)
    assert_same(hosts.weights(model), hosts.weights(alone), rtol=1e-4, atol=1e-6)
    assert compressor.plan == reference.plan
    assert run.args.max_grad_norm == CLIP  # given back


def test_a_resumed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = Net()
    trainer(tmp_path / "whole", whole, Compressor(whole, hosts.phases())).train()
    first = Net()
    run = trainer(
        tmp_path / "cut", first, Compressor(first, hosts.phases()), save_strategy="steps", save_steps=5
    )
    run.add_callback(StopAt(5))
    run.train()
    again = Net()
    run = trainer(tmp_path / "cut", again, Compressor(again, hosts.phases()))
    run.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-5"))
    assert_same(hosts.weights(again), hosts.weights(whole), rtol=1e-4, atol=1e-6)


class StopAt(transformers.TrainerCallback):
    """The machine goes away after a step's checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        control.should_training_stop = state.global_step == self.step


def test_a_resume_without_the_compression_s_files_is_refused(tmp_path: Path) -> None:
    model = Net()
    run = trainer(
        tmp_path, model, Compressor(model, hosts.phases()), steps=2, save_strategy="steps", save_steps=1
    )
    run.train()
    (tmp_path / "checkpoint-1" / "forgepress_compression.json").unlink()
    again = Net()
    with pytest.raises(CheckpointError, match="saved without this compression"):
        trainer(tmp_path, again, Compressor(again, hosts.phases())).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-1")
        )


def test_bfloat16_training_keeps_the_zeros(tmp_path: Path) -> None:
    model = Net()
    pruning = Magnitude(sparsity=0.75, every=2)
    trainer(tmp_path, model, Compressor(model, [Phase(techniques=[pruning])]), bf16=True).train()
    assert int((model.fc1.weight == 0).sum() + (model.fc2.weight == 0).sum()) == round(0.75 * 176)


def test_a_technique_that_needs_outputs_is_refused() -> None:
    from forgepress.compression import build

    logits = build("distillation.logits", {"teacher": {"phase": "dense"}})
    with pytest.raises(ConfigError, match="works on outputs or batches, which a callback does not see"):
        transformers_callback(Compressor(Net(), [Phase(techniques=[logits])], steps=1))
