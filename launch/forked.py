"""A rank as a copy of the launcher: what the launcher has imported is there at once, for all ranks together.

A new interpreter for each rank would import torch once per rank, which costs two seconds of a core each and, where
cores are few, is most of the time to the first step.
"""

import atexit
import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any


def can_fork() -> bool:
    """Whether this process may be copied: on Linux, with one thread, and before CUDA was begun (it would be broken)."""
    torch = sys.modules.get("torch")
    begun = torch is not None and torch.cuda.is_initialized()
    return sys.platform == "linux" and threading.active_count() == 1 and not begun


class Forked:
    """A running copy of this process; like `subprocess.Popen` as far as the launcher asks."""

    def __init__(
        self,
        run: Callable[[], int],
        *,
        environment: Mapping[str, str],
        output: int | None,
        handlers: Mapping[int, Any],
    ) -> None:
        """Starts it in a session of its own; it ends with the code that `run()` gives.

        output:   descriptor for its stdout and stderr (None: ours).
        handlers: signal → what was done on it before the launcher took it; the rank begins with that.
        """
        self.returncode: Any = None  # int once it has ended; as Popen has it
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # what waits in a buffer would be written by both
        gc.freeze()  # what is there already is left alone by the copies' collections, and so stays shared memory
        held = signal.pthread_sigmask(signal.SIG_BLOCK, handlers)  # until the copy has handlers of its own
        self.pid = os.fork()
        if self.pid == 0:
            _live(run, environment, output, handlers, held)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)

    def send_signal(self, number: int) -> None:
        """Sends it a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def wait(self) -> int:
        """Until it has ended: its exit code, or minus the signal that ended it."""
        if self.returncode is None:
            _, status = os.waitpid(self.pid, 0)
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def _live(
    run: Callable[[], int],
    environment: Mapping[str, str],
    output: int | None,
    handlers: Mapping[int, Any],
    mask: set[Any],
) -> None:
    """The whole life of the copy: never returns into what the launcher was doing."""
    code = 1
    try:
        os.setsid()  # Ctrl-C reaches the launcher alone; and killing the group kills helpers too
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.environ.clear()
        os.environ.update(environment)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        if output is not None:
            os.dup2(output, 1)
            os.dup2(output, 2)
        code = run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        _end(code)


def _end(code: int) -> None:
    """As an interpreter ends: threads, what was registered for the end, buffers."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                continue
        os._exit(code)
