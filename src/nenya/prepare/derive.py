"""Cutouts from cutouts: as another sensor would see them, and quantities of them for a table.

Letters: n cutouts of h rows and w columns, of N in a file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.data.spectra import Recipe, fit_slopes, radial_power
from nenya.errors import InputFileError, OptionError
from nenya.prepare.steps import add_noise, downscale, median, resize
from nenya.tables.quantities import DT40_SIDE, central_dt

if TYPE_CHECKING:
    import pandas as pd

Float32Array = NDArray[np.float32]
Columns = dict[str, NDArray[np.float64]]

OF_LATENTS = ("US0", "US1", "U0", "U1", "UT0", "UT1", "LL", "cluster", "index")
OF_SPECTRA = ("alpha", "alpha_err", "slope", "min_slope")
_ENDS = ("zonal_slope", "merid_slope")
_CENTRED = 1e-3  # largest mean, in units of the field, of cutouts whose mean was removed
_STREAM = 0xDE71  # sets this noise apart from that of `nenya prepare` with the same seed


@dataclass(frozen=True)
class Derivation:
    """The steps from one cutout to another, in this order.

    Attributes:
        crop: side in pixels of the central square that is kept; None for all.
        coarsen: side in pixels of the blocks that are averaged.
        noise: standard deviation of white noise, in the unit of the field.
        median: rows and columns of a median filter.
        resize: side in pixels to which cutouts are resampled at the end.
        seed: of the noise.
    """

    crop: int | None = None
    coarsen: int = 1
    noise: float = 0.0
    median: tuple[int, int] | None = None
    resize: int | None = None
    seed: int = 0

    def __bool__(self) -> bool:
        return bool(self.crop or self.coarsen > 1 or self.noise or self.median or self.resize)

    def side(self, side: int) -> int:
        """Return the side of the new cutouts.

        Args:
            side: of the old ones.

        Raises:
            OptionError: A step does not fit it.
        """
        if self.crop is not None:
            if self.crop > side or (side - self.crop) % 2:
                kind = "even" if side % 2 == 0 else "odd"
                raise OptionError(
                    f"crop={self.crop}: expected an {kind} number up to {side}, the side of the cutouts, so that "
                    "their centre stays"
                )
            side = self.crop
        if side % self.coarsen or side // self.coarsen < 2:
            raise OptionError(f"coarsen={self.coarsen}: expected a divisor of {side}, the side of the cutouts")
        side //= self.coarsen
        if self.median is not None and max(self.median) > side:
            raise OptionError(f"median={list(self.median)}: expected at most {side} rows and columns")
        return self.resize or side

    def apply(self, images: Float32Array, seeds: list[tuple[int, ...]]) -> Float32Array:
        """Return the new cutouts (n, side, side) of old ones (n, h, w); NaN stay where they reach.

        Args:
            images: the old cutouts.
            seeds: of the noise of each.
        """
        if self.crop is not None:
            first = (images.shape[1] - self.crop) // 2
            images = images[:, first : first + self.crop, first : first + self.crop]
        if self.coarsen > 1:
            images = downscale(images, (self.coarsen, self.coarsen))
        if self.noise:
            images = add_noise(images, self.noise, seeds)
        if self.median is not None:
            images = median(images, self.median)
        if self.resize is not None:
            images = resize(images, self.resize)
        return np.ascontiguousarray(images, np.float32)

    def seeds(self, keys: NDArray[np.int64], generation: int) -> list[tuple[int, ...]]:
        """Return the seeds of the noise of cutouts: other ones each time that a file is derived from a derived one.

        Args:
            keys: (n,), not negative, one for each cutout.
            generation: how many times the file was derived, this time included.
        """
        return [(self.seed, int(key), _STREAM, generation) for key in keys]

    def scale(self, side: int) -> float:
        """Return the share of the old extent that the new cutouts have, from 0 to 1."""
        return 1.0 if self.crop is None else self.crop / side


def is_centred(images: Float32Array) -> bool:
    """Return whether the mean of each cutout (n, h, w) was removed."""
    means = np.abs(images.mean(axis=(1, 2), dtype=np.float64))
    means = means[np.isfinite(means)]
    return bool(len(means) and means.max() < _CENTRED)


def measure(images: Float32Array, quantities: tuple[str, ...], band: tuple[float, float]) -> Columns:
    """Return quantities of cutouts, (n,) each: mean, extremes, percentiles, and those asked for.

    Args:
        images: (n, h, w), NaN where pixels are missing.
        quantities: of `nenya.options.derive.QUANTITIES`.
        band: wavelengths in pixels over which slopes are fitted.

    Raises:
        OptionError: Cutouts are too small for one of them.
    """
    side = images.shape[1]
    flat = images.reshape(len(images), -1)
    low, high = np.percentile(flat, (10, 90), axis=1)
    found: Columns = {
        "mean_temperature": flat.mean(axis=1, dtype=np.float64),
        "Tmin": flat.min(axis=1).astype(np.float64),
        "Tmax": flat.max(axis=1).astype(np.float64),
        "T10": low.astype(np.float64),
        "T90": high.astype(np.float64),
    }
    if side >= DT40_SIDE:
        found["DT40"] = central_dt(images, DT40_SIDE)
    elif "DT40" in quantities:
        raise OptionError(f"add=[DT40]: expected cutouts of at least {DT40_SIDE} x {DT40_SIDE} pixels, got {side}")
    if "slopes" in quantities:
        recipe = Recipe(band=band)
        beta, found["alpha_err"], _ = fit_slopes(radial_power(images, recipe), side, recipe)
        found["alpha"] = -beta
    return found


def new_table(
    table: "pd.DataFrame", number: NDArray[np.int64], columns: Columns, *, centred: bool, scale: float
) -> "tuple[pd.DataFrame, list[str]]":
    """Return the table of derived cutouts, and the names of columns that were left out because they no longer hold.

    Args:
        table: of the old cutouts.
        number: (n,) index of each row's cutout among all N.
        columns: of `measure`, (N,) each, of the new cutouts.
        centred: whether the mean of the old cutouts was removed: temperatures are then relative to the column
            `mean_temperature`, and not known without it.
        scale: share of the old extent that the new cutouts have.

    Raises:
        InputFileError: The column `mean_temperature` holds no numbers.
    """
    import pandas as pd

    stale = [name for name in table.columns if str(name) in (*OF_LATENTS, *OF_SPECTRA) or str(name).startswith(_ENDS)]
    made = table.drop(columns=[name for name in (*stale, "DT40") if name in table])
    level = np.zeros(len(table))
    known = not centred or "mean_temperature" in table
    if centred and known:
        if not pd.api.types.is_numeric_dtype(table["mean_temperature"]):
            raise InputFileError("expected numbers in the column mean_temperature")
        level = table["mean_temperature"].to_numpy(np.float64, na_value=np.nan)
    kelvin = ("mean_temperature", "Tmin", "Tmax", "T10", "T90")
    if not known:
        stale += [name for name in kelvin if name in made]
        made = made.drop(columns=[name for name in kelvin if name in made])
        made["DT"] = (columns["T90"] - columns["T10"])[number]
    elif "DT" in made:
        made["DT"] = (columns["T90"] - columns["T10"])[number]
    for name, values in columns.items():
        if name not in kelvin:
            made[name] = values[number]
        elif known:
            made[name] = values[number] + level
    return _smaller(made, scale), [str(name) for name in stale if name not in made]


def _smaller(table: "pd.DataFrame", scale: float) -> "pd.DataFrame":
    """Return a table with the extents of a crop; a clear share between 0 and 1 is then unknown."""
    if scale == 1:
        return table
    changed: Mapping[str, Any] = {
        **{name: table[name] * scale for name in ("height_km", "width_km") if name in table},
        **{name: (table[name] * scale).round() for name in ("height_px", "width_px", "field_size") if name in table},
        **{
            first: (table[first] + table[size] * (1 - scale) / 2).round().astype(table[first].dtype)
            for first, size in (("row", "height_px"), ("col", "width_px"))
            if first in table and size in table and table[first].dtype.kind == "i" and table[size].notna().all()
        },
    }
    made = table.assign(**changed)
    if "clear_fraction" in made:
        made["clear_fraction"] = made["clear_fraction"].where(made["clear_fraction"].isin((0, 1)))
    return made


def add_columns(
    table: "pd.DataFrame", number: NDArray[np.int64], columns: Columns, quantities: tuple[str, ...]
) -> "pd.DataFrame":
    """Return a table with the quantities of its rows' cutouts; rows without a cutout have NaN.

    Args:
        table: of the cutouts.
        number: (rows,) index of each row's cutout, -1 for none.
        columns: of `measure`, (N,) each.
        quantities: of `nenya.options.derive.QUANTITIES`.
    """
    names = [*(["DT40"] if "DT40" in quantities else []), *(["alpha", "alpha_err"] if "slopes" in quantities else [])]
    values = {name: np.where(number >= 0, columns[name][number], np.nan) for name in names}
    return table.assign(**values)
