"""`nenya clusters`: divides latents into clusters; writes labels, a summary and a figure of each cluster."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.commands.pictures import SUFFIXES, formats_of, style_of
from nenya.errors import OptionError
from nenya.io import TABLE_SUFFIXES, write_table
from nenya.latents.clusters import NOISE, Clusters, hdbscan_clusters, kmeans_clusters, unit_rows
from nenya.latents.files import Latents, open_latents
from nenya.options.commands import ClustersOptions
from nenya.storage.disk import check_output
from nenya.storage.paths import local_path
from nenya.storage.table_integers import take_rows
from nenya.storage.texts import say
from nenya.tables.key_columns import COLUMNS, read_keys
from nenya.tables.quantities import TERMS, metric
from nenya.tables.streamed import read_some, write_with

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

IntArray = NDArray[np.int64]

_FOLDER = "outputs/clusters"
_MEANS = ("DT", "alpha", "mean_temperature", "clear_fraction", "lat", "US0", "US1")


def run(options: ClustersOptions) -> int:
    """Divide latents into clusters; write the labels, a summary and, with images, a figure of each cluster.

    Args:
        options: of `scripts/clusters.py`.

    Returns:
        0.

    Raises:
        NenyaError: An option is not possible, a file cannot be read or joined, or a result cannot be written.
    """
    from nenya.data.table_images import TableImages

    style_of(options)  # refused before the long work
    if options.method == "kmeans" and options.k is None:
        raise OptionError("expected k=, the number of clusters, such as k=20 (method=hdbscan finds it)")
    external, least = options.loader.allow_external, options.least_cosine
    latents = open_latents(options.data, options.loader.cache_dir, allow_external=external, least_cosine=least)
    name = local_path(options.table).stem if options.table else latents.parts[0].stem
    out = local_path(options.out or _FOLDER)
    if out.suffix not in TABLE_SUFFIXES:
        if out.suffix and not out.is_dir():
            raise OptionError(f"out={out}: expected a folder or a table ({', '.join(TABLE_SUFFIXES)})")
        out = out / f"{name}_clusters.parquet"
    summary = out.with_name(f"{out.stem}_groups.csv")
    for path in (out, summary):
        check_output(path, options.clobber)
    source = local_path(options.table) if options.table else None  # read in parts, as it may have many columns
    rows = latents.positions(read_some(source, COLUMNS)) if source else np.arange(len(latents))
    if options.images:  # errors in them are found before the long work
        TableImages(options.images, latents.keys(np.array([p.start for p in latents.parts if p.rows])), options.loader)
    covered = np.zeros(len(latents), bool)
    covered[rows[rows >= 0]] = True
    if missing := int((~covered).sum()):
        log.warning(
            "%d of %d latents have no row in the table: they count in the clusters, but not in the means",
            missing,
            len(latents),
        )
    clusters = find_clusters(latents, options, covered)
    labels = np.where(rows >= 0, clusters.labels[rows], NOISE)
    table = read_some(source, (*COLUMNS, *_MEANS, *TERMS, "UID")) if source else latents.keys()
    found = summarise(clusters, latents, table, labels, rows)
    columns = {"cluster": labels, **latents.clearness(rows)}
    if source:
        del table
        write_with(source, out, columns)
    else:
        write_table(table.assign(**columns), out)
    write_table(found, summary)
    _say(clusters, found, options)
    if (rows < 0).any():
        log.warning(
            "%d of %d rows of the table have no latent: their cluster is set to -1", (rows < 0).sum(), len(rows)
        )
    if options.images:
        _draw(clusters, found, latents, options, out.with_name(f"{out.stem}_groups"))
    log.info("%s\n%s", out, summary)
    return 0


def find_clusters(latents: Latents, options: ClustersOptions, typical: NDArray[np.bool_]) -> Clusters:
    """Return the clusters by the method of the options, with medoids among the rows `typical`, (N,)."""
    if options.method == "kmeans":
        return kmeans_clusters(
            latents,
            int(options.k or 0),
            seed=options.seed,
            passes=options.passes,
            sample=options.sample or 20_000,
            members=options.members,
            typical=typical,
        )
    return hdbscan_clusters(
        latents,
        seed=options.seed,
        sample=options.sample or 10_000,
        components=options.components,
        min_size=options.min_size,
        members=options.members,
        typical=typical,
    )


def summarise(
    clusters: Clusters, latents: Latents, table: "pd.DataFrame", labels: IntArray, rows: IntArray
) -> "pd.DataFrame":
    """Return one row per cluster: cluster, size, share, silhouette, cohesion, key of its medoid, means of the table.

    Args:
        clusters: the clusters of the latents.
        latents: the latents.
        table: a table of the clustered rows.
        labels: (len(table),) their clusters.
        rows: (len(table),) rows of their latents, -1 for none.

    Returns:
        Sizes and shares are of the latents. Means are over the rows of the table in the cluster; rows_in_table is their
        number. The medoid is pp_file, pp_type, pp_idx, and UID where the table has it.
    """
    import pandas as pd

    count = len(clusters.sizes)
    columns: dict[str, Any] = {
        "cluster": np.arange(count),
        "size": clusters.sizes,
        "share": clusters.sizes / len(clusters.labels),
        "rows_in_table": np.bincount(labels[labels >= 0], minlength=count),
        "silhouette": clusters.silhouettes,
        "cohesion": clusters.cohesion,
        "approximate": clusters.approximate,
        **{f"medoid_{key}": values for key, values in latents.keys(clusters.medoids).items()},
    }
    place = np.full(len(latents), -1)
    has = np.flatnonzero(rows >= 0)[::-1]  # where several rows share a latent, the first one counts
    place[rows[has]] = has
    medoids = place[clusters.medoids]
    found = read_keys(table)
    if found.names is not None:  # the table's own key, for joins
        columns["medoid_pp_file"] = columns["medoid_pp_file"].mask(medoids >= 0, found.texts(medoids))
    if "UID" in table:
        columns["medoid_UID"] = take_rows(table[["UID"]], medoids)["UID"]
    for name in _MEANS:
        values = metric(table, name)
        if values is not None:
            good = np.isfinite(values) & (labels >= 0)
            sums = np.bincount(labels[good], weights=values[good], minlength=count)
            number = np.bincount(labels[good], minlength=count)
            columns[f"mean_{name}"] = np.where(number > 0, sums / np.maximum(number, 1), np.nan)
    return pd.DataFrame(columns)


def _say(clusters: Clusters, found: "pd.DataFrame", options: ClustersOptions) -> None:
    noise = len(clusters.labels) - int(clusters.sizes.sum()) - clusters.left_out
    parts = [f"{options.method}: {len(clusters.sizes)} clusters of {len(clusters.labels)} latents"]
    parts.append(f"silhouette {clusters.silhouette:.3f}")
    if noise:
        parts.append(f"{noise} noise")
    if clusters.left_out:
        parts.append(f"{clusters.left_out} with NaN left out")
    say(", ".join(parts))
    if clusters.approximate:
        log.info("rows outside the sample take the cluster of their nearest row in it (an approximation)")
    shown = found.head(20)
    for number, size, share, width in zip(*(shown[c] for c in ("cluster", "size", "share", "silhouette")), strict=True):
        say(f"  {number:3d}  {size:8d}  {100 * share:5.1f} %  silhouette {width:.3f}")
    if noise:
        say(f"  {NOISE:3d}  {noise:8d}  {100 * noise / len(clusters.labels):5.1f} %  noise")


def _draw(clusters: Clusters, found: "pd.DataFrame", latents: Latents, options: ClustersOptions, folder: Path) -> None:
    """Draw the medoid of each cluster and the rows closest to its mean direction."""
    from nenya.data.table_images import TableImages
    from nenya.plotting import closest_strip

    shown = clusters.closest[clusters.closest >= 0]
    images = TableImages(options.images, latents.keys(shown), options.loader)
    place = {int(row): i for i, row in enumerate(shown)}
    width = len(str(max(len(clusters.sizes) - 1, 0)))
    for cluster, closest in enumerate(clusters.closest):
        rows = np.array([row for row in closest[closest >= 0] if images.known[place[int(row)]]], np.int64)
        if not len(rows):
            log.warning("cluster %d: its closest cutouts are not in images=", cluster)
            continue
        near = unit_rows(latents.take(rows))
        order = np.argsort(np.linalg.norm(near - near[0], axis=1), kind="stable")  # the medoid first
        rows, near = rows[order], near[order]
        cutouts = images.read([place[int(row)] for row in rows])
        size, share = found["size"][cluster], 100 * found["share"][cluster]
        closest_strip(
            cutouts[0],
            cutouts[1:],
            np.linalg.norm(near[1:] - near[0], axis=1),
            [folder / f"group_{cluster:0{width}d}{suffix}" for suffix in formats_of(options) or SUFFIXES[:1]],
            title=images.titled(
                f"cluster {cluster}: {size:,} cutouts ({share:.2g} %); distance of the latents from the medoid"
            ),
            columns=min(9, len(rows)),
            query_label="medoid",
            pixel_km=options.pixel_km,
            style=style_of(options),
        )
    log.info("%s", folder)
