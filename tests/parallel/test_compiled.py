"""Compiled blocks and offloaded shards train as plain ones do, on every kind of axis."""

from typing import Any

import pytest
import torch
from forgepress.errors import ConfigError
from forgepress.parallel.compiled import compile_blocks, compiled
from forgepress.parallel.layout import Layout
from forgepress.parallel.recompute import recompute
from forgepress.tests.parallel.toys import make_model, train
from forgepress.tests.ranks import run_on_ranks
from torch import nn

BLOCKS = [f"blocks.{number}" for number in range(4)]


def train_compiled(degrees: dict[str, int], again: bool, **options: Any) -> dict[str, Any]:
    """As `train`, with what was compiled: operators of all graphs. The compiler keeps the operators as they are."""
    graphs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    def change(part: nn.Module) -> None:
        recompute(part, BLOCKS if again else [])
        compile_blocks(part, BLOCKS, backend=backend)  # pyright: ignore[reportArgumentType]

    torch._dynamo.reset()
    found = train("transformer", degrees, rows=16, change=change, **options)
    return {**found, "graphs": graphs}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which torch's compiler looks at
def test_blocks_share_one_compilation_and_keep_their_names() -> None:
    plain, other = train("transformer", {}, rows=16), train_compiled({}, False)
    assert len(other["graphs"]) == 1 and other["graphs"][0] > 20
    assert plain["state"].keys() == other["state"].keys()
    for name, gradient in plain["gradients"].items():
        torch.testing.assert_close(other["gradients"][name], gradient, rtol=1e-12, atol=1e-14, msg=name)


@pytest.mark.parametrize(
    ("degrees", "again"),
    [({"shard": 2}, False), ({"shard": 2}, True), ({"replicate": 2}, False), ({"tensor": 2}, False)],
    ids=["shard", "shard, recomputed", "replicate", "tensor"],
)
def test_compiled_blocks_have_the_gradients_of_one_process(degrees: dict[str, int], again: bool) -> None:
    one = train("transformer", {}, rows=16)
    there = run_on_ranks(train_compiled, degrees, again, ranks=2)[0]
    assert there["graphs"] and max(there["graphs"]) > 20
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(there["gradients"][name], gradient, rtol=1e-10, atol=1e-13, msg=name)


def test_a_stage_of_a_pipeline_compiles_its_own_blocks() -> None:
    one = train("transformer", {}, rows=16, microbatches=2)
    there = run_on_ranks(train_compiled, {"pipeline": 2}, False, microbatches=2, ranks=2)
    assert all(max(rank["graphs"]) > 20 for rank in there)
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(there[0]["gradients"][name], gradient, rtol=1e-10, atol=1e-13, msg=name)


def test_a_model_without_known_blocks_is_compiled_whole() -> None:
    model, _ = make_model("partial")
    assert compiled(model, Layout()) == [""]


@pytest.mark.parametrize(
    "degrees", [{"shard": 2}, {"shard": 2, "tensor": 2}], ids=["shard", "shard x tensor"]
)
def test_offloaded_shards_train_to_the_same_bits(degrees: dict[str, int]) -> None:
    ranks = 2 * degrees.get("tensor", 1)
    plain = run_on_ranks(train, "transformer", degrees, ranks=ranks)[0]
    other = run_on_ranks(train, "transformer", degrees, offload=True, ranks=ranks)[0]
    assert torch.equal(plain["losses"], other["losses"])
    assert all(torch.equal(tensor, other["state"][name]) for name, tensor in plain["state"].items())


def test_offload_without_shards_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"parallel\.offload=True: needs shards"):
        train("mlp", {}, offload=True)
