"""Rows are made once and kept, by each process, by a node, on disk: with and without, batches have the same bits."""

import errno
import os
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
import torch
from forgepress.dataloading import ArraySource, Cache, Loader
from forgepress.dataloading import stored as stored_module
from forgepress.dataloading.cache import CachedSource, RecentSource
from forgepress.dataloading.meter import Meter
from forgepress.errors import ConfigError, DataError

ROWS, WIDTH = 200, 3 * 4 + 8


class Counted(ArraySource):
    """Counts how often each row is made."""

    resident = False
    reuses = False

    def __init__(self) -> None:
        number = torch.arange(ROWS)
        super().__init__({"number": number, "point": (number[:, None] + torch.zeros(3)).sin()})
        self.made = np.zeros(ROWS, int)

    def gather(self, rows, make=None):
        np.add.at(self.made, rows, 1)
        return super().gather(rows)


def twice(columns):
    return {**columns, "point": columns["point"] * 2}


def stream(source, **settings):
    with Loader(source, batch=16, seed=1, **settings) as loader:
        batches = [batch.columns for batch in islice(loader.stream(), 40)]
        return batches, loader.report()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("policy", ["kept", "recent"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_batches_are_bit_equal_whatever_is_kept(share, policy, threads):
    wanted, _ = stream(Counted(), prefetch=0, transform=twice)
    cache = Cache(memory=int(share * ROWS * WIDTH), policy=policy)
    found, _ = stream(Counted(), cache=cache, prepare=twice, threads=threads)
    for left, right in zip(found, wanted, strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_share_that_fits_gives_exactly_that_share_of_hits_in_every_later_epoch():
    source, meter = Counted(), Meter()
    kept = CachedSource(source, budget=ROWS * WIDTH // 4, meter=meter)
    for epoch in range(3):
        meter.counts.clear()
        for rows in np.array_split(np.random.default_rng(epoch).permutation(ROWS), 9):
            assert torch.equal(kept.gather(rows)["number"], torch.from_numpy(rows))
        assert meter.counts["hits"] == (0 if epoch == 0 else ROWS // 4)
    assert sorted(set(source.made.tolist())) == [1, 3]


def test_rows_used_last_are_kept_instead_where_asked_for():
    source = Counted()
    recent = RecentSource(source, budget=10 * WIDTH)
    for _ in range(3):
        for rows in (np.arange(6), np.arange(3, 9)):
            assert recent.gather(rows)["number"].tolist() == rows.tolist()
    assert source.made[:9].tolist() == [1] * 9
    recent.gather(np.arange(50, 60))
    recent.gather(np.array([0]))
    assert source.made[0] == 2


def test_stored_rows_are_made_once_for_all_runs_and_part_of_them_where_the_disk_is_small(tmp_path):
    wanted, _ = stream(Counted(), prefetch=0)
    for disk, files in ((1 << 20, 1), (ROWS * WIDTH // 2, 2)):
        cache = Cache(folder=str(tmp_path), disk=disk)
        first = Counted()
        found, _ = stream(first, cache=cache)
        again = Counted()
        once_more, _ = stream(again, cache=cache)
        assert all(torch.equal(a[n], b[n]) for a, b in zip(found, wanted, strict=True) for n in a)
        assert all(torch.equal(a[n], b[n]) for a, b in zip(once_more, wanted, strict=True) for n in a)
        assert again.made.sum() == (0 if files == 1 else again.made[ROWS // 2 :].sum())
    assert (
        len(list(tmp_path.glob("*.arrow"))) == 1
    )  # the larger one had to go: together they take more than allowed


def test_another_preparation_is_another_file_and_a_damaged_file_is_made_anew(tmp_path):
    cache = Cache(folder=str(tmp_path), disk=1 << 20)
    stream(Counted(), cache=cache)
    doubled, _ = stream(Counted(), cache=cache, prepare=twice)
    assert len(list(tmp_path.glob("*.arrow"))) == 2
    plain, _ = stream(Counted(), prefetch=0)
    assert torch.equal(doubled[0]["point"], plain[0]["point"] * 2)
    for file in tmp_path.glob("*.arrow"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    source = Counted()
    found, _ = stream(source, cache=cache)
    assert source.made.min() >= 1
    assert all(torch.equal(a[n], b[n]) for a, b in zip(found, plain, strict=True) for n in a)


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stored_module, "_record", full)
    with pytest.raises(DataError, match=r"is full .* are wanted\); free space"):
        Loader(Counted(), batch=16, cache=Cache(folder=str(tmp_path)))
    assert [file.suffix for file in tmp_path.iterdir()] == [".lock"]


SHARER = """
import sys, numpy as np, torch
from forgepress.dataloading import ArraySource
from forgepress.dataloading.cache import CachedSource
source = ArraySource({"number": torch.arange(50), "flat": torch.rand(50, 4)}, fingerprint="x")
cache = CachedSource(source, shared="test KEY")
print(int(cache._flags.sum()), cache.gather(np.arange(20))["flat"][:, 0].tolist(), flush=True)
sys.stdin.read()
"""


def test_processes_of_a_node_share_one_memory_that_goes_with_the_last():
    script = SHARER.replace("KEY", str(os.getpid()))

    def start():
        return subprocess.Popen(
            [sys.executable, "-P", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    first = start()
    kept, values = first.stdout.readline().split(" ", 1)
    second = start()
    assert (kept, second.stdout.readline()) == ("0", f"20 {values}")  # random rows: made by the first alone
    first.kill()
    first.wait()
    assert second.poll() is None  # its memory stays though the process that made it is gone
    second.stdin.close()
    assert second.wait(30) == 0
    for process in (first, second):
        process.stdout.close()
    first.stdin.close()


@pytest.mark.parametrize(
    "given", [{"memory": -1}, {"policy": "best"}, {"policy": "recent", "shared": True}, {"disk": 1.5}]
)
def test_a_cache_that_means_nothing_is_refused(given):
    with pytest.raises(ConfigError, match=r"data\.cache"):
        Cache(**given)
