"""Cutouts for Lightning: two random views of each, for training."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from nenya.data.augment import ViewSampler
from nenya.data.blocks import as_it_is
from nenya.data.cloudy_views import CloudyViews
from nenya.data.cutouts import CutoutFile, inspect_cutouts
from nenya.data.extra_views import ExtraViews
from nenya.data.masks import check_holes, network_input, wholly_masked, without_latent
from nenya.data.row_list import RowList
from nenya.data.unpack import load_partition
from nenya.errors import InputFileError
from nenya.options.sections import AugmentOptions, LoaderOptions, Options
from nenya.runtime.lightning import pl
from nenya.runtime.trainer import count_read

log = logging.getLogger(__name__)

_STAGES = {"train": 0, "valid": 1}
_HALF = 0.5  # of a pixel of a view is masked: it counts as masked
_COPIED = 4096  # rows moved to a device at once


@dataclass(frozen=True)
class Step:
    """One batch of one process: its rows, and their position in the batch of all processes.

    Attributes:
        epoch: counted from 0.
        index: batch of the epoch, counted from 0.
        rows: rows of this process.
        first: position of the first of them in the complete batch.
        total: rows of the complete batch.
    """

    epoch: int
    index: int
    rows: NDArray[np.int64]
    first: int
    total: int


class StepSampler:
    """Yields the steps of an epoch; their rows depend only on the seed, the epoch and the batch index.

    Args:
        rows: the rows of an epoch.
        batch_size: rows per batch over all processes; the last batch of an epoch may have fewer.
        seed: seed of the order.
        shares: (rank, world size).
        shuffle: a new order each epoch; otherwise one fixed random order.
    """

    def __init__(
        self, rows: NDArray[np.int64], batch_size: int, seed: int, shares: tuple[int, int], *, shuffle: bool
    ) -> None:
        self.rows, self.size, self.seed, self.shuffle = rows, batch_size, seed, shuffle
        self.rank, self.world = shares
        self.epoch: Callable[[], int] = int
        self.start = 0

    def __len__(self) -> int:
        full, rest = divmod(len(self.rows), self.size)
        return full + (rest >= self.world)

    def __iter__(self) -> Iterator[Step]:
        """Yield the steps from `start` on; the next epoch starts at 0."""
        epoch, start, self.start = self.epoch(), self.start, 0
        key = [self.seed, 2, epoch if self.shuffle else 0]
        order = np.random.default_rng(key).permutation(self.rows)
        for index in range(start, len(self)):
            batch = order[index * self.size : (index + 1) * self.size]
            lo, hi = (len(batch) * r // self.world for r in (self.rank, self.rank + 1))
            yield Step(epoch, index, batch[lo:hi], lo, len(batch))


class CutoutRows(Dataset[dict[str, Any]]):
    """Rows of the arrays of several files, numbered consecutively.

    Args:
        arrays: one (N_i, H, W) float32 array per file, NaN at masked pixels.
        labels: (sum of N_i,) int64 classes, or None.
        masked: what the network sees of masked pixels, `preprocess.masked`; with `mask`, images have two channels.

    Attributes:
        resident: all rows (N, C, H, W) on the device of the network, after `move_to`.
    """

    def __init__(
        self, arrays: Sequence[NDArray[np.float32]], labels: NDArray[np.int64] | None = None, masked: str = "nan"
    ) -> None:
        self.arrays, self.labels, self.masked = list(arrays), labels, masked
        self.channels = 2 if masked == "mask" else 1
        self.ends = np.cumsum([len(a) for a in self.arrays])
        self.resident: torch.Tensor | None = None

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return sum(array.nbytes for array in self.arrays)

    def move_to(self, device: torch.device) -> None:
        """Move all rows to a device."""
        rows = torch.empty((len(self), self.channels, *self.arrays[0].shape[1:]), device=device)
        for array, end in zip(self.arrays, self.ends, strict=True):
            for start in range(0, len(array), _COPIED):
                part = network_input(np.array(array[start : start + _COPIED])[:, None], None, self.masked)
                first = int(end) - len(array) + start
                rows[first : first + len(part)] = torch.from_numpy(part).to(device)
        self.resident, self.arrays = rows, []

    def __getitems__(self, step: Step) -> dict[str, Any]:
        """Return one batch: images (B, C, H, W), or None if they are `resident`; and the position of the step."""
        start = time.monotonic()
        batch: dict[str, Any] = {
            "images": self._images(step) if self.resident is None else None,
            "rows": torch.from_numpy(step.rows),
            "epoch": step.epoch,
            "index": step.index,
            "first": step.first,
            "total": step.total,
        }
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[step.rows])
        batch["read_seconds"] = time.monotonic() - start
        return batch

    def _images(self, step: Step) -> torch.Tensor:
        images = np.empty((len(step.rows), 1, *self.arrays[0].shape[1:]), np.float32)
        owners = np.searchsorted(self.ends, step.rows, side="right")
        for i in np.unique(owners):
            mine = owners == i
            images[mine, 0] = self.arrays[i][step.rows[mine] - (self.ends[i] - len(self.arrays[i]))]
        return torch.from_numpy(network_input(images, None, self.masked))


class ResumableLoader(DataLoader[dict[str, Any]]):
    """A loader that resumes within an epoch, after the batches completed at the checkpoint."""

    batches_done: Callable[[], int] = staticmethod(int)

    def state_dict(self) -> dict[str, int]:
        """Return the number of completed batches of the running epoch."""
        return {"batches_done": self.batches_done()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next iterator after the completed batches."""
        self.batch_sampler.start = state["batches_done"]  # type: ignore[union-attr]


