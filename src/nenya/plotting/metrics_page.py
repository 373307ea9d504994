"""The page of `nenya metrics`: one self-contained HTML file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nenya.plotting.embedded import embedded
from nenya.runtime.templates import render

_NOTES = (
    "N95, N99: principal components (mean removed) with 95 and 99 % of the variance of all partitions.",
    "Participation ratio: (sum of variances)^2 / sum of their squares.",
    "RankMe: exp of the entropy of the singular values, the mean not removed (Garrido et al. 2023).",
    "Uniformity: log of the mean of exp(-2 |x - y|^2) over pairs of a seeded sample (Wang and Isola 2020).",
    "Invariance: latents of a rotated, mirrored or shifted cutout compared with the unchanged one; crop and "
    "view compared with the cutout in the file; two_views between two training views; other "
    "between different cutouts.",
    "Neighbours: 1 - (mean difference to the nearest latents) / (mean difference of all pairs), within a seeded "
    "sample; the season is the day of the year of the calendar, on both hemispheres, and circular.",
    "Images: for each end of a component the cutouts whose latents, relative to the mean, are closest to its "
    "direction, and an image from gradient ascent with a penalty on its total variation, within the contrasts of the "
    "cutouts.",
)
_TEMPLATE = Path(__file__).parent / "page" / "metrics.html"


def page(name: str, lines: Mapping[str, str], results: Mapping[str, Any], figures: Mapping[str, Path]) -> str:
    """Return the page.

    Args:
        name: of the latents file.
        lines: description -> value.
        results: the page shows their provenance and settings.
        figures: title -> figure, .svg or .png, embedded in the page.
    """
    return render(
        _TEMPLATE,
        name=name,
        lines=_texts(lines),
        pictures=embedded(figures),
        notes=_NOTES,
        provenance=_texts(results["provenance"]),
        made=_texts({**results["made_by"], "principal components": results["pca_file"]}),
    )


def _texts(rows: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, value if isinstance(value, str) else json.dumps(value, default=str)) for key, value in rows.items()]
