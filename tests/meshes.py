"""The meshes on which every technique is proven, and which one goes on after each."""

MESHES: dict[str, dict[str, int]] = {
    "replicate=2": {"replicate": 2},
    "shard=2": {"shard": 2},
    "shard=3": {"shard": 3},  # 3 divides neither 100 nor 10 rows: the last shards are short
    "tensor=2": {"tensor": 2},
    "pipeline=2": {"pipeline": 2},
    "pipeline=2 x shard=2": {"pipeline": 2, "shard": 2},
    "shard=2 x tensor=2": {"shard": 2, "tensor": 2},
    "pipeline=2 x shard=2 x tensor=2": {"pipeline": 2, "shard": 2, "tensor": 2},
}
# Each mesh hands its checkpoint on to one that is cut differently.
THEN = {
    "replicate=2": "pipeline=2",
    "shard=2": "tensor=2",
    "shard=3": "shard=2 x tensor=2",
    "tensor=2": "shard=3",
    "pipeline=2": "shard=2",
    "pipeline=2 x shard=2": "replicate=2",
    "shard=2 x tensor=2": "pipeline=2 x shard=2",
    "pipeline=2 x shard=2 x tensor=2": "shard=3",
}
# Of models with sequences: a run begins on the first and goes on on the second.
CONTEXT_MESHES: dict[str, dict[str, int]] = {
    "context=2": {"context": 2},
    "shard=2 x context=2": {"shard": 2, "context": 2},
}
