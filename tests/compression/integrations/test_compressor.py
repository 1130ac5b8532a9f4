"""A `Compressor` in a plain loop against our own Trainer, over ranks of other engines, and across a checkpoint."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from forgepress.compression import Teacher, build, replay
from forgepress.compression.distillation.features import FeatureDistillation
from forgepress.compression.distillation.logits import LogitDistillation
from forgepress.compression.integrations import Compressor, Phase
from forgepress.compression.integrations.live import unwrapped
from forgepress.compression.pruning.magnitude import Magnitude
from forgepress.compression.pruning.network_surgery import NetworkSurgery
from forgepress.compression.pruning.sparsity_penalty import SparsityPenalty
from forgepress.compression.pruning.structured import Structured
from forgepress.dataloading import Loader, load_source
from forgepress.errors import CheckpointError, ConfigError, NoOpError
from forgepress.parallel import Mesh
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
from forgepress.tests.ranks import run_on_ranks
from forgepress.tests.techniques import RemoveNeurons
from forgepress.trainer.config import RunConfig
from forgepress.trainer.loop import Trainer
from forgepress.trainer.models import build_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

TECHNIQUES: list[dict[str, Any]] = [
    {"name": "pruning.sparsity_penalty", "strength": 0.01, "form": "gradient"},
    {"name": "pruning.network_surgery", "sparsity": 0.8, "every": 3},
]


def test_a_plain_loop_comes_to_the_weights_and_zeros_of_our_own_trainer(tmp_path: Path) -> None:
    model_spec: Any = {"name": "lenet_300_100", "hidden": [16, 12]}
    config = RunConfig.model_validate(
        {
            "name": "own",
            "seed": 5,
            "model": model_spec,
            "data": {"source": "digits", "batch": 60},
            "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "clip_norm": 1.0},
            "phases": [
                {"name": "prune", "steps": 20, "techniques": TECHNIQUES},
                {"name": "tune", "steps": 5},
            ],
            "checkpoint": {"folder": str(tmp_path), "keep_best": False},
        }
    )
    trainer = Trainer(config, mesh=Mesh())
    trainer.fit()
    own = {weight.name: weight.live() for weight in trainer.assembly.weights}

    source = load_source({"source": "digits"}, "train")
    facts = {"input_shape": (64,), "classes": 10}
    model = build_model(model_spec, seed=5, data=facts).module
    techniques = [build(t["name"], {k: v for k, v in t.items() if k != "name"}) for t in TECHNIQUES]
    compressor = Compressor(model, [Phase(techniques=techniques, steps=20), Phase()], steps=25, seed=5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    stream = Loader(source, batch=60, seed=5).stream()
    for _ in range(25):
        batch = next(stream).columns
        compressor.before_step(0.01)
        loss = nn.functional.cross_entropy(model(batch["inputs"]), batch["targets"].long())
        loss.backward()
        compressor.after_backward(clip_norm=1.0)
        optimizer.step()
        compressor.after_step()
        optimizer.zero_grad()
    compressor.finish()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter == 0, own[name] == 0), name
        torch.testing.assert_close(parameter.detach(), own[name], rtol=1e-4, atol=1e-6)
    zeros = sum(int((own[name] == 0).sum()) for name in own if name.endswith("weight"))
    assert zeros == round(0.8 * (64 * 16 + 16 * 12 + 12 * 10))


# ── other engines


def train(kind: str) -> dict[str, Tensor]:
    """Whole weights after the training on this rank's rows of each micro-batch."""
    import torch.distributed as dist

    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = Net()
    compressor = Compressor(model, hosts.phases(), steps=STEPS, micro_batches=2)
    wrapped: Any = model
    if kind == "ddp":
        wrapped = nn.parallel.DistributedDataParallel(model)
    elif kind == "hybrid":
        mesh = init_device_mesh("cpu", (2, ranks // 2), mesh_dim_names=("copies", "parts"))
        fully_shard(model.fc1, mesh=mesh)
        fully_shard(model, mesh=mesh)
    else:
        fully_shard(model.fc1)
        fully_shard(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=RATE, momentum=0.9)
    for _ in range(STEPS):
        for rows in torch.arange(24).chunk(2):
            mine = rows.chunk(ranks)[rank]
            compressor.before_step(RATE)
            (wrapped(INPUTS[mine], LABELS[mine])["loss"] / 2).backward()
        compressor.after_backward(CLIP)
        optimizer.step()
        compressor.after_step()
        optimizer.zero_grad()
    compressor.finish()
    return {
        n: p.full_tensor().detach() if isinstance(p, DTensor) else p.detach()
        for n, p in model.named_parameters()
    }


@pytest.mark.parametrize(("kind", "ranks"), [("ddp", 2), ("fsdp2", 3), ("hybrid", 4)])
def test_ranks_of_another_engine_come_to_the_zeros_of_one_process(kind: str, ranks: int) -> None:
    alone = Net()
    hosts.plain(alone)
    for found in run_on_ranks(train, kind, ranks=ranks):
        assert_same(found, hosts.weights(alone), rtol=1e-4, atol=1e-6)


# ── across a checkpoint


def part(model: nn.Module, compressor: Compressor, optimizer: Any, first: int, last: int) -> None:
    for _ in range(first, last):
        compressor.before_step(RATE)
        model(INPUTS, LABELS)["loss"].backward()
        compressor.after_backward(CLIP)
        optimizer.step()
        compressor.after_step()
        optimizer.zero_grad()


def sharded_from(folder: str, stop: int) -> dict[str, Tensor]:
    """Goes on from files that one process wrote, on ranks that hold parts."""
    model, compressor, optimizer = _restored(folder, shard=True)
    part(model, compressor, optimizer, stop, STEPS)
    compressor.finish()
    return {n: p.full_tensor().detach() for n, p in model.named_parameters() if isinstance(p, DTensor)}


def _restored(folder: str, *, shard: bool) -> Any:
    model = Net()
    model.load_state_dict(torch.load(f"{folder}/model.pt"))
    compressor = Compressor(model, hosts.phases(), steps=STEPS)
    if shard:
        fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    compressor.load(folder)
    return model, compressor, optimizer


@pytest.mark.parametrize("stop", [4, 6, 9])  # splicing, at the boundary of the phases, after it
def test_a_training_goes_on_from_its_files_also_on_ranks_that_hold_parts(stop: int, tmp_path: Path) -> None:
    whole = Net()
    compressor = Compressor(whole, hosts.phases(), steps=STEPS)
    optimizer = torch.optim.SGD(whole.parameters(), lr=RATE)  # no momentum: the test restores no optimizer
    part(whole, compressor, optimizer, 0, stop)
    compressor.save(tmp_path)
    torch.save(whole.state_dict(), tmp_path / "model.pt")
    part(whole, compressor, optimizer, stop, STEPS)
    compressor.finish()
    again, restored, optimizer = _restored(str(tmp_path), shard=False)
    part(again, restored, optimizer, stop, STEPS)
    assert restored.finish() == compressor.plan
    for name, weight in hosts.weights(whole).items():
        assert torch.equal(hosts.weights(again)[name], weight), name
    if stop == 4:
        for found in run_on_ranks(sharded_from, str(tmp_path), stop, ranks=3):
            assert_same(found, hosts.weights(whole), rtol=1e-4, atol=1e-6)


def test_a_folder_without_the_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="saved without this compression"):
        Compressor(Net(), [Phase()], steps=1).load(tmp_path)


# ── details


def test_float16_scaling_reaches_the_penalty_on_activations_too() -> None:
    grads = []
    for scale in (1.0, 1024.0):
        model = Net()
        penalty = SparsityPenalty(target="activations", match="relu", strength=0.1, form="gradient")
        compressor = Compressor(model, [Phase(techniques=[penalty])], steps=1)
        compressor.before_step(RATE, loss_scale=scale)
        (model(INPUTS, LABELS)["loss"] * scale).backward()
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad /= scale
        compressor.after_backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(grads[0], grads[1])


def test_clipping_comes_after_penalties_and_masks_and_gives_the_norm_before() -> None:
    model = Net()
    penalty = SparsityPenalty(strength=50.0, form="gradient")
    compressor = Compressor(model, [Phase(techniques=[penalty])], steps=1)
    compressor.before_step(RATE)
    model(INPUTS, LABELS)["loss"].backward()
    norm = compressor.after_backward(clip_norm=0.5)
    grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert float(norm) > 50.0
    assert float(grads.norm()) == pytest.approx(0.5, rel=1e-4)


def test_fractions_numbers_and_the_rest_make_up_all_steps() -> None:
    phases = [Phase(steps=0.25), Phase(steps=3), Phase()]
    assert Compressor(Net(), phases, steps=20)._counts() == [5, 3, 12]


def test_a_zero_lost_between_phases_stops_the_training() -> None:
    model = Net()
    pruning = Magnitude(sparsity=0.5, ramp="one_shot", begin=1)
    compressor = Compressor(model, [Phase(techniques=[pruning], steps=2), Phase()], steps=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    part(model, compressor, optimizer, 0, 3)
    with torch.no_grad():
        model.fc1.weight.add_(1.0)
    with pytest.raises(NoOpError, match=r"keep_zeros requested sparsity"):
        compressor.finish()


def test_the_last_phase_may_change_shapes_and_the_plan_does_it_again_on_a_fresh_model() -> None:
    model = Net()
    cut = RemoveNeurons(keep=4, after="fc2")
    pruning = Phase(techniques=[Magnitude(sparsity=0.5, every=1)], steps=4)
    model.norm = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    compressor = Compressor(model, [pruning, Phase(techniques=[cut])], steps=6)
    part(model, compressor, torch.optim.SGD(model.parameters(), lr=RATE), 0, 6)
    assert model.fc1.weight.shape == (16, 8)  # until the training is over
    plan = compressor.finish()
    fresh = Net()
    fresh.norm = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    replay(fresh, plan)
    fresh.load_state_dict(model.state_dict())
    assert fresh.fc1.weight.shape == (4, 8)
    torch.testing.assert_close(fresh(INPUTS)["logits"], model(INPUTS)["logits"])


class FullyShardedDataParallel(nn.Module):
    """Called like the wrapper whose flat parameters no mask could follow."""


@pytest.mark.parametrize("named", [False, True])
def test_units_go_at_the_end_of_a_plain_loop_by_an_input_that_the_loop_has_shown(named: bool) -> None:
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    technique = Structured(score="activation", share=0.5)
    compressor = Compressor(net, [Phase(techniques=[technique])], steps=3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(3):
        compressor.before_step(0.1)
        rows = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (net(input=rows) if named else net(rows)).square().sum().backward()
        compressor.after_backward()
        optimizer.step()
        compressor.after_step()
    (line,) = compressor.finish()
    assert line["record"]["checks"][0]["achieved"] == 0.5
    assert net(torch.randn(2, 6)).shape == (2, 3) and net[0].weight.shape == (8, 6)


def test_what_cannot_work_is_refused_with_what_to_do() -> None:
    last = [Phase(techniques=[RemoveNeurons()], steps=1), Phase()]
    with pytest.raises(ConfigError, match="put it into the last phase"):
        Compressor(Net(), last, steps=2)
    with pytest.raises(ConfigError, match="phase 1 has no steps"):
        Compressor(Net(), [Phase(), Phase()], steps=2)
    with pytest.raises(ConfigError, match="no phases given"):
        Compressor(Net(), [], steps=2)
    with pytest.raises(ConfigError, match="steps=0 given"):
        Compressor(Net(), [Phase()]).start()
    nothing = [Phase(techniques=[Magnitude(match="conv*")])]
    with pytest.raises(ConfigError, match=r"phase 1: pruning\.magnitude matches nothing with match='conv\*'"):
        Compressor(Net(), nothing, steps=1).start()
    twice = [Phase(techniques=[Magnitude(), NetworkSurgery(sparsity=0.5)])]
    with pytest.raises(ConfigError, match="would both decide the zeros of"):
        Compressor(Net(), twice, steps=1).start()
    with pytest.raises(ConfigError, match="before_step has not been called"):
        Compressor(Net(), [Phase()], steps=1).after_backward()
    with pytest.raises(ConfigError, match="want FSDP2"):
        unwrapped(nn.Sequential(FullyShardedDataParallel()))


def test_a_teacher_is_asked_for_every_micro_batch_and_all_add_up_to_a_hand_written_step():
    torch.manual_seed(0)
    student, teacher = (nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)) for _ in range(2))
    by_hand, inputs, targets = copy.deepcopy(student), torch.randn(8, 6), torch.arange(8) % 4
    techniques = [LogitDistillation(alpha=0.4), FeatureDistillation(layers={"0": "0"}, weight=0.3)]
    compressor = Compressor(
        student, [Phase(techniques=techniques)], steps=1, micro_batches=2, teacher=Teacher(teacher)
    )
    for half in (slice(0, 4), slice(4, 8)):
        compressor.before_step(0.1)
        columns = compressor.add_columns({"inputs": inputs[half], "targets": targets[half]})
        logits = student(inputs[half])
        loss = nn.functional.cross_entropy(logits, targets[half]) / 2
        compressor.add_loss(logits, columns, loss).backward()
    compressor.after_backward()
    logits, (p, q) = by_hand(inputs), [m(inputs).log_softmax(-1) for m in (teacher, by_hand)]
    kl = nn.functional.kl_div(q, p.detach(), reduction="batchmean", log_target=True)
    near = nn.functional.mse_loss(by_hand[0](inputs), teacher[0](inputs).detach())
    (0.6 * nn.functional.cross_entropy(logits, targets) + 0.4 * kl + 0.3 * near).backward()
    for ours, theirs in zip(student.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
