"""The model of an artifact, to be trained on."""

from collections.abc import Mapping
from typing import Any

import torch

from ...errors import CheckpointError, ConfigError
from ._base import BuiltModel, refuse_unknown


def from_artifact(given: Mapping[str, Any], facts: Mapping[str, Any]) -> BuiltModel:
    """{artifact: FOLDER}: the dense model of an artifact, or of a run's folder, with its weights.

    The new run's artifacts hold all that they need and do not refer to the one it began with. A model that was
    changed by techniques is refused: what they did (zeros, grids, removed units) is kept by later phases of one
    config, and would be forgotten here.
    """
    from ..artifact import find_artifact, load_built  # they build models themselves
    from ..artifact_files import read_manifest

    refuse_unknown("model.artifact", given, ["artifact"])
    try:
        folder = find_artifact(given["artifact"])
        if plan := read_manifest(folder)["plan"]:
            raise ConfigError(
                f"model.artifact={str(folder)!r} was compressed, in {len(plan)} steps; want a dense one: compress it "
                "further in further phases of the config that made it"
            )
        return load_built(folder, device=torch.get_default_device().type)
    except CheckpointError as error:
        raise ConfigError(f"model.artifact: {error}") from error
