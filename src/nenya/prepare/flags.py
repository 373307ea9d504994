"""Quality levels, flags and land-sea masks of a field, by their CF attributes.

Letters: H rows and W columns of a field.
"""

import fnmatch
import re
from collections.abc import Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError, OptionError
from nenya.options.commands import PrepareOptions
from nenya.options.declare import suggest
from nenya.prepare.units import plain_text
from nenya.prepare.variables import (
    QUALITY_NAMES,
    dims_text,
    get_variable,
    is_coordinate_of,
    variables_of,
    with_dims_of,
)

if TYPE_CHECKING:
    import xarray

Test = Callable[[NDArray[Any]], NDArray[np.bool_]]
"""A function of the values (H, W) of a flag variable."""

_BINARY = {"land_binary_mask": False, "sea_binary_mask": True}
_MASK_NAMES = {
    **dict.fromkeys(("mask", "mask_rho", "tmask", "maskc", "wet", "wet_c", "seamask", "sea_mask"), True),
    **dict.fromkeys(("landmask", "land_mask"), False),
}
_PREFERRED = ("l2p_flags", "l2_flags", "quality_flag")
_EXACT = 2**53  # larger integers are not exact as float64
_SHOWN = 8


class FieldMasks:
    """What masks a field beside its own fill values: a quality, flags, a land-sea mask.

    Args:
        dataset: as opened.
        array: the field.
        place: name of the file, for errors.
        options: names, levels and flags given by the user.

    Attributes:
        tests: (reason, variable, function of its values that is true for pixels to keep).
        words: what is used, for the user.
        notes: sentences for the user.

    Raises:
        InputFileError: A variable or flag cannot be found, or it is not clear which flags are meant.
        OptionError: A quality is given without a level.
    """

    def __init__(
        self, dataset: "xarray.Dataset", array: "xarray.DataArray", place: str, options: PrepareOptions
    ) -> None:
        self.tests: list[tuple[str, xarray.DataArray, Test]] = []
        self.words: list[str] = []
        self.notes: list[str] = []
        flags = _find_flags(dataset, array, place, options)
        taken = ""
        if flags is not None:
            taken = str(flags.name)
            patterns, bits = as_list(options.mask_flags), as_list(options.mask_bits)
            masked = flag_test(flags, patterns, bits, place)
            self.tests.append(("flags", with_dims_of(array, flags), lambda v: ~masked(v)))
            self.words.append(f"flags of {taken}")
        quality = _find_quality(dataset, array, place, options, taken)
        if quality is not None:
            high, limit = high_is_good(quality, options.best_quality), options.quality_thresh
            assert limit is not None
            self.tests.append(("quality", with_dims_of(array, quality), level_test(limit, high=high)))
            self.words.append(f"{quality.name} {'>=' if high else '<='} {limit}")
        elif options.quality != "none" and taken != "quality_level":
            self._note_unused(dataset, array)
        mask = _find_mask(dataset, array, place, options, taken)
        if mask is not None:
            self.tests.append(("mask", with_dims_of(array, mask), sea_test(mask, place)))
            self.words.append(f"mask {mask.name}")

    def _note_unused(self, dataset: "xarray.Dataset", array: "xarray.DataArray") -> None:
        found = dataset.variables.get("quality_level")
        if found is not None and is_coordinate_of(dataset["quality_level"], array, whole=True):
            self.notes.append(
                "quality_level is in the file and not used: sensor=ghrsst or quality_thresh=4 uses it, quality=none "
                "leaves it out"
            )

    def apply(
        self,
        good: NDArray[np.bool_],
        read: Callable[["xarray.DataArray"], NDArray[Any]],
        counts: MutableMapping[str, int],
    ) -> None:
        """Clear masked pixels.

        Args:
            good: (H, W), changed in place.
            read: returns the values (H, W) of a variable.
            counts: reason -> number of masked pixels; changed in place.
        """
        for why, variable, keep in self.tests:
            kept = keep(read(variable))
            lost = int(np.count_nonzero(good & ~kept))
            if lost:
                counts[why] = counts.get(why, 0) + lost
                good &= kept


def as_list(given: Any) -> list[Any]:
    """Return the items of an option that is a list, one item, or nothing."""
    return [] if given is None else list(given) if isinstance(given, list | tuple) else [given]


# Flags


