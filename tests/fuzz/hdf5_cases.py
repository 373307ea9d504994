"""Damaged and hostile cutout files, made from a seed, and what a reader may do with each.

`make_case(seed, folder)` writes one file, `judge` reads it with nenya and compares; `runner` does so in processes of
their own.

A reader may give every pixel as it was written, or refuse the file in one line. Where bytes carry no checksum
(plain storage; LZF) and the damage hit them, it may give what the bytes now say.
"""

import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

ROWS = {"train": 60, "valid": 22}
SIDE = 16

LAYOUTS = {
    "contiguous": {},
    "big-endian": {"dtype": ">f4"},
    "float64": {"dtype": "<f8"},
    "float16": {"dtype": "<f2", "chunks": (16, 1, 16, 16)},
    "automatic gzip": {"compression": "gzip"},
    "gzip": {"compression": "gzip", "chunks": (25, 1, 8, 8)},
    "gzip by row": {"compression": "gzip", "chunks": (1, 1, 16, 16)},
    "shuffled gzip": {"compression": "gzip", "shuffle": True, "chunks": (16, 1, 16, 16)},
    "checked gzip": {"compression": "gzip", "shuffle": True, "fletcher32": True, "chunks": (16, 1, 8, 16)},
    "checked": {"fletcher32": True, "chunks": (16, 1, 8, 16)},
    "lzf": {"compression": "lzf", "chunks": (25, 1, 16, 16)},
    "checked lzf": {"compression": "lzf", "shuffle": True, "fletcher32": True, "chunks": (25, 1, 16, 16)},
    "chunked": {"chunks": (25, 1, 8, 8)},
    "growing": {"compression": "gzip", "chunks": (16, 1, 16, 16), "maxshape": (None, 1, 16, 16)},
}


@dataclass
class Case:
    """One file.

    Attributes:
        seed: what it was made from.
        family: kind of damage.
        description: the damage.
        path: the file.
        pixels: partition -> what its stored bytes say, (N, H, W) float32; None where no pixel may be given.
        free: partition -> pixels that no checksum protects and that were hit, (N, H, W) bool.
        must: "refuse", "read", or "either".
    """

    seed: int
    family: str
    description: str
    path: Path
    pixels: dict[str, np.ndarray] = field(default_factory=dict)
    free: dict[str, np.ndarray] = field(default_factory=dict)
    must: str = "refuse"
    parts: list["Region"] = field(default_factory=list)


def truth(name: str, rows: int | None = None) -> np.ndarray:
    """Return the pixels (N, H, W), float32, that float16 holds exactly."""
    rng = np.random.default_rng({"train": 1, "valid": 2}.get(name, 3))
    steps = rng.integers(-3, 4, (rows or ROWS.get(name, 30), SIDE, SIDE))
    return (np.cumsum(steps, -1) / 64 + rng.integers(0, 8, steps.shape) / 1024).astype(np.float32)


def write(path: Path, layout: str = "contiguous", squeeze: bool = False, names: Iterable[str] = ROWS, **file) -> Path:
    """Write a good file."""
    options = dict(LAYOUTS[layout])
    kind = options.pop("dtype", "<f4")
    if squeeze:
        options |= {key: (value[0], *value[2:]) for key, value in options.items() if key in ("chunks", "maxshape")}
    with h5py.File(path, "w", **file) as h5:
        for name in names:
            data = truth(name).astype(kind)
            if options.get("chunks"):
                options["chunks"] = (min(options["chunks"][0], len(data)), *options["chunks"][1:])
            h5.create_dataset(name, data=data if squeeze else data[:, None], **options)
        packing = {"compression": "gzip", "chunks": (40,), "shuffle": True} if options.get("compression") else {}
        h5.create_dataset("train_labels", data=np.arange(ROWS["train"]), **packing)
        texts = [f"granule {number}" for number in range(ROWS["train"])]
        h5.create_dataset("train_metadata", data=texts, dtype=h5py.string_dtype(), **packing)
        h5.create_dataset(
            "valid_metadata",
            data=np.array(texts[: ROWS["valid"]], "S12"),
            **packing | {"chunks": (9,)} if packing else {},
        )
    return path


