"""Principal components of latents: one pass over blocks, in float64, and their file.

Letters in shapes: N latents of D dimensions, M components.
"""

import logging
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from nenya.errors import InputFileError, NenyaError, OptionError, OutputError
from nenya.latents.components import BLOCK_ROWS, PCA, fit_pca
from nenya.latents.files import open_latents
from nenya.storage.arrays import read_arrays
from nenya.storage.disk import atomic_path

log = logging.getLogger(__name__)


_SAVED = ("M", "mean", "explained_variance", "variance", "spectrum", "uncentred", "total_variance", "rows")


def fit_latents(  # the first four are the users' call
    latents_file: Any,
    outfile: str | os.PathLike[str],
    key: str | None = None,
    Nmax: int | None = None,
    *,
    n_components: int | None = None,
    coefficients: bool = True,
) -> PCA:
    """Fit the latents of a file and save components and coefficients in the users' format; see `save`.

    Args:
        latents_file: a latents file, or several by a glob, folder or list, or `Latents`.
        outfile: the `.npz` file; overwritten if it exists.
        key: only this partition; by default `train`, then `valid`.
        Nmax: only the first `Nmax` rows.
        n_components: number M of components; by default min(N, D).
        coefficients: also save `Y`.

    Raises:
        InputFileError: The latents cannot be read or fitted.
        OptionError: `Nmax` exceeds the rows, or `n_components` the dimensions.
        OutputError: The file cannot be written.
    """
    latents = latents_file
    if not hasattr(latents, "shape"):
        latents = open_latents(latents_file, partitions=("train", "valid") if key is None else (key,))
    rows = len(latents) if Nmax is None else Nmax
    if not 0 < rows <= len(latents):
        raise OptionError(f"Nmax={Nmax}: expected 1 to {len(latents)}, the number of latents")

    def blocks() -> Iterator[npt.NDArray[np.floating]]:
        for start in range(0, rows, BLOCK_ROWS):
            yield latents[start : min(start + BLOCK_ROWS, rows)]

    pca = fit_pca(blocks(), n_components)
    save(pca, outfile, blocks() if coefficients else None)
    return pca


def save(pca: PCA, outfile: str | os.PathLike[str], latents: Iterable[npt.NDArray[np.floating]] | None = None) -> None:
    """Write an `.npz` file atomically, block by block.

    It holds `Y` (N, M) float32, the coefficients of all rows, NaN for non-finite rows; `M` (M, D), the components;
    `mean` (D,); `explained_variance` (M,), which is the share of the total variance, as in the users' files;
    `variance` (M,), the variances themselves; `spectrum` (min(N, D),), those of all components; `uncentred`
    (min(N, D),), singular values of the latents with their mean; `total_variance` (); `rows` (2,), used and left out.

    Args:
        pca: the fit.
        outfile: the file; overwritten if it exists.
        latents: blocks of rows (n, D) whose coefficients are saved; None: no `Y`.

    Raises:
        OutputError: The file cannot be written.
    """
    small = {
        "M": pca.components,
        "mean": pca.mean,
        "explained_variance": pca.explained_variance_ratio,
        "variance": pca.explained_variance,
        "spectrum": pca.spectrum,
        "uncentred": pca.uncentred,
        "total_variance": np.array(pca.total_variance),
        "rows": np.array([pca.n_rows, pca.n_left_out]),
    }
    try:
        with atomic_path(Path(outfile)) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            if latents is not None:
                with archive.open("Y.npy", "w", force_zip64=True) as member:
                    _write_coefficients(member, pca, latents)
            for name, array in small.items():
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
    except NenyaError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {outfile}: {error.strerror or error}") from error


def _write_coefficients(member: IO[bytes], pca: PCA, latents: Iterable[npt.NDArray[np.floating]]) -> None:
    """Write the member `Y.npy`."""
    shape = (pca.n_rows + pca.n_left_out, len(pca.components))
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, header)
    rows = 0
    for block in latents:
        member.write(pca.transform(block).astype("<f4").tobytes())
        rows += len(block)
    if rows != shape[0]:
        raise ValueError(f"expected the coefficients of {shape[0]} fitted latents, got {rows}")


def load(path: str | os.PathLike[str]) -> PCA:
    """Read a file of `save`, without the coefficients, which `open_coefficients` memory-maps.

    Raises:
        InputFileError: The file cannot be read, or was not written by `save`.
    """
    try:
        arrays = read_arrays(Path(path), _SAVED)
        saved = {name: arrays[name] for name in _SAVED}
    except (InputFileError, KeyError) as error:
        raise InputFileError(
            f"{path}: expected principal components of nenya ({error}): make them by fit_latents"
        ) from error
    return PCA(
        mean=saved["mean"],
        components=saved["M"],
        explained_variance=saved["variance"],
        total_variance=float(saved["total_variance"]),
        n_rows=int(saved["rows"][0]),
        n_left_out=int(saved["rows"][1]),
        spectrum=saved["spectrum"],
        uncentred=saved["uncentred"],
    )


def open_coefficients(path: str | os.PathLike[str]) -> npt.NDArray[np.float32]:
    """Memory-map the coefficients `Y`, (N, M) float32, of a file of `save`.

    Raises:
        InputFileError: The file cannot be read, has no `Y`, or has it compressed.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("Y.npy") as member:
            info = archive.getinfo("Y.npy")
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError("Y is compressed")
            np.lib.format.read_magic(member)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
            inside = member.tell()
            if fortran or dtype != np.dtype("<f4"):
                raise ValueError(f"Y is of type {dtype}")
        with Path(path).open("rb") as file:  # the local header repeats the name, and has its own extra field
            file.seek(info.header_offset + 26)
            lengths = np.frombuffer(file.read(4), "<u2")
        offset = info.header_offset + 30 + int(lengths.sum()) + inside
        return np.memmap(path, "<f4", "r", offset, shape)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputFileError(f"{path}: expected coefficients of nenya ({error}): make them by fit_latents") from error
