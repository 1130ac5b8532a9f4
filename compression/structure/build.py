"""From a model and an example to its graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...errors import ConfigError
from .blocks import Paths
from .flow import Call, Flow, Step
from .graph import Graph
from .grids import follow_grids
from .groups import groups_of
from .labels import Labelled
from .rules import is_view, rule_of, unknown
from .settle import Mismatch, settle
from .trace import named_tensors, run, tensors_of


def trace(model: nn.Module, example: Any) -> Graph:
    """The coupled groups of ``model``: what must be removed together, and what cannot be removed, and why.

    example: one tensor, a tuple of positional inputs or a dict of named ones; shapes and dtypes count, values do
             not. The model is run in the mode it is in (training or evaluation) and stays untouched.
    returns: a `Graph`; a group that meets an operation without a rule is fixed and names that operation.
    raises:  ConfigError naming operation and module where the forward pass cannot be followed at all.
    cost: a few forward passes on tensors without values: no arithmetic and no memory for weights.
    """
    flow = Flow(model)
    paths = Paths(flow)

    def look(call: Call) -> None:
        flow.begin(call)
        rule = rule_of(call.func)
        labels = (rule or unknown)(flow, call)
        flow.end(call, [labels] if isinstance(labels, Labelled) else labels, is_view=is_view(call.func))
        paths.look(call)

    outputs = run(
        model,
        example,
        look,
        knows=lambda func: rule_of(func) is not None,
        named=lambda tensor, name, buffer: flow.name_tensor(tensor, name, buffer=buffer),
        entered=paths.entered,
        left=paths.left,
    )
    for tensor in tensors_of(outputs):
        for factor in flow.of(tensor).factors:
            flow.units.pin(factor.ids, "the model's output")
    follow_grids(flow)
    flow.units.settle()
    return _settled(model, flow, paths, example)


def _settled(model: nn.Module, flow: Flow, paths: Paths, example: Any) -> Graph:
    """The graph whose free groups a trial cut has confirmed."""
    example = pytree.tree_map_only(Tensor, lambda x: x.detach().to("meta"), example)
    constants = flow.constants
    while True:
        graph = Graph(
            groups=groups_of(flow),
            blocks=paths.blocks(),
            units=flow.units,
            ids={(owner.name, owner.dim): owner.ids for owner in flow.owners},
            steps=flow.steps,
            constants=constants,
            example=example,
            shapes={name: tuple(tensor.shape) for name, tensor in named_tensors(model)},
            parameters=tuple(name for name, _ in model.named_parameters()),
        )
        mismatch = settle(model, graph)
        if mismatch is None:
            return graph
        constants = graph.constants
        _pin(flow, mismatch)


def _pin(flow: Flow, mismatch: Mismatch) -> None:
    """What meets at the operation in question stays whole; else all that meets in its module, or in the modules above.

    An error in code between operations does not say which sizes it is about, so that some may be kept for no reason
    of their own; never is one freed that has a reason.
    """
    pinned = flow.units.reasons()
    for steps in _suspects(flow, mismatch):
        ids = [factor.ids for step in steps for x in (*step.ins, *step.outs) for factor in x.factors]
        free = [
            found
            for found in ids
            if any(root not in pinned for root in flow.units.find(found).ravel().tolist())
        ]
        if free:
            for found in free:
                flow.units.pin(found, mismatch.text)
            return
    raise ConfigError(f"structure: {mismatch.text}, and no group of units explains it")


def _suspects(flow: Flow, mismatch: Mismatch) -> Iterator[list[Step]]:
    yield flow.steps[mismatch.step : mismatch.step + 1]
    module = mismatch.module
    while True:
        yield [step for step in flow.steps if step.module == module or step.module.startswith(f"{module}.")]
        if not module:
            break
        module = module.rpartition(".")[0]
    yield flow.steps
