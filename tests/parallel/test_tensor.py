"""A tensor plan is checked before anything runs, and a head without a partner gives whole logits."""

import pytest
import torch
from forgepress.errors import ConfigError
from forgepress.parallel import Layout, Mesh, NativeEngine
from forgepress.parallel.between import find_between
from forgepress.parallel.tensor import open_after, resolve_plan
from forgepress.parallel.whole import gather
from forgepress.tests.parallel.toys import TRANSFORMER_LAYOUT, Transformer
from forgepress.tests.ranks import run_on_ranks
from forgepress.trainer.models._plans import pairs_found
from torch import nn
from torch.nn import functional


def two_layers() -> nn.Module:
    return nn.ModuleDict({"up": nn.Linear(4, 6), "norm": nn.LayerNorm(6), "down": nn.Linear(6, 4)})


@pytest.mark.parametrize(
    ("layout", "degree", "message"),
    [
        (
            Layout(tensor_plan={"up": "column"}, divisible={"attention heads": 6}),
            4,
            "6 attention heads; use one of",
        ),
        (
            Layout(tensor_plan={"middle*": "column"}),
            2,
            "'middle\\*' names no module; the model has up, norm, down",
        ),
        (Layout(tensor_plan={"up": "columns"}), 2, "'columns' is none of column, qkv, row, replicate"),
        (Layout(tensor_plan={"norm": "row"}), 2, "norm is a LayerNorm; only Linear and Embedding"),
        (Layout(tensor_plan={"up": "column"}), 4, "does not divide the 6 output features of up"),
        (Layout(tensor_plan={"up": "row"}), 3, "does not divide the 4 input features of up"),
        (Layout(tensor_plan={"up": "column", "u*": "replicate"}), 2, "no module is to be divided"),
        (Layout(), 2, "no module is to be divided"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_by_name(layout: Layout, degree: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_plan(two_layers(), layout, degree)


def test_a_tied_parameter_cannot_be_divided() -> None:
    model = two_layers()
    model["down"].weight = nn.Parameter(torch.zeros(4, 6))
    model["again"] = nn.Linear(6, 4)
    model["again"].weight = model["down"].weight
    with pytest.raises(ConfigError, match="down shares a parameter with again"):
        resolve_plan(model, Layout(tensor_plan={"down": "row"}), 2)


def test_activations_are_known_to_be_divided_between_column_and_row() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4))
    found = open_after(model, ("0", "1", "2", "3"), {"0": "column", "2": "row", "3": "column"})
    assert found == {"0": ["0"], "1": ["0"], "2": [], "3": ["3"]}
    blocks = open_after(
        Transformer(), TRANSFORMER_LAYOUT.order, resolve_plan(Transformer(), TRANSFORMER_LAYOUT, 2)
    )
    assert not any(blocks.values())


def head_and_embedding(degree: int, embedding: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 8), nn.LayerNorm(8), nn.Linear(8, 10)).double()
    plan = {"0": embedding, "2": "column"} if embedding == "row" else {"2": "column"}
    mesh = Mesh.build({"tensor": degree})
    engine = NativeEngine(model, Layout(order=("0", "1", "2"), tensor_plan=plan), mesh)
    columns = {"x": torch.arange(10).view(2, 5)}
    engine.forward_backward(
        columns,
        None,
        lambda c: c["x"],
        lambda y, c, v: functional.cross_entropy(y.flatten(0, 1), c["x"].flatten()),
    )
    outputs = engine.forward(columns, lambda c: c["x"])
    gradients = {n: p.grad for n, p in engine.parameters().items() if p.grad is not None}
    return {"outputs": outputs, **gather(gradients, mesh)}


@pytest.mark.parametrize("embedding", ["row", "replicate"])
def test_a_column_head_gives_whole_logits_and_a_row_embedding_is_divided_by_words(embedding: str) -> None:
    one = head_and_embedding(1, embedding)
    two = run_on_ranks(head_and_embedding, 2, embedding, ranks=2)[0]
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor)


def columns_and_rows(between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), between, nn.Linear(6, 4))


class Scale(nn.Module):
    """One learned number."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


PLAN = {"0": "column", "2": "row"}


def test_what_is_learned_between_column_and_row_is_found_and_what_needs_all_features_is_refused() -> None:
    def call(model: nn.Module, mode: object) -> object:
        return model(torch.zeros(2, 4))

    assert find_between(columns_and_rows(nn.ReLU()), PLAN, 2, call) == ()
    assert find_between(columns_and_rows(Scale()), PLAN, 2, call) == ("1.factor",)
    with pytest.raises(ConfigError, match="1 cannot go on with 1/2 of the features"):
        find_between(columns_and_rows(nn.LayerNorm(6)), PLAN, 2, call)


def learned_between(degree: int, summed: tuple[str, ...]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model, mesh = columns_and_rows(Scale()).double(), Mesh.build({"tensor": degree})
    engine = NativeEngine(model, Layout(tensor_plan=PLAN, summed=summed), mesh)
    columns = {"x": torch.arange(8.0, dtype=torch.float64).view(2, 4)}
    engine.forward_backward(columns, None, lambda c: c["x"], lambda y, c, v: y.square().sum())
    return gather({n: p.grad for n, p in engine.parameters().items() if p.grad is not None}, mesh)


def test_what_is_learned_between_column_and_row_gets_its_whole_gradient() -> None:
    whole = learned_between(1, ())["1.factor"]
    torch.testing.assert_close(run_on_ranks(learned_between, 2, ("1.factor",), ranks=2)[0]["1.factor"], whole)
    assert not torch.allclose(run_on_ranks(learned_between, 2, (), ranks=2)[0]["1.factor"], whole)


def test_pairs_of_linear_layers_are_found_where_nothing_but_elementwise_modules_stands_between() -> None:
    layers = [nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.1), nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8)]
    assert pairs_found(nn.Sequential(*layers)) == {"0": "column", "3": "row"}
    assert pairs_found(nn.Sequential(*layers, nn.Linear(8, 2))) == {
        **{"0": "column", "3": "row"},
        **{"5": "column", "6": "row"},
    }
    assert pairs_found(nn.Sequential(nn.Linear(4, 6), Scale(), nn.Linear(6, 4))) == {}
