"""`nenya metrics`: measures latents: spectrum, spread, invariance, neighbour agreement; as table, JSON and page.

Letters: N latents of length D, n of them in a sample.
"""

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import nenya
from nenya.commands.metrics_files import Files, line_of, stem_of
from nenya.data.masks import InputReader
from nenya.errors import InputFileError, NenyaError, OptionError, OutputError
from nenya.extraction.existing import NoProvenance, read_provenance
from nenya.io import read_table
from nenya.latents import metrics
from nenya.latents.components import PCA
from nenya.latents.files import Latents
from nenya.options.commands import MetricsOptions
from nenya.pca import fit_latents
from nenya.plotting.metrics_page import page
from nenya.runtime.shards import over_dask, parse_share
from nenya.storage.disk import atomic_path, temporary_folder
from nenya.storage.paths import fetch, find_latents, find_sources, local_path
from nenya.storage.texts import lines_of, say
from nenya.tables.names import cutouts_of
from nenya.tables.place_and_time import dates_of
from nenya.tables.quantities import dt_name, dt_of

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Results = dict[str, Any]
Figures = dict[str, Path]

_FOLDER = "outputs/metrics"
_ENDS = ("metrics.json", "metrics.html", "pca.npz")
_YEAR = 365.25  # days
_SAME = 1e-3  # a difference of latents larger than rounding explains
_NEAREST = 4  # cutouts shown at each end of a component
# quantity, beside DT -> columns that may hold it, the measured ones first
QUANTITIES = {
    "slope": ("slope", "alpha", "zonal_slope", "true_slope"),
    "latitude": ("lat", "latitude"),
    "season": ("datetime", "time"),
}


def run(options: MetricsOptions) -> int:
    """Measure the latents files of `options.data`.

    Args:
        options: of `scripts/metrics.py`.

    Returns:
        0.

    Raises:
        NenyaError: A file cannot be read, an option is not possible, or a result cannot be written.
    """
    share = parse_share(options.shard)
    if options.dask:
        return over_dask(run, options)
    folder = local_path(options.out or _FOLDER)
    places = find_latents(options.data)
    stems = [stem_of(place) for place in places]
    if twice := {stem for stem in stems if stems.count(stem) > 1}:
        raise OptionError(f"two files are named {min(twice)}: give them one at a time, each with its own out=")
    images = find_sources(options.images) if options.images else []
    if options.images and not (options.ckpt or options.model.weights):
        raise OptionError("images= needs the weights that made the latents: give ckpt= or model=")
    files = Files(places, folder, _ENDS, options, share, images)
    table = read_table(local_path(options.table)) if options.table else None
    with files.kept.working(str(folder)):
        paths = dict(zip(files.left, fetch([places[n] for n in files.left], options.loader.cache_dir), strict=True))
        for number, path in paths.items():
            latents = Latents([path], least_cosine=options.least_cosine)
            if table is not None:
                latents.join(table)  # a table of other files is refused before the long work
            source = _source_of(latents, images) if options.images else None
            files.begin(number)
            files.end(number, _measure_file(latents, folder / stems[number], options, table, source))
    files.close()
    return 0


def _measure_file(
    latents: Latents, start: Path, options: MetricsOptions, table: "pd.DataFrame | None", source: Path | str | None
) -> Results:
    """Measure a file and write its results; return its line of the table of all files.

    Args:
        latents: of the file.
        start: of the names of the results.
        options: of the command.
        table: of the cutouts, or None.
        source: its cutout file, or None.
    """
    path, outputs = latents.parts[0].path, [start.with_name(f"{start.name}_{end}") for end in _ENDS]
    with temporary_folder("nenya-metrics-") as scratch:
        results, figures = measure(latents, outputs[2], options, table, source, scratch)
        say(lines_of([path, *(f"  {name:34s}{value}" for name, value in table_of(results).items())]))
        _write(outputs[0], json.dumps(results, indent=1) + "\n")
        _write(outputs[1], page(path.name, table_of(results), results, figures))
    log.info("%s", lines_of(outputs))
    return line_of(results)


