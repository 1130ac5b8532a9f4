"""Progress prints when it is due, reads values only then, and only rank 0 speaks; logs go to one file per rank."""

import io

import pytest
import torch
from forgepress.trainer.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that pass only when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def run(progress: Progress, steps: range, clock: Clock, seconds: float = 0.5, **values) -> None:
    for step in steps:
        clock.now += seconds
        progress.update(step, samples=step * 32, wait_seconds=step * seconds / 4, **values)


def test_lines_come_every_n_steps_and_at_the_end_with_rate_wait_and_time_left():
    out, clock = io.StringIO(), Clock()
    progress = Progress(25, 10, file=out, clock=clock)
    progress.phase("dense")
    run(progress, range(1, 26), clock, loss=torch.tensor(0.5))
    progress.close()
    assert out.getvalue().splitlines() == [
        "phase dense (after step 0 of 25)",
        "[dense] step 10/25 · loss 0.5 · 64 samples/s · data wait 25% · left 8 s",
        "[dense] step 20/25 · loss 0.5 · 64 samples/s · data wait 25% · left 2 s",
        "[dense] step 25/25 · loss 0.5 · 64 samples/s · data wait 25% · left 0 s",
    ]


def test_values_are_read_only_when_they_are_printed():
    reads = []

    def loss() -> float:
        reads.append(1)
        return 0.25

    clock = Clock()
    run(Progress(100, 50, file=io.StringIO(), clock=clock), range(1, 101), clock, loss=loss)
    assert len(reads) == 2


def test_a_resumed_run_counts_its_speed_from_where_it_went_on():
    out, clock = io.StringIO(), Clock()
    progress = Progress(100, 10, first_step=80, file=out, clock=clock)
    for step in range(81, 91):
        clock.now += 1.0
        progress.update(step)
    assert out.getvalue() == "step 90/100 · left 10 s\n"


def test_a_terminal_is_drawn_by_the_clock_and_shows_phase_and_values():
    out, clock = Terminal(), Clock()
    progress = Progress(1000, 10, file=out, clock=clock)
    reads = []
    run(progress, range(1, 501), clock, seconds=0.01, loss=lambda: reads.append(1) or 0.125, sparsity=0.9)
    assert 15 <= len(reads) <= 25  # 5 seconds at four drawings a second, not 500
    progress.phase("surgery")
    progress.print("[kept] as it is")
    progress.close()
    text = out.getvalue()
    assert (
        "surgery" in text
        and "loss 0.125 · sparsity 0.9" in text
        and "/1000" in text
        and "[kept] as it is" in text
    )


def test_other_ranks_print_nothing(capsys):
    progress = Progress(10, 1, rank=1)
    progress.phase("dense")
    progress.update(1, loss=lambda: pytest.fail("a silent rank must not wait for its device"))
    progress.print("hello")
    progress.close()
    assert capsys.readouterr().out == ""


def test_closing_twice_and_leaving_by_an_error_gives_the_terminal_back():
    out = Terminal()
    with pytest.raises(RuntimeError, match="stop"), Progress(10, 1, file=out) as progress:
        progress.update(1, loss=1.0)
        raise RuntimeError("stop")
    progress.close()
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 1  # cursor hidden, shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (187, "3:07 min"), (8100, "2:15:00 h")]
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text
