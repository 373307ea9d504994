"""Principal components of latents: one pass over blocks, in float64, and their file.

Letters in shapes: N latents of D dimensions, M components.
"""

import logging
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nenya.errors import InputFileError, NenyaError, OptionError, OutputError
from nenya.latents.components import BLOCK_ROWS, PCA, fit_pca
from nenya.latents.files import open_latents
from nenya.storage.arrays import read_arrays
from nenya.storage.disk import atomic_path

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)


_SAVED = ("M", "mean", "explained_variance", "variance", "spectrum", "uncentred", "total_variance", "rows")


def fit_latents(
    latents_file: Any,
    outfile: str | os.PathLike[str],
    *key_and_Nmax: str | int | None,
    key: str | None = None,
    Nmax: int | None = None,
    n_components: int | None = None,
    coefficients: bool = True,
) -> PCA:
    """Fit the latents of a file and save components and coefficients in the users' format; see `save`.

    The first nenya had `key` and `Nmax` in this order, later in the other: by position, a number is `Nmax`.

    Args:
        latents_file: a latents file, or several by a glob, folder or list, or `Latents`.
        outfile: the `.npz` file; overwritten if it exists.
        key_and_Nmax: the next two, by position.
        key: only this partition; by default `train`, then `valid`.
        Nmax: only the first `Nmax` rows.
        n_components: number M of components; by default min(N, D).
        coefficients: also save `Y`.

    Raises:
        InputFileError: The latents cannot be read or fitted.
        OptionError: `Nmax` exceeds the rows, or `n_components` the dimensions.
        OutputError: The file cannot be written.
    """
    for value in key_and_Nmax:
        if isinstance(value, str) and key is None:
            key = value
        elif isinstance(value, int) and not isinstance(value, bool) and Nmax is None:
            Nmax = value
        elif value is not None:
            raise OptionError(
                f"{value!r} by position: expected the name of a partition and a number of rows, once each"
            )
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
        latents: blocks of rows (n, D), to save their coefficients as `Y`; None: no `Y`.

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
            f"{path}: expected principal components of nenya ({error}): fit_latents makes them"
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
        raise InputFileError(f"{path}: expected coefficients of nenya ({error}): fit_latents makes them") from error


def find_eigenmatches(
    pca_file: str | os.PathLike[str],
    latents_file: str | os.PathLike[str],
    modes: Sequence[int],
    nimages: int = 1,
    partition: str = "train",
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Find the latents with the largest cosine to principal components.

    Args:
        pca_file: an `.npz` file of `fit_latents`, or of the first nenya.
        latents_file: the latents file.
        modes: numbers of the components, from 0.
        nimages: rows for each component.
        partition: of the latents file.

    Returns:
        Row numbers of the partition, the nearest first, and their cosines, both (nimages, number of modes).

    Raises:
        InputFileError: A file cannot be read.
        OptionError: There are fewer components or latents.
    """
    components = components_of(pca_file)
    latents = open_latents(latents_file, partitions=(partition,))
    if not 1 <= nimages <= len(latents):
        raise OptionError(f"nimages={nimages}: expected 1 to {len(latents)}, the number of latents")
    wrong = [mode for mode in modes if not 0 <= mode < len(components)]
    if wrong:
        raise OptionError(f"mode {wrong[0]}: expected 0 to {len(components) - 1}, the components of {pca_file}")
    wanted = components[list(modes)]
    cosines = np.concatenate([
        _cosines(np.asarray(latents[start : start + BLOCK_ROWS], np.float64), wanted)
        for start in range(0, len(latents), BLOCK_ROWS)
    ])  # fmt: skip
    rows = np.argsort(-cosines, axis=0, kind="stable")[:nimages]
    return rows, np.take_along_axis(cosines, rows, axis=0)


def _cosines(latents: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the cosines (n, M) of latents (n, D) and components (M, D); -inf for latents that are not finite."""
    lengths = np.linalg.norm(latents, axis=1)[:, None] * np.linalg.norm(wanted, axis=1)
    found: npt.NDArray[np.float64] = (latents @ wanted.T) / np.maximum(lengths, 1e-300)
    found[~np.isfinite(found)] = -np.inf
    return found


def components_of(path: str | os.PathLike[str]) -> npt.NDArray[np.float64]:
    """Return the components (M, D) of an `.npz` file, ours or the first nenya's.

    Raises:
        InputFileError: It cannot be read, or has none.
    """
    try:
        found = np.asarray(read_arrays(Path(path), ("M",))["M"], np.float64)
    except KeyError as error:
        raise InputFileError(f"{path}: expected principal components (M): fit_latents makes them") from error
    if found.ndim != 2 or not np.isfinite(found).all():
        raise InputFileError(f"{path}: expected components M of shape (M, D), got {found.shape}, or not finite")
    return found


def generate_eigenmode_with_regularization(  # noqa: PLR0913  # the arguments that users know
    model: "nn.Module",
    target_latent: npt.ArrayLike,
    image_shape: Sequence[int],
    num_iterations: int = 1000,
    lr: float = 0.01,
    clamp_value: float | None = None,
    tv_weight: float = 1e-4,
    l2_weight: float = 1e-6,
    start_image: npt.ArrayLike | None = None,
    seed: int = 0,
) -> tuple[npt.NDArray[np.float32], float]:
    """Optimise an image to have a latent near a component; `nenya metrics` draws smoother images for both ends.

    Args:
        model: the network; its weights stay as they are.
        target_latent: (D,), such as a component.
        image_shape: (C, H, W), or (H, W) for one channel.
        num_iterations: steps of Adam.
        lr: its rate.
        clamp_value: largest absolute value of a pixel; default 5.
        tv_weight: weight of the total variation.
        l2_weight: weight of the sum of squares.
        start_image: where to begin; default white noise.
        seed: of the noise.

    Returns:
        The image (C, H, W), and the cosine of its latent and the target.

    Raises:
        OptionError: The shape is not that of an image.
    """
    import torch
    from torch.nn import functional

    shape = tuple(image_shape) if len(image_shape) == 3 else (1, *image_shape)
    if len(shape) != 3:
        raise OptionError(f"image_shape={tuple(image_shape)}: expected (C, H, W) or (H, W)")
    device = next(model.parameters()).device
    target = torch.as_tensor(np.asarray(target_latent), dtype=torch.float32, device=device)[None]
    start = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))
    if start_image is not None:
        start = torch.as_tensor(np.asarray(start_image, np.float32)).reshape(-1, *shape[1:])[:1].expand(1, *shape)
    image = start.clone().to(device).requires_grad_()
    limit = 5.0 if clamp_value is None else clamp_value
    adam = torch.optim.Adam([image], lr=lr)
    model.eval()
    for _ in range(num_iterations):
        rough = sum((image.diff(dim=axis).abs().sum() for axis in (2, 3)), image.new_zeros(()))
        loss = functional.mse_loss(model(image), target) + tv_weight * rough + l2_weight * image.square().sum()
        (image.grad,) = torch.autograd.grad(loss, [image])
        adam.step()
        with torch.no_grad():
            image.clamp_(-limit, limit)
    with torch.no_grad():
        cosine = functional.cosine_similarity(model(image), target)
    return image.detach()[0].cpu().numpy(), float(cosine[0])
