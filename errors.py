"""The errors that people see: one clear message each, no traceback, an exit code that scripts can use."""


class ForgepressError(Exception):
    """Something a person can mend: the message says what was given, what is wanted and what to do."""

    exit_code = 1


class ConfigError(ForgepressError):
    """The config, the command line or the combination they ask for is wrong; nothing has run yet."""

    exit_code = 2


class DataError(ForgepressError):
    """A data file is missing, damaged, or not the one that the run began with."""

    exit_code = 2


class CheckpointError(ForgepressError):
    """A checkpoint or artifact cannot be written, read, or does not belong to this run."""

    exit_code = 2


class DivergenceError(ForgepressError):
    """Loss or gradient stopped being finite, or ranks that must agree do not."""

    exit_code = 1


class NoOpError(ForgepressError):
    """A technique was requested but has had no effect: requested and achieved differ."""

    exit_code = 1


class Preempted(ForgepressError):
    """The run was asked to stop, saved a checkpoint and can go on later (EX_TEMPFAIL)."""

    exit_code = 75