def meanings_of(variable: "xarray.DataArray") -> list[str]:
    """Return the flag_meanings of a variable."""
    return plain_text(variable.attrs.get("flag_meanings", "")).replace(",", " ").split()


def _has_bits(variable: "xarray.DataArray") -> bool:
    return "flag_masks" in variable.attrs


def _find_flags(
    dataset: "xarray.Dataset", array: "xarray.DataArray", place: str, options: PrepareOptions
) -> "xarray.DataArray | None":
    """Return the variable with the flags that mask pixels: by mask=, by quality=, or the only one with these flags."""
    patterns, bits = as_list(options.mask_flags), as_list(options.mask_bits)
    if not patterns and not bits:
        return None
    named = [(n, v) for n, v in (("mask=", options.mask), ("quality=", options.quality)) if v not in (None, "none")]
    for option, name in named:
        found = get_variable(dataset, str(name), place, option)
        if _has_bits(found) or "flag_values" in found.attrs or len(named) == 1:
            return _on_grid(found, array, place)
    near = [v for v in variables_of(dataset) if is_coordinate_of(v, array, whole=True) and v.name != array.name]
    flags = [v for v in near if _has_bits(v) or (patterns and "flag_values" in v.attrs)]
    if patterns:
        matching = [v for v in flags if any(_matching(p, meanings_of(v)) for p in patterns)]
        if not matching:
            known = [m for v in flags for m in meanings_of(v)]
            hint = suggest(str(patterns[0]), known)
            raise InputFileError(
                f"{place}: mask_flags={_joined(patterns)}: no variable on the grid of '{array.name}' has such a flag"
                f"{hint} (flags: {_joined(dict.fromkeys(known), 20) or 'none'}; mask_flags=['*land*'] takes all with "
                "land in their names)"
            )
        flags = matching
    return _one_of(flags, array, place, "mask_flags=" if patterns else "mask_bits=")


def _one_of(
    flags: "Sequence[xarray.DataArray]", array: "xarray.DataArray", place: str, option: str
) -> "xarray.DataArray":
    """Return the only flag variable, or the one that the field or its convention refers to."""
    words = " ".join(plain_text(array.attrs.get(k, "")) for k in ("quality_flag", "ancillary_variables")).split()
    named = [v for v in flags if v.name in words]
    usual = [v for name in _PREFERRED for v in flags if str(v.name).lower() == name]
    best = flags if len(flags) == 1 else named if len(named) == 1 else usual[:1]
    if not best:
        names = ", ".join(str(v.name) for v in flags[:_SHOWN]) or "none"
        raise InputFileError(
            f"{place}: {option} may mean several variables or none (with flags: {names}); mask= names the one"
        )
    return best[0]


def _on_grid(variable: "xarray.DataArray", array: "xarray.DataArray", place: str) -> "xarray.DataArray":
    if not is_coordinate_of(variable, array, whole=True):
        raise InputFileError(
            f"{place}: expected a mask on the grid of '{array.name}', got '{variable.name}' {dims_text(variable)}"
        )
    return variable


def _matching(pattern: Any, meanings: Sequence[str]) -> list[int]:
    """Return the places of flags with a name, in which * stands for any letters."""
    return [i for i, m in enumerate(meanings) if fnmatch.fnmatchcase(m.lower(), str(pattern).lower())]


def flag_test(variable: "xarray.DataArray", patterns: Sequence[Any], bits: Sequence[int], place: str) -> Test:
    """Return a function of the values of a flag variable that is true for pixels to mask.

    Args:
        variable: with flag_masks, flag_values or both, or with bits that only its manual explains.
        patterns: names of flags; * stands for any letters.
        bits: numbers of bits, the lowest is 0.
        place: name of the file, for errors.

    Raises:
        InputFileError: A flag or bit is absent, or the attributes contradict each other.
    """
    width = 8 * np.dtype(variable.encoding.get("dtype") or variable.dtype).itemsize
    if high := [bit for bit in bits if bit >= width]:
        raise InputFileError(f"{place}: mask_bits={high[0]}: expected below {width}, the bits of '{variable.name}'")
    wanted = sum(1 << bit for bit in set(bits))
    exact: list[tuple[int, float]] = []
    for mask, value in _chosen(variable, patterns, width, place):
        if value is None:
            wanted |= mask
        else:
            exact.append((mask, value))

    def masked(values: NDArray[Any]) -> NDArray[np.bool_]:
        if values.dtype.kind == "f":
            missing = ~np.isfinite(values)
            if np.nanmax(np.abs(values), initial=0.0, where=~missing) > _EXACT:
                raise InputFileError(
                    f"{place}: '{variable.name}' has flags of 64 bits with a fill value, which cannot be read exactly"
                )
            whole = np.where(missing, 0, values).astype(np.int64)
        else:
            missing, whole = np.zeros(values.shape, bool), values.astype(np.int64)
        found = (whole & _signed(wanted)) != 0
        for mask, value in exact:
            found |= (whole & _signed(mask)) == _signed(int(value)) if mask else values == value
        return np.asarray(found & ~missing)

    return masked


