"""What is physically possible: units and limits of a field, values beyond them, constant land, and pixels nowhere.

Letters: H rows and W columns of a field.
"""

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError
from nenya.options.commands import PrepareOptions
from nenya.prepare.units import Conversion, kind_of, plain_text, read_units, units_of

if TYPE_CHECKING:
    import xarray

POSSIBLE = {
    "temperature": (-3.0, 45.0),
    "air": (-100.0, 100.0),
    "difference": (-40.0, 40.0),
    "height": (-5.0, 5.0),
    "ellipsoid": (-150.0, 150.0),
    "salinity": (0.0, 50.0),
    "velocity": (-10.0, 10.0),
    "chlorophyll": (0.0, 1000.0),
    "any": (-1e9, 1e9),
}
"""Possible values of each kind of field, in degrees Celsius, metres, g/kg, m/s and mg/m3."""

_UNIT = {"temperature": "degC", "air": "degC", "difference": "K", "height": "m", "ellipsoid": "m"}
_CONVERTED = {"temperature": "temperature", "air": "temperature", "difference": "temperature"}
_CONVERTED |= {"height": "length", "ellipsoid": "length"}
_LIKELY = {
    "temperature": {
        **{"K": "kelvin", "degC": "degrees Celsius", "degF": "degrees Fahrenheit", "mK": "millikelvin"},
        **{"0.01 degC": "hundredths of a degree Celsius", "0.01 K": "hundredths of a kelvin"},
        **{"0.1 degC": "tenths of a degree Celsius", "0.1 K": "tenths of a kelvin"},
        **{"0.001 degC": "thousandths of a degree Celsius"},
    },
    "height": {"m": "metres", "cm": "centimetres", "mm": "millimetres", "0.0001 m": "tenths of a millimetre"},
}
_JUDGED = {"temperature": ("degC", "K"), "air": ("degC", "K"), "height": ("m",), "ellipsoid": ("m",)}
_FILLS = (-9999, -999, -99, -1000, -1e4, -32767, -32768, 32767, 65535, 99999, 1e10, 1e20, 1e30, 9.96921e36)
_MOSTLY = 90.0  # percentage of impossible temperatures that wrong units explain
_SAMPLE = 200_000  # pixels from which a cause is guessed
_LEAST_FLAT = 16  # blocks of 2 x 2 equal pixels that make a region
_WARMEST = ([40, 50, 60, 75], [45.0, 36.0, 30.0, 22.0])  # latitude, and what no sea there reaches (degC)
_STANDS_OUT = 5.0  # steps at the edge of a constant region, as a multiple of the steps elsewhere


