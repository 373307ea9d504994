"""Quantities in the columns of a table: titles and units, which column is DT, slopes, and their named intervals."""

import logging
from collections.abc import Collection, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.defs import DT_INTERVALS, SLOPE_INTERVALS, Interval
from nenya.errors import InputFileError, OptionError
from nenya.options.declare import suggest

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

MASKED_AT_MOST = 0.5
"""A column clear_fraction that never exceeds this is the share of masked pixels, as in tables of the first nenya."""

DT40_SIDE = 40
"""Side in pixels of the central square for which the column DT40 of a table has the difference T90 - T10."""

TERMS = ("T90", "T10")
DIFFERENCE = " - ".join(TERMS)
"""The difference of two columns that is DT in a table without that column."""


@dataclass(frozen=True)
class Quantity:
    """What a column holds.

    Attributes:
        title: its name in words.
        unit: empty if it has none, or if unknown.
        definition: a formula.
        scale: how its values are best told apart: `linear`, `log`, or `ratio` (1 in the middle, by the logarithm).
    """

    title: str
    unit: str = ""
    definition: str = ""
    scale: str = "linear"


QUANTITIES = {
    "SSTa": Quantity("SSTa", "K"),
    "DT": Quantity("DT", "K", DIFFERENCE),
    "DT40": Quantity("DT of the central 40 x 40", "K"),
    "Tmin": Quantity("Tmin", "deg C"),
    "Tmax": Quantity("Tmax", "deg C"),
    "T10": Quantity("T10", "deg C"),
    "T90": Quantity("T90", "deg C"),
    "mean_temperature": Quantity("mean temperature", "deg C"),
    "clear_fraction": Quantity("clear fraction"),
    "clear": Quantity("clear fraction"),
    "cosine": Quantity("cosine with the latent of the clear cutout", "", "median of the calibration"),
    "cosine_low": Quantity("cosine with the latent of the clear cutout", "", "5 % quantile of the calibration"),
    "umap_spread": Quantity("spread on the UMAP", "", "rms distance of places under the calibration"),
    "slope": Quantity("spectral slope"),
    "alpha": Quantity("spectral slope alpha"),
    "zonal_slope": Quantity("zonal spectral slope"),
    "merid_slope": Quantity("meridional spectral slope"),
    "LL": Quantity("log-likelihood LL"),
    "latent_LL": Quantity("log-likelihood of the latent"),
    "rarity": Quantity("rarity", "", "mean cosine distance to the nearest elsewhere", "log"),
    "rarity_percentile": Quantity("rarity", "%"),
    "texture_LL": Quantity("log-likelihood of the texture"),
    "texture_percentile": Quantity("rarity of the texture", "%"),
    "density_ratio": Quantity("density ratio", "", "its own set over the other one", "ratio"),
    "lat": Quantity("latitude", "deg N"),
    "lon": Quantity("longitude", "deg E"),
    "US0": Quantity("UMAP 1"),
    "US1": Quantity("UMAP 2"),
    "true_DT": Quantity("true DT", "K"),
    "true_noise": Quantity("true noise", "K"),
    "true_eddy_size": Quantity("true eddy size", "pixels"),
    "true_orientation": Quantity("true orientation", "deg"),
}
"""Columns whose titles or units do not follow from their names."""


def quantity_of(name: str) -> Quantity:
    """Return the quantity in a column, judged by its name."""
    return QUANTITIES.get(name, Quantity(name.replace("_", " ")))


def title_of(name: str) -> str:
    """Return the title of a column: `DT = T90 - T10 (K)`.

    Examples:
        >>> title_of("US0")
        'UMAP 1'
    """
    quantity = quantity_of(name)
    definition = f" = {quantity.definition}" if quantity.definition else ""
    return f"{quantity.title}{definition}{_unit(quantity)}"


def heading_of(name: str) -> str:
    """Return a short title of a column: `DT (K)`, `mean T (°C)`."""
    quantity = quantity_of(name)
    title = quantity.title
    for long, short in (("latitude", "lat"), ("longitude", "lon"), ("temperature", "T")):
        title = title.replace(long, short)
    return title + _unit(quantity).replace("deg ", "\N{DEGREE SIGN}")


def label_of(name: str) -> str:
    """Return the name of a column with its unit, for axes: `DT (K)`, `mean_temperature (deg C)`.

    Examples:
        >>> label_of("DT")
        'DT (K)'
    """
    return name + _unit(quantity_of(name))


def mean_label(name: str) -> str:
    """Return what the mean of a column in a cell is called: `mean of DT (K)`, `mean temperature (deg C)`."""
    if not name:
        return "mean"
    quantity = quantity_of(name)
    of = "" if quantity.title.startswith("mean ") else "mean of "
    return of + quantity.title + _unit(quantity).replace("deg ", "°")


def _unit(quantity: Quantity) -> str:
    return f" ({quantity.unit})" if quantity.unit else ""


def central_dt(fields: NDArray[np.floating[Any]], side: int) -> NDArray[np.float64]:
    """Return T90 - T10 of the central square of fields.

    T90 and T10 are the 90th and 10th percentile, linearly interpolated, of the pixels from c - side // 2 to
    c + side // 2 - 1 in both directions, where c is half the side of the field.

    Args:
        fields: (..., H, W).
        side: side in pixels of the square; a smaller field is used completely.

    Returns:
        (...), in the unit of the fields; NaN where the square has pixels that are not finite.

    Examples:
        >>> import numpy as np
        >>> central_dt(np.zeros((2, 64, 64)), 40).tolist()
        [0.0, 0.0]
    """
    half, row, column = side // 2, fields.shape[-2] // 2, fields.shape[-1] // 2
    square = fields[..., max(row - half, 0) : row + half, max(column - half, 0) : column + half]
    low, high = np.percentile(square, (10, 90), axis=(-2, -1))
    return np.asarray(high - low, np.float64)


