"""Check of a file of torch.save by its opcodes, before it is read, and its options as plain values.

Nothing in the file is executed or created. torch's own reader with `weights_only=True` runs no code, but allocates
whatever size a file states.
"""

import io
import logging
import pickletools
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any

from torch.serialization import get_safe_globals

from nenya.errors import CheckpointError
from nenya.models.stand_ins import StandIn

log = logging.getLogger(__name__)

_MOST_OPCODES = 2_000_000
_MOST_PICKLE = 64 * 2**20  # bytes; weights are stored apart
_MOST_RECORDS = 100_000
_MOST_IN_TUPLE = 10_000  # values, nested ones counted each time they occur
_LEGACY_PICKLES = 5  # magic number, version, machine, the object, keys of its storages
_REBUILDS = tuple(f"torch._utils._rebuild_{name}" for name in (
    "tensor", "tensor_v2", "tensor_v3", "parameter", "parameter_with_state"))  # fmt: skip
_CALLS = (
    *_REBUILDS,
    *(
        "collections.OrderedDict",
        "collections.Counter",
        "collections.defaultdict",
        "_codecs.encode",
        "torch.Size",
        "torch.device",
    ),
    *("torch.serialization._get_layout", "torch.nn.parameter.Parameter", "torch._tensor._rebuild_from_type_v2"),
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("set", "complex", "bytearray")),
)
_KNOWN = ("torch.", "collections.", "builtins.", "__builtin__.", "_codecs.")
_BYTES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1}

_DEPTH = 20
_VALUES = 100_000
_BITS = 64
_LETTERS = 1000  # characters kept of other values


@dataclass(frozen=True)
class _Name:
    """A class or function."""

    name: str


@dataclass(frozen=True)
class _Made:
    """An object: its constructor, its first values, and its number of values if it can be a key of a dictionary."""

    by: str = ""
    items: tuple[Any, ...] = ()
    size: int = 1


