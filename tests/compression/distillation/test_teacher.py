"""The teacher of a loop of one's own: run once a step, without gradients, and not at all once its answers are kept."""

import pytest
import torch
from forgepress.compression import Teacher
from forgepress.errors import ConfigError
from torch import nn

DATA = torch.randn(11, 6, generator=torch.Generator().manual_seed(0))


class Counting(nn.Sequential):
    """Counts its calls and remembers how many rows each had."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__(nn.Linear(6, 4), nn.Dropout(0.9), nn.Linear(4, 3))
        self.rows: list[int] = []

    def forward(self, x):
        assert not torch.is_grad_enabled() and not self.training
        self.rows.append(len(x))
        return super().forward(x)


def asked(**settings) -> tuple[Counting, Teacher]:
    module = Counting()
    teacher = Teacher(module, **settings)
    teacher.want("logits", keep=lambda x: x.clone(), mark="logits")
    teacher.want("inner", module="0", at="0", keep=lambda x: x[:, :2].clone(), mark="two")
    return module, teacher


def test_it_runs_once_a_step_for_all_that_was_asked():
    module, teacher = asked(microbatches=3)
    columns = teacher.add({"inputs": DATA}, 1)
    again = teacher.add(columns, 1)
    assert module.rows == [3, 4, 4] and teacher.calls == 1
    with torch.no_grad():
        torch.testing.assert_close(columns["logits"], module(DATA))
    torch.testing.assert_close(again["inner"], module[0](DATA)[:, :2].detach())
    teacher.add({"inputs": DATA[:2]}, 2)
    assert teacher.calls == 2 and module.rows[-3:] == [0, 1, 1]


def test_its_weights_get_no_gradient_and_its_own_use_is_not_seen():
    module, teacher = asked()
    assert not any(p.requires_grad for p in module.parameters())
    with torch.no_grad():
        module(DATA)  # somebody else
    assert len(teacher.add({"inputs": DATA}, 1)["inner"]) == 11


def test_transformers_inputs_are_found_by_their_names():
    class Two(nn.Module):
        def forward(self, input_ids, attention_mask):
            return input_ids * attention_mask

    teacher = Teacher(Two())
    teacher.want("logits", keep=torch.clone, mark="logits")
    ids, mask = torch.arange(6).view(2, 3), torch.ones(2, 3)
    columns = {"input_ids": ids, "attention_mask": mask, "labels": ids}
    assert torch.equal(teacher.add(columns, 1)["logits"], ids * mask)
    with pytest.raises(ConfigError, match="no column 'inputs', only labels"):
        teacher.add({"labels": ids}, 2)


def passes(teacher: Teacher, epochs: int, tail: int = 11) -> list[dict[str, torch.Tensor]]:
    """Columns of each row after each pass over the data in another order."""
    found = []
    for epoch in range(epochs):
        order = torch.randperm(11, generator=torch.Generator().manual_seed(epoch))[:tail]
        rows = {name: torch.zeros(11, *shape) for name, shape in (("logits", (3,)), ("inner", (2,)))}
        for step, part in enumerate(order.split(4)):
            teacher.see(part, epoch)
            columns = teacher.add({"inputs": DATA[part]}, 10 * epoch + step)
            for name, values in rows.items():
                values[part] = columns[name]
        found.append(rows)
    return found


def test_from_the_second_pass_on_nobody_runs_and_every_bit_is_the_same(tmp_path):
    module, teacher = asked(cache=tmp_path, rows=11)
    first, *others = passes(teacher, 3)
    assert teacher.calls == 3 and sum(module.rows) == 11
    assert not teacher.loaded
    for later in others:
        assert all(torch.equal(first[name], later[name]) for name in first)
    module, teacher = asked(cache=tmp_path, rows=11)  # a later session
    (again,) = passes(teacher, 1)
    assert module.rows == [] and all(torch.equal(first[name], again[name]) for name in first)


def test_rows_that_a_pass_left_out_are_asked_for_later(tmp_path):
    module, teacher = asked(cache=tmp_path, rows=11)
    found = passes(teacher, 6, tail=8)  # two of three steps: every pass leaves out other rows
    kept = [teacher.calls, sum(module.rows)]
    assert kept[0] < 12 and kept[1] < 48
    whole = passes(asked()[1], 6, tail=8)
    for mine, wanted in zip(found, whole, strict=True):
        torch.testing.assert_close(mine["logits"], wanted["logits"])


def test_a_session_that_was_killed_in_mid_pass_goes_on_with_what_it_kept(tmp_path):
    _, teacher = asked(cache=tmp_path, rows=11)
    for step, part in enumerate(torch.arange(8).split(4)):
        teacher.see(part, 0)
        teacher.add({"inputs": DATA[part]}, step)
    module, teacher = asked(cache=tmp_path, rows=11)  # not closed: killed
    teacher.see(torch.arange(8, 11), 0)
    teacher.add({"inputs": DATA[8:]}, 2)
    teacher.see(torch.arange(11), 1)
    columns = teacher.add({"inputs": DATA}, 3)
    assert module.rows == [3]
    with torch.no_grad():
        torch.testing.assert_close(columns["logits"], module(DATA))


def test_other_questions_are_another_cache(tmp_path):
    _, teacher = asked(cache=tmp_path, rows=11)
    passes(teacher, 1)
    module = Counting()
    other = Teacher(module, cache=tmp_path, rows=11)
    other.want("logits", keep=lambda x: 2 * x, mark="twice the logits")
    other.see(torch.arange(11), 0)
    other.add({"inputs": DATA}, 1)
    assert module.rows == [11]


def test_what_is_wrong_is_said(tmp_path):
    module, teacher = asked(cache=tmp_path, rows=11)
    with pytest.raises(ConfigError, match=r"tell Teacher.see the step's row numbers"):
        teacher.add({"inputs": DATA}, 1)
    teacher = Teacher(module)
    with pytest.raises(ConfigError, match="the teacher has no module 'x'; it has 0, 1, 2"):
        teacher.want("x", module="x", keep=torch.clone, mark="x")
    teacher.want("sum", keep=lambda x: x.sum().view(1), mark="sum")
    with pytest.raises(ConfigError, match="for 11 rows begins with 1; want one entry for each row"):
        teacher.add({"inputs": DATA}, 1)
