"""Places of requested cutouts, and the outcome of each.

Letters: n places.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nenya.options.commands import PrepareOptions

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

NO_GRANULE, TOO_FAR, OUTSIDE, MASKED, HOLES, FOUND = range(6)
"""Stages of a place on the way to a cutout; the furthest stage in any granule counts."""

ARRAYS = ("place", "place_state", "place_clear")
"""Names in a part: numbers of the places near its time, their stages, their clear shares."""

_SHOWN = 5


@dataclass(frozen=True)
class Places:
    """Places and times of requested cutouts.

    Attributes:
        lat_lon: (n, 2) degrees.
        times: (n,) datetime64[us], UTC.
    """

    lat_lon: NDArray[np.float64]
    times: NDArray[np.datetime64]


class Fates:
    """The outcomes of places.

    Args:
        numbers: (n,) of the places, rising.

    Attributes:
        state: (n,) NO_GRANULE to FOUND.
        clear: (n,) largest share of clear pixels of a possible cutout, NaN if there is none.
    """

    def __init__(self, numbers: NDArray[np.integer], state: int = NO_GRANULE) -> None:
        self.numbers = numbers
        self.state = np.full(len(numbers), state, np.int64)
        self.clear = np.full(len(numbers), np.nan)

    def reach(self, numbers: NDArray[np.integer], state: int | NDArray[np.int64]) -> None:
        """Set the stage of places, unless they reached a later one before."""
        where = np.searchsorted(self.numbers, numbers)
        np.maximum.at(self.state, where, state)

    def see(self, numbers: NDArray[np.integer], clear: NDArray[np.float64]) -> None:
        """Update the largest clear share of places."""
        np.fmax.at(self.clear, np.searchsorted(self.numbers, numbers), clear)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays stored in a part."""
        return dict(zip(ARRAYS, (self.numbers, self.state, self.clear), strict=True))


def read_fates(parts: Iterable[Path], places: Places) -> Fates:
    """Return the outcomes of all places from the granules of the parts."""
    fates = Fates(np.arange(len(places.times)))
    for part in parts:
        with np.load(part) as found:
            if ARRAYS[0] in found.files:
                fates.reach(found[ARRAYS[0]], found[ARRAYS[1]])
                fates.see(found[ARRAYS[0]], found[ARRAYS[2]])
    return fates


def reasons(options: PrepareOptions) -> dict[int, str]:
    """Return the reasons, by stage, why places have no cutout."""
    return {
        NO_GRANULE: f"no granule within max_hours={options.max_hours:g}",
        TOO_FAR: f"no pixel within max_km={options.max_km:g}",
        OUTSIDE: "the cutout would leave the field",
        MASKED: f"fewer clear pixels than clear_threshold={options.clear_threshold:g} %",
        HOLES: f"masked pixels are left (inpaint={options.inpaint})",
    }


def summary(fates: Fates, options: PrepareOptions) -> str:
    """Return the number of places without a cutout for each reason."""
    counts = {why: int((fates.state == state).sum()) for state, why in reasons(options).items()}
    return "; ".join(f"{count}: {why}" for why, count in counts.items() if count)


def missing_table(fates: Fates, places: Places, options: PrepareOptions) -> "pd.DataFrame":
    """Return the places without a cutout: at_index (row of `at`), lat, lon, datetime, why, clear_fraction."""
    import pandas as pd

    rows = np.flatnonzero(fates.state < FOUND)
    words = reasons(options)
    return pd.DataFrame(
        {
            "at_index": rows,
            "lat": places.lat_lon[rows, 0],
            "lon": places.lat_lon[rows, 1],
            "datetime": places.times[rows],
            "why": [words[state] for state in fates.state[rows]],
            "clear_fraction": fates.clear[rows],
        }
    )


def log_missing(missing: "pd.DataFrame", fates: Fates, options: PrepareOptions, path: Path | str) -> None:
    """Log the number of places with a cutout, and which ones have none for which reason."""
    total = len(fates.state)
    log.info("%d of %d places of at= have a cutout", total - len(missing), total)
    if len(missing):
        rows = ", ".join(map(str, missing["at_index"][:_SHOWN])) + (", ..." if len(missing) > _SHOWN else "")
        log.warning(
            "%d have none (%s): rows %s of at=; all are in %s", len(missing), summary(fates, options), rows, path
        )