def measure(  # the one place that collects all results of a report
    latents: Latents,
    pca_file: Path,
    options: MetricsOptions,
    table: "pd.DataFrame | None",
    source: Path | str | None,
    scratch: Path,
) -> tuple[Results, Figures]:
    """Measure one latents file, and write its principal components.

    Args:
        latents: of the file.
        pca_file: where the components go.
        options: of the command.
        table: of the cutouts, or None.
        source: its cutout file, or None.
        scratch: folder of the figures.

    Returns:
        The results as JSON values, and title -> figure.
    """
    from nenya.plotting import variance_spectrum

    rng = np.random.default_rng(options.seed)
    log.info("%d latents of %d dimensions: principal components", *latents.shape)
    pca = fit_latents(latents, pca_file, coefficients=options.coefficients)
    results: Results = {
        "file": str(latents.parts[0].path),
        "rows": {part.partition: part.rows for part in latents.parts},
        "dim": latents.shape[1],
        "nonfinite_rows": pca.n_left_out,
        **_clearness(latents, options),
        "spectrum": {
            "N95": pca.modes_for(0.95),
            "N99": pca.modes_for(0.99),
            "participation_ratio": pca.participation_ratio,
            "rankme": pca.rankme,
            "explained_variance_ratio": pca.explained_variance_ratio.tolist(),
        },
        **_spread(latents, options.sample, rng),
        "pca_file": str(pca_file),
        "made_by": {
            "nenya_version": nenya.__version__,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seed": options.seed,
            "sample": options.sample,
        },
        "provenance": _provenance(latents),
    }
    figures = {"Spectrum": scratch / "spectrum.svg"}
    marks = {name: results["spectrum"][name] for name in ("N95", "N99")}
    variance_spectrum(pca.spectrum, figures["Spectrum"], marks=marks)
    if table is not None:
        results["neighbours"] = agreements(latents, table, options.sample, options.neighbours, rng)
    if source is not None:
        results |= _with_images(latents, pca, source, options, scratch, figures)
    return results, figures


def _clearness(latents: Latents, options: MetricsOptions) -> Results:
    """Return medians of what a file says of its masks, and the rows left out; nothing of other files."""
    found = {name: _number(float(np.nanmedian(values))) for name, values in latents.clearness().items() if len(values)}
    if latents.left_out is not None:
        found |= {"least_cosine": options.least_cosine, "rows_below_least_cosine": int(latents.left_out.sum())}
    return {"clearness": found} if found else {}


def _spread(latents: Latents, sample: int, rng: np.random.Generator) -> Results:
    rows = latents.take(latents.sample(sample, rng))
    return {"uniformity": _number(metrics.uniformity(rows)), "feature_std": _number(metrics.feature_std(rows))}


def agreements(
    latents: Latents, table: "pd.DataFrame", sample: int, k: int, rng: np.random.Generator
) -> dict[str, dict[str, Any]]:
    """Return the agreement of nearest latents in the quantities of a table; see `metrics.neighbour_agreement`.

    Neighbours are searched within a sample of the table's rows, so results of two files compare where their samples
    have one size. The season is that of the calendar, on both hemispheres: the fraction of the year, circular.

    Args:
        latents: all of them.
        table: of the cutouts.
        sample: number of rows n.
        k: neighbours of each.
        rng: draws the sample.

    Returns:
        Quantity -> `agreement`, `error`, `column`, `rows` that have it; quantities without a column are left out.

    Raises:
        InputFileError: The table does not join the latents, or too few rows of it do.
    """
    positions = latents.positions(table)
    joined = np.flatnonzero(positions >= 0)
    chosen = np.sort(rng.choice(joined, min(sample, len(joined)), replace=False))
    rows = latents.take(positions[chosen])
    finite = np.isfinite(rows).all(axis=1)
    chosen, rows = chosen[finite], rows[finite]
    if len(rows) <= k:
        raise InputFileError(
            f"expected more than neighbours={k} rows of the table with a finite latent, got {len(rows)}"
        )
    near = metrics.nearest_rows(rows, k)
    part, found = table.iloc[chosen], {}
    for name, (column, values) in _quantities(part).items():
        agreement, error = metrics.neighbour_agreement(near, values, 1.0 if name == "season" else None)
        found[name] = {
            "agreement": _number(agreement),
            "error": _number(error),
            "column": column,
            "rows": int(np.isfinite(values).sum()),
            "k": k,
        }
    return found


