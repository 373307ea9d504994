"""Errors that a user can act on: one line each, with the exit code that a script ends with.

Each is also what Python itself raises in such a case, so that `except OSError` and `except ValueError` catch it.
"""


class NenyaError(Exception):
    """Bad input, option or environment: says what was given, what was expected and what to do, in one line."""

    exit_code = 2


class InputFileError(NenyaError, OSError, ValueError):
    """A cutout file that cannot be used: missing, damaged, or of an unexpected shape."""


class MissingFileError(InputFileError, FileNotFoundError):
    """A file that does not exist."""


class CheckpointError(NenyaError, OSError, ValueError):
    """A checkpoint that is missing, damaged, hostile, or of another architecture than expected."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """A checkpoint that does not exist."""


class OptionError(NenyaError, ValueError):
    """An option or a value that does not exist: says what was given and what is possible."""


class OptionFileError(OptionError, OSError):
    """An option file that cannot be read, or a model version that does not exist."""


class NoOptionsError(OptionError):
    """A file of values that is not an option file, such as a list in JSON."""


class MissingOptionFileError(OptionFileError, FileNotFoundError):
    """An option file that does not exist."""


class OutputError(NenyaError, OSError):
    """An output that cannot be written: it exists, its folder is not writable, or the disk has too little space."""


class LockLostError(OutputError):
    """Another process took over the lock because this one was silent too long: nothing more may be published."""


class StorageError(NenyaError, OSError):
    """An S3 service that does not return or accept an object: absent, denied, unreachable, changed, or altered."""


class FilesFailed(NenyaError):
    """Some of several files failed; the others are complete, and the same command does the rest."""

    exit_code = 1


class Interrupted(NenyaError):
    """The work was stopped by a signal after its state was saved: the same command resumes it."""

    exit_code = 75
