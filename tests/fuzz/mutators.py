"""Damage, drawn from a generator: the same generator gives the same damage."""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

Rng = np.random.Generator
INTEGERS = (0, 1, -1, 2, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_TOKENS = (
    *(
        "-1",
        "0",
        "nan",
        "inf",
        "1e400",
        "-1e-400",
        "9" * 400,
        "null",
        "true",
        '"',
        "'",
        "\\",
        "\0",
        "\x1b[2J",
        "\ufeff",
    ),
    *(
        "../../x",
        "/etc/passwd",
        "&a",
        "*a",
        "!!python/object/apply:os.system [id]",
        "<<: *a",
        "$HOME",
        "${oc.env:HOME}",
    ),
    *(
        "[" * 3000,
        "{" * 3000,
        "(" * 3000,
        "a" * 70000,
        ",",
        ";",
        "\n",
        "\r",
        "\t",
        " ",
        ":",
        "- ",
        "#",
        "%",
        "NaT",
        "é" * 50,
    ),
)


def pick(rng: Rng, items: Any) -> Any:
    """Draw one of a sequence."""
    return items[int(rng.integers(len(items)))]


# Bytes


def _flip(data: bytearray, rng: Rng) -> None:
    for _ in range(int(rng.integers(1, 9))):
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))


def _number(data: bytearray, rng: Rng) -> None:
    """Write a number that is likely to be a limit, such as of a length, over whatever stands there."""
    width = int(pick(rng, (1, 2, 4, 8)))
    place = int(rng.integers(max(1, len(data) - width + 1)))
    value = pick(rng, INTEGERS) % 2 ** (8 * width)
    data[place : place + width] = value.to_bytes(width, pick(rng, ("little", "big")))


def _nudge(data: bytearray, rng: Rng) -> None:
    """Add a little to a number of two to eight bytes, as lengths and offsets are."""
    width = int(pick(rng, (2, 4, 8)))
    place = int(rng.integers(max(1, len(data) - width + 1)))
    order = pick(rng, ("little", "big"))
    value = int.from_bytes(data[place : place + width], order) + int(rng.integers(-16, 17))
    data[place : place + width] = (value % 2 ** (8 * width)).to_bytes(width, order)


def _cut(data: bytearray, rng: Rng) -> None:
    kept = int(rng.integers(len(data)))
    zeros = len(data) - kept if rng.random() < 0.3 else 0
    del data[kept:]
    data.extend(bytes(zeros))


def _drop(data: bytearray, rng: Rng) -> None:
    first = int(rng.integers(len(data)))
    del data[first : first + int(2 ** rng.uniform(0, 10))]


def _overwrite(data: bytearray, rng: Rng) -> None:
    length = int(2 ** rng.uniform(0, 10))
    first, other = (int(rng.integers(len(data))) for _ in range(2))
    new = {0: bytes(length), 1: b"\xff" * length, 2: rng.bytes(length), 3: bytes(data[other : other + length])}
    data[first : first + length] = new[int(rng.integers(4))][: len(data) - first]


def _repeat(data: bytearray, rng: Rng) -> None:
    first = int(rng.integers(len(data)))
    piece = bytes(data[first : first + int(2 ** rng.uniform(0, 12))])
    data[first:first] = piece * int(rng.integers(1, 5))


_CHANGES = (_flip, _flip, _number, _number, _nudge, _cut, _drop, _overwrite, _overwrite, _repeat)


