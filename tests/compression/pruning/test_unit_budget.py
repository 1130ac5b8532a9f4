"""Which units stay: the ranking, the budget, the widths, against counting by hand."""

import pytest
import torch
from forgepress.compression.pruning._unit_budget import Candidate, Kept, by_mean, by_rank, choose, least_of
from forgepress.errors import ConfigError


def candidate(name: str, *scores: float, multiple: int = 1, least: int = 1) -> Candidate:
    scored = torch.tensor(scores, dtype=torch.float64)
    return Candidate(name=name, scores=scored, multiple=multiple, least=least)


def share_of_units(candidates: list[Candidate]):
    total = sum(c.scores.numel() for c in candidates)

    def measure(kept: Kept) -> float:
        return sum(c.scores.numel() - len(kept[c.name]) for c in candidates if c.name in kept) / total

    return measure


def removed(candidates: list[Candidate], share: float) -> tuple[Kept, float]:
    return choose(candidates, share, share_of_units(candidates), what="units")


def test_the_lowest_scores_of_all_groups_go_first() -> None:
    groups = [candidate("a", 0.5, 3.0, 0.1), candidate("b", 2.0, 0.4), candidate("c", 9.0, 8.0)]
    kept, achieved = removed(groups, 3 / 7)
    assert kept == {"a": [1], "b": [0]}  # 0.1, 0.4 and 0.5 are gone, c is whole
    assert achieved == 3 / 7


def test_equal_scores_go_in_the_order_of_groups_and_units() -> None:
    groups = [candidate("a", 1.0, 1.0, 1.0), candidate("b", 1.0, 1.0)]
    assert removed(groups, 1 / 5)[0] == {"a": [1, 2]}
    assert removed(groups, 3 / 5)[0] == {"a": [2], "b": [1]}  # a keeps its last unit, b's turn


def test_no_more_goes_than_the_budget_asks_for() -> None:
    scores = torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    groups = [Candidate(name="a", scores=scores[:25]), Candidate(name="b", scores=scores[25:])]
    for wanted in range(1, 38):
        kept, achieved = removed(groups, wanted / 40)
        assert round(achieved * 40) == wanted
        gone = [s for g in groups for i, s in enumerate(g.scores) if i not in kept.get(g.name, range(40))]
        assert max(gone) == scores.sort().values[wanted - 1]


def test_widths_stay_multiples_and_the_budget_is_met_by_less_than_one_more() -> None:
    scores = torch.rand(90, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    groups = [
        Candidate(name="a", scores=scores[:50], multiple=8, least=1),
        Candidate(name="b", scores=scores[50:], multiple=4, least=10),
    ]
    for share in (0.05, 0.3, 0.5, 0.7):
        kept, achieved = removed(groups, share)
        assert share <= achieved < share + 8 / 90
        assert len(kept.get("a", range(50))) in (8, 16, 24, 32, 40, 48, 50)
        assert len(kept.get("b", range(40))) in (12, 16, 20, 24, 28, 32, 36, 40)


def test_no_group_loses_all_its_units_and_what_cannot_be_met_is_refused() -> None:
    groups = [candidate("a", 0.0, 0.0, 0.0), candidate("b", 5.0, 6.0, 7.0, multiple=2)]
    kept, achieved = removed(groups, 0.5)
    assert kept == {"a": [2], "b": [1, 2]}
    assert achieved == 3 / 6
    with pytest.raises(ConfigError, match=r"share=0.6 of the units.*no more than 0.5 .*a 1 of 3, b 2 of 3"):
        removed(groups, 0.6)


def test_a_group_narrower_than_the_multiple_stays_whole() -> None:
    groups = [candidate("a", 0.0, 0.0, multiple=8), candidate("b", *range(1, 17), multiple=8)]
    assert removed(groups, 0.3)[0] == {"b": list(range(8, 16))}


def test_a_group_that_may_go_as_a_whole_does() -> None:
    assert removed([candidate("block", 0.1, least=0), candidate("b", 1.0, 2.0)], 1 / 3)[0] == {"block": []}


def test_the_measure_decides_and_not_the_number_of_units() -> None:
    groups = [candidate("wide", 1.0, 3.0, 5.0), candidate("narrow", 2.0, 4.0, 6.0)]

    def parameters(kept: Kept) -> float:  # a unit of wide brings ten times one of narrow
        gone = {g.name: 3 - len(kept.get(g.name, range(3))) for g in groups}
        return (10 * gone["wide"] + gone["narrow"]) / 33

    kept, achieved = choose(groups, 11 / 33, parameters, what="parameters")
    assert kept == {"wide": [1, 2], "narrow": [1, 2]} and achieved == 11 / 33
    kept, achieved = choose(groups, 12 / 33, parameters, what="parameters")
    assert kept == {"wide": [2], "narrow": [1, 2]} and achieved == 21 / 33


def test_by_rank_takes_the_same_share_of_every_group() -> None:
    generator = torch.Generator().manual_seed(2)
    wide, narrow = (torch.rand(n, generator=generator, dtype=torch.float64) for n in (500, 300))
    groups = [
        Candidate(name="wide", scores=by_rank(1e6 * wide)),
        Candidate(name="narrow", scores=by_rank(narrow)),
    ]
    kept, _ = removed(groups, 0.8)
    assert [len(kept["wide"]), len(kept["narrow"])] == [100, 60]  # as in table 3 of the slimming paper
    assert kept["narrow"] == sorted(narrow.topk(60).indices.tolist())


def test_by_mean_makes_layers_of_other_scales_comparable() -> None:
    scores = torch.tensor([1.0, 3.0], dtype=torch.float64)
    assert torch.equal(by_mean(1e9 * scores), by_mean(scores))
    assert torch.equal(by_mean(torch.zeros(2)), torch.zeros(2))


@pytest.mark.parametrize(("size", "most", "least"), [(10, 0.9, 1), (10, 0.5, 5), (7, 0.5, 4), (3, 1.0, 1)])
def test_the_least_that_stays_follows_from_the_most_that_may_go(size: int, most: float, least: int) -> None:
    assert least_of(size, most) == least
