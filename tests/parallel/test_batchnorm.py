"""Global batch normalisation has the outputs, gradients and running averages of torch's on all rows at once."""

import copy

import pytest
import torch
from forgepress.errors import ConfigError
from forgepress.parallel import Mesh
from forgepress.parallel.batchnorm import make_global
from forgepress.tests.ranks import run_on_ranks
from torch import nn


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    norm: nn.Module = {
        "1d": nn.BatchNorm1d(3),
        "2d": nn.BatchNorm2d(3),
        "plain": nn.BatchNorm1d(3, affine=False),
    }[kind]
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def rows(kind: str, offset: float) -> torch.Tensor:
    x = torch.randn((7, 3, 2, 2) if kind == "2d" else (7, 3), generator=torch.Generator().manual_seed(1))
    return x + offset


def on_ranks(
    kind: str, ranks: int, offset: float, padding: int, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    mesh = Mesh.build({"replicate": ranks})
    holder = nn.ModuleDict({"norm": build(kind)}).to(dtype)
    mask = make_global(holder, mesh)
    x = rows(kind, offset).to(dtype)
    if ranks > 1:
        mine = torch.arange(7).tensor_split([2, 2])[mesh.rank]  # 2, 0 and 5 rows
        x = torch.cat([x[mine], torch.full_like(x[:padding], 1000.0)])
        mask.valid = torch.arange(len(x)) < len(mine)
        if not padding:
            mask.valid = None
    x.requires_grad_()
    y = holder["norm"](x)
    real = slice(0, len(x) - (padding if ranks > 1 else 0))
    y[real].pow(3).sum().backward()
    gradients = {name: mesh.reduce(p.grad) for name, p in holder.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return {"y": y[real].detach(), "dx": x.grad[real], **gradients, **dict(holder.named_buffers())}


@pytest.mark.parametrize("kind", ["1d", "2d", "plain"])
@pytest.mark.parametrize(("offset", "padding"), [(0.0, 0), (0.0, 2), (1000.0, 0)])
def test_three_uneven_ranks_one_of_them_empty_equal_torch(kind: str, offset: float, padding: int) -> None:
    one = on_ranks(kind, 1, offset, 0, torch.float64)
    # Far from zero in float32, a variance from sums of squares would be wrong by several per cent.
    dtype, close = (torch.float32, 1e-2) if offset else (torch.float64, 1e-9)
    many = run_on_ranks(on_ranks, kind, 3, offset, padding, dtype, ranks=3)
    for name in ("y", "dx"):
        torch.testing.assert_close(
            torch.cat([answer[name] for answer in many]), one[name], rtol=close, atol=close, check_dtype=False
        )
    for name in one.keys() - {"y", "dx"}:
        for answer in many:
            torch.testing.assert_close(answer[name], one[name], rtol=close, atol=close, check_dtype=False)


def test_names_objects_and_evaluation_stay_as_they_were() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3))
    before, norm = copy.deepcopy(model).eval(), model[1]
    make_global(model, Mesh(replicate=2, world=2))
    assert model[1] is norm and isinstance(norm, nn.BatchNorm2d) and type(norm) is not nn.BatchNorm2d
    assert list(model.state_dict()) == list(before.state_dict())
    x = torch.randn(4, 1, 2, 2)
    assert torch.equal(model.eval()(x), before(x))


def test_one_process_keeps_torchs_own_module() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    make_global(model, Mesh())
    assert type(model[0]) is nn.BatchNorm1d


def test_a_batch_normalisation_with_an_unknown_forward_is_refused() -> None:
    class Strange(nn.BatchNorm1d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    with pytest.raises(ConfigError, match="0 is a Strange, whose statistics would be those of one rank only"):
        make_global(nn.Sequential(Strange(3)), Mesh(replicate=2, world=2))
