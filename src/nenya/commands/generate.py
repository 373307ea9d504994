"""`nenya generate`: cutout files with known properties: noise and power laws of the published study, or an ocean."""

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import nenya
from nenya.data.orientation import ROW_ORDER, SOUTH_TO_NORTH
from nenya.errors import OptionError, OutputError
from nenya.io import write_table
from nenya.options.commands import GenerateOptions
from nenya.prepare.ocean import Columns, OceanOptions, ocean_blocks
from nenya.prepare.synthetic import SLOPES, published_blocks, stream_cutouts
from nenya.runtime.process import git_commit
from nenya.storage.disk import check_room, remove_half, sweep
from nenya.storage.paths import local_path

log = logging.getLogger(__name__)

_FOLDER = "outputs/generated"
_ROWS = {"ocean": (1500, 500)}
_PUBLISHED_ROWS = (150_000, 50_000)

Blocks = Iterator[dict[str, NDArray[Any]]]


def run(options: GenerateOptions) -> int:
    """Write the set described by the options.

    Args:
        options: of `scripts/generate.py`.

    Returns:
        0.

    Raises:
        NenyaError: An option is not possible, or the file exists or cannot be written.
    """
    path = output_place(options)
    table = path.with_suffix(".parquet") if options.kind == "ocean" else None
    if table is not None:
        remove_half(path, table)
    sweep(path.parent)
    for place in filter(None, (path, table)):
        if place.exists() and not options.clobber:
            raise OutputError(f"{place} exists (clobber=true overwrites it, out= names another path)")
    rows = _rows(options)
    check_room(path.parent, sum(rows.values()) * 4 * options.size**2, "the generated file")
    log.info("%s: generating cutouts: %s", path, ", ".join(f"{name} {count}" for name, count in rows.items()))
    if table is not None:
        write_ocean(
            path, rows, options.seed, OceanOptions(options.size, options.clouds, options.masked, options.device)
        )
        log.info("%s\n%s", path, table)
    else:
        write_published(path, options.kind, rows, options.seed, options.size)
        log.info("%s", path)
    return 0


def output_place(options: GenerateOptions) -> Path:
    """Return the file that is written: `out`, or `<kind>_<size>x<size>_preproc.h5` in that folder.

    Raises:
        OptionError: `out` is a file of another kind.
    """
    out = local_path(options.out or _FOLDER)
    if out.suffix in (".h5", ".hdf5"):
        return out
    if out.suffix and not out.is_dir():
        raise OptionError(f"out={out}: expected a folder or a .h5 file")
    return out / f"{options.kind}_{options.size}x{options.size}_preproc.h5"


def _rows(options: GenerateOptions) -> dict[str, int]:
    train, valid = _ROWS.get(options.kind, _PUBLISHED_ROWS)
    if options.debug:
        train, valid = 64, 32
    return {"train": options.n_train or train, "valid": options.n_valid or valid}


def write_published(path: Path, kind: str, rows: dict[str, int], seed: int, size: int) -> None:
    """Write one of the published generated sets; memory use does not grow with the number of cutouts.

    Args:
        path: the HDF5 file; replaced where it exists.
        kind: "white", "power2" or "power4".
        rows: partition -> number of cutouts; each partition has a seed of its own, spawned from `seed`.
        seed: seed of all randomness.
        size: pixels along each side of a cutout.

    Raises:
        OutputError: The file cannot be written.
    """
    seeds = np.random.SeedSequence(seed).spawn(len(rows))

    def blocks(count: int, sequence: np.random.SeedSequence) -> Blocks:
        for block in published_blocks(kind, count, size, sequence):
            yield {"": block}

    partitions = {
        name: ((count, size, size), blocks(count, sequence))
        for (name, count), sequence in zip(rows.items(), seeds, strict=True)
    }
    stream_cutouts(path, partitions, _provenance(kind, seed, slope=SLOPES[kind]))


def write_ocean(path: Path, rows: dict[str, int], seed: int, options: OceanOptions) -> None:
    """Write an ocean-like set and, beside it with the suffix .parquet, a table of the parameters of each cutout.

    Partitions come from different flows.

    Args:
        path: the HDF5 file; replaced where it exists, as is the table.
        rows: partition -> number of cutouts.
        seed: seed of all randomness.
        options: of the set.

    Raises:
        OptionError: An option is out of range, or the device does not exist.
        OutputError: A file cannot be written.
    """
    import pandas as pd
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise OptionError("device=cuda: torch finds no GPU on this machine; use device=cpu")
    seeds = np.random.SeedSequence(seed).spawn(len(rows))
    columns: list[Columns] = []

    def blocks(name: str, count: int, sequence: np.random.SeedSequence) -> Blocks:
        for block in ocean_blocks(count, sequence, options, name, path.name):
            columns.append({**block.columns, "field_size": np.full(len(block.cutouts), options.size)})
            yield {"": block.cutouts, "_mask": block.clouds}

    partitions = {
        name: ((count, options.size, options.size), blocks(name, count, sequence))
        for (name, count), sequence in zip(rows.items(), seeds, strict=True)
    }
    about = {"masked": options.masked, "most_clouds": options.most_clouds, "device": options.device}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two are 1.5 times faster on idle cores, but seven times slower on busy ones

    def write_rows() -> None:
        merged = {key: np.concatenate([block[key] for block in columns]) for key in columns[0]}
        write_table(pd.DataFrame(merged), path.with_suffix(".parquet"))

    try:
        stream_cutouts(path, partitions, _provenance("ocean", seed, **about), finish=write_rows)
    finally:
        torch.set_num_threads(threads)


def _provenance(kind: str, seed: int, **more: Any) -> dict[str, Any]:
    return {
        "made_by": f"nenya generate kind={kind}",
        ROW_ORDER: SOUTH_TO_NORTH,
        "nenya_version": nenya.__version__,
        "git_commit": git_commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "options": json.dumps({"kind": kind, "seed": seed, **more}),
    }
