"""Pipeline schedules: where stages live, what each schedule asks of them, and how long ranks wait in it."""

from dataclasses import dataclass

from ..errors import ConfigError

STAGES_PER_RANK = 2  # of the schedules with several, where `stages` does not say


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One order in which ranks run forward and backward of the micro-batches through their stages.

    torch_name: its class in torch.distributed.pipelining.   several: each rank holds two stages or more.
    folded:     stages go down the ranks and up again, so that the first rank holds the first and the last stage.
    splits:     gradients of activations are computed apart from those of weights, which fill the waiting times.
    """

    torch_name: str
    several: bool = True
    folded: bool = False
    splits: bool = False


SCHEDULES = {
    "gpipe": Schedule(torch_name="ScheduleGPipe", several=False),
    "1f1b": Schedule(torch_name="Schedule1F1B", several=False),
    "interleaved1f1b": Schedule(torch_name="ScheduleInterleaved1F1B"),
    "looped_bfs": Schedule(torch_name="ScheduleLoopedBFS"),
    "interleaved_zero_bubble": Schedule(torch_name="ScheduleInterleavedZeroBubble", splits=True),
    "zbv": Schedule(torch_name="ScheduleZBVZeroBubble", folded=True, splits=True),
    "dualpipev": Schedule(torch_name="ScheduleDualPipeV", folded=True, splits=True),
}
"""Name in the config → schedule. sources: GPipe arXiv:1811.06965; 1F1B and interleaved arXiv:2104.04473; breadth
first arXiv:2211.05953; zero bubble and ZBV arXiv:2401.10241; DualPipe arXiv:2412.19437, folded as in its V form."""


def stages_of(schedule: str, ranks: int, stages: int) -> list[list[int]]:
    """For each pipeline rank the numbers of the stages that it holds, ascending.

    ranks: degree of the pipeline axis.   stages: in all; a multiple of `ranks` (checked elsewhere).
    """
    if SCHEDULES[schedule].folded:
        return [sorted({rank, 2 * ranks - 1 - rank}) for rank in range(ranks)]
    return [list(range(rank, stages, ranks)) for rank in range(ranks)]


def home_of_outputs(schedule: str, ranks: int) -> int:
    """The pipeline rank that holds the last stage, and with it outputs and loss."""
    return 0 if SCHEDULES[schedule].folded else ranks - 1


def bubble(schedule: str, ranks: int, microbatches: int, per_rank: int) -> float:
    """Share of a step's time in which a pipeline rank waits, stages of equal cost and free communication.

    per_rank: stages on each rank. (p - 1) / (v · m + p - 1) for p ranks, v stages a rank and m micro-batches. Where
    activation and weight gradients are computed apart (each as long as a forward), a third of that waiting is left;
    ZBV has none from 2p - 1 micro-batches on; DualPipeV, its forward and backward one after the other, two thirds.
    source: Narayanan et al. 2021, arXiv:2104.04473, section 2.2; Qi et al. 2023, arXiv:2401.10241, table 1;
    github.com/deepseek-ai/DualPipe, table of bubbles: (PP/2 - 1)(F&B + B - 3W) with PP = 2p stages.
    """
    p, m, v = ranks, microbatches, per_rank
    kind = SCHEDULES[schedule]
    if schedule == "zbv":
        missing = max(0, 2 * p - 1 - m)
        return missing / (missing + 2 * m) if p > 1 else 0.0
    waiting = (p - 1) * (2 / 3 if kind.folded else 1 / 3 if kind.splits else 1)
    return waiting / (v * m + waiting)


def check_schedule(schedule: str, *, ranks: int, microbatches: int, stages: int) -> None:
    """What a schedule asks of the numbers of ranks, stages and micro-batches. raises: ConfigError."""
    kind = SCHEDULES[schedule]
    if not kind.several:
        if stages != ranks:
            names = ", ".join(name for name, one in SCHEDULES.items() if one.several)
            raise ConfigError(
                f"parallel.stages: {stages} stages on pipeline={ranks} ranks; {schedule} has one stage per rank; "
                f"{names} have several"
            )
    elif stages % ranks or stages < ranks:
        raise ConfigError(
            f"parallel.stages: {stages} stages cannot be dealt evenly to pipeline={ranks} ranks"
        )
    elif kind.folded and stages != 2 * ranks:
        raise ConfigError(
            f"parallel.stages: {stages} stages on pipeline={ranks} ranks; "
            f"{schedule} folds them once and wants {2 * ranks}"
        )
    _check_microbatches(schedule, ranks=ranks, microbatches=microbatches, stages=stages)


def _check_microbatches(schedule: str, *, ranks: int, microbatches: int, stages: int) -> None:
    given = f"parallel.microbatches={microbatches}"
    if schedule in ("interleaved1f1b", "interleaved_zero_bubble"):
        if microbatches < ranks or microbatches % max(1, microbatches // ranks):
            raise ConfigError(
                f"{given}: {schedule} runs them in rounds of at least {ranks}; use a multiple of pipeline={ranks}"
            )
    elif schedule == "dualpipev" and microbatches < stages:
        raise ConfigError(
            f"{given}: dualpipev wants at least as many as stages, {stages}; raise it or use zbv"
        )
    elif schedule == "1f1b" and microbatches < ranks:
        raise ConfigError(f"{given}: 1f1b wants at least pipeline={ranks}; raise it or use gpipe")
