"""Units of fields, read by pint in the spellings that people use, and converted to degrees Celsius or metres."""

import difflib
import functools
import logging
import math
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nenya.options.commands import PrepareOptions
from nenya.prepare.variables import FIELD_NAMES, STANDARD_NAMES

if TYPE_CHECKING:
    import xarray

_TEMPERATURES = {
    "degC": ("c", "cel", "celsius", "celcius", "centigrade", "centigrades"),
    "K": ("k", "kelvin", "kelvins"),
    "degF": ("f", "fahrenheit"),
}
_DEGREES = re.compile(r"(degrees?|degs?|grad|o)(?=[\W_]|$|[ckf]$|celsius|celcius|kelvin|fahrenheit)")
_SCALE = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*[*x]?\s*(?=[^\W\d])(?!e\d)", re.I)
_LONGEST = 100  # characters
_POWER = re.compile(r"\*\*|\^")
_PLAIN_POWER = re.compile(r"(?:[^\W\d]|\b10)\s*(?:\*\*|\^)\s*[-+(]*\d{1,2}(?:\.\d{1,3})?\)*(?!\s*(?:\*\*|\^)|[\d.eE])")
_BRACKET_POWER = re.compile(r"\)\s*(?:\*\*|\^)\s*[-+]?\d(?!\s*(?:\*\*|\^)|[\d.eE])")
_SIMPLE = {"degC": (1.0, 0.0, "temperature"), "K": (1.0, -273.15, "temperature"), "m": (1.0, 0.0, "length")}
_DIFFERENCE = re.compile(
    r"(^|_)(anom\w*|bias|err|error|std|stdev|uncertainty|diff|difference|dt|correction|increment|tendency|gradient|"
    r"deviation|sses|change|d?ssta|dsst|tosa)(_|$)"
)
_NO_SEA = re.compile(r"(^|[\W_])(air|land|brightness|dew|ice|soil|2m|t2m|2 metre|atmosphere|cloud)([\W_]|$)")


@dataclass(frozen=True)
class Conversion:
    """A linear conversion: factor * value + offset is in degrees Celsius, metres, or units of their own.

    Attributes:
        factor: of the values.
        offset: in the target units.
        kind: `temperature`, `length`, or `other` for any other dimension, which is not converted.
    """

    factor: float
    offset: float
    kind: str


