"""Processing of one new file, stage by stage, in a private folder; each stage resumes where it stopped."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nenya.archive.arrivals import Arrival
from nenya.archive.folder import Folder
from nenya.archive.rarity import RARITY_COLUMNS, add_reference, has_reference, rarity_columns
from nenya.archive.settings import Settings, extract_options, prepare_options
from nenya.data.cutouts import inspect_cutouts
from nenya.data.hdf5_links import COPY_IN, damage_named
from nenya.data.hdf5_open import open_hdf5
from nenya.errors import InputFileError, Interrupted, LockLostError, OptionError
from nenya.extraction.batch import run as extract
from nenya.io import read_table, write_table
from nenya.latents.calibration_file import calibrated_directions
from nenya.latents.clear import CLEAR_COLUMNS
from nenya.latents.clusters import assign_kmeans, fit_kmeans
from nenya.latents.embed import COLUMNS, Fit, embed_table, fit_projector, load_projector
from nenya.latents.files import Latents
from nenya.latents.spread import SPREAD
from nenya.options.commands import UpdateOptions
from nenya.prepare.job import prepare
from nenya.storage.disk import atomic_path, write_hdf5
from nenya.storage.paths import local_path
from nenya.storage.s3.service import store
from nenya.tables.key_columns import Keys, read_keys

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

CENTRES = "centres"
_OURS = (*COLUMNS, SPREAD, "cluster", *RARITY_COLUMNS)


class Stages:
    """Makes cutouts, latents, UMAP, clusters, rarity and tables of new files.

    Args:
        folder: the archive.
        options: of the command.
        settings: of the version.
        work: folder of unfinished work of this version.
        network: its weights, and their calibration if there is one.
    """

    def __init__(
        self,
        folder: Folder,
        options: UpdateOptions,
        settings: Settings,
        work: Path,
        network: tuple[Path, Path | None],
    ) -> None:
        self.folder, self.options, self.settings = folder, options, settings
        self.work, (self.weights, self.calibration) = work, network

    def place(self, arrival: Arrival) -> Path:
        """Return the folder of unfinished work of one file."""
        return self.work / arrival.uid

    def bring(self, arrival: Arrival) -> tuple[Path, dict[str, str]]:
        """Return the cutout file, copied or prepared, and the skipped granules with reasons.

        Raises:
            NoCutouts: No granule has any cutout.
            NenyaError: A source cannot be read.
        """
        if arrival.known is not None:
            return self.folder.local(arrival.known.cutouts), {}
        place = self.place(arrival)
        place.mkdir(parents=True, exist_ok=True)
        if arrival.granules:
            assert self.settings["sensor"] is not None, "check_recipe lets none through"
            path = place / f"{arrival.stem}.h5"
            made = prepare(
                prepare_options(
                    self.options,
                    self.settings["sensor"],
                    data=[str(source) for source in arrival.sources],
                    out=str(path),
                    seed=self.settings["seed"],
                )
            )
            return path, made.failed
        source = arrival.sources[0]
        path = place / Path(str(source)).name
        if not path.is_file():  # else it is complete and of this source, as the folder's name identifies the source
            if isinstance(source, Path):
                inspect_cutouts(source)
                with atomic_path(path) as temporary:
                    shutil.copyfile(source, temporary)
            else:
                store().download(source, path)
        inspect_cutouts(path)
        return path, {}

    def extract(self, arrival: Arrival, cutouts: Path) -> Path:
        """Return the latents of a cutout file."""
        place = self.place(arrival)
        network = {"ckpt": str(self.weights), "calibration": self.calibration and str(self.calibration)}
        extract(extract_options(self.options, self.settings, data=[str(cutouts)], out=str(place), **network))
        return place / f"{cutouts.stem}_latents.h5"

    def source_table(self, arrival: Arrival) -> "pd.DataFrame | None":
        """Return the table that belongs to a cutout file, None if there is none."""
        if arrival.known is not None:
            table = read_table(self.folder.local(arrival.known.table))
            return table.drop(columns=[name for name in (*_OURS, *CLEAR_COLUMNS) if name in table])
        if arrival.granules:
            return read_table(self.place(arrival) / f"{arrival.stem}.parquet")
        if self.options.table:
            table, keys = named_table(self.options.table)
            own = keys.named(arrival.stem)
            return table[own] if own.any() else None
        source = arrival.sources[0]
        if isinstance(source, Path):
            beside = source.with_suffix(".parquet")
            return read_table(beside) if beside.is_file() else None
        found = store().head(f"{source.rpartition('.')[0]}.parquet")
        if found is None:
            return None
        path = self.place(arrival) / "source.parquet"
        store().download(found, path)
        return read_table(path)

    def table(self, arrival: Arrival, latents: Path, projector: Path, clusters: Path) -> Path:
        """Return the table of a file: a row per cutout in the order of the latents, with UMAP, cluster and rarity."""
        path = self.place(arrival) / "table" / f"{arrival.stem}.parquet"
        if path.is_file():
            return path
        rows, table = Latents([latents]), self.placed(arrival, latents, projector)
        table["cluster"] = assign_kmeans(rows, read_centres(clusters))
        write_table(table.assign(**rarity_columns(clusters, rows, table)), path)
        return path

    def placed(self, arrival: Arrival, latents: Path, projector: Path) -> "pd.DataFrame":
        """Return the table of a file with UMAP alone."""
        path, rows = self.place(arrival) / "placed.parquet", Latents([latents])
        if not path.is_file():
            directions = calibrated_directions(None if self.calibration is None else str(self.calibration), rows)
            embed_table(rows, whole_table(rows, self.source_table(arrival)), path, projector, directions=directions)
        return read_table(path)

    def projector(self, files: Mapping[str, Path]) -> Path:
        """Return the projector of the UMAP: as given, or fitted on the latents of the first files."""
        path = self.work / "projector.h5"
        if path.is_file():
            return path
        latents = Latents(list(files.values()))
        if self.options.projector:
            load_projector(local_path(self.options.projector), latents)
            with atomic_path(path) as temporary:
                shutil.copyfile(local_path(self.options.projector), temporary)
            return path
        wanted, options = np.arange(len(latents)), self.settings["map"]
        how = Fit(
            options["ntrain"], options["n_neighbors"], options["min_dist"], options["metric"], self.settings["seed"]
        )
        fit_projector(latents, wanted, how).save(path)
        return path

    def clusters(self, files: Mapping[str, Path]) -> Path:
        """Return the cluster centres, fitted on the latents of the first files; cluster 0 is the largest."""
        path = self.work / "clusters.h5"
        if path.is_file():
            return path
        latents, options = Latents(list(files.values())), self.settings["clusters"]
        centres = fit_kmeans(
            latents, options["k"], seed=self.settings["seed"], passes=options["passes"], sample=options["sample"]
        )
        labels = assign_kmeans(latents, centres)
        sizes = np.bincount(labels[labels >= 0], minlength=len(centres))
        order = np.argsort(-sizes, kind="stable")
        with atomic_path(path) as temporary, write_hdf5(temporary) as file:
            file[CENTRES] = centres[order]
            file["sizes"] = sizes[order]
            file.attrs.update(about="centres (K, D) of unit latents; a row belongs to the nearest", files=len(files))
        return path

    def rarity(self, files: Mapping[Path, Arrival], projector: Path, clusters: Path) -> None:
        """Add to the cluster centres the sample by which rarity is measured, of the latents of the first files.

        Args:
            files: latents -> file; one without a usable table is left out, and reported when it is added.
            projector: of the UMAP.
            clusters: the cluster centres.
        """
        if has_reference(clusters):
            return
        sampled = []
        for latents, arrival in files.items():
            try:
                sampled.append((Latents([latents]), self.placed(arrival, latents, projector)))
            except (Interrupted, LockLostError):
                raise
            except Exception as error:
                log.debug("%s: not in the sample of rarity: %s", arrival.place, error)
        add_reference(clusters, sampled, self.settings["seed"])


def named_table(place: str) -> "tuple[pd.DataFrame, Keys]":
    """Return the table of new cutout files and its key columns.

    Raises:
        InputFileError: It cannot be read, or lacks a key column.
        OptionError: It does not name the cutout file of each row.
    """
    table = read_table(local_path(place))
    try:
        keys = read_keys(table)
    except InputFileError as error:
        raise InputFileError(f"table={place}: {error}") from error
    if keys.names is None:
        raise OptionError(f"table={place}: expected a column pp_file, the cutout file of each row")
    return table, keys


def read_centres(path: Path) -> Any:
    """Return the cluster centres, (K, D) float64."""
    with open_hdf5(path, advice=COPY_IN) as file, damage_named(str(path)):
        centres = file[CENTRES][()]
        if not isinstance(centres, np.ndarray) or centres.ndim != 2 or centres.dtype.kind != "f" or not centres.size:
            raise InputFileError(
                f"{path}: expected cluster centres as floating-point numbers (K, D), got "
                f"{getattr(centres, 'dtype', 'text')} {getattr(centres, 'shape', '')}; make the version again"
            )
        if not np.isfinite(centres).all():
            raise InputFileError(f"{path}: the cluster centres have NaN or infinite values; make the version again")
        return centres


def whole_table(latents: Latents, table: "pd.DataFrame | None") -> "pd.DataFrame":
    """Return a table of all rows of latents: keys, and the columns of a table that may lack some rows.

    Raises:
        InputFileError: No row of the table matches these latents.
    """
    if table is None:
        log.warning("no table (a .parquet beside the file, or table=): its rows have no position and date")
        return latents.keys()
    return latents.full_table(table.drop(columns=[name for name in _OURS if name in table]))


def describe(latents: Path, table: Path) -> tuple[dict[str, int], int, list[str]]:
    """Return partition -> rows, the number of rows without a latent, and the first and last datetime."""
    import pandas as pd

    rows = Latents([latents])
    left_out = sum(int((~np.isfinite(block).all(axis=1)).sum()) for _, block in rows.blocks())
    counts = {part.partition: part.rows for part in rows.parts}
    found = read_table(table)
    dates: list[str] = []
    if "datetime" in found:
        moments = pd.to_datetime(found["datetime"], errors="coerce").dropna()
        dates = [moments.min().isoformat(), moments.max().isoformat()] if len(moments) else []
    return counts, left_out, dates