class FieldRange:
    """Units and possible values of a variable, and what becomes of the values beyond.

    Args:
        array: the variable, decoded by xarray.
        place: name of the file, for errors.
        options: units, limits and shares given by the user.

    Attributes:
        kind: of `nenya.prepare.units.kind_of`.
        units: as in the file, or as given.
        notes: sentences for the user, each once.

    Raises:
        InputFileError: The units are of another dimension than the quantity.
    """

    def __init__(self, array: "xarray.DataArray", place: str, options: PrepareOptions) -> None:
        self.place, self.options, self.variable = place, options, str(array.name)
        self.units = units_of(array, options)
        self.notes: list[str] = []
        self._noted: set[str] = set()
        found = read_units(self.units) if self.units else None
        self.kind = kind_of(array, options.quantity, found)
        self.possible: tuple[float, float] = POSSIBLE[self.kind]
        if options.possible is not None:
            self.possible = float(options.possible[0]), float(options.possible[1])
        self._conversion = self._checked(found)
        self._valid = valid_range_of(array) if options.valid_range == "file" else []
        self._fills = text_fills_of(array)

    @property
    def unit(self) -> str:
        """The units of the converted values, empty if unknown."""
        return _UNIT.get(self.kind, self.units)

    def _checked(self, found: Conversion | None) -> Conversion | None:
        """Return the conversion, None if it must be judged by the values."""
        wanted = _CONVERTED.get(self.kind)
        if wanted is None:
            return Conversion(1.0, 0.0, "other")
        if found is None:
            if self.kind in _JUDGED:
                return None
            raise InputFileError(f"{self._expected()}, got {self._said()}; units= sets them")
        if found.kind != wanted:
            raise InputFileError(
                f"{self._expected()}, got {self._said()}; units= sets them, variable= names another variable"
            )
        return found if self.kind != "difference" else Conversion(found.factor, 0.0, found.kind)

    def _expected(self) -> str:
        what = "height in m or cm" if _CONVERTED[self.kind] == "length" else "temperature in K or degC"
        return f"{self.place}: expected units of '{self.variable}' for a {what}"

    def _said(self) -> str:
        return f"'{self.units}'" if self.units else "no units"

    def convert(
        self, raw: NDArray[Any], good: NDArray[np.bool_], counts: MutableMapping[str, int]
    ) -> NDArray[np.float32]:
        """Convert the values of a field, and mask those that cannot be.

        Args:
            raw: (H, W) as decoded.
            good: (H, W) which pixels are left by fill values, quality and masks.
            counts: reason -> number of masked pixels; changed in place.

        Returns:
            (H, W) float32 in degrees Celsius, metres, or the field's own units; NaN where masked.

        Raises:
            InputFileError: Too many values are impossible, or the median is.
        """
        good = good.copy()
        for fill in self._fills:
            drop(good, raw == fill, counts, "missing")
        self._apply_valid(raw, good, counts)
        conversion = self._conversion or self._judge(raw, good)
        values = (raw * np.float64(conversion.factor) + conversion.offset).astype(np.float32)
        self._apply_possible(raw, values, good, counts)
        if self.options.mask_constant and self.kind in _UNIT:
            self._apply_flat(values, good, counts)
        values[~good] = np.nan
        return values

    def _apply_valid(self, raw: NDArray[Any], good: NDArray[np.bool_], counts: MutableMapping[str, int]) -> None:
        """Mask values outside valid_min, valid_max or valid_range, as packed, or as unpacked if only that can be."""
        if not self._valid or not good.any():
            return
        outside = [(raw < low) | (raw > high) for low, high in self._valid]
        chosen = 0
        if len(outside) > 1:
            left = [int(np.count_nonzero(good & ~beyond)) for beyond in outside]
            chosen = int(left[1] > 0 and left[0] < left[1] / 100)
        drop(good, outside[chosen], counts, "outside the file's valid range")

    def _judge(self, raw: NDArray[Any], good: NDArray[np.bool_]) -> Conversion:
        """Return the conversion that gives possible values, for missing or unknown units."""
        sample = _sample(raw, good)
        for units in _JUDGED[self.kind]:
            found = read_units(units)
            assert found is not None
            if not len(sample) or self._share(sample, found) >= 1 - self.options.impossible_most / 100:
                if len(sample):
                    self._note(
                        "units",
                        f"'{self.variable}' has {self._said()}; its values are taken as {units}, by their range",
                    )
                return found
        likely = self._likely(sample)
        raise InputFileError(
            f"{self._expected()}, got {self._said()}, and a median of {np.median(sample):.4g}"
            + (f": the values look like {likely}" if likely else "; units= sets them")
        )

    def _apply_possible(
        self, raw: NDArray[Any], values: NDArray[np.float32], good: NDArray[np.bool_], counts: MutableMapping[str, int]
    ) -> None:
        """Mask impossible values.

        Raises:
            InputFileError: They are too many, or the median is one of them.
        """
        low, high = self.possible
        with np.errstate(invalid="ignore"):
            bad = ((values < low) | (values > high)) & good
        if self.kind == "any" and self.options.possible is None:
            bad |= _lone_fills(values, good)
        count, total = np.count_nonzero(bad), np.count_nonzero(good)
        if not count:
            return
        share = 100 * count / total
        common, many = _most_common(raw[bad])
        if share > self.options.impossible_most or (share >= 50 and not low <= np.median(values[good]) <= high):
            raise InputFileError(self._refusal(raw, values, good, bad, share))
        self._note(
            "impossible",
            f"values of '{self.variable}' outside {self._limits()} are impossible and masked, "
            f"{'mostly' if many > 1 else 'such as'} {common:.6g}",
        )
        drop(good, bad, counts, "impossible")

    def check_latitude(self, values: NDArray[np.float32], lat: NDArray[np.float64]) -> None:
        """Refuse a field that is mostly warmer than any sea at its latitudes.

        Args:
            values: (H, W) converted, NaN where masked.
            lat: (H,) or (H, W) latitude.

        Raises:
            InputFileError: More than half of the values are too warm.
        """
        if self.kind != "temperature" or self.options.possible is not None:
            return
        place = np.broadcast_to(np.abs(lat[:, None] if lat.ndim == 1 else lat), values.shape)
        most = np.interp(place, *_WARMEST)
        good = np.isfinite(values)
        with np.errstate(invalid="ignore"):
            warm = good & (values > most)
        if 2 * np.count_nonzero(warm) <= np.count_nonzero(good):
            return
        shown = self.units or "degC"
        cold = (values[warm] - 32) / 1.8
        likely = (
            f"the values look like degrees Fahrenheit labelled {shown}; units=degF corrects this"
            if cold.min() >= self.possible[0] and (cold <= most[warm]).all()
            else "units= or variable= may be wrong"
        )
        raise InputFileError(
            f"{self.place}: expected '{self.variable}' below {np.median(most[warm]):.3g} degC at latitude "
            f"{np.median(place[warm]):.3g}, got a median of {np.median(values[warm]):.4g} degC: {likely}; "
            "possible=[min,max] sets other limits"
        )

    def _limits(self) -> str:
        return f"{self.possible[0]:g} to {self.possible[1]:g} {self.unit}".strip()

    def _refusal(
        self,
        raw: NDArray[Any],
        values: NDArray[np.float32],
        good: NDArray[np.bool_],
        bad: NDArray[np.bool_],
        share: float,
    ) -> str:
        """Return the error on impossible values, with the likely cause."""
        start = f"{self.place}: expected '{self.variable}' within {self._limits()}, got"
        common, many = _most_common(raw[bad])
        left = good & (raw != common)
        beyond = np.count_nonzero(bad & left)
        if many > 1 and many > 0.5 * np.count_nonzero(bad) and beyond <= np.count_nonzero(left) / 20 and left.any():
            return (
                f"{start} {common:.6g} at {100 * many / np.count_nonzero(good):.3g} % of the pixels: it looks like a "
                f"fill value or land that the file does not declare; land={common:.9g} masks it"
            )
        middle = float(np.median(values[good]))
        mostly = share >= _MOSTLY or _CONVERTED.get(self.kind) == "length"
        likely = self._likely(_sample(raw, good)) if mostly else ""
        if likely:
            return f"{start} a median of {middle:.4g} {self.unit}: the values look like {likely}"
        return (
            f"{start} {share:.3g} % of the values outside, a median of {middle:.4g} and such as {common:.6g}: "
            f"units=, land= or variable= may be wrong; possible=[min,max] sets other limits, "
            f"impossible_most={np.ceil(share):g} masks so many"
        )

    def _likely(self, sample: NDArray[Any]) -> str:
        """Return the units that would make the values possible, with advice; empty if there are none."""
        family = {"ellipsoid": "height", "air": "temperature"}.get(self.kind, self.kind)
        for units, words in _LIKELY.get(family, {}).items():
            found = read_units(units)
            assert found is not None
            scaled = found.factor < 0.5 and family == "temperature"
            if scaled and (not len(sample) or np.percentile(np.abs(sample), 99) <= self.possible[1]):
                continue  # small enough to be degrees themselves, or differences
            if found != self._conversion and len(sample) and self._share(sample, found) >= 0.95:
                label = f" labelled {self.units}" if self.units else ""
                quoted = f"'units={units}'" if " " in units else f"units={units}"
                return f"{words}{label}; {quoted} corrects this"
        return ""

    def _share(self, sample: NDArray[Any], conversion: Conversion) -> float:
        """Return the share of possible values under a conversion."""
        values = sample * np.float64(conversion.factor) + conversion.offset
        inside = (values >= self.possible[0]) & (values <= self.possible[1])
        return float(inside.mean())

    def _apply_flat(
        self, values: NDArray[np.float32], good: NDArray[np.bool_], counts: MutableMapping[str, int]
    ) -> None:
        """Mask regions of one exact value that stand out from the field around them: land, or an undeclared fill."""
        for value in flat_values(values, good):
            flat = good & (values == value)
            self._note(
                f"constant {value}",
                f"regions where '{self.variable}' is exactly {value:.6g} {self.unit}, apart from the field around, "
                "are masked as land or fill (mask_constant=false keeps them)",
            )
            drop(good, flat, counts, "constant")

    def _note(self, key: str, text: str) -> None:
        """Keep a sentence; of several with the same key, the first."""
        if key not in self._noted:
            self._noted.add(key)
            self.notes.append(text)