def plain_text(value: Any) -> str:
    """Return the text of an attribute, whichever bytes it has: UTF-8, Latin-1, or either one labelled as ASCII."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    if isinstance(value, np.void):
        value = value.tobytes()
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    if not isinstance(value, bytes):
        return str(value).strip()
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        text = value.decode("latin-1")
    return text.strip("\0 \t\r\n")


@functools.lru_cache(maxsize=256)
def read_units(text: str) -> Conversion | None:
    """Return the conversion that units mean, None for units that nobody knows.

    Args:
        text: such as `degC`, `Celcius`, `deg. C`, `0.01 K`, `cm`; numbers scale the unit, as in UDUNITS.
    """
    if len(text) > _LONGEST:
        return None
    scale, rest = _scale_of(text)
    found = _simple(_temperature(rest) or rest) or _by_pint(rest)
    if found is None:
        return None
    found = found if scale == 1 else Conversion(found.factor * scale, found.offset, found.kind)
    return found if found.factor and math.isfinite(found.factor) and math.isfinite(found.offset) else None


def _scale_of(text: str) -> tuple[float, str]:
    """Return the number before a unit, 1 if there is none, and the unit without brackets and temperature scale."""
    text = re.sub(r"10\s*(?:\^|\*\*)\s*([-+]?\d+)", r"1e\1", text)
    text = re.sub(r"[\s(,]*\bI(?:PTS|TS)[-_ ]?\d+\b[)\s,]*", " ", text, flags=re.I).strip()
    text = re.split(r"\b(?:above|relative|over|rel)\b", text)[0].strip().rstrip(" (,")
    inside = re.fullmatch(r"[\[({]\s*(.*?)\s*[\])}]", text)
    text = inside[1] if inside else re.sub(r"\s*\([^()]*\)$", "", text)
    number = _SCALE.match(text)
    return (float(number[1]), text[number.end() :]) if number else (1.0, text)


def _temperature(text: str) -> str | None:
    """Return degC, K or degF for a text that is one of them in words, with a degree sign or none."""
    text = text.replace("\N{KELVIN SIGN}", "K").replace("\N{DEGREE CELSIUS}", "deg C")
    text = re.sub(r"([^\x00-\x7f]|[?*'])+\s*(?=[cfk])", "deg ", text, flags=re.I)
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    if re.fullmatch(r"[a-z\s._-]+", text) is None:
        return None
    words = re.findall("[a-z]+", _DEGREES.sub(" ", text))
    if len(words) != 1:
        return None
    for unit, spellings in _TEMPERATURES.items():
        near = len(words[0]) >= 5 and difflib.get_close_matches(words[0], spellings[1:], n=1, cutoff=0.8)
        if words[0] in spellings or near:
            return unit
    return None


def _simple(unit: str) -> Conversion | None:
    """Return the three most frequent conversions without loading pint, which takes half a second."""
    return Conversion(*_SIMPLE[unit]) if unit in _SIMPLE else None


def _by_pint(text: str) -> Conversion | None:
    """Return the conversion by pint, which reads UDUNITS; capitals are read as such, then as small letters."""
    if re.fullmatch(r"\W*deg(ree)?s?\W*", text, re.I):  # of what is not said
        return None
    spellings = dict.fromkeys((_temperature(text) or text, text.strip(" ."), text.lower().strip(" .")))
    found = [one for one in map(from_pint, spellings) if one is not None]
    return min(found, key=lambda one: one.kind == "other", default=None)


def from_pint(text: str) -> Conversion | None:
    """Return the conversion of units in pint's and UDUNITS' own spelling, None if it does not know them."""
    logging.getLogger("pint.util").setLevel(logging.ERROR)  # it warns of each unit that cf_xarray defines again
    from cf_xarray.units import units as registry

    if not text or text.isdigit() or not _is_short_work(text):
        return None
    try:
        unit = registry.parse_units(text)
        for kind, target in (("temperature", "degC"), ("length", "m")):
            if unit.is_compatible_with(target):
                low, high = registry.Quantity(np.array([0.0, 1.0]), unit).to(target).magnitude
                return Conversion(float(np.round(high - low, 12)), float(np.round(low, 9)), kind)
    except Exception:  # pint raises errors of many types, of Python's tokenizer too, on texts that are no units
        return None
    return Conversion(1.0, 0.0, "other") if str(unit) not in ("", "dimensionless") else None


def _is_short_work(text: str) -> bool:
    """Return whether units can be evaluated at once: powers of units and of ten, one of a bracket, no towers."""
    plain = len(_PLAIN_POWER.findall(text)) + min(1, len(_BRACKET_POWER.findall(text)))
    return len(text) <= _LONGEST and len(_POWER.findall(text)) == plain


def units_of(array: "xarray.DataArray", options: PrepareOptions) -> str:
    """Return the units of a variable as text: the user's, else the file's, empty if there are none."""
    given = options.units if options.units is not None else array.attrs.get("units", "")
    return plain_text(given)


def kind_of(array: "xarray.DataArray", quantity: str, units: Conversion | None) -> str:
    """Return the kind of a field: by the recipe's quantity, the names of the variable, and its units.

    Returns:
        `temperature` of the sea, `air` (any other temperature), `difference` of temperatures, `height`, `ellipsoid`
        (a height that includes the geoid), `salinity`, `velocity`, `chlorophyll`, or `any`.
    """
    name, standard = str(array.name).lower(), plain_text(array.attrs.get("standard_name", "")).lower()
    words = f"{standard} {plain_text(array.attrs.get('long_name', array.attrs.get('description', '')))} {name}".lower()
    if quantity == "any":
        named = (
            kind
            for kind in STANDARD_NAMES
            if standard in STANDARD_NAMES[kind] or (not standard and name in FIELD_NAMES[kind])
        )
        quantity = next(named, "any")
        if quantity == "any" and units is not None and units.kind == "temperature":
            quantity = "temperature"
        elif quantity == "any" and re.search(r"sea[ _](surface[ _](height|elevation)|level)|_ssh\b", words):
            quantity = "height" if units is None or units.kind == "length" else "any"
    if quantity == "temperature":
        if any(_DIFFERENCE.search(text) for text in (name, standard)) or "anomal" in words:
            return "difference"
        return "air" if _NO_SEA.search(words) and "sea" not in words and "sst" not in words else "temperature"
    if quantity == "height":
        return "ellipsoid" if "ellipsoid" in words else "height"
    for kind in ("salinity", "velocity", "chlorophyll"):
        if kind in standard and "error" not in standard:
            return kind
    return "any"
