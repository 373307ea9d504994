"""`nenya embed`: two coordinates for each latent (UMAP)."""

from pathlib import Path

from nenya.errors import OptionError
from nenya.io import TABLE_SUFFIXES, read_table
from nenya.latents.calibration_file import calibrated_directions
from nenya.latents.embed import DEBUG_ROWS, Fit, embed_share, embed_table, projector_place
from nenya.latents.files import Latents
from nenya.options.commands import EmbedOptions
from nenya.runtime.shards import over_dask, parse_share
from nenya.storage.disk import check_output
from nenya.storage.paths import fetch, find_latents, local_path
from nenya.tables.quantities import cut_table


def run(options: EmbedOptions) -> int:
    """Compute UMAP coordinates of latents and write them with the columns of their table.

    Args:
        options: of `scripts/embed.py`.

    Returns:
        0.

    Raises:
        NenyaError: A file cannot be read or written, or an option is invalid.
    """
    share = parse_share(options.shard)
    if options.dask:
        return over_dask(run, options)
    places = find_latents(options.data)
    paths = fetch(places, options.loader.cache_dir)
    external, least = options.loader.allow_external, options.least_cosine
    latents = Latents(paths, places=places, allow_external=external, least_cosine=least)
    directions = calibrated_directions(options.calibration, latents)
    table = read_table(local_path(options.table)) if options.table else latents.keys()
    out = output_place(options, paths[0])
    if options.DT_cut or options.alpha_cut:
        table = cut_table(table, options.DT_cut, options.alpha_cut)
    if options.debug:
        table = table.iloc[:DEBUG_ROWS]
    fit = Fit(options.ntrain, options.n_neighbors, options.min_dist, options.metric, options.seed)
    given = local_path(options.projector) if options.projector else None
    saved = local_path(options.umap_savefile) if options.umap_savefile else projector_place(out)
    if share is not None and not share.merges:
        check_output(out, options.clobber)
        embed_share(latents, table, out, given or fit, share, approximate=options.approximate)
        return 0
    embed_table(
        latents, table, out, given or fit, saved,
        approximate=options.approximate, clobber=options.clobber, directions=directions, merge=share is not None,
    )  # fmt: skip
    return 0


def output_place(options: EmbedOptions, latents: Path) -> Path:
    """Return the path of the output table: `out`, or `<name of the table or latents>_umap.parquet` in that folder."""
    source = local_path(options.table) if options.table else latents
    out = local_path(options.out) if options.out else latents.parent
    if out.suffix not in TABLE_SUFFIXES:
        if out.suffix and not out.is_dir():
            raise OptionError(f"out={out}: expected a folder or a table ({', '.join(TABLE_SUFFIXES)})")
        out = out / f"{source.stem.removesuffix('_latents')}_umap.parquet"
    return out.with_stem(out.stem + "_debug") if options.debug else out