def _quantities(table: "pd.DataFrame") -> dict[str, tuple[str, NDArray[np.float64]]]:
    """Return quantity -> its column and values (n,), NaN where unknown."""
    import pandas as pd

    found: dict[str, tuple[str, NDArray[np.float64]]] = {}
    difference = dt_of(table, true=True)
    if difference is not None:
        name = dt_name(table.columns, true=True) or ""
        found["DT"] = name, pd.to_numeric(difference, errors="coerce").to_numpy(np.float64)
    for name, columns in QUANTITIES.items():
        column = next((column for column in columns if column in table), None)
        if column is not None and name == "season":
            if not pd.api.types.is_numeric_dtype(table[column]):  # such as hours
                days = dates_of(table[column], check=False).dt.day_of_year.to_numpy(np.float64)
                found[name] = column, days / _YEAR
        elif column is not None:
            found[name] = column, pd.to_numeric(table[column], errors="coerce").to_numpy(np.float64)
    return found


def _source_of(latents: Latents, images: list[Path | str]) -> Path | str:
    part = latents.parts[0]
    found = cutouts_of(str(part.path), images, part.names)
    if found is None:
        raise InputFileError(
            f"expected the cutout file {part.stem}.h5 of the latents among images=, got {_some(images)}"
        )
    return found  # type: ignore[no-any-return]


def _some(images: list[Path | str]) -> str:
    return ", ".join(map(str, images[:3])) + (f" and {len(images) - 3} more" if len(images) > 3 else "")


def _with_images(  # as `measure`
    latents: Latents, pca: PCA, source: Path | str, options: MetricsOptions, scratch: Path, figures: Figures
) -> Results:
    """Return the measures that need cutouts and network: invariance and eigen-images."""
    import torch

    from nenya.data.cutouts import inspect_cutouts
    from nenya.latents import eigen_images
    from nenya.latents.invariance import invariances
    from nenya.latents_extraction import calc_latent
    from nenya.models.contrastive import load_model

    path = fetch([source], options.loader.cache_dir)[0]
    file = inspect_cutouts(path, [part.partition for part in latents.parts])
    for part in latents.parts:
        rows = file.partitions[part.partition].rows if part.partition in file.partitions else 0
        if rows != part.rows:
            raise InputFileError(
                f"{path}: expected {part.rows} cutouts in '{part.partition}', as many as latents, got {rows}"
            )
    _, module = load_model(options, options.ckpt)
    net = module.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def prepared(cutouts: NDArray[np.float32]) -> "torch.Tensor":
        images = torch.from_numpy(cutouts)
        return images - images.mean((2, 3), keepdim=True) if options.preprocess.file == "demean" else images

    def encode(images: "torch.Tensor") -> NDArray[np.float32]:
        size = options.loader.batch_size_valid
        parts = [calc_latent(net, images[i : i + size], torch.cuda.is_available()) for i in range(0, len(images), size)]
        return np.concatenate(parts)

    rng = np.random.default_rng(options.seed)
    numbers = latents.sample(options.cutouts, rng)
    cutouts = _read(file, latents, numbers, "nan" if options.preprocess.masked == "nan" else "holes")
    finite = np.isfinite(cutouts).all(axis=(1, 2, 3))
    numbers, images = numbers[finite], prepared(cutouts[finite])
    if len(images) < 2:
        raise InputFileError(f"{path}: expected at least 2 cutouts without NaN, got {len(images)} of {len(cutouts)}")
    own = encode(images)
    if own.shape[1] != latents.shape[1]:
        raise OptionError(
            f"expected a network with latents of {latents.shape[1]} dimensions, as in the file, got {own.shape[1]}"
        )
    apart = float(np.abs(own - latents.take(numbers)).max())
    if apart > _SAME:
        log.warning("latents of the network and of the file differ by up to %.2g: other weights or cutouts?", apart)
    log.info("invariance of %d cutouts", len(images))
    results: Results = {
        "invariance": invariances(encode, images, options.augment, options.seed),
        "invariance_cutouts": len(images),
        "network_against_file": apart,
    }
    modes = min(options.modes, len(pca.components))
    if not modes:
        return results
    log.info("eigen-images of %d components", modes)
    nearest = eigen_images.nearest_latents(pca, latents, modes, _NEAREST)
    shown = np.full((*nearest.rows.shape, *images.shape[-2:]), np.nan, np.float32)
    wanted = np.unique(nearest.rows[nearest.rows >= 0])
    known = _read(file, latents, wanted)[:, 0]
    shown[nearest.rows >= 0] = known[np.searchsorted(wanted, nearest.rows[nearest.rows >= 0])]
    made, reached = None, None
    if options.steps:
        low, high = np.quantile(images.numpy().std(axis=(1, 2, 3)), (0.05, 0.95)).clip(1e-6)
        made, reached = eigen_images.optimise_images(
            net, pca, modes, images.shape[-1], std=(float(low), float(high)), steps=options.steps, seed=options.seed
        )
    figures["Images of the principal components"] = scratch / "eigen_images.png"
    eigen_images.draw(scratch / "eigen_images.png", pca.explained_variance_ratio, shown, made)
    results["eigen_images"] = {
        "rows": nearest.rows.tolist(),
        "cosines": [[_number(value) for value in row] for row in nearest.cosines],
        "cosines_of_made": None if reached is None else reached.tolist(),
    }
    return results


