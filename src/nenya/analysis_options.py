"""Options of the commands that explore latents; declared as those of `nenya.options` are."""

from dataclasses import dataclass

from nenya.options import Options, at_least, one_of, option


@dataclass
class AnalysisOptions(Options):
    """Options that all commands on latents share: `data` names latents files."""

    table: str | None = option(None, "table of the cutouts: .parquet, .csv or .feather")


@dataclass
class EmbedOptions(AnalysisOptions):
    """Options of maps."""

    projector: str | None = option(None, "a projector that was fitted before; default: one is fitted")
    umap_savefile: str | None = option(None, "where the fitted projector goes; default <name of out>_UMAP.h5 beside it")
    ntrain: int = option(200_000, "rows that a map is fitted on at most", at_least(4))
    n_neighbors: int = option(15, "how many neighbours say what is near", at_least(2))
    min_dist: float = option(0.1, "how close points of the map may lie", at_least(0))
    metric: str = option("euclidean", "what distance is", one_of("euclidean", "cosine"))
    approximate: bool = option(False, "place rows by an approximate search, which is faster")
    DT_cut: str | None = option(None, "rows of one interval of T90 - T10: DT0, DT1, DT15, DT2, DT4, DT5, DT10, all")
    alpha_cut: str | None = option(None, "rows of one interval of the spectral slope: a0, a1, a15, a2, a25, a3, a4")