def _signed(bits: int) -> int:
    """Return a pattern of up to 64 bits as the int64 that holds it."""
    return bits - 2**64 if bits >= 2**63 else bits


def _chosen(
    variable: "xarray.DataArray", patterns: Sequence[Any], width: int, place: str
) -> list[tuple[int, float | None]]:
    """Return (mask, value) of the flags with these names; a value without a mask has 0, a mask without a value None."""
    meanings = meanings_of(variable)
    masks, values = (
        None if key not in variable.attrs else np.ravel(variable.attrs[key]) for key in ("flag_masks", "flag_values")
    )
    found: list[tuple[int, float | None]] = []
    numbered = [re.match(r"(\d+)_", meaning) for meaning in meanings]
    for pattern in patterns:
        places = _matching(pattern, meanings)
        if not places and not any(c in str(pattern) for c in "*?["):
            raise InputFileError(
                f"{place}: mask_flags={pattern}: '{variable.name}' has no such flag"
                f"{suggest(str(pattern), meanings)} (flags: {_joined(meanings, 20) or 'none'})"
            )
        for i in places:
            number = numbered[i]
            if masks is not None and values is None and len(masks) != len(meanings) and number is not None:
                found.append((1 << int(number[1]), None))  # as in AMSR2: more names than masks, each with its bit
                continue
            lengths = [len(given) for given in (masks, values) if given is not None]
            if any(length != len(meanings) for length in lengths):
                raise InputFileError(
                    f"{place}: '{variable.name}' has {len(meanings)} flag_meanings for {lengths[0]} flags; mask_bits= "
                    "gives the bits themselves"
                )
            mask = int(masks[i]) & ((1 << width) - 1) if masks is not None else 0
            if masks is None and values is None:
                raise InputFileError(
                    f"{place}: '{variable.name}' has neither flag_masks nor flag_values; mask_bits= gives the bits"
                )
            found.append((mask, float(values[i]) if values is not None else None))
    if patterns and not found:
        raise InputFileError(
            f"{place}: mask_flags={_joined(patterns)}: '{variable.name}' has no such flag (flags: "
            f"{_joined(meanings, 20) or 'none'})"
        )
    return found


def _joined(names: Any, most: int = 100) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:most]) + (", ..." if len(shown) > most else "")


# Quality


def _find_quality(
    dataset: "xarray.Dataset", array: "xarray.DataArray", place: str, options: PrepareOptions, taken: str
) -> "xarray.DataArray | None":
    """Return the quality variable, None if the recipe uses none.

    Args:
        dataset: as opened.
        array: the field.
        place: name of the file.
        options: the recipe.
        taken: name of the variable of the flags; it cannot be the quality as well.
    """
    given = None if options.quality == taken else options.quality
    if given == "none" or (options.quality_thresh is None and given is None):
        return None
    if given is not None:
        found = get_variable(dataset, given, place, "quality=")
        _refuse_bits(found, place, "quality=")
        if options.quality_thresh is None:
            raise OptionError(f"quality={given} needs quality_thresh=, the worst value that is kept")
        return found
    near = [v for v in variables_of(dataset) if is_coordinate_of(v, array, whole=True)]
    named = {str(v.name).lower(): v for v in near}
    for v in near:
        if "quality_flag" in plain_text(v.attrs.get("standard_name", "")):
            named.setdefault("quality_flag", v)
    names = [f"qual_{array.name}".lower(), *QUALITY_NAMES]
    match = next((named[name] for name in names if name in named), None)
    if match is None:
        raise InputFileError(
            f"{place}: no quality variable found, but quality_thresh={options.quality_thresh} needs one: quality= "
            "names it, quality=none takes all pixels whatever their quality"
        )
    _refuse_bits(match, place, "quality_thresh=")
    return match


