"""The page of `nenya compare`: one self-contained HTML file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from nenya.plotting.embedded import embedded
from nenya.runtime.templates import render

NOTES = (
    "Latents are scaled to unit length. Energy distance: sqrt(2 E|x - y| - E|x - x'| - E|y - y'|), as scipy has "
    "it (Szekely and Rizzo 2013).",
    "AUC: area under the ROC curve of a classifier (ridge regression on principal components and random Fourier "
    "features) for rows of folds that it has not seen; blocks are kept together. Its interval is that of a jackknife "
    "of blocks, with the classifier trained again.",
    "Coverage of a: the share of rows of a that have a row of b within the ball to their k-th nearest neighbour "
    "in a. Density around a: the mean number of balls of a that a row of b lies in, over k; about 1 for sets of "
    "the same kind (Naeem et al. 2020). Rows of the same block are no neighbours. density is the mean of the two.",
    "p: share of permutations of complete blocks, with equal values ranked at random, that are at least as far from "
    "the null; for density on either side. expected: mean of the permutations. q: false discovery rate over "
    "strata (Benjamini and Hochberg 1995).",
    "Intervals are for blocks of both sets drawn again (jackknives that leave out complete blocks); where a set is "
    "larger than the sample, they include the error of the sample. Those of AUC, coverage and density are of the value "
    "that sets of this size have on average.",
    "density_ratio: how many times denser its own set is around a cutout than the other one, from its nearest "
    "cutouts of other blocks in samples of both.",
    "Matched pairs: closer is the share of random pairs, of rows of other blocks in the same stratum, that are "
    "farther apart than the matched pair.",
    "Cells are those of HEALPix in ring order (Gorski et al. 2005).",
)
SEED_NOTES = (
    "neighbours: the share of the nearest cutouts that two trainings have in common. clusters: adjusted Rand "
    "index of k-means clusters (Hubert and Arabie 1985). distances: Spearman's correlation of the distances of "
    "pairs of cutouts.",
    "value: mean over pairs of trainings; low and high: lowest and highest of them; expected: of unrelated latents.",
    "stability: the share of common neighbours of a cutout, the mean over pairs of trainings.",
)
Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]

_TEMPLATE = Path(__file__).parent / "page" / "comparison.html"


def comparison_page(
    title: str,
    words: Sequence[str],
    tables: Sequence[Table],
    figures: Mapping[str, Path],
    made: Mapping[str, object],
    notes: Sequence[str] = NOTES,
) -> str:
    """Return the page.

    Args:
        title: of the page.
        words: sentences, shown first.
        tables: title, heads and rows of each table.
        figures: title -> .png file, embedded in the page.
        made: how the page was made.
        notes: definitions.
    """
    return render(
        _TEMPLATE, name=title, words=words, tables=tables, pictures=embedded(figures), notes=notes,
        made=[(key, str(value)) for key, value in made.items()],
    )  # fmt: skip
