"""A calibration of a network: latents of clear cutouts under masks, and how far they lie from those without.

Letters in shapes: N clear cutouts, R masks over each, M masks of a bank, C channels, H x W pixels, D the length of a
latent.
"""

import datetime
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import nenya
from nenya.data.blocks import Block, cut_blocks
from nenya.data.cutouts import CutoutFile, CutoutReader, inspect_cutouts, partition_names
from nenya.data.mask_shapes import mask_shapes, varied_masks
from nenya.data.masks import checked_mask, mask_of, network_input
from nenya.errors import InputFileError
from nenya.extraction.clearness import calibrated_options
from nenya.extraction.job import check_sizes
from nenya.extraction.memory import latents_of_batches
from nenya.latents.calibration import LEAST_CUTOUTS, Calibration, divide, fit
from nenya.models.checkpoint import Checkpoint
from nenya.models.contrastive import ContrastiveModule
from nenya.options.calibration import CalibrateOptions
from nenya.options.commands import ExtractOptions
from nenya.options.sections import Options

log = logging.getLogger(__name__)

Images = NDArray[np.float32]
Masks = NDArray[np.bool_]

LEAST_MASKS = 20
"""Smallest number of masked cutouts whose masks are used; with fewer, masks are generated."""

_MOST_MASKS = 4096
_MOST_ROWS = 2**17  # rows looked at
_ENOUGH = 4  # clear cutouts found before looking ends, as a multiple of those used
_SHARES = 12  # bins of the masked share from which masks are drawn evenly
_LEAST_CLEAR = 0.02  # clear share under which a mask of the bank says little


@dataclass(frozen=True)
class Found:
    """Cutouts of files.

    Attributes:
        images: (N, H, W), clear ones.
        masks: (M, H, W), those of masked ones.
        clear: number of clear cutouts seen.
        masked: number of masked cutouts seen.
        rows: number of cutouts seen.
    """

    images: Images
    masks: Masks
    clear: int
    masked: int
    rows: int


