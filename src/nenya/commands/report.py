"""The report of `nenya inspect` on a file."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class FileReport:
    """Report on a file.

    Attributes:
        kind: the kind of file, in words.
        lines: its contents.
        warnings: problems to expect.
        sheet: cutouts for a contact sheet, (n, 1, H, W); None if there are none.
        facts: for other commands: `layout` and architecture of a checkpoint; `columns` of a table and
            whether `clear_fraction` is the `masked_share`; and `frame`, what is up in the sheet if it is not north.
    """

    kind: str
    lines: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    sheet: NDArray[np.float32] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
