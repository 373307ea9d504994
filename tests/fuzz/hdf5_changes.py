"""Changes to good HDF5 files that only the library can make: types, shapes, links, storage, filters and chunks."""

import contextlib
import os
import zlib
from pathlib import Path

import h5py
import numpy as np

from fuzz.mutators import INTEGERS, Rng, mutate_bytes, mutate_json, pick

_TYPES = ("<f2", ">f4", "<f8", "<i1", "<u8", "<c8", "<g", "|b1", "S5", "S300", "V4", "O")


def _datasets(file: h5py.File) -> list[str]:
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return found


def _again(file: h5py.File, name: str, data: object = None, **options: object) -> None:
    """Write a data set in place of another, attributes kept."""
    kept = dict(file[name].attrs)
    if data is None:
        data = file[name][...]
    del file[name]
    made = file.create_dataset(name, data=data, **options)
    for key, value in kept.items():
        if key not in ("DIMENSION_LIST", "REFERENCE_LIST", "_FillValue"):
            made.attrs[key] = value


def _type(file: h5py.File, name: str, rng: Rng) -> None:
    kind = pick(rng, _TYPES)
    shape = file[name].shape
    if kind == "O":
        _again(file, name, np.full(shape, "a\x1b[2Jb" * 3, object), dtype=h5py.string_dtype())
    elif rng.random() < 0.3:
        odd = pick(rng, (h5py.vlen_dtype(np.float32), h5py.enum_dtype({"A": 1}), np.dtype([("a", "f4"), ("b", "i2")])))
        del file[name]
        file.create_dataset(name, shape, odd)
    else:
        with np.errstate(all="ignore"):
            try:
                values = file[name][...].astype(kind)
            except (ValueError, TypeError):
                values = np.zeros(shape, kind)
        _again(file, name, values)


def _values(file: h5py.File, name: str, rng: Rng) -> None:
    values = np.array(file[name][...])
    if values.size and values.dtype.kind in "fiu":
        odd = (np.nan, np.inf, -np.inf, 1e38, -1, 0) if values.dtype.kind == "f" else (0, -1, 2**31, 2**62)
        chosen = rng.integers(values.size, size=int(rng.integers(1, 1 + values.size)))
        with np.errstate(all="ignore"):
            values.ravel()[chosen] = np.array(pick(rng, odd)).astype(values.dtype)
        file[name][...] = values


def _shape(file: h5py.File, name: str, rng: Rng) -> None:
    shape, kind = file[name].shape, file[name].dtype
    if kind.kind == "O":
        kind = np.dtype("f4")
    many = [(), (0,), (1,), (3,), (0, 4), (4, 0), (2, 2, 2), (1,) * 20, shape[::-1], (*shape, 1), shape[1:], shape[:1]]
    if rng.random() < 0.3:
        del file[name]
        huge = (int(10 ** rng.uniform(5, 12)), *shape[1:])
        chunks = tuple(min(side, 64) for side in huge)
        if rng.random() < 0.5:
            file.create_dataset(name, huge, kind, chunks=chunks, compression="gzip")
        else:
            file.create_dataset(name, huge, kind)
    elif rng.random() < 0.1:
        del file[name]
        file[name] = h5py.Empty("f4")
    else:
        _again(file, name, np.zeros(pick(rng, many), kind))


