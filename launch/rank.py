"""One rank's frame around a function: its log, its watch, its exit code."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from ..errors import ForgepressError
from .board import open_page
from .environment import Place
from .logs import Tee, heading, open_log, tee_output
from .watch import LocalWatch, Watch, dump_stacks_on_signal, exit_code_of

_PARENT, _BOARD, _HAS_LOG = "FORGEPRESS_PARENT", "FORGEPRESS_BOARD", "FORGEPRESS_HAS_LOG"


def die_with_parent() -> None:
    """A rank of our launcher ends when the launcher ends, also by kill -9. Call first thing in the process."""
    parent = int(os.environ.get(_PARENT, "0"))
    if not parent:
        return
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(
            1, signal.SIGKILL
        )  # PR_SET_PDEATHSIG: the kernel does it, even while we are stopped
    if os.getppid() != parent:  # it ended before we got here
        os._exit(1)


def run_rank(
    function: Callable[[Place], object],
    place: Place,
    *,
    run_folder: Path | None = None,
    timeout: float = 60.0,
    silence: float | None = None,
) -> int:
    """Runs `function(place)` as this rank and returns the exit code; `place.watch` is filled in.

    run_folder: where logs/rank-N.log goes; None = no log file.
    timeout:    seconds without progress that count as a hang (`parallel.timeout`).
    returns:    0, or 75 after a save on request. A failure in a run of several ranks does not return: the process
                ends at once, because shutting down libraries that have lost their peers can hang.
    """
    log, trouble = None, None
    watch = Watch()
    try:
        log = _start_log(place, run_folder)
    except ForgepressError as error:  # told below, once there is somebody to tell it to
        trouble = error
    try:
        watch = _make_watch(place, run_folder, timeout=timeout, silence=silence, log=log)
        if trouble is not None:
            raise trouble
        function(replace(place, watch=watch))
        watch.close()
        code = 0
    except BaseException as error:
        code = _end_badly(error, place, watch, log)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
        if isinstance(stream, Tee):
            stream.close_line()
    if code and place.world > 1:
        os._exit(code)
    return code


def _end_badly(error: BaseException, place: Place, watch: Watch, log: TextIO | None) -> int:
    """Traceback to the log, record to the watch; on the terminal only where no launcher of ours will speak."""
    code = exit_code_of(error)
    if code == 0 or code == 75:
        watch.close()
    debug = os.environ.get("FORGEPRESS_DEBUG") == "1"
    text = "".join(traceback.format_exception(error))
    expected = isinstance(error, ForgepressError)
    if log:
        with suppress(OSError):  # a full disk may be the very error
            log.write(f"error: {error}\n" if expected and not debug else text)
            log.flush()
    if code not in (0, 75):
        watch.failed(error)  # under torchrun this waits until the verdict is spoken
    if code == 75 and place.rank == 0:
        print(error, file=sys.stderr)
    elif code and type(watch) is Watch:  # nobody else will speak
        # sys.__stderr__: the log has it already
        print(text.rstrip() if debug or not expected else f"error: {error}", file=sys.__stderr__)
    return code


def _start_log(place: Place, run_folder: Path | None) -> TextIO | None:
    if run_folder is None:
        return None
    log = open_log(run_folder, place.rank)
    if os.environ.pop(_HAS_LOG, "") == "1":  # stdout and stderr already are the log
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    else:
        tee_output(log)
    with suppress(OSError):
        log.write(heading(place.rank, place.world, place.host, os.getpid()))
        names = ("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
        log.write(
            "   " + " ".join(f"{name}={os.environ[name]}" for name in names if name in os.environ) + "\n"
        )
    dump_stacks_on_signal(log)
    return log


def _make_watch(
    place: Place, run_folder: Path | None, *, timeout: float, silence: float | None, log: TextIO | None
) -> Watch:
    parent = int(os.environ.pop(_PARENT, "0"))  # popped: a process that a rank starts is no rank of ours
    board = os.environ.pop(_BOARD, "")
    if board:
        return LocalWatch(open_page(int(board), place.rank, place.world), parent=parent)
    if place.world == 1:
        return Watch()
    from .store_watch import StoreWatch

    return StoreWatch(place, timeout=timeout, silence=silence, log=log, run_folder=run_folder)
