"""The watch where nobody of ours stands above the ranks (torchrun, SLURM): all watch each other through torch's store.

Every rank publishes where it stands and reads the others, about once a second, on a daemon thread with a connection
of its own. Whoever reaches a verdict first writes it into the store; all others read it there, so that there is one
verdict and one message. Then every rank ends at once, whatever its main thread is stuck in.
"""

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

from ..errors import ForgepressError
from ..parallel.rounds import MEET, agent_keeps_store, round_number
from .board import FAILED, FINISHED, RUNNING, Failure, Page, Standing, process_is_stopped
from .environment import Place
from .verdict import GRACE_FOR_CAUSE, Verdict, blame, grace, judge, message
from .watch import SIGN_OF_LIFE, SILENCE, Watch, describe

_STORE_TIMEOUT = 5.0  # seconds that one store operation may take: then the store's host counts as lost
_LEAVE = 5.0  # seconds that the host of the store waits for the others before it ends


@dataclass
class _Seen:
    """The last record of one rank and when it last changed, by this rank's own clock (hosts' clocks differ)."""

    text: bytes = b""
    at: float = 0.0


class StoreWatch(Watch):
    """Publishes this rank's beats, reads everybody's, and ends this process when a rank anywhere has failed."""

    def __init__(
        self,
        place: Place,
        *,
        timeout: float = 60.0,
        silence: float | None = None,
        log: TextIO | None = None,
        run_folder: Path | None = None,
    ) -> None:
        self._run_folder = run_folder  # whose history hears how it ended
        self._page = Page()
        self._page.rank = place.rank
        self.beat = self._page.beat
        self._place, self._timeout, self._silence, self._log = place, timeout, silence or SILENCE, log
        self._period = max(
            SIGN_OF_LIFE, place.world / 256
        )  # reading all ranks costs the store world² records
        self._failure: Failure | None = None
        self._first_failure = 0.0
        self._closed, self._wake = threading.Event(), threading.Event()
        self._started = time.monotonic()
        self._seen = {rank: _Seen(at=self._started) for rank in range(place.world)}
        self._known: set[int] = set()
        self._store = _open_store(place)
        self._ending = threading.Lock()
        self._answered = time.monotonic()  # when the store last answered
        self._thread = threading.Thread(target=self._live, name="forgepress-watch", daemon=True)
        self._thread.start()
        threading.Thread(target=self._guard_store, name="forgepress-store", daemon=True).start()

    def failed(self, error: BaseException) -> None:
        """Publishes the failure and waits until the verdict is spoken; the watching thread then ends this process."""
        if self._failure is None:
            self._failure = replace(describe(error, self._page), host=self._place.host)
            self._wake.set()
            self._thread.join(GRACE_FOR_CAUSE + _STORE_TIMEOUT)

    def close(self) -> None:
        """Says that this rank has finished. The host of the store waits a little, so that all can read that."""
        self._page.set_status(FINISHED)
        self._closed.set()
        self._wake.set()
        self._thread.join(_LEAVE + _STORE_TIMEOUT)

    def _live(self) -> None:
        try:
            while not self._closed.is_set():
                self._publish()
                self._look()
                self._answered = time.monotonic()
                self._wake.wait(self._period)
                self._wake.clear()
            self._leave()
        except Exception as error:  # torch's store raises several kinds; each means that it cannot be reached
            if not self._closed.is_set():
                self._store_is_lost(error)

    def _guard_store(self) -> None:
        """A store whose host is stopped does not answer, and torch would wait for it without end."""
        while not self._closed.wait(self._period):
            if time.monotonic() - self._answered > self._silence + self._period:
                self._store_is_lost(TimeoutError(f"no answer for {self._silence:g} s"))

    def _look(self) -> None:
        verdict = self._read_verdict()
        standings = self._read_standings()
        verdict = verdict or self._reach_verdict(standings)
        if verdict:
            self._end(verdict, standings, *self._settle(verdict))

    def _reach_verdict(self, standings: Sequence[Standing]) -> Verdict | None:
        failures = [standing.failure for standing in standings if standing.failure]
        if not failures:
            return judge(standings, timeout=self._timeout, silence=self._silence)
        self._first_failure = self._first_failure or time.monotonic()
        all_known = all(standing.failure or standing.status == FINISHED for standing in standings)
        patience = 0.0 if all_known else grace(failures)
        return blame(failures, standings) if time.monotonic() - self._first_failure >= patience else None

    def _publish(self) -> None:
        standing = self._page.read(host=self._place.host, started=self._started)
        record: dict[str, Any] = asdict(replace(standing, process=os.getpid(), silent=0.0))
        record["sign"] = time.monotonic()  # always another text: a sign of life
        if self._failure:
            record |= {"status": FAILED, "failure": asdict(replace(self._failure, traceback=""))}
        self._store.set(str(self._place.rank), json.dumps(record))

    def _read_standings(self) -> list[Standing]:
        now = time.monotonic()
        for rank in sorted(set(self._seen) - self._known):
            if self._store.check([str(rank)]):  # get would wait for a rank that has not begun yet
                self._known.add(rank)
        ranks = sorted(self._known)
        for rank, text in zip(ranks, self._store.multi_get([str(rank) for rank in ranks]), strict=True):
            if text != self._seen[rank].text:
                self._seen[rank] = _Seen(text=text, at=now)
        return [self._standing(rank, now) for rank in range(self._place.world)]

    def _standing(self, rank: int, now: float) -> Standing:
        seen = self._seen[rank]
        if not seen.text:
            return Standing(rank=rank, quiet=now - seen.at, silent=0.0, stopped=False)  # not here yet
        record = json.loads(seen.text)
        record.pop("sign")
        failure = Failure(**record.pop("failure")) if record["failure"] else record.pop("failure")
        silent = now - seen.at
        standing = Standing(
            **{**record, "quiet": record["quiet"] + silent, "silent": silent, "failure": failure}
        )
        if standing.host == self._place.host and standing.status == RUNNING and silent > 3 * self._period:
            standing = replace(standing, stopped=process_is_stopped(standing.process))
            if standing.stopped and not os.path.exists(f"/proc/{standing.process}"):
                gone = Failure(
                    rank=rank,
                    host=standing.host,
                    step=standing.step,
                    where=standing.where,
                    cause="the process is gone without a word: killed (kill -9, out of memory) or ended by os._exit",
                    exact=False,
                )
                standing = replace(standing, status=FAILED, failure=gone)
        return standing

    def _read_verdict(self) -> Verdict | None:
        if not self._store.check(["verdict"]):
            return None
        record = json.loads(self._store.get("verdict"))
        return Verdict(failure=Failure(**record["failure"]), hang=record["hang"])

    def _settle(self, verdict: Verdict) -> tuple[Verdict, bool]:
        """Writes the verdict unless another rank was faster; the one that stands, and whether it is ours to print."""
        token = f"{self._place.rank} {time.monotonic()}"
        text = json.dumps(
            {"failure": asdict(replace(verdict.failure, traceback="")), "hang": verdict.hang, "by": token}
        )
        standing = json.loads(self._store.compare_set("verdict", "", text))
        return Verdict(failure=Failure(**standing["failure"]), hang=standing["hang"]), standing["by"] == token

    def _end(self, _mine: Verdict, standings: Sequence[Standing], verdict: Verdict, speaks: bool) -> None:
        """The last thing this process does."""
        self._ending.acquire()  # never released: of two threads that find the end, one speaks
        text = message(verdict, standings)
        if self._log:
            self._log.write(text + "\n")
            if verdict.hang:
                faulthandler.dump_traceback(self._log)
        if speaks:
            print(text, file=sys.__stderr__, flush=True)
            self._write_history(text)
        guilty = standings[verdict.failure.rank]
        stopped_here = guilty.stopped and guilty.host == self._place.host and guilty.rank != self._place.rank
        if stopped_here and guilty.process:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(
                    guilty.process, signal.SIGKILL
                )  # a stopped rank cannot end itself; its agent would wait
        if verdict.failure.rank != self._place.rank:
            time.sleep(0.5)  # the guilty one first: its launcher names the first rank that ends
        if self._hosts_store():
            time.sleep(1.5 * self._period)  # all others must be able to read the verdict
        os._exit(verdict.failure.exit_code or 1)

    def _write_history(self, text: str) -> None:
        if self._run_folder:
            from ..trainer.history import session_id, write_end

            with suppress(OSError):
                write_end(self._run_folder, session_id(), "failed", text.removeprefix("error: "))

    def _leave(self) -> None:
        """Publishes the end; with the store in our own process also waits until the others have ended."""
        self._publish()
        end = time.monotonic() + _LEAVE
        while self._hosts_store() and time.monotonic() < end:
            if all(standing.status != RUNNING for standing in self._read_standings()):
                return
            time.sleep(0.1)

    def _store_is_lost(self, error: Exception) -> None:
        """Without the store nobody can agree: every rank ends by itself, the first that is left prints."""
        host = json.loads(self._seen[0].text) if self._seen[0].text else {}
        if host.get("status") == FINISHED:
            return
        store = f"{self._place.store_address}:{self._place.store_port}"
        failure = Failure(
            rank=0,
            host=host.get("host", self._place.store_address),
            step=host.get("step", -1),
            where=host.get("where", "starting"),
            cause=f"its store at {store} is lost ({str(error).splitlines()[0]})",
            exact=False,
        )
        standings = [self._standing(rank, time.monotonic()) for rank in range(self._place.world)]
        lowest = min(
            (s.rank for s in standings if s.rank and s.status == RUNNING and not s.stopped), default=1
        )
        verdict = Verdict(failure=failure)
        self._end(verdict, standings, verdict, speaks=self._place.rank == lowest)

    def _hosts_store(self) -> bool:
        return self._place.rank == 0 and not agent_keeps_store()


def _open_store(place: Place) -> Any:
    """A connection of our own to the store that torch.distributed uses, under a prefix of this (re)start."""
    from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

    try:
        store = TCPStore(
            place.store_address,
            place.store_port,
            place.world,
            is_master=place.rank == 0 and not agent_keeps_store(),
            timeout=timedelta(seconds=MEET),
            wait_for_workers=False,
            multi_tenant=True,  # torch.distributed opens the same port in this process later
        )
    except RuntimeError as error:
        address = f"{place.store_address}:{place.store_port}"
        raise ForgepressError(
            f"rank {place.rank} of {place.world} did not reach the store at {address} within {MEET:g} s; see that "
            f"rank 0 runs there and that the port is free and open ({str(error).splitlines()[0]})"
        ) from error
    again = (
        round_number(place.store_address, place.store_port, place.rank, place.world)
        if agent_keeps_store()
        else 0
    )
    store.set_timeout(timedelta(seconds=_STORE_TIMEOUT))
    return PrefixStore(f"forgepress/watch/{again}", store)