# Damage to the bytes of a good file


@dataclass
class Region:
    """Bytes [first, end) of a file that hold a box of pixels of a partition."""

    name: str
    first: int
    end: int
    box: tuple[slice, ...]
    chunk: tuple[int, ...]
    kind: np.dtype
    packed: bool
    checked: bool


def regions(path: Path) -> list[Region]:
    found = []
    with h5py.File(path) as h5:
        for name in ROWS:
            data = h5[name]
            kind, checked = data.dtype, bool(data.fletcher32) or data.compression == "gzip"
            if data.chunks is None:
                first = data.id.get_offset()
                box = tuple(slice(0, size) for size in (data.shape[0], SIDE, SIDE))
                found.append(Region(name, first, first + data.nbytes, box, data.shape, kind, False, False))
                continue
            for number in range(data.id.get_num_chunks()):
                info = data.id.get_chunk_info(number)
                corner = (info.chunk_offset[0], *info.chunk_offset[-2:])
                size = (data.chunks[0], *data.chunks[-2:])
                box = tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))
                packed = data.compression is not None
                end = info.byte_offset + info.size
                found.append(Region(name, info.byte_offset, end, box, size, kind, packed, checked))
    return found


def hurt(case: Case, rng: np.random.Generator, change: Callable[[bytearray, list[Region]], str]) -> Case:
    """Change the bytes of a good file, and note what the pixels are now."""
    layout = list(LAYOUTS)[case.seed // 7 % len(LAYOUTS)]
    squeeze, latest = bool(rng.random() < 0.3), bool(rng.random() < 0.25)
    write(case.path, layout, squeeze, **({"libver": "latest"} if latest else {}))
    parts, before = regions(case.path), case.path.read_bytes()
    after = bytearray(before)
    said = change(after, parts)
    case.path.write_bytes(after)
    case.description = f"{layout}{' squeezed' * squeeze}{' latest' * latest}: {said}"
    case.must, case.parts = "either", parts
    case.pixels = {name: truth(name).copy() for name in ROWS}
    case.free = {name: np.zeros(values.shape, bool) for name, values in case.pixels.items()}
    for part in parts:
        old, new = before[part.first : part.end], bytes(after[part.first : part.end])
        if old == new or (part.checked and not (len(old) == len(new) and _alike_to_fletcher(old, new))):
            continue
        if part.checked:
            case.free[part.name][part.box] = True
            continue
        if part.packed:
            case.free[part.name][part.box] = True
        else:
            raw = bytes(after[part.first : part.end]).ljust(part.end - part.first, b"\0")
            with np.errstate(over="ignore", invalid="ignore"):
                values = np.frombuffer(raw, part.kind).reshape(
                    part.chunk[0], SIDE if len(part.chunk) == 4 else -1, part.chunk[-1]
                )
                values = values.astype(np.float32)
            box = case.pixels[part.name][part.box]
            box[...] = values[: box.shape[0], : box.shape[1], : box.shape[2]]
    return case


def _alike_to_fletcher(old: bytes, new: bytes) -> bool:
    """Tell whether Fletcher's checksum sees no difference: it counts modulo 65535, so 0x0000 is 0xffff to it."""
    a, b = (np.frombuffer(data[: len(data) // 2 * 2], np.uint16) for data in (old, new))
    return np.array_equal(np.where(a == 65535, 0, a), np.where(b == 65535, 0, b))


def outside(data: bytearray, parts: list[Region], rng: np.random.Generator) -> np.ndarray:
    """Return the places of metadata, mostly those of bytes that are not zero."""
    mask = np.ones(len(data), bool)
    for part in parts:
        mask[part.first : part.end] = False
    if rng.random() < 0.7:
        mask &= np.frombuffer(bytes(data), np.uint8) != 0
    return np.flatnonzero(mask)


def flip(data: bytearray, places: np.ndarray, rng: np.random.Generator, most: int) -> str:
    chosen = [(int(rng.choice(places)), int(rng.integers(8))) for _ in range(int(rng.integers(1, most + 1)))]
    for place, bit in chosen:
        data[place] ^= 1 << bit
    return "bits " + ", ".join(f"{place}.{bit}" for place, bit in chosen)


def metadata_bit(case: Case, rng: np.random.Generator) -> Case:
    return hurt(case, rng, lambda data, parts: flip(data, outside(data, parts, rng), rng, 1))


def metadata_bits(case: Case, rng: np.random.Generator) -> Case:
    return hurt(case, rng, lambda data, parts: flip(data, outside(data, parts, rng), rng, 12))


def data_bits(case: Case, rng: np.random.Generator) -> Case:
    def change(data: bytearray, parts: list[Region]) -> str:
        part = parts[int(rng.integers(len(parts)))]
        return flip(data, np.arange(part.first, part.end), rng, 3)

    return hurt(case, rng, change)


def truncation(case: Case, rng: np.random.Generator) -> Case:
    def change(data: bytearray, parts: list[Region]) -> str:
        kept = int(rng.integers(len(data))) if rng.random() < 0.8 else len(data) - int(rng.integers(1, 64))
        size = len(data)
        del data[kept:]
        if rng.random() < 0.3:
            data.extend(bytes(size - kept))
        return f"cut to {kept} of {size} bytes, then {len(data) - kept} zeros"

    return hurt(case, rng, change)


def garbage(case: Case, rng: np.random.Generator) -> Case:
    def change(data: bytearray, parts: list[Region]) -> str:
        length = int(rng.choice([1, 2, 4, 8, 16, 64, 512, 4096]))
        places = outside(data, parts, rng) if rng.random() < 0.6 else np.arange(len(data))
        first = min(int(rng.choice(places)), len(data) - length) // (512 if length >= 512 else 1) * 1
        kind = str(rng.choice(["zeros", "ones", "noise", "copy"]))
        new = {"zeros": bytes(length), "ones": b"\xff" * length, "noise": rng.bytes(length)}.get(kind)
        if new is None:
            other = int(rng.integers(len(data) - length))
            new = bytes(data[other : other + length])
        data[first : first + length] = new
        return f"{length} bytes of {kind} at {first}"

    return hurt(case, rng, change)


# Chunks that are not what they should be


def chunks(case: Case, rng: np.random.Generator) -> Case:
    names = [name for name, options in LAYOUTS.items() if "chunks" in options and name != "growing"]
    layout = names[case.seed // 7 % len(names)]
    write(case.path, layout)
    kinds = ["short", "long", "bomb", "empty", "noise", "mask", "swap", "torn", "raw", "doubled", "trailing"]
    kind = kinds[int(rng.integers(len(kinds)))]
    options = LAYOUTS[layout]
    packed, checked = options.get("compression"), options.get("fletcher32") or options.get("compression") == "gzip"
    with h5py.File(case.path, "r+") as h5:
        data = h5["train"].id
        infos = [data.get_chunk_info(number) for number in range(data.get_num_chunks())]
        one, two = (infos[int(rng.integers(len(infos)))] for _ in range(2))
        size = int(np.prod(h5["train"].chunks)) * h5["train"].dtype.itemsize
        mask, stored = data.read_direct_chunk(one.chunk_offset)
        pack = zlib.compress if packed == "gzip" else bytes
        new = {
            "short": lambda: pack(bytes(int(rng.integers(size)))),
            "long": lambda: pack(bytes(size + int(rng.integers(1, 10**5)))),
            "bomb": lambda: pack(bytes(2**26)) if packed == "gzip" else b"\x00\x00" + b"\xe0\xff\x00" * 3000,
            "empty": lambda: b"\0",
            "noise": lambda: rng.bytes(len(stored)),
            "mask": lambda: stored,
            "swap": lambda: data.read_direct_chunk(two.chunk_offset)[1],
            "torn": lambda: stored[: int(rng.integers(len(stored)))],
            "raw": lambda: bytes(size),
            "doubled": lambda: zlib.compress(stored),
            "trailing": lambda: stored + bytes(int(rng.integers(1, 200))),
        }[kind]()
        if not packed and not checked:
            new = new[:size].ljust(size, b"\0")  # plain chunks have no size of their own
        if kind == "mask":
            mask ^= 1 << int(rng.integers(4))
        data.write_direct_chunk(one.chunk_offset, new, filter_mask=mask)
    case.description, case.must = f"{layout}: chunk at {one.chunk_offset} {kind}", "either"
    case.pixels = {name: truth(name) for name in ROWS}
    case.free = {name: np.zeros(values.shape, bool) for name, values in case.pixels.items()}
    if kind == "swap" or not checked:  # what was written in its place is a good chunk, or one that nothing protects
        box = tuple(
            slice(c, c + s)
            for c, s in zip(
                (one.chunk_offset[0], *one.chunk_offset[-2:]), np.array(options["chunks"])[[0, -2, -1]], strict=True
            )
        )
        case.free["train"][box] = True
    return case


# Wrong shapes and types


def shapes(case: Case, rng: np.random.Generator) -> Case:
    many = [(), (0,), (5,), (4, 8), (4, 2, 8, 8), (4, 8, 8, 1), (4, 8, 8, 3), (4, 8, 9), (4, 1, 9, 8), (0, 8, 8)]
    many += [(0, 1, 8, 8), (4, 0, 8, 8), (4, 1, 0, 0), (2, 1, 1, 8, 8), (1,) * 32, (3, 0, 0), (1, 8), (2, 2, 2, 2)]
    shape = many[int(rng.integers(len(many)))]
    layout = {"compression": "gzip"} if shape and 0 not in shape and rng.random() < 0.4 else {}
    with h5py.File(case.path, "w") as h5:
        if rng.random() < 0.1:
            h5["train"], shape = h5py.Empty("f4"), None
        elif rng.random() < 0.1:
            h5.create_dataset("train", (0, 1, 8, 8), "f4", maxshape=(None, 1, 8, 8), chunks=True)
        else:
            h5.create_dataset("train", data=np.zeros(shape, "f4"), **layout)
    case.description = f"shape {shape} {layout}"
    return case


def _odd_float(rng: np.random.Generator) -> h5py.h5t.TypeID:
    kind = [h5py.h5t.IEEE_F32LE, h5py.h5t.IEEE_F64LE, h5py.h5t.IEEE_F16LE][int(rng.integers(3))].copy()
    change = int(rng.integers(4))
    if change == 0:
        kind.set_ebias(kind.get_ebias() + int(rng.integers(1, 60)))
    elif change == 1:
        sign, start, exponent, _, mantissa = kind.get_fields()
        kind.set_fields(sign, start + 1, exponent - 1, 0, mantissa + 1)
    elif change == 2:
        kind.set_size(kind.get_size() + 1)
    else:
        kind.set_norm(h5py.h5t.NORM_NONE)
    return kind


def types(case: Case, rng: np.random.Generator) -> Case:
    shape = (4, 1, 8, 8)
    made: dict[str, Callable[[h5py.File], object]] = {
        "compound": lambda h5: h5.create_dataset("train", shape, np.dtype([("a", "f4"), ("b", "i4")])),
        "enum": lambda h5: h5.create_dataset("train", shape, h5py.enum_dtype({"A": 1, "B": 2})),
        "reference": lambda h5: h5.create_dataset("train", shape, h5py.ref_dtype),
        "region": lambda h5: h5.create_dataset("train", shape, h5py.regionref_dtype),
        "text": lambda h5: h5.create_dataset("train", shape, h5py.string_dtype()),
        "fixed text": lambda h5: h5.create_dataset("train", shape, "S5"),
        "lists": lambda h5: h5.create_dataset("train", shape, h5py.vlen_dtype(np.float32)),
        "arrays": lambda h5: h5.create_dataset("train", shape[:2], np.dtype(("f4", (8, 8)))),
        "opaque": lambda h5: h5.create_dataset("train", shape, "V4"),
        "bool": lambda h5: h5.create_dataset("train", data=np.ones(shape, bool)),
        "complex": lambda h5: h5.create_dataset("train", data=np.ones(shape, "c8")),
        "integer": lambda h5: h5.create_dataset("train", data=np.ones(shape, rng.choice(["i1", "u2", ">i4", "i8"]))),
        "long double": lambda h5: h5.create_dataset("train", data=np.ones(shape, np.longdouble)),
        "group": lambda h5: h5.create_group("train").create_group("train"),
        "a type": lambda h5: h5.__setitem__("train", np.dtype("f4")),
        "odd float": lambda h5: h5py.h5d.create(h5.id, b"train", _odd_float(rng), h5py.h5s.create_simple(shape)).write(
            h5py.h5s.ALL, h5py.h5s.ALL, np.ones(shape)
        ),
    }
    name = list(made)[int(rng.integers(len(made)))]
    with h5py.File(case.path, "w") as h5:
        made[name](h5)
    case.description = name
    return case


# Shapes beyond what is in the file


def huge(case: Case, rng: np.random.Generator) -> Case:
    rows = int(10 ** rng.uniform(3, 12))
    kind = str(
        rng.choice(["no chunks", "one chunk", "nan", "contiguous", "side", "chunk", "labels", "bytes", "single"])
    )
    with h5py.File(case.path, "w") as h5:
        if kind in ("no chunks", "one chunk", "nan"):
            filters = {"compression": str(rng.choice(["gzip", "lzf"]))} if rng.random() < 0.7 else {}
            fill = {"fillvalue": np.nan} if kind == "nan" else {}
            data = h5.create_dataset("train", (rows, 1, 16, 16), "f4", chunks=(50, 1, 16, 16), **filters, **fill)
            if kind != "no chunks":
                data[:50] = truth("train")[:50, None]
        elif kind == "contiguous":
            h5.create_dataset("train", (rows, 16, 16), "f4")
        elif kind == "side":
            side = int(10 ** rng.uniform(4.3, 6))
            data = h5.create_dataset("train", (2, side, side), "f4", chunks=(1, 256, 256), compression="gzip")
            data[0, :256, :256] = 1
        elif kind == "chunk":
            side = int(2 ** rng.integers(12, 15))
            shape = (1, 1, side, side) if rng.random() < 0.5 else (1, 1, 64, 64)
            data = h5.create_dataset(
                "train",
                shape,
                "f4",
                chunks=(min((2**30 - 1) // side**2, 63), 1, side, side),  # HDF5 before 2.0 takes less than 4 GB
                maxshape=(None, 1, None, None),
            )
            data.id.write_direct_chunk((0, 0, 0, 0), zlib.compress(bytes(1000)))
        elif kind == "labels":
            h5["train"] = truth("train")[:, None]
            h5.create_dataset("train_labels", (rows,), "i8", chunks=(1000,), compression="gzip")
        elif kind == "bytes":
            h5.create_dataset(
                "train",
                (rows, 1, 16, 16),
                "f4",
                chunks=(rows, 1, 1, 1) if rows < 10**6 else (10**6, 1, 1, 1),
                compression="gzip",
            )
        else:
            rows = min(rows, 10**6)
            data = h5.create_dataset("train", (rows, 1, 16, 16), "f4", chunks=(rows, 1, 16, 16), compression="gzip")
            data.id.write_direct_chunk((0, 0, 0, 0), zlib.compress(bytes(10**6)))
    case.description = f"{kind}, {rows} rows"
    return case


# Links


def _elsewhere(case: Case) -> Path:
    """Return a good file outside of the case's folder."""
    other = case.path.parent.parent / f"outside_{case.seed}.h5"
    return write(other, names=("train", "valid"))


def _target(case: Case, rng: np.random.Generator) -> tuple[str, str]:
    """Return a file name to refer to, and whether it must be refused: outside, inside or missing."""
    folder, kind = case.path.parent, int(rng.integers(8))
    if kind == 0:
        return str(_elsewhere(case)), "refuse"
    if kind == 1:
        return f"../{_elsewhere(case).name}", "refuse"
    if kind == 2:
        (folder / "alias.h5").symlink_to(_elsewhere(case))
        return "alias.h5", "refuse"
    if kind == 3:
        (folder / "alias").symlink_to(folder.parent)
        return f"alias/{_elsewhere(case).name}", "refuse"
    if kind == 4:
        return str(
            rng.choice(["gone.h5", "/gone/gone.h5", "", "\x00", "x" * 5000, "/dev/zero", "/dev/stdin"])
        ), "refuse"
    if kind == 5:
        os.mkfifo(folder / "pipe.h5")
        return "pipe.h5", "refuse"
    write(folder / "inside.h5", str(rng.choice(["contiguous", "gzip", "lzf"])))
    if kind == 6:
        return "inside.h5", "read"
    (folder / "deep").mkdir()
    return f"deep/../{'inside.h5' if rng.random() < 0.5 else './inside.h5'}", "read"


def external_links(case: Case, rng: np.random.Generator) -> Case:
    file, case.must = _target(case, rng)
    way = str(rng.choice(["train", "group", "soft", "valid"]))
    with h5py.File(case.path, "w") as h5:
        if way == "valid":
            h5["train"] = truth("train")[:, None]
        name = "valid" if way == "valid" else "train"
        if way in ("train", "valid"):
            _external_link(h5, name, file, f"/{name}")
        elif way == "group":
            _external_link(h5, "a", file, "/")
            h5["train"] = h5py.SoftLink("a/train")
        else:
            h5["train"] = h5py.SoftLink("/b/./c")
            h5.create_group("b")
            _external_link(h5, "b/c", file, "train")
    case.description = f"{way} -> {file[:80]!r}"
    case.pixels = {"train": truth("train"), "valid": truth("valid")}
    return case


def _external_link(h5: h5py.File, name: str, file: str, target: str) -> None:
    h5.id.links.create_external(name.encode(), file.replace("\x00", "").encode() or b"?", target.encode())


def soft_links(case: Case, rng: np.random.Generator) -> Case:
    kind = str(rng.choice(["loop", "self", "long", "gone", "group loop", "external loop", "good", "far"]))
    with h5py.File(case.path, "w") as h5:
        h5["x"] = truth("train")[:, None]
        if kind in ("loop", "far", "good"):
            count = {"loop": int(rng.integers(2, 30)), "far": int(rng.integers(20, 300)), "good": 5}[kind]
            names = ["train", *(f"n{i}" for i in range(count))]
            for a, b in zip(names, [*names[1:], "train" if kind == "loop" else "x"], strict=True):
                h5[a] = h5py.SoftLink(f"/{b}")
        elif kind == "self":
            h5["train"] = h5py.SoftLink(str(rng.choice(["train", "/train", "./train"])))
        elif kind == "long":
            h5["train"] = h5py.SoftLink("a/" * 20000 + "x")
        elif kind == "gone":
            h5["train"] = h5py.SoftLink(
                str(rng.choice(["gone", "/x/gone", "x/", "gone/\n\x1b[2J/x", "é" * 3000])) + "y"
            )
        elif kind == "group loop":
            h5.create_group("g")["g"] = h5["/"]
            h5["train"] = h5py.SoftLink("/g/" * 3000 + "train")
        else:
            h5["train"] = h5py.ExternalLink(case.path.name, "/train")
    case.description, case.must = kind, "read" if kind == "good" else "refuse"
    case.pixels = {"train": truth("train")}
    return case


def virtual(case: Case, rng: np.random.Generator) -> Case:
    file, case.must = _target(case, rng)
    file = file.replace("\x00", "") or "gone"
    rows = ROWS["train"]
    kind = str(rng.choice(["whole", "parts", "gap", "beyond", "name", "self", "nested", "strided", "damaged"]))
    layout = h5py.VirtualLayout((rows, 1, SIDE, SIDE), "f4", maxshape=(rows, 1, SIDE, SIDE))
    source = h5py.VirtualSource(file, "no" if kind == "name" else "train", (rows, 1, SIDE, SIDE))
    if kind == "parts":
        layout[:20], layout[20:] = source[:20], source[20:]
    elif kind == "gap":
        layout[:20], layout[30:] = source[:20], source[30:]
    elif kind == "beyond":
        layout[:] = h5py.VirtualSource(file, "train", (rows + 9, 1, SIDE, SIDE))[9:]
    elif kind == "self":
        layout[:] = h5py.VirtualSource(".", "train", (rows, 1, SIDE, SIDE))
    elif kind == "strided":
        layout[::2], layout[1::2] = source[::2], source[1::2]
    else:
        layout[:] = source
    if kind in ("gap", "beyond", "name", "self", "strided"):
        case.must = "refuse"
    with h5py.File(case.path, "w") as h5:
        h5.create_virtual_dataset("outer" if kind == "nested" else "train", layout, fillvalue=0)
        if kind == "nested":
            again = h5py.VirtualLayout((rows, 1, SIDE, SIDE), "f4")
            again[:] = h5py.VirtualSource(".", "outer", (rows, 1, SIDE, SIDE))
            h5.create_virtual_dataset("train", again)
    inside = case.path.parent / "inside.h5"
    if kind == "damaged" and inside.exists():
        write(inside, "gzip")
        with h5py.File(inside, "r+") as h5:
            h5["train"].id.write_direct_chunk((25, 0, 8, 0), zlib.compress(bytes(100)))
        case.must = "refuse"
    case.description = f"{kind}, source {file[:80]!r}"
    case.pixels = {"train": truth("train")}
    return case


def external_storage(case: Case, rng: np.random.Generator) -> Case:
    folder, pixels = case.path.parent, truth("train")
    kind = str(
        rng.choice(["inside", "parts", "outside", "relative", "gone", "short", "device", "pipe", "alias", "less"])
    )
    raw = pixels.tobytes()
    inside, other = folder / "pixels.raw", folder.parent / f"pixels_{case.seed}.raw"
    inside.write_bytes(b"head" + (raw[:-7] if kind == "short" else raw))
    other.write_bytes(raw)
    (folder / "alias.raw").symlink_to(other)
    os.mkfifo(folder / "pipe.raw")
    storage = {
        "inside": [(str(inside) if rng.random() < 0.5 else "pixels.raw", 4, len(raw))],
        "parts": [("pixels.raw", 4, 1001), ("pixels.raw", 1005, h5py.h5f.UNLIMITED)],
        "outside": [(str(other), 0, len(raw))],
        "relative": [(f"../{other.name}", 0, len(raw))],
        "gone": [("gone.raw", 0, len(raw))],
        "short": [("pixels.raw", 4, len(raw))],
        "device": [("/dev/zero", 0, len(raw))],
        "pipe": [("pipe.raw", 0, len(raw))],
        "alias": [("alias.raw", 0, len(raw))],
        "less": [("pixels.raw", 2**40, len(raw))],
    }[kind]
    with h5py.File(case.path, "w") as h5:
        h5.create_dataset("train", (len(pixels), 1, SIDE, SIDE), "f4", external=storage)
    case.description, case.must = kind, "read" if kind in ("inside", "parts") else "refuse"
    case.pixels = {"train": pixels}
    return case


def whole(case: Case, rng: np.random.Generator) -> Case:
    """Not damaged at all: a reader that refuses everything would pass otherwise."""
    layout = list(LAYOUTS)[int(rng.integers(len(LAYOUTS)))]
    latest, block = rng.random() < 0.4, int(rng.choice([0, 512, 2048]))
    write(case.path, layout, bool(rng.random() < 0.4), libver="latest" if latest else None, userblock_size=block)
    case.description, case.must = f"{layout}{' latest' * latest}, user block {block}", "read"
    case.pixels = {name: truth(name) for name in ROWS}
    return case


# Weights say how often; the first are the ones that can surprise the library itself.
FAMILIES: dict[Callable[[Case, np.random.Generator], Case], int] = {
    metadata_bit: 5,
    metadata_bits: 3,
    data_bits: 2,
    truncation: 2,
    garbage: 4,
    chunks: 4,
    shapes: 1,
    types: 1,
    huge: 2,
    external_links: 2,
    soft_links: 1,
    virtual: 3,
    external_storage: 1,
    whole: 1,
}
_ORDER = [family for family, weight in FAMILIES.items() for _ in range(weight)]


def _name(family: Callable) -> str:
    return family.__name__.replace("_", " ")


def make_case(seed: int, folder: Path) -> Case:
    """Write the file of a seed; the same seed gives the same bytes.

    Args:
        seed: any number from 0 on.
        folder: where a folder of the case's own is made.
    """
    family = _ORDER[seed % len(_ORDER)]
    own = folder / f"case_{seed}"
    own.mkdir()
    return family(Case(seed, _name(family), "", own / "cutouts.h5"), np.random.default_rng(seed))


def unprovable(case: Case, name: str) -> str | None:
    """Tell damage that nothing in the file contradicts.

    In a file without checksums of its metadata (all but those of `libver="latest"`), a number that became another
    possible one makes another good file: an address of plain bytes that now points at bytes that belong to nothing
    known, the number of rows of a data set that may grow, one bit for the order of two bytes.
    """
    if "latest" in case.description or not case.parts:
        return None
    with h5py.File(case.path) as h5:
        data, before = h5[name], [part for part in case.parts if part.name == name]
        after = [part for part in regions(case.path) if part.name == name]
        moved = {(part.first, part.end) for part in before} != {(part.first, part.end) for part in after}
        grown = data.shape[0] != ROWS[name] and data.maxshape[0] is None
        swapped = data.dtype.itemsize == 2 and data.dtype != before[0].kind
    return "unprovable" if (moved and not before[0].packed) or grown or swapped else None


def judge(case: Case) -> tuple[str, str]:
    """Read a case through nenya.

    Returns:
        The outcome ("whole", "as stored", "refused", or in capitals what must not be), and its line.
    """
    from nenya.errors import InputFileError

    try:
        got = read_all(case.path)
    except Inconsistent as error:
        return "WRONG", str(error)
    except InputFileError as error:
        if len(str(error).splitlines()) != 1 or not str(error).isprintable() or len(str(error)) > 1000:
            return "LINES", str(error)
        return ("REFUSED" if case.must == "read" else "refused"), str(error)
    except Exception as error:
        return "RAISED", f"{type(error).__name__}: {error}"
    if case.must == "refuse":
        return "ACCEPTED", str({name: values.shape for name, values in got.items()})
    for name, values in got.items():
        wanted, free = case.pixels[name], case.free.get(name, False)
        if values.shape != wanted.shape:
            return unprovable(case, name) or "WRONG", f"{name}: shape {values.shape}"
        right = (values == wanted) | (np.isnan(values) & np.isnan(wanted)) | free
        if not right.all():
            return unprovable(case, name) or "WRONG", f"{name}: {np.count_nonzero(~right)} of {right.size} pixels"
    return "whole" if all(np.array_equal(values, truth(name)) for name, values in got.items()) else "as stored", ""


class Inconsistent(Exception):
    """Two ways to read gave different pixels."""


def read_all(path: Path) -> dict[str, np.ndarray]:
    """Read a file in every way that nenya has: partition -> (N, H, W)."""
    from nenya.data.cutouts import CutoutReader, fingerprint, inspect_cutouts
    from nenya.data.unpack import load_partition

    got = {}
    for name, info in inspect_cutouts(path).partitions.items():
        if info.nbytes > 2**31:
            raise Inconsistent(f"{name} of {info.nbytes} bytes")
        fingerprint(path, name)
        with CutoutReader(path, name) as reader:
            got[name] = reader.read(0, len(reader))[:, 0]
            picked = np.arange(0, len(reader), 3)
            if not np.array_equal(reader.read_rows(picked)[:, 0], got[name][picked], equal_nan=True):
                raise Inconsistent(f"{name}: rows differ from the whole")
            for suffix in ("labels", "metadata"):
                reader.companion(suffix)  # a wrong number in it has no checksum, so what it holds is not judged
        if not np.array_equal(load_partition(path, name), got[name], equal_nan=True):
            raise Inconsistent(f"{name}: loaded differs from read")
    return got


def read_case(path: Path) -> str:
    """Make and read the case whose number the path ends with, and tell what came against what its bytes say."""
    from nenya.errors import InputFileError

    path.mkdir(parents=True)
    outcome, line = judge(make_case(int(path.name), path))
    if outcome.isupper():
        raise AssertionError(f"{outcome}: {line}")
    if outcome == "refused":
        raise InputFileError(line)
    return outcome
