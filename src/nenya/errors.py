"""Errors that a user can act on: one line each, with the exit code that a script ends with."""


class NenyaError(Exception):
    """Bad input, option or environment: says what came, what was wanted and what to do, in one line."""

    exit_code = 2


class InputFileError(NenyaError):
    """A cutout file that cannot be used: missing, damaged, or of another shape than wanted."""


class CheckpointError(NenyaError):
    """A checkpoint that is missing, damaged, hostile, or of another architecture than wanted."""


class OptionError(NenyaError):
    """An option or a value that does not exist: says what was given and what is possible."""


class OutputError(NenyaError):
    """A place that cannot be written: exists already, is not writable, or has too little room."""


class LockLostError(OutputError):
    """Work that another process has taken over, as this one was silent for long: nothing more may be published."""


class StorageError(NenyaError):
    """An S3 service that does not give or take an object: absent, denied, unreachable, changed, or altered."""


class FilesFailed(NenyaError):
    """Some of several files could not be done; the others are done, and a rerun takes up the rest."""

    exit_code = 1


class Interrupted(NenyaError):
    """The work was stopped by a signal after its state was saved: the same command resumes it."""

    exit_code = 75