def dt_name(columns: Collection[Hashable], *, central: bool = False, true: bool = False) -> str | None:
    """Return what holds the temperature difference DT among columns: DT, else `DIFFERENCE`; None if nothing does.

    Args:
        columns: their names.
        central: whether DT40, of the central 40 x 40 pixels, comes before.
        true: whether true_DT, of generated fields, comes after.
    """
    if central and "DT40" in columns:
        return "DT40"
    if "DT" in columns:
        return "DT"
    if all(name in columns for name in TERMS):
        return DIFFERENCE
    return "true_DT" if true and "true_DT" in columns else None


def dt_of(table: "pd.DataFrame", *, central: bool = False, true: bool = False) -> "pd.Series | None":
    """Return the temperature differences DT of a table, K, where `dt_name` finds them; None if it has none."""
    name = dt_name(table.columns, central=central, true=true)
    high, low = TERMS
    return table[high] - table[low] if name == DIFFERENCE else table[name] if name else None


def with_dt(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a table with a column DT, K, if it has its terms."""
    found = dt_of(table) if "DT" not in table else None
    return table if found is None else table.assign(DT=found)


def cut_table(
    table: "pd.DataFrame", DT_cut: str | None = None, alpha_cut: str | None = None, DT_key: str = "DT40"
) -> "pd.DataFrame":
    """Return the rows of a table that lie in an interval of DT and in one of slopes.

    Args:
        table: with DT40, DT, or T90 and T10 (K); with alpha or min_slope.
        DT_cut: a name of `nenya.defs.DT_INTERVALS`; None: all.
        alpha_cut: a name of `nenya.defs.SLOPE_INTERVALS`; None: all.
        DT_key: the column of temperature differences; without a column DT40 they are DT, or T90 - T10.

    Raises:
        OptionError: The interval is unknown.
        InputFileError: The table lacks the column, or no row is left.
    """
    keep = np.ones(len(table), dtype=bool)
    if DT_cut is not None:
        keep &= _within(_DT_of(table, DT_key), DT_cut, DT_INTERVALS, "DT_cut")
    if alpha_cut is not None:
        name = next((name for name in ("alpha", "min_slope") if name in table), None)
        if name is None:
            raise InputFileError("expected a column alpha in the table; nenya spectra table=... creates it")
        keep &= _within(table[name].to_numpy(np.float64, na_value=np.nan), alpha_cut, SLOPE_INTERVALS, "alpha_cut")
    given = {"DT_cut": DT_cut, "alpha_cut": alpha_cut}
    cuts = ", ".join(f"{key}={value}" for key, value in given.items() if value is not None)
    if not keep.any():
        raise InputFileError(f"none of {len(table)} rows lies in {cuts}: choose another interval")
    if not keep.all():
        log.info("%d of %d rows lie in %s", int(keep.sum()), len(table), cuts)
    return table[keep]


def _DT_of(table: "pd.DataFrame", key: str) -> NDArray[np.floating[Any]]:
    if key not in table and key != "DT40":
        raise InputFileError(f"DT_key={key}: the table has no such column")
    found = table[key] if key in table else dt_of(table, central=True)
    if found is not None:
        values: NDArray[np.floating[Any]] = found.to_numpy(np.float64, na_value=np.nan)
        return values
    raise InputFileError("expected a column DT40, DT, or T90 and T10, with temperature differences in the table")


def _within(
    values: NDArray[np.floating[Any]], name: str, intervals: dict[str, Interval], key: str
) -> NDArray[np.bool_]:
    if name not in intervals:
        raise OptionError(f"{key}={name}{suggest(name, list(intervals))}: expected one of {', '.join(intervals)}")
    interval = intervals[name]
    found: NDArray[np.bool_] = (values >= interval.low) & (values < interval.high)
    return found


Float64Array = NDArray[np.float64]


def metric(table: "pd.DataFrame", name: str) -> Float64Array | None:
    """Return a column of numbers, (N,) float64; DT is T90 - T10 if there is no such column; None if missing."""
    if name in table:
        return numbers_of(table[name])
    if name == "DT" and (difference := dt_of(table)) is not None:
        return numbers_of(difference)
    return None


def columns_of(table: "pd.DataFrame", *names: str) -> Float64Array:
    """Return columns of numbers, (N, number of names) float64; DT is T90 - T10 if there is no such column.

    Raises:
        InputFileError: A column is missing or not numeric.
    """
    found = [metric(table, name) for name in names]
    missing = [name for name, values in zip(names, found, strict=True) if values is None]
    if missing:
        hint = next((f": {made} writes it" for made, made_names in _MADE_BY.items() if missing[0] in made_names), "")
        raise InputFileError(
            f"the table has no column {' or '.join(missing)} (it has {', '.join(map(str, table.columns))}){hint}"
        )
    return np.stack([values for values in found if values is not None], axis=1)


def numbers_of(column: "pd.Series[Any]") -> Float64Array:
    """Return a column as float64, (N,); missing values are NaN."""
    import pandas as pd

    if pd.api.types.is_bool_dtype(column) or not pd.api.types.is_numeric_dtype(column):
        raise InputFileError(f"expected numbers in the column {column.name}, got {column.dtype}")
    values: Float64Array = column.to_numpy(np.float64, na_value=np.nan)
    return values


_MADE_BY = {
    "nenya embed": ("US0", "US1"),
    "nenya clusters": ("cluster",),
    "nenya outliers": ("rarity", "rarity_percentile", "latent_LL", "texture_LL", "texture_percentile"),
}
