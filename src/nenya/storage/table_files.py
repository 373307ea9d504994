"""The memory that a table needs, estimated from its headers before it is read: .parquet, .csv, .feather.

A page or dictionary of a few bytes can represent any number of rows, so the file size alone says nothing.
"""

import csv
import io
import mmap
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nenya.errors import InputFileError
from nenya.storage.small_files import check_regular
from nenya.storage.texts import first_words, visible

if TYPE_CHECKING:
    import pandas as pd

MOST_COLUMNS = 5000
NUMBERS = ("lat", "lon")
"""Columns that must be numeric in every table of cutouts."""

_LEAST = 2**28  # bytes of memory that any table may need
_RATIO = 200  # times its file size that a table may need beyond that
_FIRST_ROWS = 2**22  # bytes in which the header and the first row of a .csv must end
_BATCH = 2**14  # rows
_FEW = 2**8  # rows of strings, each of its full length
_WIDTHS = {"BOOLEAN": 8, "INT32": 8, "INT64": 8, "INT96": 12, "FLOAT": 8, "DOUBLE": 8, "BYTE_ARRAY": 16}
_GROWING = {"RLE_DICTIONARY", "PLAIN_DICTIONARY", "DELTA_BYTE_ARRAY"}
"""Encodings in which one string may represent many."""


