"""Pipelines: stages as planned, the same evaluation, batch normalisation with padding, refusals."""

from typing import Any

import pytest
import torch
from forgepress.errors import ConfigError
from forgepress.parallel import Layout, Mesh, NativeEngine
from forgepress.parallel.pipeline import make_part, plan_stages, users_of
from forgepress.parallel.schedules import home_of_outputs
from forgepress.parallel.ties import Tie, find_ties
from forgepress.tests.parallel.test_native import check
from forgepress.tests.parallel.toys import MLP_LAYOUT, Mlp, local_rows, make_data, make_model, summed_loss
from forgepress.tests.ranks import run_on_ranks
from forgepress.trainer.precision import compute_in
from torch import nn


def plan(
    schedule: str = "gpipe", pipeline: int = 2, microbatches: int = 4, **options: Any
) -> list[tuple[str, ...]]:
    mesh = Mesh(pipeline=pipeline, world=pipeline)
    settings: dict[str, Any] = {
        "stages": None,
        "costs": None,
        "layout": MLP_LAYOUT,
        "model": Mlp(),
        **options,
    }
    return plan_stages(mesh=mesh, schedule=schedule, microbatches=microbatches, **settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "dualpipe"}, "want one of gpipe, 1f1b, interleaved1f1b, looped_bfs"),
        ({"layout": Layout()}, "the model has fc1, act1, fc2, act2, fc3, act3, fc4"),
        ({"pipeline": 8}, "8 pipeline stages, but the model has 7 modules"),
        ({"schedule": "1f1b", "microbatches": 1}, "1f1b wants at least pipeline=2"),
        ({"schedule": "interleaved1f1b", "microbatches": 5}, "use a multiple of pipeline=2"),
        (
            {"schedule": "interleaved1f1b", "stages": [["fc1"], ["act*"], ["fc[234]"]]},
            "3 stages cannot be dealt evenly",
        ),
        ({"stages": [["fc1"], ["act1"], ["fc[234]", "act[23]"]]}, "gpipe has one stage per rank"),
        ({"costs": [1.0, 2.0]}, "2 costs for 7 modules"),
        (
            {"stages": [["fc1"], ["act*", "fc[234]"]], "whole": ["fc1"]},
            "a stage ends at fc1; after fc1 activations",
        ),
        ({"whole": ["fc1", "act1", "fc2", "act2", "fc3", "act3"]}, "cannot be cut into 2 stages; after fc1"),
    ],
)
def test_a_pipeline_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(**options)


def test_stages_are_balanced_by_parameters_or_given_costs_or_by_hand() -> None:
    order = MLP_LAYOUT.order
    assert plan() == [order[:3], order[3:]]  # 108 + 130 against 154 + 45
    assert plan(costs=[9.0, 0, 1, 1, 1, 1, 1]) == [order[:1], order[1:]]
    assert plan(stages=[["fc[12]", "act1"], ["act[23]", "fc[34]"]]) == [order[:3], order[3:]]
    assert len(plan("interleaved1f1b")) == 4


def test_a_stage_keeps_names_and_the_very_parameters() -> None:
    model, order = Mlp(), MLP_LAYOUT.order
    part = make_part(model, order[3:], order, last=True)
    names = ["fc3.weight", "fc3.bias", "fc4.weight", "fc4.bias"]
    assert [name for name, _ in part.named_parameters()] == names
    assert all(part.get_parameter(name) is model.get_parameter(name) for name in names)
    x = torch.randn(2, 10)
    assert torch.equal(part(x), model.fc4(torch.tanh(model.fc3(torch.tanh(x)))))


def test_a_tied_parameter_has_an_owner_and_a_homeless_one_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    users = users_of(model, Layout(order=("0", "1")), [("0",), ("1",)])
    assert find_ties(model, users) == [Tie(("0.weight", "1.weight"), (0, 1))]
    with pytest.raises(ConfigError, match=r"1.bias is in no module"):
        users_of(model, Layout(order=("0", "1")), [("0",)])


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved1f1b"])
@pytest.mark.parametrize(("ranks", "degrees"), [(2, {"pipeline": 2}), (4, {"pipeline": 2, "replicate": 2})])
def test_batch_normalisation_in_a_pipeline_does_not_count_padding(
    ranks: int, degrees: dict[str, int], schedule: str
) -> None:
    check("conv", ranks, degrees, microbatches=2, schedule=schedule)


def test_stages_by_hand_train_as_one_process() -> None:
    stages = [["fc1"], ["act1", "fc2"], ["act2", "fc3", "act3"], ["fc4"]]
    check("mlp", 2, {"pipeline": 2}, microbatches=2, schedule="interleaved1f1b", stages=stages)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved1f1b"])
@pytest.mark.parametrize(("ranks", "degrees"), [(2, {"pipeline": 2}), (4, {"pipeline": 2, "shard": 2})])
def test_stages_with_nothing_to_train_pass_activations_only(
    ranks: int, degrees: dict[str, int], schedule: str
) -> None:
    check("frozen", ranks, degrees, microbatches=2, schedule=schedule)