def _read(file: Any, latents: Latents, numbers: NDArray[np.int64], masked: str = "nan") -> NDArray[np.float32]:
    """Return cutouts (n, 1, H, W) at increasing rows of the latents."""
    parts = []
    for part in latents.parts:
        low, high = np.searchsorted(numbers, (part.start, part.start + part.rows))
        with file.reader(part.partition) as reader:
            parts.append(InputReader(reader, masked).read_rows(numbers[low:high] - part.start))
    return np.concatenate(parts)


def table_of(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the results as lines of text."""
    spectrum = results["spectrum"]
    rows = " + ".join(f"{count} {name}" for name, count in results["rows"].items())
    lines = {
        "latents": f"{rows} of {results['dim']} dimensions",
        "rows that are not finite": str(results["nonfinite_rows"]),
        "N95": f"{spectrum['N95']} components hold 95 % of the variance",
        "N99": f"{spectrum['N99']} hold 99 %",
        "participation ratio": f"{spectrum['participation_ratio']:.2f}",
        "RankMe": f"{spectrum['rankme']:.2f}   (1 to {results['dim']})",
        "uniformity": f"{_shown(results['uniformity'])}   (0: all equal, to -4)",
        "spread per dimension": f"{_shown(results['feature_std'])}   (evenly spread: {results['dim'] ** -0.5:.3f})",
    }
    for name, of in results.get("invariance", {}).items():
        lines[f"invariance: {name}"] = f"cosine {of['cosine']:.3f}, squared distance {of['squared_distance']:.3f}"
    for name, of in results.get("neighbours", {}).items():
        if of["agreement"] is None:
            why = "all rows have one value" if of["rows"] else "no row has a value"
            lines[f"neighbours agree in {name}"] = f"not applicable: {why}   ({of['column']})"
            continue
        agreement = f"{_shown(of['agreement'])} +- {_shown(of['error'])}"
        lines[f"neighbours agree in {name}"] = f"{agreement}   (1: identical, 0: random; {of['column']})"
    return lines


def _shown(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3f}"


def _number(value: float) -> float | None:
    """Return a number as JSON takes it: NaN is None."""
    return float(value) if np.isfinite(value) else None


def _provenance(latents: Latents) -> dict[str, Any]:
    """Return the provenance that the file records; a file of the first nenya has none."""
    try:
        found = read_provenance(latents.parts[0].path, allow_external=latents.links == "any")
    except NoProvenance:
        return dict(latents.provenance)
    return {name: value if isinstance(value, int | float | str) else str(value) for name, value in found.items()}


def _write(path: Path, text: str) -> None:
    try:
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except NenyaError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
