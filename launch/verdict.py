"""From where all ranks stand to one verdict and one message. Pure functions: no process, no clock, no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from .board import FINISHED, RUNNING, Failure, Standing
from .watch import SILENCE

GRACE = 0.5  # seconds to wait for other ranks' records after the first failure
GRACE_FOR_EXPECTED = (
    1.5  # the same for a user's error, which all ranks will most likely find: it is said once
)
GRACE_FOR_CAUSE = (
    3.0  # the same while every known failure is the consequence of another that is not known yet
)

START_FACTOR = (
    10  # the first step compiles, downloads and builds: it may take ten times as long as the others
)
START_LEAST = 600.0  # seconds, never less than this for the first step


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The root cause, and whether the others' stacks are worth dumping."""

    failure: Failure
    hang: bool = False


def judge(standings: Sequence[Standing], *, timeout: float, silence: float = SILENCE) -> Verdict | None:
    """A dead, stopped or stuck rank that has not said so itself; None while all may go on.

    timeout: seconds without a beat that count as a hang after the first step.
    silence: seconds without a sign of life. A process that its system says is stopped or gone counts as dead then;
             where nobody can look (another host) three times as long must pass, because a long call that holds
             the interpreter's lock is silent too.
    """
    running = [standing for standing in standings if standing.status == RUNNING]
    for standing in running:
        patience = silence if standing.stopped else 3 * silence
        if standing.stopped is not False and standing.silent >= patience:
            what = "stopped (SIGSTOP?) or gone" if standing.stopped else "gone, stopped or cut off"
            cause = f"no sign of life for {standing.silent:.0f} s: the process is {what}"
            return Verdict(failure=_failure(standing, cause))
    if any(standing.quiet >= limit(standing, timeout) for standing in running):
        stuck = _furthest_behind(running)
        cause = (
            f"no progress for {stuck.quiet:.0f} s (parallel.timeout={timeout:g}): a hang, "
            f"for instance a collective that not all ranks entered"
        )
        return Verdict(failure=_failure(stuck, cause), hang=True)
    return None


def limit(standing: Standing, timeout: float) -> float:
    """Seconds that may pass without a beat."""
    usual = timeout if standing.step > standing.first_step else max(START_LEAST, START_FACTOR * timeout)
    return max(usual, standing.allow)


def root_cause(failures: Sequence[Failure]) -> Failure:
    """The first failure that is not the consequence of another."""
    return min(failures, key=lambda failure: (failure.consequence, failure.at))


def blame(failures: Sequence[Failure], standings: Sequence[Standing]) -> Verdict:
    """The verdict once nobody else is expected to speak.

    If all that failed only gave up on a peer, and a rank still runs, they waited for that one: it is a hang.
    """
    cause = root_cause(failures)
    running = [standing for standing in standings if standing.status == RUNNING]
    if not cause.consequence or not running:
        return Verdict(failure=cause)
    stuck = _furthest_behind(running)
    what = "the process is stopped (SIGSTOP?) or gone, and the others" if stuck.stopped else "the others"
    return Verdict(failure=_failure(stuck, f"{what} gave up waiting for it ({cause.cause})"), hang=True)


def grace(failures: Sequence[Failure]) -> float:
    """Seconds to wait for more records, counted from the first failure."""
    cause = root_cause(failures)
    return GRACE_FOR_CAUSE if cause.consequence else GRACE_FOR_EXPECTED if cause.expected else GRACE


def message(verdict: Verdict, standings: Sequence[Standing], *, logs: str = "") -> str:
    """The one message for the terminal: rank, host, step, cause, where each rank stood, where to read on."""
    failure, ranks = verdict.failure, len(standings)
    alike = ranks > 1 and all(s.failure and s.failure.cause == failure.cause for s in standings)
    who = f"all {ranks} ranks" if alike else f"rank {failure.rank} of {ranks} (host {failure.host})"
    if failure.expected:
        lines = [f"error: {failure.cause}"]
        if ranks > 1 and not alike:
            lines.append(f"  on {who}, {_stood(failure)}")
    else:
        failed = "failed at" if failure.exact else "failed, last seen at"
        lines = [f"error: {who} {failed} {_stood(failure)}: {failure.cause}"]
    if ranks > 1 and not alike:
        lines += _others([standing for standing in standings if standing.rank != failure.rank])
    if logs and not (alike and failure.expected):
        lines.append(f"  logs: {logs}")
    return "\n".join(lines)


def _others(standings: Sequence[Standing]) -> list[str]:
    """Where the other ranks stood, equal ones in one line: "  ranks 0, 2-5: step 12, backward"."""
    groups: dict[str, list[int]] = {}
    for standing in standings:
        text = _stood(standing)
        if standing.status == FINISHED:
            text = "finished"
        elif standing.failure and standing.failure.consequence:
            text += ", then lost its peers"
        elif standing.failure:
            text += f", failed: {standing.failure.cause.splitlines()[0][:160]}"
        groups.setdefault(text, []).append(standing.rank)
    return [f"  rank{'s' * (len(ranks) > 1)} {_ranges(ranks)}: {text}" for text, ranks in groups.items()]


def _stood(place: Failure | Standing) -> str:
    return f"step {place.step}, {place.where}" if place.step >= 0 else "the start, before the first step"


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] → "0-2, 5"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _furthest_behind(running: Sequence[Standing]) -> Standing:
    """The likely cause of a hang: while one rank is stuck the others soon wait for it, a little further on."""
    return min(running, key=lambda standing: (standing.step, -standing.quiet))


def _failure(standing: Standing, cause: str) -> Failure:
    return Failure(
        rank=standing.rank, host=standing.host, step=standing.step, where=standing.where, cause=cause
    )