def check_table(path: Path, most: int | None = None) -> None:
    """Check that a table is a regular file and that its rows fit into memory, before they are read.

    Args:
        path: .csv, .feather, or else .parquet.
        most: bytes of memory that it may need; default 200 times its size and at least 256 MiB, at most half of the
            free memory.

    Raises:
        InputFileError: It needs more, has too many columns, or is damaged.
    """
    from nenya.storage.process import available_memory

    check_regular(path, "a table")
    size = path.stat().st_size
    limit = min(max(_LEAST, _RATIO * size), available_memory() // 2) if most is None else most
    check = {".csv": _csv_bytes, ".feather": _feather_bytes}.get(path.suffix, _parquet_bytes)
    total = 0
    try:
        for taken in check(path, limit):
            total += taken
            if taken < 0 or total > limit:
                raise InputFileError(
                    f"{path}: this table of {size / 1e6:.3g} MB needs more than {limit / 1e9:.2g} GB of memory: "
                    "create it again from its data, or split it"
                )
    except InputFileError:
        raise
    except Exception as error:  # pyarrow and struct raise any exception for a damaged file
        first = first_words(str(error).strip() or type(error).__name__)
        raise InputFileError(f"{path}: cannot be read as a table ({first}); copy or create it again") from error


def check_numbers(table: "pd.DataFrame", place: object) -> "pd.DataFrame":
    """Return a table with numeric latitudes and longitudes; strings of numbers are converted.

    Args:
        table: any.
        place: its path, for the message.

    Raises:
        InputFileError: A value is not a number, or a column occurs twice.
    """
    import pandas as pd

    _check_once(place, [str(name) for name in table.columns])
    for name in NUMBERS:
        if name not in table.columns or table[name].dtype.kind in "iuf":
            continue
        column = table[name]
        found = pd.to_numeric(column.astype(object), errors="coerce") if column.dtype.kind not in "mMbc" else None
        if found is None or (found.isna() & column.notna()).any():
            row = 0 if found is None else int((found.isna() & column.notna()).to_numpy().argmax())
            value = visible(str(column.iloc[row])[:60]) if len(column) else "nothing"
            raise InputFileError(
                f"{place}: expected degrees in the column {name}, got {value!r} in row {row}; write numbers there"
            )
        table = table.assign(**{name: found.astype("float64")})
    return table


def _check_once(place: object, names: list[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputFileError(f"{place}: the column {visible(twice[0])} occurs twice; rename or remove one")


def check_arrow(table: Any, place: object) -> Any:
    """Return an Arrow table with numeric latitudes and longitudes, as `check_numbers` does."""
    import pyarrow as pa

    _check_once(place, table.column_names)
    for position, field in enumerate(table.schema):
        if field.name in NUMBERS and not (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)):
            checked = check_numbers(table.select([position]).to_pandas(), place)
            table = table.set_column(position, field.name, pa.array(checked[field.name], from_pandas=True))
    return table


# .csv


def _csv_bytes(path: Path, limit: int) -> Iterator[int]:
    """Check the columns of the header and of the first row, which determine the cost of reading."""
    with path.open("rb") as file:
        head = file.read(_FIRST_ROWS)
    text = io.StringIO(head.decode("utf-8", "replace"), newline="")
    # The csv module itself refuses a field of some hundred thousand characters.
    rows = csv.reader(text)
    for what in ("header", "first row"):
        try:
            count = len(next(rows, []))
        except csv.Error as error:
            raise InputFileError(f"{path}: cannot be read as a table ({error} in its {what})") from error
        _check_columns(path, count)
    if len(head) == _FIRST_ROWS and text.tell() >= len(text.getvalue()):
        raise InputFileError(
            f"{path}: expected the header and first row within {_FIRST_ROWS:,} bytes; check that this is a .csv table"
        )
    yield path.stat().st_size


def _check_columns(path: Path, count: int) -> None:
    if count > MOST_COLUMNS:
        raise InputFileError(f"{path}: expected at most {MOST_COLUMNS:,} columns, got {count:,}")


# .parquet


def _parquet_bytes(path: Path, limit: int) -> Iterator[int]:
    """Yield the bytes of memory that the parts of a .parquet need, those of its strings last."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file, path.open("rb") as raw:
        about = file.metadata
        _check_columns(path, about.num_columns)
        _check_once(path, file.schema_arrow.names)
        texts: dict[str, int] = {}
        with mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for group in range(about.num_row_groups):
                for number in range(about.num_columns):
                    chunk = about.row_group(group).column(number)
                    fixed = file.schema.column(number).length
                    width = fixed if chunk.physical_type == "FIXED_LEN_BYTE_ARRAY" else _WIDTHS[chunk.physical_type]
                    yield width * chunk.num_values
                    plain = sum(_page_sizes(data, chunk))
                    yield plain
                    if chunk.physical_type == "BYTE_ARRAY" and _GROWING & set(chunk.encodings):
                        name = chunk.path_in_schema
                        texts[name] = texts.get(name, 0) + plain * chunk.num_values
        for name, at_most in texts.items():
            if at_most > limit // 8:
                yield from _text_bytes(path, file, name, at_most)


def _text_bytes(path: Path, file: Any, name: str, at_most: int) -> Iterator[int]:
    """Yield the bytes of the strings of a column, each read once however often it occurs."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if "." in name and name not in file.schema_arrow.names:  # in lists, which are not read as dictionaries
        yield at_most
        return
    try:
        with pq.ParquetFile(path, read_dictionary=[name]) as column:
            for batch in column.iter_batches(batch_size=_BATCH, columns=[name]):
                found = batch.column(0)
                lengths = pc.take(pc.binary_length(found.dictionary), found.indices)
                yield int(pc.sum(lengths).as_py() or 0)
    except pa.ArrowNotImplementedError:  # an encoding without a dictionary
        for batch in file.iter_batches(batch_size=_FEW, columns=[name]):
            yield batch.nbytes


def _page_sizes(data: Any, chunk: Any) -> Iterator[int]:
    """Yield the unpacked bytes of the pages of a column chunk, as declared in each page header."""
    starts = [place for place in (chunk.dictionary_page_offset, chunk.data_page_offset) if place]
    place, end = min(starts), min(starts) + chunk.total_compressed_size
    if not 0 < place < end <= len(data):
        raise ValueError("a column lies outside the file")
    while place < end:
        header = _Compact(data, place)
        sizes = header.fields()
        if sizes.get(3, -1) < 0 or sizes.get(2, -1) < 0:
            raise ValueError("a page without a size")
        yield sizes[2]
        place = header.place + sizes[3]


class _Compact:
    """A reader of Thrift's compact protocol, limited to the integers at the top level of a structure."""

    def __init__(self, data: Any, place: int) -> None:
        self.data, self.place = data, place

    def fields(self, depth: int = 0) -> dict[int, int]:
        """Read a structure; return its integers by field number."""
        found: dict[int, int] = {}
        field = 0
        while kind := self._byte():
            delta, kind = kind >> 4, kind & 15
            field = field + delta if delta else self._signed()
            if kind in (4, 5, 6):
                found[field] = self._signed()
            else:
                self._skip(kind, depth + 1)
        return found

    def _skip(self, kind: int, depth: int) -> None:
        if depth > 20:
            raise ValueError("a page header is nested too deeply")
        if kind == 3:
            self.place += 1
        elif kind == 7:
            self.place += 8
        elif kind == 8:
            length = self._number()
            self.place += length
        elif kind in (9, 10):
            self._skip_list(depth)
        elif kind == 12:
            self.fields(depth)
        elif kind not in (1, 2):
            raise ValueError("a page header is damaged")

    def _skip_list(self, depth: int) -> None:
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._number()
        if count > len(self.data):
            raise ValueError("a page header is damaged")
        for _ in range(count):
            if head & 15 in (4, 5, 6):
                self._signed()
            elif head & 15 in (1, 2):
                self.place += 1
            else:
                self._skip(head & 15, depth + 1)

    def _byte(self) -> int:
        if not 0 <= self.place < len(self.data):
            raise ValueError("a page header is truncated")
        self.place += 1
        return int(self.data[self.place - 1])

    def _number(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a page header is damaged")

    def _signed(self) -> int:
        value = self._number()
        return (value >> 1) ^ -(value & 1)


# .feather


def _feather_bytes(path: Path, limit: int) -> Iterator[int]:
    """Yield the bytes of memory that the batches of an Arrow file need, from the lengths before packed buffers."""
    import pyarrow as pa

    with path.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] == b"FEA1":  # the first version, which is never compressed
            yield len(data)
            return
        (length,) = struct.unpack_from("<i", data, len(data) - 10)
        footer = _Flat.root(data, len(data) - 10 - length)
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as file:
            _check_columns(path, len(file.schema))
            _check_once(path, file.schema.names)
            columns = sum(_leaves(field.type) for field in file.schema)
        for which in (2, 3):  # dictionaries, batches
            for block in footer.structures(which, 24):
                yield from _batch_bytes(data, block, columns)


def _leaves(kind: Any) -> int:
    """Return how many arrays a type consists of; types in which one value may represent many are refused."""
    import pyarrow as pa

    views = any(getattr(pa.types, f"is_{name}", lambda _: False)(kind)
                for name in ("run_end_encoded", "list_view", "large_list_view"))  # fmt: skip
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    if views or any(pa.types.is_null(of) for of in inner):
        raise ValueError(f"unsupported column type {kind}")
    return 1 + sum(map(_leaves, inner))


def _batch_bytes(data: Any, block: int, columns: int) -> Iterator[int]:
    start, about, _ = struct.unpack_from("<qi4xq", data, block)
    prefix = 8 if data[start : start + 4] == b"\xff\xff\xff\xff" else 4
    message = _Flat.root(data, start + prefix)
    batch = message.table(2)
    if message.number(1, "<B") == 2:  # a dictionary stores its values as a batch
        batch = batch.table(1)
    rows = batch.number(0, "<q")
    yield rows * 8 * columns
    packed = batch.place_of(3) is not None
    for place in batch.structures(2, 16):
        offset, length = struct.unpack_from("<qq", data, place)
        body = start + about + offset
        if offset < 0 or length < 0 or body + length > len(data):
            raise ValueError("a buffer lies outside the file")
        if packed and length >= 8:
            (unpacked,) = struct.unpack_from("<q", data, body)
            yield length if unpacked == -1 else unpacked
        else:
            yield length


class _Flat:
    """A FlatBuffers table."""

    def __init__(self, data: Any, place: int) -> None:
        self.data, self.place = data, place

    @classmethod
    def root(cls, data: Any, place: int) -> "_Flat":
        """Return the table at the start of a buffer."""
        return cls(data, place + struct.unpack_from("<I", data, place)[0])

    def place_of(self, field: int) -> int | None:
        """Return the position of a field's value; None if it has none."""
        table = self.place - struct.unpack_from("<i", self.data, self.place)[0]
        (size,) = struct.unpack_from("<H", self.data, table)
        if 4 + 2 * field >= size:
            return None
        (offset,) = struct.unpack_from("<H", self.data, table + 4 + 2 * field)
        return self.place + offset if offset else None

    def number(self, field: int, form: str) -> int:
        """Return a number, 0 if it is absent."""
        place = self.place_of(field)
        return 0 if place is None else int(struct.unpack_from(form, self.data, place)[0])

    def table(self, field: int) -> "_Flat":
        """Return a table within this one."""
        place = self.place_of(field)
        if place is None:
            raise ValueError("a message has no header")
        return _Flat.root(self.data, place)

    def structures(self, field: int, size: int) -> Iterator[int]:
        """Yield the positions of the structures of a list."""
        place = self.place_of(field)
        if place is None:
            return
        place += struct.unpack_from("<I", self.data, place)[0]
        (count,) = struct.unpack_from("<I", self.data, place)
        if count * size > len(self.data):
            raise ValueError("a list is longer than the file")
        yield from range(place + 4, place + 4 + count * size, size)
