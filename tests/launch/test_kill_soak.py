"""The short form of benchmarks/kill_soak.py: each kind of kill once, at a moment that nobody chose."""

import random
from pathlib import Path

from forgepress.benchmarks import kill_soak


def test_runs_killed_at_a_random_moment_end_with_the_bits_of_the_unbroken_run(tmp_path: Path):
    mesh = ("parallel.shard=2",)
    reference, seconds = kill_soak.unbroken(tmp_path, mesh)
    for victim in ("rank 1", "launcher", "all"):
        after, killed = seconds * random.uniform(0.5, 0.9), False
        while not killed:  # a machine that has become faster may be done before: then sooner
            name = f"{victim}-{after:.3f}".replace(" ", "-").replace(".", "-")
            done = kill_soak.trial(tmp_path, name, mesh, reference, victim=victim, after=after)
            assert done.same, f"{victim} killed after {after:.2f} s:\n{done.output}"
            after, killed = after / 2, done.killed
