"""A student and its teacher in the ways that `distillation_cost.py` compares: one function for each peer.

Student: LeNet-5 (431,080 parameters); teacher: LeNet-5 with twice the filters and 800 features; MNIST, batch 128, Adam.
"""

import json
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from forgepress.benchmarks._data import TRANSFORM, mnist, mnist_folder
from forgepress.benchmarks._loops import BATCH, ENDLESS, RATE, Watch
from forgepress.benchmarks._turns import Turns
from forgepress.parallel import Mesh, join
from forgepress.trainer.config import RunConfig
from forgepress.trainer.loop import Trainer
from forgepress.trainer.models import build_model

TEACHER: dict[str, Any] = {"name": "lenet_5", "filters": [40, 100], "features": 800, "seed": 1}
TEMPERATURE, ALPHA, EPOCH = 2.0, 0.5, 469


def alone(turns: Turns) -> None:
    """The student without a teacher, in the Trainer."""
    _train(turns, [])


def distilling(turns: Turns) -> None:
    """The student with distillation.logits, whose teacher runs in every step."""
    _train(turns, [_technique(cache=False)])


def cached(turns: Turns) -> None:
    """As `distilling`, with the teacher's answers kept; turns begin after the first epoch."""
    _train(turns, [_technique(cache=True)], first=EPOCH + 1)


def by_hand(turns: Turns) -> None:
    """The loop that people write: the teacher's forward pass, the student's step, tensors in memory."""
    torch.set_flush_denormal(True)  # as our Trainer does
    inputs, targets = mnist(turns.folder, flatten=False)
    student, teacher = _model({"name": "lenet_5"}, 0), _model(TEACHER, 1).eval()
    optimizer = torch.optim.Adam(student.parameters(), lr=RATE, fused=True)
    while True:
        order = torch.randperm(len(inputs))
        for begin in range(0, len(inputs), BATCH):
            turns()
            index = order[begin : begin + BATCH]
            x, y = inputs.index_select(0, index), targets.index_select(0, index)
            with torch.no_grad():
                p = F.log_softmax(teacher(x) / TEMPERATURE, -1)
            logits = student(x)
            q = F.log_softmax(logits / TEMPERATURE, -1)
            kl = F.kl_div(q, p, reduction="batchmean", log_target=True)
            loss = (1 - ALPHA) * F.cross_entropy(logits, y) + ALPHA * TEMPERATURE**2 * kl
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def teacher_bytes(degrees: dict[str, int]) -> list[int]:
    """Bytes of the teacher's weights and buffers on each rank of a mesh, after two steps."""
    ranks = 1
    for degree in degrees.values():
        ranks *= degree
    with TemporaryDirectory() as folder:
        context = get_context("spawn")
        processes = [
            context.Process(target=_weigh, args=(folder, rank, ranks, degrees)) for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        return [json.loads(Path(folder, f"bytes-{rank}").read_text()) for rank in range(ranks)]


def _weigh(folder: str, rank: int, ranks: int, degrees: dict[str, int]) -> None:
    torch.set_num_threads(1)
    config = _config(folder, [_technique(cache=False)], steps=2, parallel={**degrees, "microbatches": 2})
    with join("cpu", rank=rank, ranks=ranks, meeting=f"file://{folder}/meeting") as device:
        trainer = Trainer(config, mesh=Mesh.build(degrees, device=device))
        after_step = trainer._after_step

        def weigh(steps: Any) -> None:
            Path(folder, f"bytes-{rank}").write_text(json.dumps(trainer.assembly.chain.run.teacher.bytes))
            after_step(steps)

        trainer._after_step = weigh
        trainer.fit()


def _model(spec: dict[str, Any], seed: int) -> torch.nn.Module:
    given = {key: value for key, value in spec.items() if key != "seed"}
    return build_model(given, seed=seed, data={"input_shape": (1, 28, 28), "classes": 10}).module


def _technique(*, cache: bool) -> dict[str, Any]:
    settings = {"teacher": TEACHER, "temperature": TEMPERATURE, "alpha": ALPHA, "cache": cache}
    return {"name": "distillation.logits", **settings}


def _config(folder: str, techniques: list[dict[str, Any]], *, steps: int, **values: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "timed",
            "model": "lenet_5",
            "data": {"source": {"idx": str(mnist_folder(folder))}, "batch": BATCH, "transform": TRANSFORM},
            "optimizer": {"name": "adam", "lr": RATE},
            "phases": [{"name": "timed", "steps": steps, "techniques": techniques}],
            "checkpoint": {"folder": f"{folder}/runs"},
            **values,
        }
    )


def _train(turns: Turns, techniques: list[dict[str, Any]], first: int = 0) -> None:
    config = _config(turns.folder, techniques, steps=ENDLESS * EPOCH)
    Trainer(config, watch=Watch(turns, first=first)).fit()
