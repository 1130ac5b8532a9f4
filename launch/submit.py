"""Submit a function to local ranks, get a future: the nouns of submitit."""

import json
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from ..errors import ForgepressError
from .local import LocalRanks, Outcome
from .watch import SILENCE


class RankFailed(ForgepressError):
    """A rank of a submitted function failed: the message is the one that names rank, host, step and cause."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__((outcome.message or "the ranks were stopped").removeprefix("error: "))
        self.exit_code = outcome.exit_code
        self.outcome = outcome


class Future:
    """The running ranks of one submitted function."""

    def __init__(self, ranks: LocalRanks, size: int, results: Path) -> None:
        self._ranks, self._size, self._results = ranks, size, results
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None
        self._values: list[Any] = []
        # The thread that starts the ranks lives as long as they do: their life is tied to it by the kernel.
        self._thread = threading.Thread(target=self._run, name="forgepress-ranks", daemon=True)
        self._thread.start()

    def done(self) -> bool:
        """Have all ranks ended?"""
        return not self._thread.is_alive()

    def outcome(self, timeout: float | None = None) -> Outcome:
        """Waits and says how the ranks ended; raises TimeoutError after `timeout` seconds (they run on)."""
        try:
            self._join(timeout)
        except KeyboardInterrupt:
            self.kill()
            raise
        if self._error:
            raise self._error
        if self._outcome is None:
            raise TimeoutError(f"the ranks still run after {timeout:g} s")
        return self._outcome

    def results(self, timeout: float | None = None) -> list[Any]:
        """What each rank returned, in rank order; raises RankFailed if one failed."""
        outcome = self.outcome(timeout)
        if outcome.exit_code:
            raise RankFailed(outcome)
        return self._values

    def result(self, timeout: float | None = None) -> Any:
        """What rank 0 returned."""
        return self.results(timeout)[0]

    def kill(self) -> None:
        """Ends all ranks now and waits until they are gone."""
        self._ranks.kill()
        self._thread.join()

    def _join(self, timeout: float | None) -> None:
        end = None if timeout is None else time.monotonic() + timeout
        while self._thread.is_alive() and (end is None or time.monotonic() < end):
            self._thread.join(0.1)  # short joins: Ctrl-C must get through

    def _run(self) -> None:
        try:
            outcome = self._ranks.run()
            if outcome.exit_code == 0:
                files = [self._results / f"rank-{rank}.json" for rank in range(self._size)]
                self._values = [json.loads(file.read_text()) for file in files]
            self._outcome = outcome
        except BaseException as error:
            self._error = error
        finally:
            shutil.rmtree(self._results, ignore_errors=True)


def submit(
    function: str,
    *arguments: Any,
    ranks: int = 1,
    run_folder: Path | None = None,
    timeout: float = 60.0,
    silence: float = SILENCE,
    quiet: bool = True,
) -> Future:
    """Starts `function` ("package.module:qualname") on `ranks` local processes and returns at once.

    arguments:  JSON values, the same for every rank; the function also gets `place=Place(…)` if it takes `place`.
    run_folder: where logs/rank-N.log go; None = output is dropped.
    timeout:    seconds without progress after the first step that count as a hang.
    quiet:      False lets rank 0 write to this terminal and prints the failure message there.
    """
    results = Path(tempfile.mkdtemp(prefix="forgepress-"))
    job = {
        "arguments": arguments,
        "run_folder": str(run_folder) if run_folder else None,
        "results": str(results),
        "timeout": timeout,
        "silence": silence,
    }
    job_file = results / "arguments.json"
    job_file.write_text(json.dumps(job))
    command = [sys.executable, "-m", "forgepress.launch.worker", function, str(job_file)]
    local = LocalRanks(command, ranks, run_folder=run_folder, timeout=timeout, silence=silence, quiet=quiet)
    return Future(local, ranks, results)