def _refuse_bits(variable: "xarray.DataArray", place: str, option: str) -> None:
    """Refuse flags of several bits where one level or mask is expected."""
    if _has_bits(variable):
        raise InputFileError(
            f"{place}: {option}{variable.name if option != 'quality_thresh=' else ''}: '{variable.name}' holds bits "
            f"({_joined(meanings_of(variable), _SHOWN)}), not one level; mask_flags=[...] names those that mask a "
            "pixel, mask_bits=[...] numbers them"
        )


def high_is_good(quality: "xarray.DataArray", given: str) -> bool:
    """Return whether high values of a quality variable are good: as given, else by its flags or its name."""
    if given != "auto":
        return given == "high"
    meanings = [meaning.lower() for meaning in meanings_of(quality)]
    if meanings and re.search("best|good", meanings[0]):
        return False
    if meanings and re.search("best|good", meanings[-1]):
        return True
    return not str(quality.name).lower().startswith(("qual_", "dqf"))


def level_test(limit: int, *, high: bool) -> Test:
    """Return a function of quality levels that is true where they are at least, or at most, a limit."""

    def test(values: NDArray[Any]) -> NDArray[np.bool_]:
        with np.errstate(invalid="ignore"):
            return np.asarray(values >= limit if high else (values <= limit) & (values >= 0))

    return test


# Land and sea


def _is_water(meaning: str) -> bool:
    words = re.split(r"[^a-z]+", meaning.lower())
    water = "water" in words or "ocean" in words or ("sea" in words and "ice" not in words)
    return water and not {"no", "not", "non", "land", "inland", "lake"} & set(words)


def _find_mask(
    dataset: "xarray.Dataset", array: "xarray.DataArray", place: str, options: PrepareOptions, taken: str
) -> "xarray.DataArray | None":
    """Return the land-sea mask: the user's, otherwise one that is named so by its attributes or name."""
    if options.mask is not None and options.mask not in (taken, "none"):
        return _on_grid(get_variable(dataset, options.mask, place, "mask="), array, place)
    if options.mask == "none":
        return None
    for variable in variables_of(dataset):
        kind = plain_text(variable.attrs.get("standard_name", ""))
        name = str(variable.name).lower()
        meanings = meanings_of(variable)
        named = name in _MASK_NAMES and (any(map(_is_water, meanings)) if meanings else name != "mask")
        if (kind in _BINARY or named) and name != taken and is_coordinate_of(variable, array, whole=True):
            return variable
    return None


def sea_test(mask: "xarray.DataArray", place: str = "") -> Test:
    """Return a function of a mask's values that is true for sea: by its flags, its standard name, or not 0.

    Raises:
        InputFileError: Its flags do not say which of them is sea.
    """
    meanings = meanings_of(mask)
    water = [i for i, meaning in enumerate(meanings) if _is_water(meaning)]
    bits, values = (np.ravel(mask.attrs[key]) if key in mask.attrs else None for key in ("flag_masks", "flag_values"))
    if water and bits is not None and values is None and len(bits) == len(meanings):
        width = 8 * np.dtype(mask.encoding.get("dtype") or mask.dtype).itemsize
        each = [int(bit) & ((1 << width) - 1) for bit in bits]
        wanted = sum({each[i] for i in water})
        unwanted = sum(set(each)) & ~wanted
        return lambda v: (_whole(v) & _signed(wanted) != 0) & (_whole(v) & _signed(unwanted) == 0)
    if water and bits is None and values is not None and len(values) == len(meanings):
        return lambda v: np.isin(v, values[water])
    _refuse_bits(mask, place, "mask=")
    if meanings and values is not None:
        raise InputFileError(
            f"{place}: mask={mask.name}: none of its flags is water, sea or ocean ({_joined(meanings, _SHOWN)}); "
            "mask_flags=[...] names those that mask a pixel"
        )
    standard = plain_text(mask.attrs.get("standard_name", ""))
    if not _BINARY.get(standard, _MASK_NAMES.get(str(mask.name).lower(), True)):
        return lambda v: v == 0
    return lambda v: np.isfinite(v) & (v != 0)


def _whole(values: NDArray[Any]) -> NDArray[np.int64]:
    return np.asarray(np.nan_to_num(values, nan=0), dtype=np.int64)
