"""The inputs of `nenya probe`: models, the rows that all of them have, and what takes no training.

Letters: N rows of the table, n of them probed, D the length of a latent.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from nenya.archive.folder import open_chosen
from nenya.commands.untrained import check_all_known, read_as, untrained_latents
from nenya.data.hdf5_open import open_hdf5
from nenya.errors import InputFileError, OptionError
from nenya.io import read_table
from nenya.latents.files import Latents, open_latents
from nenya.latents.image_features import image_features
from nenya.latents.probes import Features
from nenya.latents.rarity import joined_rows
from nenya.options.probe import ProbeOptions
from nenya.options.sections import ModelOptions, Options, build_options
from nenya.storage.paths import local_path
from nenya.tables.blocks import marks_of

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

IntArray = NDArray[np.int64]
Float64Array = NDArray[np.float64]

_LEAST_ROWS = 50
_KEYS = ("name", "weights", "backend")  # of the model, and not of its architecture


@dataclass(frozen=True)
class Rows:
    """The rows that are probed, in an order that depends on their keys alone.

    Attributes:
        table: (n rows).
        kinds: (n,) pp_type.
        marks: (n,) uint64, random numbers of the rows.
        latents: name of a model -> (n, D) float64.
        total: rows of the table that all models have.
        without: rows that were drawn and left out, as a latent is not finite.
    """

    table: "pd.DataFrame"
    kinds: IntArray
    marks: NDArray[np.uint64]
    latents: dict[str, Float64Array]
    total: int
    without: int

    def take(self, rows: IntArray) -> "Rows":
        """Return some of the rows."""
        latents = {name: own[rows] for name, own in self.latents.items()}
        table = self.table.iloc[rows].reset_index(drop=True)
        return replace(self, table=table, kinds=self.kinds[rows], marks=self.marks[rows], latents=latents)


def open_models(options: ProbeOptions) -> "tuple[dict[str, Latents], pd.DataFrame]":
    """Return name -> latents of each model, and the table.

    Raises:
        OptionError: No latents are given, neither a table nor an archive, both, or as many names as models are not.
        InputFileError: A file cannot be read.
    """
    opened = open_chosen(options)
    given = options.latents if isinstance(options.latents, list) else [options.latents] if options.latents else []
    if not given and opened is None:
        raise OptionError(
            "expected latents=, a latents file for each model, such as latents=[a_latents.h5,b_latents.h5]"
        )
    loader = options.loader
    models = [open_latents(one, loader.cache_dir, allow_external=loader.allow_external) for one in given]
    names = _names([str(one) for one in given], models)
    if opened is not None:
        models, names = [opened.latents(), *models], [opened.name, *names]
    if options.names is not None:
        if len(options.names) != len(models):
            raise OptionError(f"names=: expected {len(models)} names, one for each model, got {len(options.names)}")
        names = options.names
    if len(set(names)) < len(names):
        raise OptionError(f"expected different names for the models, got {', '.join(names)}: give names=[...]")
    table = read_table(local_path(str(options.table))) if opened is None else opened.table()
    return dict(zip(names, models, strict=True)), table


def _names(given: Sequence[str], models: Sequence[Latents]) -> list[str]:
    """Return a short name for each model: of its file, else of its folder, else as it was given."""
    stems = [Path(text.rstrip("/")).name.removesuffix(".h5") for text in given]
    folders = [Path(latents.parts[0].place or latents.parts[0].path).parent.name for latents in models]
    for names in (stems, folders, list(given)):
        if len(set(names)) == len(names) and all(names):
            return names
    return [f"{number}" for number in range(1, len(models) + 1)]


def common_rows(models: dict[str, Latents], table: "pd.DataFrame", sample: int, seed: int) -> Rows:
    """Return rows of the table with a finite latent of every model, at most `sample` of them, drawn at random.

    Raises:
        InputFileError: There are fewer than 50, or two files of latents of one cutout file are of different cutouts.
    """
    _check_same_cutouts(models)
    positions = {}
    for name, latents in models.items():
        joined = latents.join(table)
        positions[name] = joined.number
        if joined.note:
            log.warning("%s: %s", name, joined.note)
    shared = np.all([own >= 0 for own in positions.values()], axis=0)
    first = next(iter(positions.values()))
    if not shared.any():
        raise InputFileError(
            f"no row of the table has a latent in each of {', '.join(models)}: expected latents of the same cutouts "
            "(several files of one model are one entry: a folder or a glob)"
        )
    if len(models) > 1 and (some := int((first >= 0).sum())) != int(shared.sum()):
        log.warning("%d of %d rows have a latent of every model; the others are left out", shared.sum(), some)
    rows, _ = joined_rows(np.where(shared, first, -1))
    marks = marks_of(table.iloc[rows], seed)
    rows = rows[np.argsort(marks, kind="stable")]
    marks = np.sort(marks, kind="stable")
    found, good, tried = _finite(models, {name: own[rows] for name, own in positions.items()}, sample)
    if len(good) < _LEAST_ROWS:
        raise InputFileError(
            f"expected at least {_LEAST_ROWS} rows with a latent of every model, got {len(good)} of {len(rows)}"
        )
    if tried > len(good):
        log.warning("%d of %d rows are left out: their latents are not finite", tried - len(good), tried)
    if tried < len(rows):
        log.info("%d of %d rows are drawn (sample=%d, seed=%d)", len(good), len(rows), sample, seed)
    model, own = next(iter(models.values())), next(iter(positions.values()))
    part = table.iloc[rows[good]].reset_index(drop=True)
    kinds = model.keys(own[rows[good]])["pp_type"].to_numpy(np.int64)
    return Rows(part, kinds, marks[good], found, len(rows), tried - len(good))


def _finite(
    models: dict[str, Latents], positions: dict[str, IntArray], sample: int
) -> tuple[dict[str, Float64Array], IntArray, int]:
    """Return the first finite latents of all models, their places, and how many were read to find so many."""
    total = len(next(iter(positions.values())))
    parts: dict[str, list[Float64Array]] = {name: [] for name in models}
    kept, found, start = [np.empty(0, np.int64)], 0, 0
    while start < total and found < sample:
        stop = min(total, start + max(sample - found, 1024))
        own = {name: np.asarray(models[name].take(positions[name][start:stop]), np.float64) for name in models}
        good = np.flatnonzero(np.all([np.isfinite(one).all(axis=1) for one in own.values()], axis=0))[: sample - found]
        for name, one in own.items():
            parts[name].append(one[good])
        kept.append(start + good)
        found += len(good)
        start = stop if found < sample else int(kept[-1][-1]) + 1
    return {name: np.concatenate(own) for name, own in parts.items()}, np.concatenate(kept), start


def _check_same_cutouts(models: dict[str, Latents]) -> None:
    """Refuse latents of cutout files of one name and different content.

    Raises:
        InputFileError: There are such.
    """
    seen: dict[str, tuple[str, str]] = {}
    for name, latents in models.items():
        for path, stem in {(part.path, part.stem) for part in latents.parts}:
            with open_hdf5(path, links=latents.links) as file:
                sha256 = file.attrs.get("source_sha256")
            if not isinstance(sha256, str):
                continue
            other, was = seen.setdefault(stem, (name, sha256))
            if was != sha256:
                raise InputFileError(
                    f"{other} and {name} have latents of two different files {stem} (sha256 {was[:12]} and "
                    f"{sha256[:12]}): expected latents of the same cutouts"
                )


def baselines(options: ProbeOptions, models: dict[str, Latents], rows: Rows) -> dict[str, Features]:
    """Return features that take no training: of the images, and latents of untrained networks.

    Raises:
        InputFileError: A cutout is missing, or an untrained network has latents of another length.
    """
    from nenya.data.table_images import TableImages

    networks = {name: _network(options, latents) for name, latents in models.items()}
    known = [own for own in networks.values() if own is not None]
    masked = known[0].preprocess.masked if known else options.preprocess.masked
    images = TableImages(options.images, rows.table, options.loader, "fill" if masked == "mask" else masked)
    check_all_known(images)
    lengths = [own.shape[1] for own in rows.latents.values()]
    crop = (known[0] if known else options).preprocess.dt_crop
    found = image_features(images.read, len(rows.table), lengths, dt_crop=crop, seed=options.seed)
    done: dict[str, str] = {}
    for name, network in networks.items():
        if network is None:
            log.warning("%s does not say its network, so an untrained one is not compared: give ckpt= or model=", name)
            continue
        key = json.dumps([_architecture(network), rows.latents[name].shape[1]], sort_keys=True)
        if key in done:
            continue
        title = f"untrained {network.model.ssl_model}"
        done[key] = title = title if title not in done.values() else f"{title} of {name}"
        own = TableImages(options.images, rows.table, options.loader, read_as(network.preprocess.masked))
        latents = untrained_latents(network, own, rows.latents[name].shape[1])(np.arange(len(rows.table)))
        found[title] = Features(latents.astype(np.float64), latents.astype(np.float64))
    return found


def _architecture(options: Options) -> dict[str, Any]:
    model = {key: value for key, value in asdict(options.model).items() if key not in _KEYS}
    return {**model, **asdict(options.preprocess)}


def _network(options: ProbeOptions, latents: Latents) -> Options | None:
    """Return the options of the network of latents: as `ckpt=` or `model=` say, else as the file says."""
    if options.ckpt or options.model.name != ModelOptions().name or options.model.weights:
        return options
    path = latents.parts[0].path
    with open_hdf5(path, links=latents.links) as file:
        said = _said(file)
    if not said:
        return None
    try:
        return build_options(Options, {**said, "seed": options.seed})
    except OptionError as error:
        log.warning("%s: its options are not understood (%s)", path.name, error)
        return None


def _said(file: h5py.File) -> dict[str, Any]:
    """Return the sections model and preprocess of the options of a latents file; empty if it does not say them."""
    try:
        options = json.loads(str(file.attrs.get("options", "{}")))
    except ValueError:
        return {}
    found = {name: options.get(name) for name in ("model", "preprocess")} if isinstance(options, dict) else {}
    return found if all(isinstance(values, dict) for values in found.values()) else {}
