"""Options of the commands that explore latents; declared as those of `nenya.options` are."""

from dataclasses import dataclass
from typing import Any

from nenya.options import Options, one_of, option


@dataclass
class AnalysisOptions(Options):
    """Options that all commands on latents share: `data` names latents files."""

    table: str | None = option(None, "table of the cutouts: .parquet, .csv or .feather")


def _is_box(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 4
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        and value[0] < value[1]
        and value[2] < value[3]
    )


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)


@dataclass
class StatisticsOptions(AnalysisOptions):
    """Options of the statistics of a selection; `table` is the whole."""

    where: str | None = option(None, "condition on the columns, such as DT > 2 and lat < 0")
    box: Any = option(None, "box of the UMAP", ("four numbers [x0, x1, y0, y1], x0 < x1, y0 < y1", _is_box))
    cluster: int | None = option(None, "number of a group")
    rows: str | None = option(None, "table of chosen rows, such as a search's result")
    metrics: Any = option(["DT", "alpha"], "columns that get a histogram", ("a list of columns", _is_names))
    degrees: float = option(2.0, "side in degrees of the map's cells", one_of(0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0))
    picture: str = option(".png", "format of the figure", one_of(".png", ".pdf", ".svg"))