def test_a_pipeline_is_not_cut_where_tensor_parallelism_divides_activations() -> None:
    check("mlp", 4, {"pipeline": 2, "tensor": 2}, microbatches=2, costs=[9.0, 9, 9, 1, 1, 1, 1])


def evaluate(degrees: dict[str, int], schedule: str) -> list[torch.Tensor | None]:
    """Outputs before a step, after it, and for another number of rows, between steps."""
    mesh = Mesh.build(degrees)
    model, layout = make_model("conv")
    engine = NativeEngine(model, layout, mesh, microbatches=2, schedule=schedule)
    found = []
    for step, rows in enumerate((8, 8, 4, 8)):
        data = make_data("conv", rows, step)
        for part in engine.parts:
            part.eval()
        mine, _ = local_rows(rows, microbatches=2, rank=mesh.data_rank, ranks=mesh.data_ranks, pad=True)
        columns = {name: column[mine] for name, column in data.items()}
        found.append(engine.forward(columns, lambda c: c["x"]))
        for part in engine.parts:
            part.train()
        engine.zero_grad()
        engine.forward_backward(
            columns, None, lambda c: c["x"], lambda y, c, v, n=rows: summed_loss(y, c, v, n)
        )
        with torch.no_grad():
            for parameter in engine.parameters().values():
                assert parameter.grad is not None
                parameter.sub_(parameter.grad, alpha=0.5)
    return found


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "interleaved1f1b", "zbv"])
@pytest.mark.parametrize(("ranks", "degrees"), [(2, {"pipeline": 2}), (4, {"pipeline": 2, "shard": 2})])
def test_evaluation_between_steps_gives_the_outputs_of_one_process_on_the_last_stage(
    ranks: int, degrees: dict[str, int], schedule: str
) -> None:
    one = evaluate({}, schedule)
    many = run_on_ranks(evaluate, degrees, schedule, ranks=ranks)
    data_ranks = ranks // 2
    home = home_of_outputs(schedule, 2) * data_ranks
    assert all(outputs == [None] * 4 for outputs in many[data_ranks - home :][:data_ranks])
    for step, rows in enumerate((8, 8, 4, 8)):
        want = one[step]
        assert want is not None
        for data_rank in range(data_ranks):
            mine, _ = local_rows(rows, microbatches=2, rank=data_rank, ranks=data_ranks, pad=True)
            torch.testing.assert_close(many[home + data_rank][step], want[mine], rtol=1e-9, atol=1e-11)


def two_inputs() -> str:
    mesh = Mesh.build({"pipeline": 2})
    model, layout = make_model("mlp")
    engine = NativeEngine(model, layout, mesh, microbatches=2)
    columns = {"x": torch.zeros(4, 8), "y": torch.zeros(4)}
    with pytest.raises(ConfigError, match="stages pass one tensor on, but the model is called with x, y"):
        engine.forward(columns, dict)
    with pytest.raises(ConfigError, match="3 rows cannot be cut into 2 equal micro-batches"):
        engine.forward({"x": torch.zeros(3, 8)}, lambda c: c["x"])
    return "refused"


def test_inputs_that_a_pipeline_cannot_pass_on_are_refused_on_all_ranks() -> None:
    assert run_on_ranks(two_inputs, ranks=2) == ["refused"] * 2


def mixed() -> torch.Tensor | None:
    mesh = Mesh.build({"pipeline": 2})
    torch.manual_seed(0)
    engine = NativeEngine(Mlp(), MLP_LAYOUT, mesh, microbatches=2)
    columns = {"x": torch.ones(4, 8)}
    with torch.autocast("cpu", torch.bfloat16):
        engine.forward_backward(columns, None, lambda c: c["x"], lambda y, c, v: y.float().sum())
        return engine.forward(columns, lambda c: c["x"])


def test_activations_between_stages_have_the_dtype_of_autocast() -> None:
    outputs = run_on_ranks(mixed, ranks=2)[1]
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        want = Mlp()(torch.ones(4, 8))
    assert outputs is not None and outputs.dtype == torch.bfloat16
    assert torch.equal(outputs, want)


def half(precision: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    mesh = Mesh.build({"pipeline": 2})
    torch.manual_seed(0)
    engine = NativeEngine(Mlp(), MLP_LAYOUT, mesh, microbatches=2, stages=[["fc1"], ["act*", "fc[234]"]])
    for part in engine.parts:
        compute_in(part, precision, mesh.device)
    columns = {"x": torch.ones(4, 8)}
    loss = engine.forward_backward(columns, None, lambda c: c["x"], lambda y, c, v: y.float().sum())
    return loss, engine.forward(columns, lambda c: c["x"])


def test_a_stage_that_ends_in_half_precision_sends_what_the_next_one_waits_for() -> None:
    loss, outputs = run_on_ranks(half, "bf16", ranks=2)[1]
    assert outputs is not None and outputs.dtype == torch.bfloat16
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        want = Mlp()(torch.ones(4, 8))
    assert torch.equal(outputs, want)
    torch.testing.assert_close(loss, want.double().sum(), rtol=1e-2, atol=1e-2)
