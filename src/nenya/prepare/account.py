"""What is reported of each file: variable, units, level, dates and place, range of values, masked pixels."""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from nenya.options.commands import PrepareOptions
from nenya.prepare.geometry import Field

if TYPE_CHECKING:
    from nenya.prepare.fields import Layout

log = logging.getLogger(__name__)

TALLY = ("value_range", "pixels", "masked", "constant", "overshot")
"""Names in a part: smallest and largest value, pixels, JSON of reason -> masked pixels, two counts of cutouts."""


@dataclass
class Tally:
    """Counts of the fields of one granule, or of several.

    Attributes:
        low: smallest value that is kept.
        high: greatest one.
        pixels: all pixels.
        masked: reason -> masked pixels.
        constant: cutouts left out because all their pixels are equal.
        overshot: cutouts left out because filled pixels would have impossible values.
    """

    low: float = np.inf
    high: float = -np.inf
    pixels: int = 0
    masked: dict[str, int] = field(default_factory=dict)
    constant: int = 0
    overshot: int = 0

    def see(self, seen: Field) -> None:
        """Add a field."""
        self.pixels += seen.values.size
        self.low = min(self.low, float(np.fmin.reduce(seen.values, axis=None, initial=np.inf)))
        self.high = max(self.high, float(np.fmax.reduce(seen.values, axis=None, initial=-np.inf)))
        self._mask(seen.masked)

    def _mask(self, masked: Mapping[str, int]) -> None:
        for why, count in masked.items():
            self.masked[why] = self.masked.get(why, 0) + count

    def arrays(self) -> dict[str, Any]:
        """Return the arrays stored in a part."""
        values = (np.array([self.low, self.high]), np.array(self.pixels), np.array(json.dumps(self.masked)))
        return dict(zip(TALLY, (*values, np.array(self.constant), np.array(self.overshot)), strict=True))

    def add(self, part: Mapping[str, Any]) -> None:
        """Add a granule by its part, or nothing if an older version wrote it."""
        if TALLY[0] not in part:
            return
        low, high = (float(value) for value in part[TALLY[0]])
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.pixels += int(part[TALLY[1]])
        self._mask(json.loads(str(part[TALLY[2]])))
        self.constant += int(part[TALLY[3]])
        self.overshot += int(part[TALLY[4]])

    def merge(self, other: "Tally") -> None:
        """Add the counts of another."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.pixels += other.pixels
        self._mask(other.masked)
        self.constant += other.constant
        self.overshot += other.overshot

    def text(self, unit: str) -> str:
        """Return the range, the masked share, and its reasons."""
        if not self.pixels:
            return "no field was read"
        lost = sum(self.masked.values())
        reasons = [f"{why} {_percent(n, self.pixels)}" for why, n in self.masked.items() if n]
        share = f"{_percent(lost, self.pixels)} masked" + (f" ({', '.join(reasons)})" if reasons else "")
        constant = f"; {self.constant} constant cutouts left out" if self.constant else ""
        if self.overshot:
            constant += f"; {self.overshot} cutouts left out for impossible filled pixels"
        values = f"{self.low:.4g} to {self.high:.4g} {unit}".strip() if np.isfinite(self.low) else "no value is left"
        return f"{values}, {share}{constant}"


def _percent(part: int, total: int) -> str:
    share = 100 * part / total
    return f"{share:.1f} %" if part in (0, total) or 0.05 <= share < 99.95 else f"{part} of {total} pixels"


@dataclass
class Account:
    """What is reported of one file.

    Attributes:
        about: variable, units, level, dates, and what masks it.
        unit: of the values in the table.
        tally: of its granules.
        notes: further sentences, each once.
        cutouts: number of its cutouts.
    """

    about: str = ""
    unit: str = ""
    tally: Tally = field(default_factory=Tally)
    notes: list[str] = field(default_factory=list)
    cutouts: int = 0

    def describe(self, layout: "Layout", options: PrepareOptions) -> None:
        """Describe a file by the layout of its fields."""
        self.unit = layout.range.unit
        self.about = "; ".join([f"recipe {options.recipe}", *descriptions(layout).values()])

    def add(self, part: Mapping[str, Any]) -> None:
        """Add a granule by its part."""
        self.tally.add(part)
        self.cutouts += len(part["UID"])

    def lines(self, name: str) -> list[str]:
        """Return the two lines on a file."""
        return [f"{name}: {self.about}", f"{name}: {self.tally.text(self.unit)}"] if self.about else []


def descriptions(layout: "Layout") -> dict[str, str]:
    """Return what is taken from a file as words: variable, units, level, dates and masks."""
    given = f"'{layout.range.units}'" if layout.range.units else "no units"
    found = {"variable": f"'{layout.variable}' in {given}"}
    if layout.range.unit and layout.range.unit != layout.range.units:
        found["variable"] += f", converted to {layout.range.unit}"
    if level := level_text(layout):
        found["level"] = level
    first, last = (np.datetime_as_string(time, "m") for time in (min(layout.times), max(layout.times)))
    found["time"] = first if len(layout.times) == 1 else f"{len(layout.times)} times from {first} to {last}"
    found["masks"] = ", ".join(layout.masks.words) or "no quality or mask used"
    return found


def level_text(layout: "Layout") -> str:
    """Return the vertical level in words, empty if there is one only."""
    name = layout.level_dim
    if name is None:
        return ""
    index, values = layout.level, layout.dataset.variables.get(name)
    at = f" ({float(np.ravel(values)[index]):g})" if values is not None and values.ndim == 1 else ""
    return f"level {index} of {name}{at}"


def merged(accounts: Iterable[Account]) -> Account:
    """Return the account of a file after processes shared its times."""
    whole = Account()
    for one in accounts:
        whole.about, whole.unit = one.about or whole.about, one.unit or whole.unit
        whole.tally.merge(one.tally)
        whole.cutouts += one.cutouts
        whole.notes += [note for note in one.notes if note not in whole.notes]
    return whole


def masked_words(accounts: Iterable[Account]) -> str:
    """Return the end of an error on files without a cutout: what is left of them, and why."""
    whole = merged(accounts)
    return f"; {whole.tally.text(whole.unit)}" if any(whole.tally.masked.values()) else ""


def say_account(name: str, account: Account) -> None:
    """Log what was found in a file, and what may be wrong with it."""
    for line in account.lines(name):
        log.info("%s", line)
    for note in account.notes:
        log.warning("%s: %s", name, note)