def check_torch_file(path: Path) -> None:
    """Check that reading a file of torch.save takes memory and time in proportion to its size.

    Args:
        path: a `.pth` or `.ckpt`, as a zip archive or in the format before that.

    Raises:
        CheckpointError: It needs more, or holds tensors that are not plain weights.
        Exception: It is damaged; the type depends on the damage.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
        if not zipped:
            file.seek(0)
            _check_legacy(path, file)
            return
    with zipfile.ZipFile(path) as archive:
        _check_records(path, archive)
        for record in archive.infolist():
            if record.filename.endswith(".pkl"):
                if record.CRC == 0:
                    del record.CRC  # otherwise it is compared
                _Scan(path, path.stat().st_size).run(io.BytesIO(archive.read(record)))


def check_sizes(path: Path) -> None:
    """Check a file like `check_torch_file`; damage is left to the reader to report.

    Raises:
        CheckpointError: It needs more memory than its size.
    """
    try:
        check_torch_file(path)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file can raise anything
        log.debug("%s: %s", path, error)


def _check_records(path: Path, archive: zipfile.ZipFile) -> None:
    """Check the sizes that an archive states and, unlike torch, its checksums, if it has them."""
    records = archive.infolist()
    names = {record.filename for record in records}
    if len(names) < len(records) or len(records) > _MOST_RECORDS:
        raise CheckpointError(f"checkpoint {path} is refused: it has records of the same name, or too many records")
    packed = [record.filename for record in records if record.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise CheckpointError(
            f"checkpoint {path} is refused: its record {packed[0][:60]} is compressed, which torch.save does not do"
        )
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise CheckpointError(f"checkpoint {path} is damaged: its records are larger than the file. Copy it again")
    large = [r.filename for r in records if r.filename.endswith(".pkl") and r.file_size > _MOST_PICKLE]
    if large:
        raise CheckpointError(f"checkpoint {path} is refused: its record {large[0][:60]} is larger than {_MOST_PICKLE}")
    for record in records:
        if record.CRC == 0:  # torch can write files without checksums
            continue
        with archive.open(record) as file:
            while file.read(1 << 20):
                pass


def _check_legacy(path: Path, file: IO[bytes]) -> None:
    reader = _Reader(file, min(path.stat().st_size, _MOST_PICKLE))
    scans = [_Scan(path, path.stat().st_size) for _ in range(_LEGACY_PICKLES)]
    for scan in scans:
        scan.run(reader)
    if not set(scans[-2].storages) <= scans[-1].texts:  # torch would leave those uninitialised
        raise CheckpointError(f"checkpoint {path} is damaged: it lacks some of its weights. Copy it again")


def _name_of(allowed: Any) -> str:
    """Return the name under which a class is registered with torch."""
    return str(allowed[1]) if isinstance(allowed, tuple) else f"{allowed.__module__}.{allowed.__qualname__}"


class _Reader:
    """A file that never returns more than it holds, whatever length is requested."""

    def __init__(self, file: IO[bytes], left: int) -> None:
        self.file, self.left = file, left

    def read(self, count: int) -> bytes:
        data = self.file.read(min(max(count, 0), self.left))
        self.left -= len(data)
        return data

    def readline(self) -> bytes:
        data = self.file.readline(self.left)
        self.left -= len(data)
        return data

    def tell(self) -> int:
        return self.file.tell()


class _Scan:
    """The stack of a pickle, of names and sizes instead of objects.

    Args:
        path: for messages.
        most: largest total of bytes of the storages.
    """

    def __init__(self, path: Path, most: int) -> None:
        self.path, self.most = path, most
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[Any, Any] = {}
        self.storages: dict[Any, int] = {}
        self.bytes = 0
        self.texts: set[str] = set()
        self.registered = set(map(_name_of, get_safe_globals()))

    def run(self, file: Any) -> None:
        """Go through one pickle."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count > _MOST_OPCODES:
                self._refuse("it has too many opcodes")
            special = getattr(self, f"_{opcode.name.lower()}", None)
            if special is not None:
                special(argument)
            elif "GET" in opcode.name:
                self.stack.append(self.memo[argument])
            elif "PUT" in opcode.name:
                self.memo[argument] = self.stack[-1]
            else:
                self._general(opcode, argument)

    def _general(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Apply the effect of an opcode on the stack."""
        for wanted in reversed(opcode.stack_before):
            if wanted is pickletools.stackslice:
                self._since_mark()
            elif wanted is not pickletools.markobject:
                self.stack.pop()
        if isinstance(argument, str):
            self.texts.add(argument)
        self.stack += len(opcode.stack_after) * [argument if isinstance(argument, str | int) else _Made()]

    def _since_mark(self) -> list[Any]:
        place = self.marks.pop()
        items = self.stack[place:]
        del self.stack[place:]
        return items

    def _refuse(self, why: str) -> None:
        raise CheckpointError(f"checkpoint {self.path} is refused: {why}; ask its authors for a .safetensors file")

    def _refuse_name(self, name: str) -> None:
        raise CheckpointError(
            f"checkpoint {self.path} is refused: it would load {name[:80]}, which could run code; nothing was "
            "executed. Ask its authors for a .safetensors file"
        )

    # One method for each inspected opcode, by its name in `pickletools`.

    def _mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def _global(self, argument: Any) -> None:
        self._named(str(argument).replace(" ", "."))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._named(f"{module}.{name}")

    def _named(self, name: str) -> None:
        if not name.startswith(_KNOWN) and name not in self.registered:
            self._refuse_name(name)
        self.stack.append(_Name(name))

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _tuple(self, _: Any) -> None:
        self._tuple_of(self._since_mark())

    def _tuple1(self, _: Any) -> None:
        self._tuple_of([self.stack.pop()])

    def _tuple2(self, _: Any) -> None:
        second, first = self.stack.pop(), self.stack.pop()
        self._tuple_of([first, second])

    def _tuple3(self, _: Any) -> None:
        third, second, first = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self._tuple_of([first, second, third])

    def _tuple_of(self, items: list[Any]) -> None:
        size = 1 + sum(getattr(item, "size", 1) for item in items)
        if size > _MOST_IN_TUPLE:
            self._refuse("it has a tuple with too many nested values")
        self.stack.append(_Made("tuple", tuple(items[:8]), size))

    def _binpersid(self, _: Any) -> None:
        found = self.stack.pop()
        if isinstance(found, _Made) and len(found.items) >= 5 and found.items[0] in ("storage", b"storage"):
            kind, key, _, count = found.items[1:5]
            name = str(getattr(kind, "name", "")).rpartition(".")[2].removesuffix("Storage")
            if isinstance(count, int) and not isinstance(key, _Made) and key not in self.storages:
                self.storages[key] = count * _BYTES.get(name, 1)
                self.bytes += abs(self.storages[key])
            if self.bytes > self.most:
                raise CheckpointError(
                    f"checkpoint {self.path} is damaged: its weights are larger than the file. Copy it again"
                )
        self.stack.append(_Made("storage"))

    def _reduce(self, _: Any) -> None:
        values, maker = self.stack.pop(), self.stack.pop()
        self._make(maker, values)

    def _newobj(self, _: Any) -> None:
        self._reduce(None)

    def _build(self, _: Any) -> None:
        self.stack.pop()
        if getattr(self.stack[-1], "by", "").startswith("torch._utils."):
            self._refuse("it modifies tensors after creating them")

    def _make(self, maker: Any, values: Any) -> None:
        name = maker.name if isinstance(maker, _Name) else ""
        items = values.items if isinstance(values, _Made) else ()
        kind = next((kind for kind in ("sparse", "nested", "meta", "quantized") if kind[:5] in name), "")
        if kind or name == "torch._utils._rebuild_qtensor":
            self._refuse(f"it holds {kind or 'quantized'} tensors, but weights are dense tensors")
        if name.startswith(_KNOWN) and name not in _CALLS:
            self._refuse_name(name)
        if name.endswith("bytearray") and items and isinstance(items[0], int):
            self._refuse("it allocates memory that it does not fill")
        if name.endswith("_from_type_v2") and not (items and getattr(items[0], "name", "") in _REBUILDS):
            self._refuse_name(name)
        self.stack.append(_Made(name or "call"))


PARAMS_NAMES = (
    "nenya.params.Params",
    "nenya.io.Params",
    "ulmo.io.Params",
    "ulmo.nenya.train_util.Params",
    "ulmo.ssl.train_util.Params",
    "__main__.Params",
)
"""Every name under which the options class of the users' checkpoints has been pickled."""


class ParamsStub:
    """Stub for the pickled options: accepts attributes, does nothing."""


def plain_options(options: Any) -> dict[str, Any]:
    """Turn options of any kind into a dictionary of plain types.

    Raises:
        ValueError: They contain themselves, are nested too deeply, or have too many values.
    """
    plain = _Plain().value(options, 0)
    return plain if isinstance(plain, dict) else {}


class _Plain:
    """Counts the values, because a file may refer to one list many times, within others referred to likewise."""

    def __init__(self) -> None:
        self.count = 0

    def value(self, value: Any, depth: int) -> Any:
        """Turn a value into None, bool, int, float, str, or lists and dictionaries of these."""
        self.count += 1
        if depth > _DEPTH or self.count > _VALUES:
            raise ValueError(f"its options have more than {_VALUES:,} values, or more than {_DEPTH} levels")
        if isinstance(value, str):
            self.count += len(value) // 100
        elif isinstance(value, int) and value.bit_length() > _BITS:
            raise ValueError(f"its options have an integer of more than {_BITS} bits")
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, ParamsStub):
            value = vars(value)
        if isinstance(value, StandIn):
            return self.value(value.plain(), depth + 1)
        if isinstance(value, Mapping):
            return {_key(key): self.value(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.value(item, depth + 1) for item in value]
        if getattr(value, "ndim", None) == 0:
            return _number(value)
        return _text(value)


def _number(value: Any) -> Any:
    """Return the value of a zero-dimensional array or tensor; without a value, its type as text."""
    try:
        found = value.item()
    except (RuntimeError, NotImplementedError, ValueError):
        return _text(value)
    return found if type(found) in (bool, int, float) else _text(found)


def _key(key: Any) -> str:
    return str(key) if isinstance(key, str | int | float) or key is None else _text(key)


def _text(value: Any) -> str:
    """Return a text for a value of another type; only the type if it may be large."""
    small = isinstance(value, str | int | float | complex | PurePath) or type(value).__module__ == "torch"
    if small and not hasattr(value, "shape") and not isinstance(value, type):
        return str(value)[:_LETTERS]
    if isinstance(value, bytes) and len(value) <= _LETTERS:
        return str(value)
    return f"a {type(value).__name__}"
