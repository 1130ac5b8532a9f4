"""A few pages of shared memory where every rank writes where it stands; readable after the rank has died.

One page per rank. Writing is a plain store into memory: no lock, no system call, nothing that can block.
"""

import json
import mmap
import os
import struct
import tempfile
import time
from dataclasses import asdict, dataclass, field

PAGE = 32 * 1024  # bytes per rank
_BEAT = struct.Struct(
    "@qqdd24s"
)  # steps finished, steps finished at the first beat, time of the beat, allowance, where
_ALIVE = struct.Struct("@dq")  # time of the last sign of life, process id
_ALIVE_AT, _STATUS_AT, _FAILURE_AT = 64, 96, 128
RUNNING, FINISHED, FAILED = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why one rank failed, small enough for a page of the board and for a store."""

    rank: int
    host: str
    step: int  # optimizer steps finished; -1: before the first beat
    where: str  # phase of the step, as in Watch.beat
    cause: str  # one line, or the whole message of a ForgepressError
    exit_code: int = 1
    expected: bool = False  # a ForgepressError: its message says all, no traceback wanted
    consequence: bool = False  # "connection closed by peer" and the like: another rank is the cause
    exact: bool = True  # False: step and where are from the last record that arrived, up to a second old
    traceback: str = ""
    at: float = field(default_factory=time.time)  # wall clock: which of several hosts' failures came first


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where one rank stands, as seen from outside."""

    rank: int
    host: str = ""
    process: int = 0  # process id on its host; 0: not known yet
    step: int = -1  # optimizer steps finished; -1: no beat yet
    first_step: int = -1  # the same at the first beat (a resumed run does not begin at 0)
    where: str = "starting"
    quiet: float = 0.0  # seconds since the last beat (or since the start)
    silent: float = 0.0  # seconds since the last sign of life of the process
    allow: float = 0.0  # seconds that the rank asked for in its last beat; 0 = the usual limit
    status: int = RUNNING
    stopped: bool | None = None  # does the system say that the process is stopped? None: not known
    failure: Failure | None = None


class Page:
    """One rank's page: `beat` is the hot path (well under a microsecond)."""

    def __init__(self, memory: mmap.mmap | None = None, rank: int = 0) -> None:
        self.memory = memory if memory is not None else mmap.mmap(-1, PAGE)
        self.rank = rank
        self._start = rank * PAGE if memory is not None else 0
        self._first: int | None = None

    def beat(self, step: int, where: str, allow: float = 0.0) -> None:
        """Stores `step` (optimizer steps finished), `where` (24 bytes are kept) and the time."""
        if self._first is None:
            self._first = step
        # One copy of a whole record: `pack_into` fills with zeros first, and who reads just then sees no beat at all.
        record = _BEAT.pack(step, self._first, time.monotonic(), allow, where.encode())
        self.memory[self._start : self._start + _BEAT.size] = record

    def alive(self) -> None:
        """Stores the time and the process id: a sign of life that does not depend on progress."""
        begin = self._start + _ALIVE_AT
        self.memory[begin : begin + _ALIVE.size] = _ALIVE.pack(time.monotonic(), os.getpid())

    def set_status(self, status: int) -> None:
        """RUNNING, FINISHED or FAILED."""
        struct.pack_into("@q", self.memory, self._start + _STATUS_AT, status)

    def fail(self, failure: Failure) -> None:
        """Stores the failure (long texts are cut) and then the status, so that a reader never sees half of it."""
        record = asdict(failure)
        # A character takes at most 12 bytes in JSON: 1,200 + 1,200 of them always fit into the page.
        record["cause"], record["traceback"] = failure.cause[:1200], failure.traceback[-1200:]
        text = json.dumps(record).encode()
        begin = self._start + _FAILURE_AT
        struct.pack_into("@q", self.memory, begin, len(text))
        self.memory[begin + 8 : begin + 8 + len(text)] = text
        self.set_status(FAILED)

    def read(self, *, host: str = "", started: float = 0.0) -> Standing:
        """What the page says now; `started` stands in for times that have not been written yet."""
        step, first, beaten, allow, where = _BEAT.unpack_from(self.memory, self._start)
        alive, process = _ALIVE.unpack_from(self.memory, self._start + _ALIVE_AT)
        (status,) = struct.unpack_from("@q", self.memory, self._start + _STATUS_AT)
        now, begun = time.monotonic(), beaten > 0
        return Standing(
            rank=self.rank,
            host=host,
            process=process,
            step=step if begun else -1,
            first_step=first if begun else -1,
            where=where.rstrip(b"\0").decode(errors="replace") if begun else "starting",
            quiet=now - max(beaten, started),
            silent=now - max(alive, started),
            allow=allow,
            status=status,
            failure=self._read_failure() if status == FAILED else None,
        )

    def _read_failure(self) -> Failure:
        begin = self._start + _FAILURE_AT
        (length,) = struct.unpack_from("@q", self.memory, begin)
        return Failure(**json.loads(self.memory[begin + 8 : begin + 8 + length]))


class Board:
    """All pages, in memory that children inherit by file descriptor; no name on disk, so nothing can be left behind."""

    def __init__(self, ranks: int) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (it lives as long as the board)
        self._file.truncate(ranks * PAGE)
        self.descriptor = self._file.fileno()
        memory = mmap.mmap(self.descriptor, ranks * PAGE)
        self.pages = [Page(memory, rank) for rank in range(ranks)]

    def close(self) -> None:
        """Frees the memory; the pages cannot be read afterwards."""
        self.pages[0].memory.close()
        self._file.close()


def open_page(descriptor: int, rank: int, ranks: int) -> Page:
    """A child's own page of the board that its parent handed down."""
    memory = mmap.mmap(descriptor, ranks * PAGE)
    os.close(descriptor)
    return Page(memory, rank)


def process_is_stopped(process: int) -> bool | None:
    """Is this process of this host stopped (SIGSTOP) or gone? None where the system does not say (no /proc)."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "TtZX"
    except FileNotFoundError:
        return True if os.path.isdir("/proc/self") else None
    except OSError:
        return None