def drop(good: NDArray[np.bool_], bad: NDArray[np.bool_], counts: MutableMapping[str, int], why: str) -> None:
    """Clear `good` where `bad`, in place, and count the pixels under their reason."""
    lost = int(np.count_nonzero(good & bad))
    if lost:
        counts[why] = counts.get(why, 0) + lost
        good &= ~bad


def _sample(raw: NDArray[Any], good: NDArray[np.bool_]) -> NDArray[Any]:
    """Return good values, evenly chosen if there are many."""
    values = raw[good]
    return np.asarray(values[:: max(1, len(values) // _SAMPLE)])


def _most_common(values: NDArray[Any]) -> tuple[float, int]:
    """Return the most frequent value and its number."""
    found, count = np.unique(values, return_counts=True)
    return float(found[count.argmax()]), int(count.max())


def _lone_fills(values: NDArray[np.float32], good: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return usual fill values, and constant regions, (H, W) far from all other values of a field of unknown kind."""
    fills = np.isin(values, np.array([*_FILLS, *flat_values(values, good)], np.float32)) & good
    rest = values[good & ~fills] if fills.any() else np.zeros(0, np.float32)
    if not len(rest):
        return np.zeros_like(good)
    low, high = np.percentile(rest, [1, 99])
    far = 10 * (high - low)
    return np.asarray(fills & ((values < low - far) | (values > high + far)))


def valid_range_of(array: "xarray.DataArray") -> list[tuple[float, float]]:
    """Return the valid ranges of a variable by its attributes, in decoded values, with half a packed step around.

    Of packed values the range is in packed units unless its type is a floating one (CF, section 2.5.1); where it is,
    the same numbers as unpacked values are returned second, for files that have them against the convention.
    """
    limits = _limits_of(array.attrs)
    if limits is None:
        return []
    encoding = array.encoding
    stored = np.dtype(encoding.get("dtype") or array.dtype)
    scale = float(np.ravel(encoding.get("scale_factor", 1.0))[0])
    offset = float(np.ravel(encoding.get("add_offset", 0.0))[0])
    low, high, kinds = limits
    if (scale, offset) == (1.0, 0.0) or stored.kind == "f" or "f" in kinds:
        slack = 1e-6 * max((abs(v) for v in (low, high) if np.isfinite(v)), default=0.0)
        return [(low - slack, high + slack)]
    if stored.kind == "i" and str(encoding.get("_Unsigned", "")).lower() == "true":
        low, high = (v + 2.0 ** (8 * stored.itemsize) if v < 0 and np.isfinite(v) else v for v in (low, high))
    one, other = low * scale + offset, high * scale + offset
    half = 0.5 * abs(scale)
    return [(min(one, other) - half, max(one, other) + half), (low, high)]


def _limits_of(attributes: Any) -> tuple[float, float, set[str]] | None:
    """Return the smallest and largest valid value as stored, and the kinds of their types; None without any."""
    low, high = -np.inf, np.inf
    kinds: set[str] = set()
    for name, places in (("valid_range", (0, 1)), ("valid_min", (0,)), ("valid_max", (1,))):
        if name not in attributes:
            continue
        given = np.ravel(attributes[name])
        if given.dtype.kind not in "iuf":
            try:
                given = np.array([float(v) for v in plain_text(attributes[name]).replace(",", " ").split()])
            except ValueError:
                continue
        if len(given) != len(places) or not np.isfinite(given).any():
            continue
        kinds.add(given.dtype.kind)
        for value, place in zip(map(float, given), places, strict=True):
            low, high = (max(low, value), high) if place == 0 else (low, min(high, value))
    return (low, high, kinds) if kinds and low < high else None


def text_fills_of(array: "xarray.DataArray") -> list[float]:
    """Return missing values that a file states as text, which xarray leaves in the data."""
    found: list[float] = []
    for name in ("missing_value", "_FillValue"):
        given = np.ravel(array.encoding.get(name, array.attrs.get(name, [])))
        if given.dtype.kind in "SUO":
            for item in given:
                try:
                    found += [float(v) for v in plain_text(item).replace(",", " ").split()]
                except ValueError:
                    continue
    return [value for value in found if np.isfinite(value)]


def flat_values(values: NDArray[np.float32], good: NDArray[np.bool_]) -> list[float]:
    """Return values that fill constant regions which stand out from the field around them, at most three.

    A region stands out if the steps at its edge are several times those elsewhere: ice at the freezing point does not,
    land at 0 does.

    Args:
        values: (H, W).
        good: (H, W) which of them count.
    """
    right, below = values[:, 1:] == values[:, :-1], values[1:] == values[:-1]
    block = right[:-1] & right[1:] & below[:, :-1] & good[:-1, :-1]
    if np.count_nonzero(block) < _LEAST_FLAT:
        return []
    candidates, count = np.unique(values[:-1, :-1][block], return_counts=True)
    order = np.argsort(-count)[:3]
    return [float(candidates[i]) for i in order if count[i] >= _LEAST_FLAT and _stands_out(values, good, candidates[i])]


def _stands_out(values: NDArray[np.float32], good: NDArray[np.bool_], value: np.float32) -> bool:
    """Return whether the steps at the edge of the region of a value are much larger than those outside it."""
    inside = good & (values == value)
    edge, rest = [], []
    for axis in (0, 1):
        after, before = np.s_[1:] if axis == 0 else np.s_[:, 1:], np.s_[:-1] if axis == 0 else np.s_[:, :-1]
        both = good[after] & good[before]
        step = np.abs(values[after] - values[before])
        edge.append(step[both & (inside[after] ^ inside[before])])
        rest.append(step[both & ~inside[after] & ~inside[before]])
    edges, rests = np.concatenate(edge), np.concatenate(rest)
    return bool(len(edges) and len(rests) > _LEAST_FLAT and np.median(edges) > _STANDS_OUT * rests.mean())


def nowhere(lat: NDArray[np.float64], lon: NDArray[np.float64]) -> NDArray[np.bool_] | None:
    """Return pixels (H, W) in regions where latitude and longitude are constant, None if there are none.

    Models write such regions for processors that they left out because these hold land only.

    Args:
        lat: degrees, (H,) or (H, W).
        lon: degrees, (W,) or (H, W).
    """
    if lat.ndim < 2 or lon.ndim < 2:
        return None
    right = lat[:, 1:] == lat[:, :-1]
    if not right.any():
        return None
    right &= lon[:, 1:] == lon[:, :-1]
    below = (lat[1:] == lat[:-1]) & (lon[1:] == lon[:-1])
    block = right[:-1] & right[1:] & below[:, :-1]
    if not block.any():
        return None
    found = np.zeros(lat.shape, dtype=bool)
    for rows in (np.s_[:-1], np.s_[1:]):
        for cols in (np.s_[:-1], np.s_[1:]):
            found[rows, cols] |= block
    return found