def view_sampler(options: AugmentOptions) -> ViewSampler:
    """Return the view sampler that the `augment` options describe."""
    crop, jitter = options.random_jitter or (0, 0)
    return ViewSampler(
        recipe=options.recipe,
        crop=crop,
        jitter=jitter,
        flip=options.flip,
        rotate=options.rotate,
        demean=options.demean,
        gauss_noise=options.gauss_noise,
        resampling=options.resampling,
        padding=options.padding,
    )


class ViewsDataModule(pl.LightningDataModule):
    """Two random views of each cutout, generated on the training device.

    Args:
        options: `loader`, `augment`, `loss` and `seed` are used.
        files: the cutout files; each holds the training partition, unless rows are chosen.
        cache_dir: folder of unpacked copies of data that do not fit into memory.
        chosen: the rows to train and validate on; None: the partitions.
        clouds: lays clouds over the views; None: they stay clear.
    """

    def __init__(
        self,
        options: Options,
        files: Sequence[CutoutFile],
        cache_dir: Path,
        chosen: RowList | None = None,
        clouds: CloudyViews | None = None,
    ) -> None:
        super().__init__()
        self.clouds = clouds
        self.options, self.files, self.cache_dir, self.chosen = options, list(files), cache_dir, chosen
        self.views = view_sampler(options.augment)
        self.mask_views = view_sampler(replace(options.augment, demean=False, gauss_noise=0.0))
        self.masked = options.preprocess.masked
        self.extra = ExtraViews(options.augment)
        self._rows: dict[str, CutoutRows] = {}
        self._usable: dict[str, NDArray[np.int64]] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return a description of the data, for the checkpoint."""
        clouds = {} if self.clouds is None else {"clouds": self.clouds.state()}
        return {"files": self._described(), **clouds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to resume a run on other data."""
        was, now = state_dict["files"], self._described()
        if was != now:
            raise InputFileError(f"expected the data of the run, {was}, got {now}: resume with the same data=")
        if self.clouds is not None:
            self.clouds.restore(state_dict.get("clouds"))

    def _described(self) -> list[list[Any]]:
        return [[f.path.name, {name: p.rows for name, p in f.partitions.items()}] for f in self.files]

    def _parts(self, stage: str) -> list[tuple[CutoutFile, str]]:
        """Return the partitions that a stage reads; with chosen rows all stages read the same ones."""
        if self.chosen is not None:
            return list(self.chosen.parts) if len(self.chosen.of(stage)) else []
        loader = self.options.loader
        key = loader.train_key if stage == "train" else loader.valid_key
        return [(file, key) for file in self.files if key in file.partitions]

    @property
    def has_validation(self) -> bool:
        """Whether there are cutouts to validate on."""
        return bool(self._parts("valid"))

    def prepare_data(self) -> None:
        """With several processes, unpack once into the cache, which all processes map."""
        if self._shares()[1] > 1:
            for stage in _STAGES:
                self._arrays(stage)

    def setup(self, stage: str) -> None:
        """Load the partitions; rows with non-finite pixels are skipped and reported."""
        for name in _STAGES if stage == "fit" and not self._rows else ():
            if not self._parts(name):
                continue
            if self.chosen is not None and self._rows:
                self._rows[name] = self._rows["train"]
            else:
                self._rows[name] = CutoutRows(self._arrays(name), self._labels(name), self.masked)
            self._usable[name] = self._finite(name)
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if stage == "fit" and self._belongs_on(device):
            for rows in self._each():
                rows.move_to(device)

    def _each(self) -> list[CutoutRows]:
        """Return the rows of the stages, each once."""
        return list({id(rows): rows for rows in self._rows.values()}.values())

    def _belongs_on(self, device: torch.device) -> bool:
        """Return whether all rows are to be kept on the device during training."""
        choice = self.options.loader.on_device
        if choice == "always" and device.type == "cpu":
            log.warning("loader.on_device=always has no effect: the network is on the CPU")
        if choice != "auto" or device.type != "cuda" or any(r.resident is not None for r in self._rows.values()):
            return choice == "always" and all(r.resident is None for r in self._rows.values())
        free, _ = torch.cuda.mem_get_info(device)
        return sum(rows.nbytes for rows in self._each()) <= free // 2

    def _arrays(self, stage: str) -> list[NDArray[np.float32]]:
        limit = self.options.loader.memory_limit_gb
        memory = 0 if self._shares()[1] > 1 else None if limit is None else int(limit * 1e9)
        return [
            load_partition(
                f.path,
                key,
                cache_dir=self.cache_dir,
                memory_limit=memory,
                progress=sys.stderr.isatty(),
                allow_external=f.allow_external,
                mask=self.masked != "nan",
            )
            for f, key in self._parts(stage)
        ]

    def _labels(self, stage: str) -> NDArray[np.int64] | None:
        if self.options.loss.ssl_method != "SupCon":
            return None
        if self.chosen is not None and self.chosen.labels is not None:
            return self.chosen.labels
        return np.concatenate([read_labels(f, key, self.options.loader.labels) for f, key in self._parts(stage)])

    def _finite(self, stage: str) -> NDArray[np.int64]:
        found = []
        for (file, key), array in zip(self._parts(stage), self._rows[stage].arrays, strict=True):
            parts = [array[start : start + 4096] for start in range(0, len(array), 4096)]
            lost = np.concatenate([without_latent(part, self.masked) for part in parts])
            if self.masked == "nan":
                check_holes(file, key, array, np.flatnonzero(lost))
                lost |= wholly_masked(file, key)
            found.append(lost)
        bad = np.concatenate(found)
        rows: NDArray[np.int64] = np.arange(len(bad)) if self.chosen is None else self.chosen.of(stage)
        bad = bad[rows]
        if bad.any():
            what = "with non-finite pixels" if self.masked == "nan" else "without a clear pixel"
            if self.masked == "nan" and any(file.partitions[key].has_mask for file, key in self._parts(stage)):
                what += " or wholly masked"
            log.warning("%s: skipping %d of %d cutouts %s", stage, bad.sum(), len(bad), what)
        if bad.all():
            file, key = self._parts(stage)[0]
            raise InputFileError(f"{file.path}: every cutout of '{key}' to use has non-finite pixels")
        usable: NDArray[np.int64] = rows[~bad]
        return usable

    def _shares(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, stage: str) -> ResumableLoader:
        loader = self.options.loader
        size = loader.batch_size_train if stage == "train" else loader.batch_size_valid
        sampler = StepSampler(self._usable[stage], size, self.options.seed, self._shares(), shuffle=stage == "train")
        batches = ResumableLoader(
            self._rows[stage],
            batch_sampler=sampler,  # type: ignore[arg-type]  # any iterable of steps will do
            collate_fn=as_it_is,  # type: ignore[arg-type]  # batches are complete, not lists
            num_workers=0 if self._rows[stage].resident is not None else loader.num_workers,
            pin_memory=torch.cuda.is_available(),
        )
        if stage == "train" and self.trainer:
            fit: Any = self.trainer.fit_loop
            sampler.epoch = lambda: fit.epoch_progress.current.processed

            def batches_done() -> int:
                done = int(fit.epoch_loop.batch_progress.current.processed)
                return done if done < fit.max_batches else 0

            batches.batches_done = batches_done
        return batches

    def train_dataloader(self) -> ResumableLoader:
        """Return the loader of training batches."""
        return self._loader("train")

    def val_dataloader(self) -> list[ResumableLoader]:
        """Return the loader of validation batches, if there is such a partition."""
        return [self._loader("valid")] if "valid" in self._rows else []

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Count the time of reading: in the training loop, or in concurrent loader processes."""
        count_read(self.trainer, batch, beside=self.options.loader.num_workers > 0 and batch["images"] is not None)
        return batch

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Generate the views (B, 2, C, H, W) on the device; those of validation are the same in every epoch."""
        training = self.trainer is None or self.trainer.training
        stage, epoch = ("train", batch["epoch"]) if training else ("valid", 0)
        if batch["images"] is None:
            resident = self._rows[stage].resident
            assert resident is not None
            batch["images"] = resident[batch["rows"]]
        if self.clouds is None:
            batch["views"] = self.make_views(batch, stage, epoch)
        else:
            batch |= self.clouds.lay(batch, _STAGES[stage], epoch, lambda: self.make_views(batch, stage, epoch))
        return batch

    def make_views(self, batch: dict[str, Any], stage: str, epoch: int) -> torch.Tensor:
        """Return two views (B, 2, C, H, W) of each image, drawn for this seed, stage, epoch and batch alone.

        A mask, the second channel, is turned and cut like its image; beyond the edge nothing is masked.
        """
        images = batch["images"].float()  # views are sampled in float32, whatever the precision of the network
        key = np.random.SeedSequence([self.options.seed, _STAGES[stage], epoch, batch["index"]])
        generator = torch.Generator().manual_seed(int(key.generate_state(1, np.uint64)[0] >> 1))
        drawn = self.views.draw(2 * batch["total"], images.shape[-1], generator)
        mine = drawn[slice(2 * batch["first"], 2 * (batch["first"] + len(images)))]
        views = self.views.apply(images[:, :1], mine)
        views = self.extra(views, [self.options.seed, _STAGES[stage], epoch, batch["index"], batch["first"]])
        if images.shape[1] > 1:
            masks = self.mask_views.apply(images[:, 1:], mine)
            views = torch.cat([views, (masks > _HALF).to(views.dtype)], dim=1)
        return views.reshape(len(images), 2, *views.shape[1:]).to(batch["images"].dtype)


