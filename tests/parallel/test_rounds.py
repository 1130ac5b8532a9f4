"""Starts of the same ranks from one store, with what dead ones have left there."""

import json
import threading
from collections.abc import Callable

import pytest
from forgepress.errors import ForgepressError
from forgepress.parallel.rounds import agree
from torch.distributed import HashStore


def _together(*functions: Callable[[], int]) -> list[int]:
    found: list[int] = []
    threads = [threading.Thread(target=lambda f=each: found.append(f())) for each in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def test_every_start_gets_the_next_number_on_all_ranks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    store = HashStore()
    for number in range(3):
        ranks = [lambda rank=rank: agree(store, rank, 3, 20) for rank in range(3)]
        assert _together(*ranks) == [number] * 3


def test_a_rank_that_died_after_its_hello_is_told_from_its_heir(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    store = HashStore()
    store.set("hello/1", "of a dead one")
    with pytest.raises(ForgepressError, match=r"rank 1 of 2 did not come within 0\.3 s"):
        agree(store, 0, 2, 0.3)  # it has said hello, and answers no more
    assert json.loads(store.get("round"))["heard"] == {"1": "of a dead one"}
    assert _together(lambda: agree(store, 1, 2, 20), lambda: agree(store, 0, 2, 20)) == [1, 1]


def test_a_rank_does_not_take_the_number_of_an_earlier_start():
    store = HashStore()
    store.set("round", json.dumps({"number": 4, "heard": {"1": "of a dead one"}}))
    with pytest.raises(ForgepressError, match="rank 1 has not heard of rank 0"):
        agree(store, 1, 2, 0.3)


def test_no_count_is_less_than_what_torchrun_says(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")  # the starts before died before they could meet
    assert agree(HashStore(), 0, 1, 1) == 2
