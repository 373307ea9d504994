"""The views of a training under clouds, and the bank of clouds that its options ask for.

Letters: B cutouts, C channels, H rows and columns of a cutout, S of a view, K masks.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nenya.data.augment import ViewSampler
from nenya.data.clouds import (
    SHAPES,
    CloudSampler,
    Order,
    clear_epochs,
    generated_shapes,
    generator_of,
    partly_masked,
    shapes_of_masks,
    turned,
)
from nenya.data.cutouts import CutoutFile, inspect_cutouts
from nenya.data.masks import checked_mask, mask_of
from nenya.errors import InputFileError, OptionError
from nenya.options.sections import Options
from nenya.storage.paths import fetch, find_sources

_BLOCKS, _ROWS = 64, 64  # blocks of rows of a partition that are searched for masks
_TURNS = 8
_STREAM = 1  # of random numbers, beside those of the views


class CloudyViews:
    """Lays clouds over the views of batches, drawn for a seed, stage, epoch and batch alone.

    The epochs before `augment.clouds_from` have plain views. In the others, with a guide (`loss.clear_weight`), both
    views of a cutout are the complete cutout, turned by quarters, under two clouds; without one, two random views.
    Validation views are random ones under clouds in all epochs, so that their losses can be compared.

    Args:
        options: `augment`, `loss`, `preprocess`, `seed` and `trainer.max_epochs` are used.
        order: of the bank, (K, S, S).
    """

    def __init__(self, options: Options, order: Order) -> None:
        self.sampler = CloudSampler(order, options.augment.clouds_most, options.preprocess.masked)
        self.seed, self.first, self.source = options.seed, clear_epochs(options), options.augment.cloud_masks
        self.guided = options.loss.clear_weight > 0
        self.demeaned = options.preprocess.file == "demean"
        self._bank = hashlib.sha256(order.tobytes()).hexdigest()

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs to know: the bank, and the epoch from which there are clouds."""
        return {"bank": self._bank, "first": self.first}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Resume with clouds from the same epoch.

        Raises:
            InputFileError: The bank was another one.
        """
        if state is None or state["bank"] != self._bank:
            raise InputFileError(
                f"augment.cloud_masks={self.source}: the clouds are not those of the run: resume with the same masks"
            )
        self.first = state["first"]

    def lay(self, batch: dict[str, Any], stage: int, epoch: int, plain: Callable[[], Tensor]) -> dict[str, Tensor]:
        """Return the views of a batch.

        Args:
            batch: `images` (B, C, H, H), and the position of its step.
            stage: number of the stage, 0 for training.
            epoch: counted from 0.
            plain: returns two random views (B, 2, C, S, S).

        Returns:
            `views` (B, 2, C, S, S); where a guide is asked, also `clear`, the same without clouds.
        """
        if stage == 0 and epoch < self.first:
            return {"views": plain()}
        key = np.random.SeedSequence([self.seed, stage, epoch, batch["index"], _STREAM])
        generator = torch.Generator().manual_seed(int(key.generate_state(1, np.uint64)[0] >> 1))
        clouds = self.sampler.draw(2 * batch["total"], generator)
        turns = torch.randint(_TURNS, (2 * batch["total"],), generator=generator)
        first = batch["first"]
        mine = slice(2 * first, 2 * (first + len(batch["images"])))
        guided = stage == 0 and self.guided
        views = self._turned(batch["images"], turns[mine]) if guided else plain()
        laid = self.sampler.lay(views.flatten(0, 1), clouds[mine]).reshape(views.shape)
        return {"views": laid, "clear": views} if guided else {"views": laid}

    def _turned(self, images: Tensor, turns: Tensor) -> Tensor:
        """Return each cutout turned in two ways, as the extraction sees them: (B, 2, C, H, H)."""
        if self.demeaned:
            images = torch.cat([images[:, :1] - images[:, :1].mean((2, 3), keepdim=True), images[:, 1:]], dim=1)
        twice = images.repeat_interleave(2, dim=0)
        return turned(twice, turns).reshape(len(images), 2, *images.shape[1:])


def cloudy_views(
    options: Options, files: Sequence[CutoutFile], views: ViewSampler, *, guide: bool
) -> CloudyViews | None:
    """Return what lays clouds over the views of a training, None without `augment.clouds`.

    Args:
        options: of the training.
        files: the training data.
        views: of the training.
        guide: whether the network starts from weights, so that no epoch without clouds is needed.

    Raises:
        InputFileError: The file of `augment.cloud_masks` cannot be read, or has no masks, or masks of another size.
        OptionError: An option does not go with clouds.
    """
    augment, epochs = options.augment, options.trainer.max_epochs
    if not augment.clouds:
        return None
    if options.loss.clear_weight and not clear_epochs(options) and not guide:
        raise OptionError(
            f"augment.clouds_from={augment.clouds_from} with {epochs} epochs: expected an epoch without clouds, as the "
            "network guides itself through them; train for more epochs, or start from weights with init_from="
        )
    size = next(iter(files[0].partitions.values())).height
    view = views.output_size(size)
    if size != view:
        raise OptionError(
            f"augment.clouds=true: views of {view} pixels from cutouts of {size} have no clouds: use augment.recipe=v4"
        )
    return CloudyViews(options, cloud_bank(options, files, size))


def cloud_bank(options: Options, files: Sequence[CutoutFile], size: int) -> Order:
    """Return the bank of clouds that `augment.cloud_masks` asks for: the same for the same seed and data.

    Args:
        options: of the training.
        files: the training data.
        size: rows and columns H of a cutout.

    Raises:
        InputFileError: The file cannot be read, or has no masks, or masks of another size.
    """
    how = options.augment.cloud_masks
    if how == "generated":
        return generated_shapes(SHAPES, size, options.seed)
    loader, rng = options.loader, generator_of(options.seed)
    if how == "own":
        sources = [(file, loader.train_key) for file in files if loader.train_key in file.partitions]
    else:
        keys = (loader.train_key, loader.valid_key)
        paths = fetch(find_sources(how), loader.cache_dir)
        banks = [inspect_cutouts(path, keys, allow_external=loader.allow_external) for path in paths]
        sources = [(file, name) for file in banks for name in file.partitions]
    for file, name in sources:
        _check_size(file, name, size)
    found = np.concatenate([partly_masked(_masks(file, name)) for file, name in sources])
    if not len(found):
        raise InputFileError(
            f"augment.cloud_masks={how}: found no partly masked cutouts in {sources[0][0].path}: name a file with "
            "masks, or use augment.cloud_masks=generated"
        )
    chosen = np.sort(rng.permutation(len(found))[:SHAPES])
    return shapes_of_masks(found[chosen])


def _check_size(file: CutoutFile, partition: str, size: int) -> None:
    info = file.partitions[partition]
    if (info.height, info.width) != (size, size):
        raise InputFileError(
            f"augment.cloud_masks={file.path}: expected masks of {size} x {size} pixels, the size of the cutouts, got "
            f"{info.height} x {info.width}"
        )


def _masks(file: CutoutFile, partition: str) -> NDArray[np.bool_]:
    """Return masks (n, H, W) of a partition, from blocks of rows all over it; without a mask, NaN is masked."""
    rows, parts = file.partitions[partition].rows, []
    with file.reader(partition) as reader:
        for start in np.unique(np.linspace(0, max(rows - _ROWS, 0), _BLOCKS).astype(int)).tolist():
            stop = min(rows, start + _ROWS)
            images = reader.read(start, stop)
            mask = checked_mask(reader, images[:, 0], range(start, stop)) if reader.info.has_mask else None
            parts.append(mask_of(images, mask))
    return np.concatenate(parts)