def mutate_bytes(data: bytes, rng: Rng) -> bytes:
    """Damage bytes in one to four places."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        if changed:
            pick(rng, _CHANGES)(changed, rng)
    return bytes(changed)


def mutate_text(data: bytes, rng: Rng) -> bytes:
    """Damage a text in one to four places: words that mean something to some reader, or bytes."""
    for _ in range(int(rng.integers(1, 5))):
        if rng.random() < 0.25:
            data = mutate_bytes(data, rng)
            continue
        first = int(rng.integers(len(data) + 1))
        end = first + (0 if rng.random() < 0.5 else int(rng.integers(0, 12)))
        data = data[:first] + pick(rng, _TOKENS).encode() + data[end:]
    return data


# JSON


def _odd(rng: Rng) -> Any:
    """Return a value that a reader may not expect."""
    numbers = [
        None,
        True,
        False,
        0,
        -1,
        1.5,
        2**31,
        2**63,
        2**64,
        -(10**30),
        1e308,
        float("nan"),
        float("inf"),
        10**400,
    ]
    texts = [
        "",
        "x" * 5000,
        "\0",
        "a\nb",
        "\x1b[2J",
        "é",
        "0",
        "2",
        "../x",
        "../../../x",
        "/x",
        "C:\\x",
        "a/./b",
        "v5/",
    ]
    texts += [
        "@OUTSIDE@/made",
        "../" * 12 + "@OUTSIDE@/made",
        "@OUTSIDE@/secret.h5",
        "s3://other/x",
        "\ud800",
        "a" * 64,
    ]
    nested: Any = []
    for _ in range(int(rng.integers(1, 200))):
        nested = [nested]
    return pick(rng, [*numbers, *texts, [], {}, [[]], [None], {"a": {}}, [1, 2, 3], nested, ["../x"], {"name": "../x"}])


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of all values inside."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    found = [(value, key) for key in keys]
    return found + [place for key in keys for place in _places(value[key])]


def mutate_json(data: bytes, rng: Rng, outside: str = "") -> bytes:
    """Damage JSON: mostly values in it, at times its text."""
    if rng.random() < 0.2:
        return mutate_text(data, rng)
    if rng.random() < 0.03:
        deep = int(pick(rng, (900, 5000, 200_000)))
        return b"[" * deep + b"]" * deep
    value = [json.loads(data)]
    for _ in range(int(rng.integers(1, 4))):
        holder, key = pick(rng, _places(value))
        change = int(rng.integers(6))
        if change == 0 and holder is not value:
            holder.pop(key)
        elif change == 1 and isinstance(holder, dict):
            holder[pick(rng, ("x", "", "__class__", "name", "../x", "\x1b[2J", "self"))] = _odd(rng)
        elif change == 2:
            other, name = pick(rng, _places(value))
            holder[key] = json.loads(json.dumps(other[name]))
        else:
            holder[key] = _odd(rng)
    text = json.dumps(value[0]).replace("@OUTSIDE@", outside)
    return text.encode(errors="surrogatepass")


# Containers: the parts are damaged, and the checksums and lengths around them made right again


def mutate_zip(data: bytes, rng: Rng, inner: Callable[[bytes, Rng], bytes] = mutate_bytes) -> bytes:
    """Damage one member of a zip file."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(item.filename, archive.read(item)) for item in archive.infolist()]
    except (zipfile.BadZipFile, ValueError, EOFError, zlib.error):
        return mutate_bytes(data, rng)
    chosen = int(rng.integers(len(members)))
    out = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if rng.random() < 0.2 else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, "w", kind) as archive:
        for number, (name, content) in enumerate(members):
            if number == chosen and rng.random() < 0.1:
                continue
            member = zipfile.ZipInfo(name)  # with a fixed date, where a name alone takes the clock's
            archive.writestr(member, inner(content, rng) if number == chosen else content, kind)
            if number == chosen and rng.random() < 0.05:
                member = zipfile.ZipInfo(pick(rng, ("../x", "/x", "a" * 300)))
                archive.writestr(member, content, kind)
    return out.getvalue()


def mutate_safetensors(data: bytes, rng: Rng) -> bytes:
    """Damage the header's JSON."""
    length = struct.unpack("<Q", data[:8])[0]
    header = mutate_json(data[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def mutate_png(data: bytes, rng: Rng) -> bytes:
    """Damage one chunk of a PNG."""
    chunks, place = [], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    number = int(rng.integers(len(chunks)))
    kind, body = chunks[number]
    if kind == b"IDAT" and rng.random() < 0.5:
        body = zlib.compress(mutate_bytes(zlib.decompress(body), rng) if rng.random() < 0.8 else bytes(2**26))
    elif rng.random() < 0.2:
        chunks.insert(number, (pick(rng, (b"zTXt", b"iCCP", b"acTL", b"tRNS", b"PLTE", b"eXIf")), rng.bytes(40)))
    elif body:
        body = mutate_bytes(body, rng)
    chunks[number] = kind, body
    parts = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks]
    return data[:8] + b"".join(parts)


def mutate_npy(data: bytes, rng: Rng) -> bytes:
    """Damage the header of an array."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    order = pick(rng, ("True", "False", "1", "None"))
    kind = pick(rng, ("<f4", ">f8", "|O", "<f2", "<c8", "<i8", "|S5", "|V4", "<M8[s]", "|b1", "<f16", "x", "<f4,<i4"))
    sides = (0, 1, -1, 16, 20, 40, 2**20, 2**31, 2**63, 10**30)
    shape = tuple(pick(rng, sides) for _ in range(int(rng.integers(0, 6))))
    header = f"{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}"
    if rng.random() < 0.2:
        header = mutate_text(header.encode(), rng).decode("latin1")
    raw = header.encode("latin1") + b"\n"
    version = pick(rng, ((1, 0), (1, 0), (2, 0), (3, 0), (9, 9)))
    size = struct.pack("<H" if version == (1, 0) else "<I", len(raw) % 65536)
    return b"\x93NUMPY" + bytes(version) + size + raw + data[128:]
