"""The engine that a run's config names, around a phase's model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..compression import Weight, weights_of
from ..parallel import Engine, Layout, Mesh, NativeEngine
from ..parallel.recompute import recompute
from .config import PhaseConfig, RunConfig
from .gradients import PARTS
from .moving import kept_weights
from .optimizers import build_optimizer
from .precision import compute_in


def make_engine(
    config: RunConfig,
    phase: PhaseConfig,
    model: nn.Module,
    layout: Layout,
    mesh: Mesh,
    *,
    costs: Sequence[float] | None,
    looked_at: bool,
    again: list[str] | None = None,
) -> Engine:
    """Spread `model` over the mesh by the engine of `parallel.engine`; it is taken over.

    costs: of the modules in order, for a pipeline.   looked_at: whether techniques look at weights and gradients.
    again: modules whose activations are computed again in the backward (the native engine alone).
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
    engine = NativeEngine(
        model,
        layout,
        mesh,
        schedule=parallel.schedule,
        microbatches=parallel.microbatches,
        stages=parallel.stages,
        costs=costs,
    )
    for part in engine.parts:
        recompute(part, again or [])
        compute_in(part, config.precision, mesh.device)
    return engine


def views_of(engine: Engine, mesh: Mesh) -> list[Weight]:
    """Shard views of the engine's trainable parameters."""
    coordinates = engine.coordinates
    if coordinates is None:
        coordinates = {axis: mesh.coordinates[axis] for axis in PARTS if axis != "pipeline"}
    if engine.masters is not None:
        return kept_weights(engine, coordinates)
    return weights_of(engine.parameters(), coordinates)
