"""Errors about damaged files of users, in one printable line."""

from collections.abc import Iterator
from contextlib import contextmanager

from nenya.errors import InputFileError, NenyaError
from nenya.storage.texts import shown

COPY = "the file is damaged: copy or create it again"


@contextmanager
def damage_named(where: str) -> Iterator[None]:
    """Turn any exception of HDF5 and h5py about a damaged file into an InputFileError of one line."""
    try:
        yield
    except NenyaError:
        raise
    except Exception as error:
        raise InputFileError(f"{where} cannot be read ({one_line(error)}); {COPY}") from error


def one_line(error: BaseException) -> str:
    """Return the message of an exception in one line."""
    return shown(" ".join(str(error).split()), 300) or type(error).__name__