def calibrate(
    options: CalibrateOptions,
    files: Sequence[CutoutFile],
    cloud_files: Sequence[CutoutFile],
    checkpoint: Checkpoint,
    module: ContrastiveModule,
) -> Calibration:
    """Calibrate a network.

    Args:
        options: of the command.
        files: cutout files; their clear cutouts are used, and also their masks if there are no `cloud_files`.
        cloud_files: cutout files; only their masks are used.
        checkpoint: the weights.
        module: the network.

    Raises:
        InputFileError: There are too few clear cutouts or masks, or their sizes differ.
    """
    rng = np.random.default_rng(options.seed)
    for file in files:
        check_sizes(options, file)
    found = look(files, rng, most_clear=options.cutouts, most_masks=0 if cloud_files else _MOST_MASKS)
    if len(found.images) < LEAST_CUTOUTS:
        raise InputFileError(
            f"expected at least {LEAST_CUTOUTS} cutouts without a masked pixel, got {found.clear} of {found.rows}: "
            "give more files, or some of clear cutouts, with data="
        )
    given = look(cloud_files, rng, most_clear=0, most_masks=_MOST_MASKS).masks if cloud_files else found.masks
    cutout = np.repeat(np.arange(len(found.images)), options.masks)
    part = divide(len(found.images), rng)[cutout]
    masks, number, source = choose_masks(given, part, found.images.shape[-1], options, rng, named=bool(cloud_files))
    log.info("%d clear cutouts, each under %d masks (%s)", len(found.images), options.masks, source)
    clear = latents_under(options, module, found.images, lambda rows: np.zeros_like(found.images[rows], bool), "clear")
    masked = latents_under(options, module, found.images[cutout], lambda rows: masks[rows], "masked")
    about = {
        "checkpoint_sha256": checkpoint.sha256,
        **calibrated_options(options),
        "model_version": options.model.name,
        "image_size": found.images.shape[-1],
        "seed": options.seed,
        "cutouts": len(found.images),
        "masks": len(np.unique(number)),
        "masks_of": source,
        "files": [file.path.name for file in files][:100],
        "nenya_version": nenya.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    shapes = mask_shapes(masks, found.images[cutout])
    return fit(shapes, clear[cutout], masked, part, rng, about)


def look(files: Sequence[CutoutFile], rng: np.random.Generator, *, most_clear: int, most_masks: int) -> Found:
    """Look at the cutouts of files in a random order until there are enough clear and masked ones.

    Raises:
        InputFileError: Cutouts of the files differ in size, cannot be read, or have a NaN outside their mask.
    """
    sizes = {info.height for file in files for info in file.partitions.values()}
    if len(sizes) > 1:
        raise InputFileError(f"expected cutouts of one size, got {' and '.join(map(str, sorted(sizes)))} pixels a side")
    places = [(file, block) for file in files for block in cut_blocks(file, 1024)]
    clear: list[Images] = []
    masks: list[Masks] = []
    counts = np.zeros(3, np.int64)
    for place in rng.permutation(len(places)):
        file, block = places[place]
        with file.reader(block.partition) as reader:
            for images, holes in _pieces(reader, block):
                masked = holes.any(axis=(1, 2))
                usable = ~masked & np.isfinite(images).all(axis=(1, 2))
                clear.append(images[usable][: max(0, _ENOUGH * most_clear - counts[0])])
                share = holes.mean(axis=(1, 2))
                masks.append(holes[masked & (share < 1 - _LEAST_CLEAR)][: max(0, most_masks - counts[1])])
                counts += int(usable.sum()), int(masked.sum()), len(images)
        enough = counts[0] >= _ENOUGH * most_clear and (counts[1] >= most_masks or counts[2] >= _MOST_ROWS)
        if enough or counts[2] >= 8 * _MOST_ROWS:
            break
    found = np.concatenate(clear)
    some = np.sort(rng.permutation(len(found))[:most_clear])
    return Found(found[some], np.concatenate(masks), *map(int, counts))


def _pieces(reader: CutoutReader, block: Block) -> Iterator[tuple[Images, Masks]]:
    """Yield the cutouts of a block, (n, H, W), and their masks."""
    images = reader.read(block.rows.start, block.rows.stop)
    mask = checked_mask(reader, images[:, 0], block.rows) if reader.info.has_mask else None
    yield images[:, 0], mask_of(images, mask)


def choose_masks(
    bank: Masks,
    part: NDArray[np.int64],
    size: int,
    options: CalibrateOptions,
    rng: np.random.Generator,
    *,
    named: bool,
) -> tuple[Masks, NDArray[np.int64], str]:
    """Return a mask for each pair: of a bank, turned and mirrored, evenly over its shares; or a generated one.

    Args:
        bank: (M, H, W).
        part: (n,), of each pair; the masks of part 0 are none of the others' where the bank has enough.
        size: side of the clear cutouts in pixels.
        options: of the command.
        rng: source of chance.
        named: whether the bank was given by `cloud_masks=`, so that it must be enough.

    Returns:
        Masks (count, H, W), the number of each in the bank, and where they come from.

    Raises:
        InputFileError: The bank has too few masks, or of another size.
    """
    count = len(part)
    if len(bank) < LEAST_MASKS and not named:
        if len(bank):
            log.warning("only %d masked cutouts, expected at least %d: masks are generated", len(bank), LEAST_MASKS)
        return varied_masks(count, size, options.most, rng), np.arange(count), f"generated, up to {options.most:.0%}"
    if len(bank) < LEAST_MASKS or bank.shape[-1] != size:
        what = f"masks of {size} pixels a side, got {bank.shape[-1]}" if len(bank) else "masked cutouts, got none"
        what = what if len(bank) == 0 or bank.shape[-1] != size else f"{LEAST_MASKS} masked cutouts, got {len(bank)}"
        raise InputFileError(f"cloud_masks={options.cloud_masks}: expected {what}; give other files")
    number = np.empty(count, np.int64)
    own = rng.permutation(len(bank)) % 2 if len(bank) >= 2 * LEAST_MASKS else np.full(len(bank), -1)
    for group, pairs in enumerate((part == 0, part > 0)):
        some = np.flatnonzero((own == group) | (own < 0))
        number[pairs] = some[_evenly(bank[some].mean(axis=(1, 2)), int(pairs.sum()), rng)]
    turns, mirrored = rng.integers(0, 4, count), rng.random(count) < 0.5
    masks = bank[number]
    for turn in range(4):
        for mirror in (False, True):
            own = (turns == turn) & (mirrored == mirror)
            turned = np.rot90(masks[own], turn, axes=(1, 2))
            masks[own] = turned[:, ::-1] if mirror else turned
    return masks, number, f"of cloud_masks={options.cloud_masks}" if named else "of masked cutouts of the same files"


def _evenly(share: NDArray[np.float64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw masks (count,), evenly over their shares."""
    cells = np.minimum((share / share.max() * _SHARES).astype(int), _SHARES - 1)
    weights = 1.0 / np.bincount(cells, minlength=_SHARES)[cells]
    return rng.choice(len(share), count, p=weights / weights.sum())


def latents_under(
    options: CalibrateOptions,
    module: ContrastiveModule,
    images: Images,
    masks_of: Callable[[slice], Masks],
    name: str,
) -> NDArray[np.float32]:
    """Return the latents (n, D) of images (n, H, W) under masks, as extraction makes them."""

    def batches() -> Iterator[Tensor]:
        step = options.loader.block_size
        for start in range(0, len(images), step):
            rows = slice(start, start + step)
            seen = images[rows, None].copy()
            yield torch.from_numpy(network_input(seen, masks_of(rows), options.preprocess.masked))

    shared: Any = {f.name: getattr(options, f.name) for f in fields(Options)}
    return latents_of_batches(ExtractOptions(**shared), module, batches(), name, len(images))


def files_of(paths: Sequence[Path], options: CalibrateOptions) -> list[CutoutFile]:
    """Return cutout files, checked."""
    names, external = partition_names(options), options.loader.allow_external
    return [inspect_cutouts(path, names, allow_external=external) for path in paths]