def read_labels(file: CutoutFile, partition: str, suffix: str) -> NDArray[np.int64]:
    """Read the SupCon labels of a partition: the data set `<partition>_<suffix>`, (N,) integers.

    Raises:
        InputFileError: The data set is missing or has another length than the cutouts.
    """
    name, rows = f"{partition}_{suffix}", file.partitions[partition].rows
    with file.reader(partition) as reader:
        labels = reader.companion(suffix)
    if labels is None:
        raise InputFileError(
            f"{file.path}: expected a data set '{name}' with labels, found none: add ({rows},) integers, or use SimCLR"
        )
    if labels.shape != (rows,) or labels.dtype.kind not in "iu":
        raise InputFileError(f"{file.path}: expected ({rows},) integers in '{name}', got {labels.shape} {labels.dtype}")
    return labels.astype(np.int64, copy=False)


def inspect_all(
    paths: Sequence[Path], partitions: Sequence[str], needed: str | None, *, allow_external: bool = False
) -> list[CutoutFile]:
    """Check the cutout files of a training run; all must have cutouts of one size and hold the needed partition.

    If no file has it, another partition that all have is needed instead, unless the user named it; with None, any will
    do.

    Raises:
        InputFileError: A file cannot be used, or its cutouts have another size than the first file's.
    """
    files = [inspect_cutouts(path, partitions, allow_external=allow_external) for path in paths]
    if needed == LoaderOptions().train_key and not any(needed in file.partitions for file in files):
        needed = next((name for name in partitions if all(name in file.partitions for file in files)), needed)
    first = next(iter(files[0].partitions.values()))
    for file in files:
        if needed is not None and needed not in file.partitions:
            raise InputFileError(
                f"{file.path}: expected a partition '{needed}' for training, found only {', '.join(file.partitions)}; "
                "name another with loader.train_key"
            )
        for name, info in file.partitions.items():
            if info.height != first.height:
                raise InputFileError(
                    f"{file.path}: '{name}' has cutouts of {info.height} x {info.width} pixels and "
                    f"{files[0].path} of {first.height} x {first.width}; train on one size"
                )
    return files