def _filters(file: h5py.File, name: str, rng: Rng) -> None:
    """Pack a data set otherwise, and perhaps replace a chunk by what is none."""
    data = file[name]
    if data.dtype.kind not in "fiu" or not data.size or not data.ndim:
        return
    chunks = tuple(max(1, side // int(rng.integers(1, 4))) for side in data.shape)
    packings = [
        {"compression": "gzip"},
        {"compression": "lzf"},
        {"fletcher32": True},
        {"compression": "gzip", "shuffle": True},
    ]
    packings += [{"compression": "szip"}] * 3 * h5py.h5z.filter_avail(h5py.h5z.FILTER_SZIP)
    packings += [{"scaleoffset": 0 if data.dtype.kind in "iu" else 3}, {}]
    packing = pick(rng, packings)
    try:
        _again(file, name, chunks=chunks, **packing)
    except (ValueError, OSError, RuntimeError):  # no such packing of such a type
        return
    if rng.random() < 0.8:
        _chunk(file, name, rng)


def _chunk(file: h5py.File, name: str, rng: Rng) -> None:
    data = file[name]
    if data.chunks is None or not data.id.get_num_chunks():
        return
    info = data.id.get_chunk_info(int(rng.integers(data.id.get_num_chunks())))
    mask, stored = data.id.read_direct_chunk(info.chunk_offset)
    size = int(np.prod(data.chunks)) * data.dtype.itemsize
    new = [stored[: int(rng.integers(len(stored)))], mutate_bytes(stored, rng), b"\0", rng.bytes(size), bytes(size)]
    new += [zlib.compress(bytes(int(rng.integers(size)))), zlib.compress(bytes(2**26)), stored + bytes(100), stored]
    file.flush()
    mask ^= 1 << int(rng.integers(3)) if rng.random() < 0.2 else 0
    data.id.write_direct_chunk(info.chunk_offset, pick(rng, new) or b"\0", filter_mask=mask)


def _unwritten(file: h5py.File, name: str, rng: Rng) -> None:
    """Let a part of a data set be one that was never written."""
    data = file[name]
    shape, kind = data.shape, data.dtype
    if kind.kind == "O" or not shape:
        return
    kept = data[: shape[0] // 2] if shape[0] else None
    del file[name]
    never = pick(rng, (h5py.h5d.FILL_TIME_NEVER, h5py.h5d.FILL_TIME_ALLOC, h5py.h5d.FILL_TIME_IFSET))
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_fill_time(never)
    if rng.random() < 0.7 and 0 not in shape:
        plist.set_chunk(tuple(max(1, side // 2) for side in shape))
        if rng.random() < 0.5:
            plist.set_deflate(1)
    elif rng.random() < 0.5:
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    made = h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(kind), h5py.h5s.create_simple(shape), plist)
    if kept is not None and rng.random() < 0.5:
        h5py.Dataset(made)[: len(kept)] = kept


def _link(file: h5py.File, name: str, rng: Rng, outside: Path) -> None:
    target = pick(rng, (str(outside / "secret.h5"), os.path.relpath(outside / "secret.h5", Path(file.filename).parent)))
    target = pick(rng, (target, target, target, "gone.h5", "/dev/zero", "", file.filename, "."))
    inner = pick(rng, ("train", "valid", "flat", name, "/", "no"))
    copy = file[name][...] if rng.random() < 0.5 and file[name].dtype.kind in "fiu" else None
    shape = file[name].shape
    del file[name]
    kind = int(rng.integers(5))
    if kind == 0:
        file.id.links.create_external(name.encode(), target.encode() or b"?", inner.encode())
    elif kind == 1:
        file[name] = h5py.SoftLink(pick(rng, (name, "/", "a/" * 9000, f"/{name}/", "gone\x1b[2J", "é")))
    elif kind == 2 and shape:
        layout = h5py.VirtualLayout(shape, "f4", maxshape=shape)
        layout[...] = h5py.VirtualSource(target or ".", inner, shape)
        file.create_virtual_dataset(name, layout, fillvalue=0)
    elif kind == 3 and shape and 0 not in shape:
        raw = pick(rng, (str(outside / "secret.raw"), "/dev/zero", "/etc/hostname", "gone.raw"))
        file.create_dataset(name, shape, "f4", external=[(raw, pick(rng, (0, 0, 4, 2**30)), h5py.h5f.UNLIMITED)])
    else:
        file.create_group(name)
        if copy is not None:
            file[name]["inner"] = copy


def _attribute(file: h5py.File, name: str, rng: Rng) -> None:
    holder = pick(rng, (file, file[name]))
    names = list(holder.attrs) or ["units"]
    chosen = pick(rng, names)
    if isinstance(old := holder.attrs.get(chosen), str) and old[:1] in "{[" and rng.random() < 0.6:
        holder.attrs[chosen] = mutate_json(old.encode(), rng).decode("utf8", "replace").replace("\0", "?")[:60000]
        return
    odd = [
        "",
        "x" * 60000,
        "\x1b[2J\n",
        "{",
        "nan",
        b"\xff\xfe",
        np.bytes_(b"a"),
        h5py.Empty("f4"),
        [],
        [1.5, 2],
        -1,
        2**62,
    ]
    odd += [
        np.nan,
        np.inf,
        0,
        True,
        np.zeros((2, 2)),
        "seconds since 0000-99-99",
        "days since 1e400-01-01",
        1e300,
        1 + 1j,
    ]
    odd += [np.array(value % 2**63) for value in INTEGERS]
    if rng.random() < 0.15:
        del holder.attrs[chosen]
    else:
        holder.attrs[chosen] = pick(rng, odd)


_INSIDE = (_type, _values, _shape, _filters, _filters, _filters, _unwritten, _attribute, _attribute)


def change(path: Path, rng: Rng, outside: Path) -> None:
    """Change one to two things of a good file."""
    with h5py.File(path, "r+") as file:
        for _ in range(int(rng.integers(1, 3))):
            names = [name for name in _datasets(file) if (file[name].size or 0) < 10**6]
            if not names:
                return
            name = pick(rng, names)
            for scale in [item for item in names if file[item].is_scale]:  # a scale cannot be replaced while it is one
                file[scale].attrs.pop("REFERENCE_LIST", None)
            # Not every change is possible to every data set, and one before it may have left none.
            with contextlib.suppress(OSError, ValueError, TypeError, RuntimeError, LookupError, AttributeError):
                if rng.random() < 0.2:
                    _link(file, name, rng, outside)
                else:
                    pick(rng, _INSIDE)(file, name, rng)
