"""The same training, written in the ways that `step_time.py` compares: one function for each peer.

LeNet-300-100, Adam (torch's fused kernel everywhere), global batch 128, the loss noted every 100 steps.
"""

import logging
import os
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from forgepress.benchmarks._data import TRANSFORM, mnist, mnist_folder
from forgepress.benchmarks._turns import Turns
from forgepress.launch.board import Page
from forgepress.launch.watch import LocalWatch
from forgepress.parallel import Mesh, join
from forgepress.trainer.config import RunConfig
from forgepress.trainer.loop import Trainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler, TensorDataset

BATCH, RATE, NOTE_EVERY, ENDLESS = 128, 1e-3, 100, 10_000


def network() -> nn.Module:
    """LeNet-300-100 for rows of 784."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)
    )  # fmt: skip


class _Note:
    """A line of text in a file."""

    def __init__(self, turns: Turns) -> None:
        self._path = Path(turns.folder, f"loss-{turns.rank}.log")

    def __call__(self, step: int, loss: float) -> None:
        with self._path.open("a") as file:
            file.write(f"{step} {loss}\n")


# ── by hand


def plain_indexed(turns: Turns) -> None:
    """The fastest plain loop that we know: tensors in memory, a permutation, index_select."""
    inputs, targets = mnist(turns.folder, flatten=True)
    model = _by_hand(turns)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    rows, step = BATCH // turns.ranks, 0
    note = _Note(turns)
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(len(inputs), generator=generator)  # the same on all ranks
        for begin in range(turns.rank * rows, len(inputs), BATCH):
            turns()
            index = order[begin : begin + rows]
            x, y = inputs.index_select(0, index), targets.index_select(0, index)
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % NOTE_EVERY == 0:
                note(step, loss.item())


def plain_tiny_as_zero(turns: Turns) -> None:
    """`plain_indexed` with the processor told to take numbers below 1.2e-38 for zero, as our Trainer does."""
    torch.set_flush_denormal(True)
    plain_indexed(turns)


def plain_loader(turns: Turns) -> None:
    """What people write: TensorDataset, DataLoader, shuffle."""
    data = TensorDataset(*mnist(turns.folder, flatten=True))
    model = _by_hand(turns)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    note, step = _Note(turns), 0
    sampler = DistributedSampler(data) if turns.ranks > 1 else None
    loader = DataLoader(data, BATCH // turns.ranks, shuffle=sampler is None, sampler=sampler)
    for epoch in range(ENDLESS):
        if sampler is not None:
            sampler.set_epoch(epoch)
        for x, y in loader:
            turns()
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % NOTE_EVERY == 0:
                note(step, loss.item())


def _by_hand(turns: Turns) -> nn.Module:
    if turns.ranks == 1:
        return network()
    dist.init_process_group("gloo", init_method=turns.meeting, rank=turns.rank, world_size=turns.ranks)
    return DistributedDataParallel(network(), gradient_as_bucket_view=True)


# ── ours


class Watch(LocalWatch):
    """The launcher's own watch, which also gives the turn to others at the first beat of a step.

    first: steps that are taken before the first turn, unmeasured.
    """

    def __init__(self, turns: Turns, first: int = 0) -> None:
        super().__init__(Page())
        page = self.page.beat

        def beat(step: int, where: str, allow: float = 0.0) -> None:
            if where == "data" and step >= first:
                turns()
            page(step, where, allow)

        self.beat = beat


def forgepress(turns: Turns) -> None:
    """The whole Trainer, as `forgepress train` runs it."""
    train(turns, model="lenet_300_100", flatten=True)


def without_technique(turns: Turns) -> None:
    """LeNet-5 (431,080 parameters) in the Trainer, nothing else."""
    train(turns, model="lenet_5", flatten=False)


def train(
    turns: Turns,
    *,
    model: str | dict[str, Any],
    flatten: bool,
    technique: dict[str, Any] | None = None,
    parallel: dict[str, Any] | None = None,
) -> None:
    """A run that is longer than the measurement, with at most one technique; replicas unless `parallel` says else."""
    steps = 20_000 if technique else ENDLESS * 469
    config = RunConfig.model_validate(
        {
            "name": "timed",
            "model": model,
            "data": {
                "source": {"idx": str(mnist_folder(turns.folder))},
                "batch": BATCH,
                "transform": {**TRANSFORM, "flatten": flatten},
            },
            "parallel": parallel or {"replicate": turns.ranks},
            "optimizer": {"name": "adam", "lr": RATE},
            "phases": [{"name": "timed", "steps": steps, "techniques": [technique] if technique else []}],
            "tracking": {"every": NOTE_EVERY},
            "checkpoint": {"folder": f"{turns.folder}/runs"},
        }
    )
    with join("cpu", rank=turns.rank, ranks=turns.ranks, meeting=turns.meeting) as device:
        mesh = Mesh.build(config.parallel.degrees, device=device)
        Trainer(config, mesh=mesh, watch=Watch(turns)).fit()


# ── peers


def accelerate(turns: Turns) -> None:
    """Hugging Face Accelerate: the documented loop."""
    from accelerate import Accelerator

    _join_by_environment(turns)
    accelerator = Accelerator(cpu=True)
    data = TensorDataset(*mnist(turns.folder, flatten=True))
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    loader = DataLoader(data, BATCH // turns.ranks, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    note, step = _Note(turns), 0
    for _ in range(ENDLESS):
        for x, y in loader:
            turns()
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            step += 1
            if step % NOTE_EVERY == 0:
                note(step, loss.item())


def lightning(turns: Turns) -> None:
    """PyTorch Lightning: its Trainer with a CSV logger, without progress bar, checkpoints and summary."""
    _quiet()
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import CSVLogger

    _join_by_environment(turns)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: Any, index: int) -> Tensor:
            turns()
            x, y = batch
            loss = F.cross_entropy(self.network(x), y)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=RATE, fused=True)

    loader = DataLoader(TensorDataset(*mnist(turns.folder, flatten=True)), BATCH // turns.ranks, shuffle=True)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=turns.ranks,
        strategy="ddp" if turns.ranks > 1 else "auto",
        max_epochs=ENDLESS,
        log_every_n_steps=NOTE_EVERY,
        logger=CSVLogger(turns.folder),
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), loader)


class _Rows(Dataset[dict[str, Tensor]]):
    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"inputs": self.inputs[row], "labels": self.labels[row]}


def transformers(turns: Turns) -> None:
    """Hugging Face's Trainer without clipping and saving (its AdamW with no decay is Adam)."""
    _quiet()
    from transformers import Trainer as Theirs
    from transformers import TrainingArguments

    _join_by_environment(turns)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
            turns()
            logits = self.network(inputs)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    arguments = TrainingArguments(
        output_dir=turns.folder,
        per_device_train_batch_size=BATCH // turns.ranks,
        num_train_epochs=ENDLESS,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        max_grad_norm=0.0,
        logging_steps=NOTE_EVERY,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        ddp_find_unused_parameters=False,
    )
    Theirs(model=Model(), args=arguments, train_dataset=_Rows(*mnist(turns.folder, flatten=True))).train()


def _join_by_environment(turns: Turns) -> None:
    """The variables of torchrun, from which these libraries learn where they stand. Nothing for one process."""
    if turns.ranks == 1:
        return
    port = Path(turns.folder, "port")
    if turns.rank == 0:
        from forgepress.launch.local import hold_port

        with hold_port() as held:
            port.with_suffix(".new").write_text(str(held.getsockname()[1]))
        port.with_suffix(".new").rename(port)
    while not port.is_file():
        time.sleep(0.05)
    here = {"RANK": turns.rank, "LOCAL_RANK": turns.rank, "NODE_RANK": 0}
    world = {"WORLD_SIZE": turns.ranks, "LOCAL_WORLD_SIZE": turns.ranks}
    os.environ.update({name: str(value) for name, value in {**here, **world}.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port.read_text(), GROUP_RANK="0")
    os.environ.setdefault("TORCHELASTIC_RUN_ID", "benchmark")


_KEPT: list[Any] = []  # declarations last as long as the object that made them


def _quiet() -> None:
    """No notices; and a torchvision that was built for CUDA must not keep these libraries from being imported."""
    warnings.filterwarnings("ignore")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if torch.version.cuda is None and not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)
    for name in ("lightning.pytorch", "lightning.fabric", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
