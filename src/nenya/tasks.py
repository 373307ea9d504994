"""The tasks of a study, one call each: train, evaluate, check the latents, find images of components."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nenya.errors import InputFileError, OptionError
from nenya.latents.files import open_latents
from nenya.storage.disk import atomic_path
from nenya.storage.paths import expand

log = logging.getLogger(__name__)

TASKS = ("train", "evaluate", "chk_latents", "eigenimages", "train_extended")


def train(opts_file: str | Path, load_epoch: int | None = None, debug: bool | int | None = False) -> Path:
    """Train a model; see `nenya.train.main`.

    Args:
        opts_file: the JSON option file.
        load_epoch: resume from `ckpt_epoch_<load_epoch>.pth`.
        debug: two batches only.

    Returns:
        The run folder.
    """
    from nenya.train import main

    if isinstance(load_epoch, bool):  # by the order of nenya.train.main
        load_epoch, debug = None, load_epoch
    return main(opts_file, bool(debug), load_epoch)


def evaluate(  # the arguments that users know
    opts_file: str | Path,
    preproc_file: str | Path,
    latents_file: str | Path | None = None,
    local_model_path: str | Path | None = None,
    use_gpu: bool | None = False,
    clobber: bool = False,
    base_model_name: str = "last.pth",
    debug: bool = False,
) -> str:
    """Extract the latents of a cutout file; see `nenya.latents_extraction.evaluate`.

    Args:
        opts_file: the JSON option file.
        preproc_file: the cutout file.
        latents_file: the output; default `<name of preproc_file>_latents.h5` beside it.
        local_model_path: the folder with `<model_folder>/`.
        use_gpu: compute on the GPU; None: if there is one.
        clobber: overwrite existing latents.
        base_model_name: name of the file with the weights, such as `ckpt_epoch_10.pth`.
        debug: two batches of each partition only.

    Returns:
        The location of the latents.
    """
    from nenya.latents_extraction import evaluate as extract

    return extract(
        opts_file, preproc_file, debug, clobber, use_gpu, latents_file, local_model_path, base_model_name
    )  # fmt: skip


def find_closest_latents(latents: ArrayLike, query_index: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the other latents by their cosine to one, the nearest first.

    Args:
        latents: (N, D).
        query_index: row of the one.

    Returns:
        Row numbers and cosines, (n,), without the row itself and without latents that are not finite.

    Raises:
        OptionError: There is no such row, or its latent is not finite.
    """
    rows = np.asarray(latents, np.float64)
    if rows.ndim != 2:
        raise InputFileError(f"expected latents of shape (N, D), got {rows.shape}")
    if not -len(rows) <= query_index < len(rows):
        raise OptionError(f"query_index={query_index}: expected a row of {len(rows)} latents")
    one = rows[query_index]
    if not np.isfinite(one).all():
        raise OptionError(f"query_index={query_index}: its latent is NaN, because its cutout has missing pixels")
    cosines = rows @ one / np.maximum(np.linalg.norm(rows, axis=1) * np.linalg.norm(one), 1e-300)
    cosines[query_index] = np.nan
    order = np.argsort(-cosines, kind="stable")
    order = order[np.isfinite(cosines[order])]
    return order, cosines[order]


def chk_latents(
    dataset: str,
    latents_file: str | Path,
    preproc_file: str | Path,
    query_idx: int,
    partition: str = "train",
    top_N: int = 5,
) -> Path:
    """Draw a cutout and those with the nearest latents.

    Args:
        dataset: a name for the figure, `nenya_<dataset>_<partition>_chk_latents_<query_idx>.png`.
        latents_file: the latents file.
        preproc_file: the cutout file.
        query_idx: row of the cutout in its partition.
        partition: of both files.
        top_N: number of nearest cutouts.

    Returns:
        The figure, in the working folder.

    Raises:
        InputFileError: A file cannot be read, or they have different numbers of rows.
        OptionError: There is no such row.
    """
    from nenya.data.cutouts import CutoutReader
    from nenya.plotting import closest_latents

    latents = np.asarray(open_latents(latents_file, partitions=(partition,))[:])
    reader = CutoutReader(Path(expand(str(preproc_file))), partition)
    if len(reader) != len(latents):
        raise InputFileError(
            f"{latents_file} has {len(latents)} latents in '{partition}', {preproc_file} {len(reader)} cutouts: give "
            "the file that they were extracted from"
        )
    rows, cosines = find_closest_latents(latents, query_idx)
    chosen = [query_idx % len(latents), *rows[:top_N].tolist()]
    unique, places = np.unique(chosen, return_inverse=True)
    out = Path(f"nenya_{dataset}_{partition}_chk_latents_{query_idx}.png")
    closest_latents(list(reader.read_rows(unique)[places, 0]), chosen, cosines, output_png=out)
    log.info("%s: row %d and the nearest, %s", out, chosen[0], ", ".join(map(str, chosen[1:])))
    return out


