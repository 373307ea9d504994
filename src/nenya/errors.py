"""Errors that a user can act on: one line each, with the exit code that a script ends with."""


class NenyaError(Exception):
    """Bad input, option or environment: says what was given, what was expected and what to do, in one line."""

    exit_code = 2


class InputFileError(NenyaError):
    """A cutout file that cannot be used: missing, damaged, or of an unexpected shape."""


class CheckpointError(NenyaError):
    """A checkpoint that is missing, damaged, hostile, or of another architecture than expected."""


class OptionError(NenyaError):
    """An option or a value that does not exist: says what was given and what is possible."""


class OutputError(NenyaError):
    """An output that cannot be written: it exists, its folder is not writable, or the disk has too little space."""


class LockLostError(OutputError):
    """Another process took over the lock because this one was silent too long: nothing more may be published."""


class StorageError(NenyaError):
    """An S3 service that does not return or accept an object: absent, denied, unreachable, changed, or altered."""


class FilesFailed(NenyaError):
    """Some of several files failed; the others are complete, and the same command does the rest."""

    exit_code = 1


class Interrupted(NenyaError):
    """The work was stopped by a signal after its state was saved: the same command resumes it."""

    exit_code = 75
