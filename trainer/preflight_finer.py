"""What goes with a tensor axis beside its plan: tokens and classes that are cut as well."""

from __future__ import annotations

from ..compression import Technique
from ..errors import ConfigError
from ..parallel import Layout
from ..parallel.split_tokens import refuse_finer
from .config import RunConfig
from .models import BuiltModel
from .preflight_levers import looking
from .preflight_rules import Found


def check_finer(config: RunConfig, built: BuiltModel, layout: Layout, found: Found) -> Layout:
    """`layout` as the engine takes it with `sequence_parallel` and `loss_parallel`; what cannot be is a problem."""
    parallel = config.parallel
    for name in ("sequence_parallel", "loss_parallel"):
        if getattr(parallel, name) and parallel.engine != "native":
            found.problem(("parallel", name), f"given with engine: {parallel.engine}; native alone does it")
        if getattr(parallel, name) and parallel.compile:
            found.problem(
                ("parallel", name), "given with compile, which is not proven together; leave one of them out"
            )
    _check_techniques(config, found)
    pieces, length = parallel.context * parallel.tensor, built.input_shape[0] if built.input_shape else 0
    if parallel.sequence_parallel and length % pieces:
        message = f"given, but context × tensor = {pieces} does not divide the {length} tokens of a row"
        found.problem(("parallel", "sequence_parallel"), f"{message}; change their length or the degrees")
    for sequence, loss in ((parallel.sequence_parallel, False), (False, parallel.loss_parallel)):
        try:
            layout = refuse_finer(built.module, layout, parallel.tensor, sequence=sequence, loss=loss)
        except ConfigError as error:
            found.refused(("parallel", "sequence_parallel" if sequence else "loss_parallel"), error)
    return layout


def _check_techniques(config: RunConfig, found: Found) -> None:
    names = looking(config)
    if config.parallel.sequence_parallel and names:
        message = f"given, but {names} may look at activations, of which it leaves parts; use sequence_parallel: false"
        found.problem(("parallel", "sequence_parallel"), message)
    for index, phase in enumerate(config.phases):
        for number, entry in enumerate(phase.techniques):
            path = ("phases", index, "techniques", number)
            if config.parallel.loss_parallel and type(entry.build()).add_loss is not Technique.add_loss:
                found.problem(
                    path, f"{entry.name} looks at all logits, which loss_parallel never gathers; use false"
                )
