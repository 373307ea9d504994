"""Lance: a LanceDB table of latents and columns, which LanceDB searches as it is."""

from pathlib import Path
from typing import Any

import numpy as np

from nenya.latents.index import TABLE, connect
from nenya.latents.index_rows import VECTOR
from nenya.publish.encoding import SCALE, Encoded
from nenya.publish.rows import Block, Rows

FOLDER = "lance"
MEDIA_TYPE = "application/x-lance"


class LanceWriter:
    """Writes published rows as the table `latents` of a LanceDB database.

    Args:
        folder: the database.
        rows: to be written.
        dtype: type of the stored latents.
        about: texts for its metadata, under their names.

    Raises:
        OptionError: LanceDB is not installed.
    """

    def __init__(self, folder: Path, rows: Rows, dtype: str, about: dict[str, str]) -> None:
        import pyarrow as pa

        fields = [pa.field(VECTOR, pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), rows.dim))]
        fields += [pa.field(SCALE, pa.float32())] if dtype == "int8" else []
        self._schema = pa.schema([*rows.table.schema, *fields], metadata=about)
        self._table: Any = connect(folder).create_table(TABLE, schema=self._schema)

    def add(self, block: Block, encoded: Encoded) -> None:
        """Write the rows of a block."""
        import pyarrow as pa

        flat = pa.array(np.ascontiguousarray(encoded.values).reshape(-1))
        columns = [*block.table.columns, pa.FixedSizeListArray.from_arrays(flat, encoded.values.shape[1])]
        columns += [pa.array(encoded.scale)] if encoded.scale is not None else []
        self._table.add(pa.table(columns, schema=self._schema))

    def close(self) -> None:
        """Do nothing: each block is complete."""

    def abort(self) -> None:
        """Do nothing: no file is open."""
