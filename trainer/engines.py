"""The engine that a run's config names, around a phase's model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..compression import Weight, weights_of
from ..parallel import Engine, Layout, Mesh, NativeEngine
from ..parallel.compiled import compile_blocks, compiled
from ..parallel.recompute import recompute, recomputed
from .config import PhaseConfig, RunConfig
from .moving import kept_weights
from .optimizers import build_optimizer
from .precision import compute_in, compute_modules_in, modules_of


def make_engine(
    config: RunConfig,
    phase: PhaseConfig,
    model: nn.Module,
    layout: Layout,
    mesh: Mesh,
    *,
    costs: Sequence[float] | None,
    looked_at: bool,
) -> Engine:
    """Spread `model` over the mesh by the engine of `parallel.engine`; it is taken over.

    costs: of the modules in order, for a pipeline.   looked_at: whether techniques look at weights and gradients.
    raises: ConfigError where model, mesh and engine do not go together.
    """

    def optimizer(named: Sequence[tuple[str, Tensor]]):
        return build_optimizer(config.optimizer_of(phase), named)

    parallel = config.parallel
    if parallel.engine == "accelerate":
        from .engine_accelerate import accelerated

        asked = accelerated(config)
        if asked.deepspeed is None:
            from ..parallel.accelerate import AccelerateEngine

            return AccelerateEngine(
                model,
                mesh,
                mixed_precision=asked.mixed_precision,
                fsdp=asked.fsdp,
                microbatches=parallel.microbatches,
            )
    if parallel.engine in ("deepspeed", "accelerate"):
        from ..parallel.deepspeed import DeepSpeedEngine
        from .engine_deepspeed import zero_of

        zero = zero_of(config, phase)
        engine = DeepSpeedEngine(
            model,
            mesh,
            zero.settings,
            optimizer,
            microbatches=parallel.microbatches,
            looked_at=looked_at,
        )
        if not zero.half_copies:
            compute_in(engine.parts[0], config.precision, mesh.device)
        return engine
    # Said of the whole model, before a stage has only its part.
    again, blocks = recomputed(model, layout, parallel.recompute), compiled(model, layout)
    apart = modules_of(model, config.parallel.precision_by_module)
    engine = NativeEngine(
        model,
        layout,
        mesh,
        schedule=parallel.schedule,
        microbatches=parallel.microbatches,
        stages=parallel.stages,
        costs=costs,
        offload=parallel.offload,
        sequence_parallel=parallel.sequence_parallel,
        loss_parallel=parallel.loss_parallel,
    )
    for part in engine.parts:
        compute_modules_in(part, apart, mesh.device)
        recompute(part, again, parallel.recompute_keep)
        if parallel.compile:  # around the second run: inside of it, operators that are kept would not be seen
            compile_blocks(part, blocks)
        compute_in(part, config.precision, mesh.device)
    return engine


def views_of(engine: Engine, mesh: Mesh) -> list[Weight]:
    """Shard views of the engine's trainable parameters."""
    coordinates = engine.coordinates
    if coordinates is None:
        coordinates = mesh.weight_coordinates
    if engine.masters is not None:
        return kept_weights(engine, coordinates)
    return weights_of(engine.parameters(), coordinates)
