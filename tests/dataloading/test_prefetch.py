"""The thread that reads ahead: its errors, its end, and what it costs others."""

import gc
import subprocess
import sys
import threading
import time
from itertools import islice

import psutil
import pytest
import torch
from forgepress.dataloading import Loader


def test_the_error_of_the_thread_reaches_the_consumer_after_the_batches_before_it(numbered, slow):
    source = slow(numbered(2000), bad=1700)
    loader = Loader(source, batch=100, shuffle=False, prefetch=2)
    seen = []
    with pytest.raises(ValueError, match="row 1700 is bad"):
        for batch in loader:
            seen.append(batch.index)
    assert 0 < len(seen) <= 17
    assert seen == list(range(len(seen)))
    with pytest.raises(ValueError, match="row 1700 is bad"):  # it does not hang or skip when asked again
        list(loader)
    assert loader.state_dict()["consumed"] == 100 * len(seen)


def prefetch_threads() -> int:
    return sum(thread.name == "forgepress-prefetch" for thread in threading.enumerate())


def test_a_thousand_loaders_leave_files_threads_and_memory_flat(numbered, slow):
    own, source = psutil.Process(), slow(numbered(40))
    for number in range(1000):
        loader = Loader(source, batch=4, seed=number % 3)
        next(iter(loader))
        if number % 2:
            loader.close()
        del loader
        if number == 200:  # what the first ones allocate for good is there
            gc.collect()
            before, files, memory = prefetch_threads(), own.num_fds(), own.memory_info().rss
    gc.collect()
    assert prefetch_threads() <= before and own.num_fds() <= files
    assert own.memory_info().rss - memory < 8 << 20  # of 800 loaders: less than 10 KiB each


def test_a_process_ends_while_a_loader_is_open():
    script = (
        "import numpy as np, torch\n"
        "from forgepress.dataloading import ArraySource, Loader\n"
        "class Source(ArraySource): resident = False\n"
        "loader = Loader(Source({'a': torch.arange(4000)}), batch=4)\n"
        "print(loader.threaded, len(next(iter(loader)).columns['a']))\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["True", "4"], "")


def test_a_closed_loader_goes_on_where_it_was(numbered, slow):
    whole = [batch.columns["number"].tolist() for batch in Loader(numbered(20), batch=4)]
    loader = Loader(slow(numbered(20)), batch=4)
    found = [batch.columns["number"].tolist() for batch in islice(loader.stream(), 2)]
    loader.close()
    loader.close()
    assert found + [batch.columns["number"].tolist() for batch in loader] == whole
    loader.close()


def test_the_thread_changes_nobody_elses_number_of_threads(numbered, slow):
    before = torch.get_num_threads()
    loader = Loader(slow(numbered(20)), batch=4)
    next(iter(loader))
    found = [torch.get_num_threads()]
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    loader.close()
    assert found == [before, before]


def test_waiting_is_counted(numbered, slow):
    class Sleepy(slow):
        def gather(self, rows):
            time.sleep(0.01)
            return super().gather(rows)

    loader = Loader(Sleepy(numbered(400)), batch=100)
    assert loader.wait_seconds == 0
    next(iter(loader))
    assert loader.wait_seconds >= 0.009
    loader.close()
