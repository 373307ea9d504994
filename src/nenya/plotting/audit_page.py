"""The page of `nenya audit`: one self-contained HTML file that begins with the verdicts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nenya.runtime.templates import render

KINDS = {
    "nuisance": "What latents should not know",
    "ocean": "What latents should tell",
    "other": "Other columns",
}
"""Kind of a column -> title of its verdicts."""

_NOTES = (
    "AUC, of classes: the probability that a row of the class has the higher score than another one, in the same fold, "
    "mean over the classes; 0.5: nothing is predicted, 1: everything.",
    "R2, of numbers (as ranks): the share of the variance that is predicted, compared with the other folds' mean; "
    "0 or less: nothing, 1: everything.",
    "Probes: the mean of the nearest rows, and ridge regression on whitened principal components; the value is that of "
    "the better one. Complete blocks (granules, 30 days, 10 by 10 degrees) are in one of five folds; rows: no blocks.",
    "95 % interval: a bootstrap over blocks. p: the same with the values of complete blocks exchanged between blocks; "
    "beyond all permutations, by a normal distribution. p, all columns: after Benjamini and Hochberg (1995). The "
    "latents tell a column if that is below 0.05 and the value above nothing; barely, if the AUC is below 0.55 "
    "or R2 below 0.05. Where no column is told, at most one audit in twenty names one.",
    "DT and slope, untrained: the same probes and folds with the column DT and the spectral slope alone (without the "
    "column itself), and with latents of an untrained network.",
    "Same granule: neighbours among all latents; by chance: granules permuted between rows.",
)
_TEMPLATE = Path(__file__).parent / "page" / "audit.html"


def page(name: str, results: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        name: of the latents.
        results: of `nenya audit`: verdicts (kind -> pairs of a line and whether the latents tell it), columns (rows of
            the table), left_out, folds and made_by.
    """
    titles = {**KINDS, "neighbours": "Neighbours and split"}
    return render(
        _TEMPLATE,
        name=name,
        verdicts=[(titles[kind], lines) for kind, lines in results["verdicts"].items() if lines],
        rows=results["columns"],
        folds=list(results["folds"]),
        left_out=list(results["left_out"].items()),
        notes=_NOTES,
        made=list(results["made_by"].items()),
    )
