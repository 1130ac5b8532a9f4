import io
import math
from typing import Any

from forgepress.errors import ConfigError, ForgepressError
from forgepress.launch import Place, Watch
from forgepress.launch.board import FAILED, PAGE, RUNNING, Board, Failure, Page
from forgepress.launch.logs import Tee
from forgepress.launch.rank import run_rank
from forgepress.launch.watch import cause_line, exit_code_of


def test_pages_of_a_board_are_read_as_they_were_written():
    board = Board(3)
    board.pages[2].beat(7, "forward")
    board.pages[2].beat(8, "ein sehr langer Name für eine Phase", allow=5.0)
    standing = board.pages[2].read(host="here")
    assert (standing.rank, standing.step, standing.first_step, standing.allow) == (2, 8, 7, 5.0)
    assert standing.where.startswith("ein sehr langer Name") and standing.status == RUNNING
    assert board.pages[1].read().step == -1
    board.close()


def test_who_reads_at_any_moment_sees_the_beat_before_or_this_one():
    seen: list[int] = []

    class Read(
        bytearray
    ):  # a writer that is put aside by the system is looked at before and after each store
        def __setitem__(self, place: Any, value: Any) -> None:
            seen.append(page.read().step)
            super().__setitem__(place, value)
            seen.append(page.read().step)

    page = Page(Read(PAGE))  # pyright: ignore[reportArgumentType]
    for step in (4, 5):
        page.beat(step, "forward")
        page.alive()
    assert seen == [-1, 4, 4, 4, 4, 5, 5, 5]


def test_a_failure_of_any_length_and_script_fits_on_its_page():
    board = Board(2)
    board.pages[1].beat(1, "data")
    failure = Failure(rank=0, host="h", step=3, where="data", cause="\U0001f3d6" * 5000, traceback="é" * 5000)
    board.pages[0].fail(failure)
    read = board.pages[0].read()
    assert read.status == FAILED and read.failure is not None
    assert read.failure.cause == "\U0001f3d6" * 1200 and read.failure.at == failure.at
    assert board.pages[1].read().step == 1
    board.close()


def test_without_a_launcher_the_watch_does_nothing_and_the_error_is_printed(capfd):
    seen: list[Place] = []
    assert run_rank(seen.append, Place()) == 0
    assert type(seen[0].watch) is Watch and seen[0].watch.beat(1, "data") is None

    def fail(place: Place) -> None:
        raise ConfigError("no such thing; take another")

    assert run_rank(fail, Place()) == 2
    assert capfd.readouterr().err == "error: no such thing; take another\n"


def test_the_cause_is_one_line_with_the_frame_outside_installed_libraries():
    try:
        math.sqrt(float("-1"))
    except ValueError as error:
        line = cause_line(error)
    assert line.startswith("ValueError: ") and "(test_board.py:" in line and "\n" not in line


def test_exit_codes_follow_the_error():
    assert exit_code_of(ForgepressError("x")) == 1
    assert exit_code_of(ConfigError("x")) == 2
    assert exit_code_of(KeyboardInterrupt()) == 130
    assert exit_code_of(SystemExit("text")) == 1
    assert exit_code_of(SystemExit(0)) == exit_code_of(SystemExit(None)) == 0


def test_a_tee_keeps_colours_and_progress_bars_out_of_the_log():
    terminal, log = io.StringIO(), io.StringIO()
    tee = Tee(terminal, log)
    for text in (
        "\x1b[32mgreen\x1b[0m line\n",
        "10 %",
        "\r20 %",
        "\r",
        "30 %\n",
        "\x1b[2Kdrawn\x1b[2Kagain\n",
        "rest",
    ):
        tee.write(text)
    tee.close_line()
    assert log.getvalue() == "green line\n30 %\nagain\nrest\n"
    assert terminal.getvalue().startswith("\x1b[32mgreen")
    assert tee.isatty() is False