def find_eigenmatches(
    pca_file: str | Path, latents_file: str | Path, nmodes: int, partition: str = "train", from_mode: int = 0
) -> tuple[list[int], list[float]]:
    """Find the nearest latent to each of several principal components; see `nenya.pca.find_eigenmatches`.

    Args:
        pca_file: an `.npz` file of `nenya.pca.fit_latents`.
        latents_file: the latents file.
        nmodes: number of components.
        partition: of the latents file.
        from_mode: the first component.

    Returns:
        Row numbers and cosines, one for each component.
    """
    from nenya import pca

    rows, cosines = pca.find_eigenmatches(pca_file, latents_file, range(from_mode, from_mode + nmodes), 1, partition)
    return rows[0].tolist(), cosines[0].tolist()


def find_eigenmodes(  # noqa: PLR0913  # the arguments that users know
    opt_path: str | Path,
    pca_file: str | Path,
    image_shape: Sequence[int],
    output_file: str | Path,
    Neigenmodes: int = 10,
    use_gpu: bool | None = False,
    clamp_value: float | None = None,
    local_model_path: str | Path | None = None,
    base_model_name: str = "last.pth",
    num_iterations: int = 1000,
    tv_weight: float = 0.0,
    show: bool = False,
    debug: bool = False,
    use_eigenmatch_start: bool = False,
    latents_file: str | Path | None = None,
    preproc_file: str | Path | None = None,
    partition: str = "train",
) -> None:
    """Optimise an image for each of the first principal components, and save the images.

    `nenya metrics` draws smoother ones, for both ends of each component.

    Args:
        opt_path: the JSON option file.
        pca_file: an `.npz` file of `nenya.pca.fit_latents`.
        image_shape: (C, H, W) or (H, W).
        output_file: `.npz` file with `eigen_images`, `similarities`, `eigenmodes`, `modes`; overwritten.
        Neigenmodes: number of components.
        use_gpu: compute on the GPU; None: if there is one.
        clamp_value: largest absolute value of a pixel; default 5.
        local_model_path: the folder with `<model_folder>/`.
        base_model_name: name of the file with the weights.
        num_iterations: steps for each component.
        tv_weight: weight of the total variation.
        show: ignored: the images are in the file.
        debug: two components only.
        use_eigenmatch_start: begin with the cutout of the nearest latent, from `latents_file` and `preproc_file`.
        latents_file: the latents file.
        preproc_file: the cutout file.
        partition: of both.

    Raises:
        OptionError: There are fewer components, or no files to begin with.
        InputFileError: A file cannot be read.
        CheckpointError: The weights cannot be used.
    """
    from nenya import pca
    from nenya.io import as_options, load_model_name
    from nenya.models.contrastive import load_model
    from nenya.options.sections import Options
    from nenya.train_util import use_gpu_if_any

    opt, weights = load_model_name(opt_path, local_model_path, base_model_name)
    net = load_model(as_options(Options, opt), weights)[1].net
    net.to("cuda" if use_gpu_if_any(use_gpu) else "cpu")
    components = pca.components_of(pca_file)
    count = min(Neigenmodes, 2) if debug else Neigenmodes
    if not 1 <= count <= len(components):
        raise OptionError(f"Neigenmodes={Neigenmodes}: expected 1 to {len(components)}, the components of {pca_file}")
    starts: list[Any] = [None] * count
    if use_eigenmatch_start:
        starts = _starts(pca_file, latents_file, preproc_file, count, partition)
    found = []
    for mode in range(count):
        found.append(
            pca.generate_eigenmode_with_regularization(
                net, components[mode], image_shape, num_iterations, clamp_value=clamp_value, tv_weight=tv_weight,
                start_image=starts[mode],
            )
        )  # fmt: skip
        log.info("component %d of %d: cosine %.3f", mode + 1, count, found[-1][1])
    arrays = {
        "eigen_images": np.stack([image for image, _ in found]),
        "similarities": np.array([cosine for _, cosine in found]),
        "eigenmodes": components[:count],
        "modes": np.arange(count),
    }
    with atomic_path(Path(output_file)) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _starts(
    pca_file: str | Path,
    latents_file: str | Path | None,
    preproc_file: str | Path | None,
    count: int,
    partition: str,
) -> list[Any]:
    """Return the cutouts (H, W) whose latents are nearest to the first components."""
    from nenya.data.cutouts import CutoutReader

    if latents_file is None or preproc_file is None:
        raise OptionError("use_eigenmatch_start=True needs latents_file= and preproc_file=")
    rows, _ = find_eigenmatches(pca_file, latents_file, count, partition)
    unique, places = np.unique(rows, return_inverse=True)
    return list(CutoutReader(Path(expand(str(preproc_file))), partition).read_rows(unique)[places, 0])


def return_task() -> str:
    """Return the task that the command line of a script names: `python script.py train`.

    Raises:
        SystemExit: There is none, several, or an unknown one.
    """
    words = sys.argv[1:]
    if len(words) != 1 or words[0].lower() not in TASKS:
        said = " ".join(words) or "nothing"
        sys.exit(f"usage: python {os.path.basename(sys.argv[0])} <task>, one of {', '.join(TASKS)}; got {said}")
    return words[0].lower()
