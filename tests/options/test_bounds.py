"""Small files that ask for much: each is refused in one line, in little memory, before anything is made of it."""

import json
import os
import resource
import socket
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import torch
from hostile import Call, cyclic, shared, tensor, write_checkpoint

from nenya.commands.compose import compose
from nenya.commands.inspect import inspect_file
from nenya.commands.search import read_image
from nenya.errors import CheckpointError, InputFileError, NenyaError, OptionError
from nenya.io import Params, read_table, write_table
from nenya.models.checkpoint import load_checkpoint, load_weights, save_pth, save_safetensors
from nenya.models.contrastive import make_net
from nenya.models.pickled import check_sizes
from nenya.options.files import read_json, read_yaml
from nenya.portal.columns import read_arrow
from nenya.storage.arrays import read_arrays
from nenya.storage.small_files import parse_yaml
from nenya.storage.table_files import _page_sizes
from nenya.tables.conditions import Conditions, rows_where
from nenya.train import read_run_config

GIGABYTES = 3
WEIGHTS = {"encoder.conv1.weight": tensor((10, 10), (10, 1))}


def bounded(*args: object, gigabytes: int = GIGABYTES, cwd: Path | None = None) -> tuple[int, str]:
    """Run `nenya` in a process of its own whose memory is limited; returns the exit code and both outputs."""
    limit = gigabytes * 2**30
    code = "import sys; from nenya.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=cwd,
        capture_output=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    return done.returncode, (done.stdout + done.stderr).decode()


def refusal(error: type[NenyaError], call, *args) -> str:
    """Return the line of a refusal."""
    with pytest.raises(error) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Option files

LAUGHS = "a: &a [lol, lol, lol]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in pairwise("abcdefghij"))
YAML = {
    "aliases": (LAUGHS, "aliases are not allowed"),
    "one alias": ("a: &x 1\nb: *x\n", "aliases are not allowed"),
    "depth": ("a: " + "[" * 5000, "levels of nesting"),
    "maps": ("{a: " * 3000, "levels of nesting"),
    "values": ("a: [" + "1," * 300_000 + "]", "at most 200,000 values"),
    "twice": ("noise: 0.1\nnoise: 0.2\n", "duplicate key noise"),
    "digits": ("noise: " + "9" * 50_000, "digits"),
    "base 60": ("noise: " + ":".join(["1"] * 30_000), "64 bits"),
    "code": ("a: !!python/object/apply:os.system [ls]", "python/object"),
    "environment": ("variable: ${oc.env:HOME}", "may not contain"),
    "reference": ("variable: ${sensor.name}", "may not contain"),
    "long": ("a: " + "x" * 100_000, "at most 65536 characters"),
    "large": ("#" * 11_000_000, "at most 10,485,760 bytes"),
    "no text": (b"\xff\xfe\xfd", "cannot read"),
}


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_is_refused(tmp_path, name):
    text, said = YAML[name]
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert said in refusal(OptionError, read_yaml, path)
    assert said.replace("cannot read", "cannot be read") in refusal(CheckpointError, read_run_config, tmp_path)
    assert said.replace("cannot read", "cannot be read") in refusal(InputFileError, inspect_file, tmp_path)
    with pytest.raises(OptionError, match=r"config\.yaml"):
        compose("prepare", [f"sensor={path}"])


JSON = {
    "depth": ("[" * 100_000 + "]" * 100_000, "levels of nesting"),
    "some depth": ('{"note": ' + "[" * 60 + "]" * 60 + "}", "levels of nesting"),
    "twice": ('{"trial": 1, "trial": 2}', "duplicate key trial"),
    "no number": ('{"temp": NaN}', "NaN is not a JSON number"),
    "infinite": ('{"temp": 1e999}', "finite number"),
    "digits": ('{"trial": ' + "9" * 10_000 + "}", "digits"),
    "large number": ('{"trial": ' + "9" * 400 + "}", "64 bits"),
    "values": ("[" + "0," * 300_000 + "0]", "at most 200,000 values"),
    "environment": ('{"note": "${oc.env:HOME}"}', "may not contain"),
    "large": (" " * 11_000_000, "at most 10,485,760 bytes"),
}


@pytest.mark.parametrize("name", JSON)
def test_json_that_is_refused(tmp_path, name):
    path = tmp_path / "opts.json"
    path.write_text(JSON[name][0])
    assert JSON[name][1] in refusal(OptionError, read_json, path)
    assert JSON[name][1] in refusal(OptionError, Params, path)
    with pytest.raises(OptionError, match=r"opts\.json"):
        compose("train", [f"model={path}"])


def test_plain_values_are_read_as_before():
    text = "a: 1\nb: [1.5, null, true]\nc: {d: 'x'}\ne: ${DATA}/x\nf: $DATA/x\ng: .nan\n"
    found = parse_yaml(text)
    assert found.pop("g") != 0
    assert found == {"a": 1, "b": [1.5, None, True], "c": {"d": "x"}, "e": "${DATA}/x", "f": "$DATA/x"}


def test_a_run_folder_of_other_kinds_is_one_line(nenya_cli, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").write_bytes(b"x")
    for text in ("model: [1]\n", "model: 3\nloader: {}\n", "- 1\n", "unknown: 1\n", "model: {name: {a: 1}}\n"):
        (run / "config.yaml").write_text(text)
        code, said = nenya_cli("train", [f"resume={run}"])
        assert (code, said.count("\n")) == (2, 1)
        assert "config.yaml" in said
        assert "Error:" not in said
    (run / "config.yaml").write_text("model: [1]\noptim: 3\ntrainer: x\n")
    assert nenya_cli("inspect", [run])[0] == 0


# What is no file

KINDS = [
    "opts.json",
    "recipe.yaml",
    "t.csv",
    "t.parquet",
    "t.feather",
    "a.npy",
    "a.npz",
    "w.pth",
    "w.safetensors",
    "a.h5",
]


def readers(path: Path) -> list:
    return {
        ".json": [Params, lambda p: compose("train", [f"model={p}"])],
        ".yaml": [lambda p: compose("prepare", [f"sensor={p}"])],
        ".csv": [read_table, read_arrow, inspect_file],
        ".parquet": [read_table, read_arrow, inspect_file],
        ".feather": [read_table, read_arrow, inspect_file],
        ".npy": [lambda p: read_image(str(p))],
        ".npz": [lambda p: read_image(str(p))],
        ".pth": [load_checkpoint, inspect_file],
        ".safetensors": [load_checkpoint],
        ".h5": [inspect_file],
    }[path.suffix]


@pytest.mark.parametrize("name", KINDS)
def test_pipes_sockets_and_devices_are_not_waited_for(tmp_path, name):
    def pipe(path):
        os.mkfifo(path)

    def device(path):
        path.symlink_to("/dev/zero")

    def listening(path):
        with socket.socket(socket.AF_UNIX) as found:
            found.bind(str(path))

    os.chdir(tmp_path)  # names of sockets are short
    for number, (make, kind) in enumerate([(pipe, "pipe"), (device, "device"), (listening, "socket")]):
        path = Path(f"{number}{name}")
        make(path)
        for read in readers(path):
            said = refusal(NenyaError, read, path)
            assert kind in said or "No such device" in said


def test_a_pipe_as_config_or_missing_writer_ends(tmp_path):
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / "config.yaml")
    assert "got a pipe" in refusal(CheckpointError, read_run_config, tmp_path / "run")


# Checkpoints

EVIL = {
    "shared lists": ({"model": WEIGHTS, "opt": {"a": shared([1])}}, "more than 100,000 values"),
    "shared tuples": ({"model": WEIGHTS, "opt": {"a": shared((1,))}}, "too many nested values"),
    "cyclic list": ({"model": WEIGHTS, "opt": {"a": cyclic()}}, "more than 20 levels"),
    "cyclic model": ({"model": {"a": cyclic()}}, "expected tensors as weights"),
    "shared key": ({"model": {shared((1,), 20): tensor((1,), (1,))}}, "too many nested values"),
    "expanded": ({"model": {"a.weight": tensor((10**6, 10**6), (0, 0))}}, "larger than their data in the file"),
    "overlapping": ({"model": {"a.weight": tensor((90, 11), (1, 1))}}, "larger than their data in the file"),
    "more than there is": ({"model": {"a.weight": tensor((10**6,), (1,), 10**6)}}, "larger than the file"),
    "memory": ({"model": WEIGHTS, "opt": {"a": Call(bytearray, 10**10)}}, "does not fill"),
    "storage": ({"model": WEIGHTS, "opt": {"a": Call(torch.UntypedStorage, 10**10)}}, "UntypedStorage"),
    "tensor": ({"model": WEIGHTS, "opt": {"a": Call(torch.Tensor, 10**10)}}, "torch.Tensor"),
    "hidden call": (
        {"model": WEIGHTS, "opt": Call(torch._tensor._rebuild_from_type_v2, bytearray, torch.Tensor, (10**10,), None)},
        "_rebuild_from_type_v2",
    ),
    "code": ({"model": WEIGHTS, "opt": {"a": Call(eval, "1")}}, "eval, which could run code; nothing was executed"),
}


@pytest.mark.parametrize("name", EVIL)
def test_checkpoints_that_ask_for_more_are_refused(tmp_path, name):
    content, said = EVIL[name]
    path = write_checkpoint(tmp_path / "w.pth", content)
    assert said in refusal(CheckpointError, load_checkpoint, path)


@pytest.mark.parametrize(
    "name", ["sparse", "rows", "meta", "quantized", "nested", "complex", "int8", "bool", "expanded"]
)
def test_weights_that_are_no_dense_numbers_are_refused(tmp_path, name):
    x = torch.eye(4)
    kinds = {
        **{"sparse": lambda: x.to_sparse(), "rows": lambda: x.to_sparse_csr(), "meta": lambda: x.to("meta")},
        **{"quantized": lambda: torch.quantize_per_tensor(x, 1, 0, torch.qint8), "complex": lambda: x.to(torch.cfloat)},
        **{
            "nested": lambda: torch.nested.nested_tensor([x]),
            "int8": lambda: x.to(torch.int8),
            "bool": lambda: x.bool(),
        },
        **{"expanded": lambda: torch.zeros(1).expand(4, 4)},
    }
    for legacy in (False, True):
        if legacy and name == "meta":
            continue
        value = {"model": {"a.weight": kinds[name]()}}
        torch.save(value, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
        said = refusal(CheckpointError, load_checkpoint, tmp_path / "w.pth")
        assert "weights" in said
        assert "damaged" not in said


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_widths_load(tmp_path, kind):
    net = make_net(compose("extract", ["model=demo"]))
    torch.save({"model": net.to(kind).state_dict()}, tmp_path / "w.pth")
    fresh = make_net(compose("extract", ["model=demo"]))
    load_weights(fresh, load_checkpoint(tmp_path / "w.pth"))
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, net.state_dict()[name].to(value.dtype))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_with_nan_are_blamed_not_the_cutouts(nenya_cli, small_file, tmp_path, value, suffix):
    net = make_net(compose("extract", ["model=demo"]))
    with torch.no_grad():
        net.head[2].bias[0] = value
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        save_pth(path, net, options={}, epoch=1)
    else:
        save_safetensors(path, net)
    code, said = nenya_cli("extract", ["model=demo", f"data={small_file}", f"ckpt={path}", "out=out/"])
    assert (code, said.count("\n")) == (2, 1)
    assert f"w{suffix}: 1 of" in said
    assert "NaN or infinity (head.2.bias)" in said
    assert not list(Path("out").glob("*.h5"))


@pytest.mark.parametrize(("entry", "value"), [("running_var", -1.0), ("weight", 1e38)])
def test_finite_weights_that_give_no_latents_are_blamed(nenya_cli, small_file, tmp_path, entry, value):
    net = make_net(compose("extract", ["model=demo"]))
    state = net.state_dict()
    name = next(key for key in state if key.endswith(entry))
    state[name].fill_(value)
    save_pth(tmp_path / "w.pth", net, options={}, epoch=1)
    code, said = nenya_cli("extract", ["model=demo", f"data={small_file}", f"ckpt={tmp_path / 'w.pth'}", "out=out/"])
    assert code == 2 and "weights are damaged" in said, said
    assert not list(Path("out").glob("*.h5"))


def test_networks_beyond_reason_are_refused(nenya_cli, tmp_path):
    (tmp_path / "opts.json").write_text('{"feat_dim": 100000000000}')
    code, said = nenya_cli("extract", [f"model={tmp_path / 'opts.json'}", "data=a.h5"])
    assert (code, said.count("\n")) == (2, 1)
    assert "feat_dim=100000000000" in said and "from 1 to 65536" in said


def test_packed_records_are_refused_in_little_memory(tmp_path):
    content = {"model": {"a.weight": tensor((2**26,), (1,), 2**26)}}
    path = write_checkpoint(tmp_path / "w.pth", content, 2**26, packed=True)
    assert path.stat().st_size < 2**21
    code, said = bounded("inspect", path)
    assert (code, said.count("\n")) == (2, 1)
    assert "is compressed" in said


def test_records_twice_and_lost_storages_are_refused(tmp_path):
    path = write_checkpoint(tmp_path / "w.pth", {"model": WEIGHTS})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning):
        archive.writestr("a/data.pkl", b"")
    assert "same name" in refusal(CheckpointError, load_checkpoint, path)
    torch.save({"model": {"a": torch.ones(3)}}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    keys = content.rindex(b"\x80\x02]q\x00")
    path.write_bytes(content[:keys] + b"\x80\x02]q\x00." + content[keys:].partition(b".")[2])
    assert "lacks some of its weights" in refusal(CheckpointError, load_checkpoint, path)


def test_a_run_is_not_gone_on_with_from_a_hostile_checkpoint(tmp_path):
    path = write_checkpoint(tmp_path / "last.ckpt", {"state_dict": WEIGHTS, "epoch": Call(bytearray, 10**10)})
    assert "does not fill" in refusal(CheckpointError, check_sizes, path)
    path.write_bytes(b"PK\x03\x04")
    check_sizes(path)  # that it is damaged, who reads it says


def test_options_of_safetensors_are_bounded(tmp_path):
    from safetensors.torch import save_file

    for options, said in (
        ("[" * 100_000, "damaged"),
        (json.dumps({"a": json.loads("[" * 30 + "]" * 30)}), "more than 20 levels"),
    ):
        save_file({"a.weight": torch.ones(2)}, tmp_path / "w.safetensors", {"options": options})
        assert said in refusal(CheckpointError, load_checkpoint, tmp_path / "w.safetensors")


# Tables


def repeated(value: object, rows: int) -> pa.Array:
    """Return one value in many rows, in little memory."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int8)), pa.array([value]))


def parquet(path: Path, table: pa.Table, **settings) -> Path:
    pq.write_table(table, path, **settings)
    return path


TEXT = "x" * 1000
TABLES = {
    "texts.parquet": lambda p: parquet(p, pa.table({"a": repeated(TEXT, 10**6)}), store_schema=False),
    "bytes.parquet": lambda p: parquet(p, pa.table({"a": repeated(TEXT.encode(), 10**6)}), store_schema=False),
    "lists.parquet": lambda p: parquet(p, pa.table({"a": [[TEXT]] * 400_000})),
    "numbers.parquet": lambda p: parquet(p, pa.table({"a": np.zeros(10**8)})),
    "packed.parquet": lambda p: parquet(
        p, pa.table({"a": pa.array([TEXT] * 600_000)}), use_dictionary=False, compression="zstd"
    ),
    "delta.parquet": lambda p: parquet(
        p, pa.table({"a": pa.array([TEXT] * 600_000)}), use_dictionary=False, column_encoding={"a": "DELTA_BYTE_ARRAY"}
    ),
    "wide.parquet": lambda p: parquet(p, pa.table({f"c{i}": [1] for i in range(6000)})),
    "packed.feather": lambda p: pyarrow.feather.write_feather(pa.table({"a": np.zeros(10**8)}), p, "zstd"),
    "lz4.feather": lambda p: pyarrow.feather.write_feather(pa.table({"a": np.zeros(10**8)}), p, "lz4"),
    "nothing.feather": lambda p: pyarrow.feather.write_feather(pa.table({"a": pa.nulls(10**9)}), p, "zstd"),
    "header.csv": lambda p: p.write_text(",".join(f"c{i}" for i in range(100_000)) + "\n1"),
    "row.csv": lambda p: p.write_text("a\n" + ",".join(["1"] * 100_000)),
    "line.csv": lambda p: p.write_text("a" * 10**7),
    "quoted.csv": lambda p: p.write_text('"' + "a\n" * 10**6),
    "bytes.csv": lambda p: p.write_bytes(b"lat,lon\n\xff\xfe,1\n"),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_that_would_take_the_memory_are_refused(tmp_path, name):
    path = tmp_path / name
    TABLES[name](path)
    allocated = pa.total_allocated_bytes()
    said = refusal(InputFileError, read_table, path)
    assert path.name in said
    assert pa.default_memory_pool().max_memory() < 2**31 or pa.total_allocated_bytes() <= allocated + 2**20
    refusal(InputFileError, read_arrow, path)


@pytest.mark.parametrize("compression", ["snappy", "zstd", "none"])
def test_pages_are_measured_by_their_own_headers(tmp_path, compression):
    values = np.random.default_rng(0).standard_normal(50_000)
    table = pa.table({"a": values, "b": [f"{value:.3f}" for value in values]})
    path = parquet(tmp_path / "t.parquet", table, compression=compression, row_group_size=20_000, data_page_size=10_000)
    about = pq.read_metadata(path)
    content = path.read_bytes()
    for group in range(about.num_row_groups):
        for number in range(2):
            chunk = about.row_group(group).column(number)
            sizes = list(_page_sizes(content, chunk))
            assert len(sizes) > 2
            assert 0.9 * chunk.total_uncompressed_size < sum(sizes) < chunk.total_uncompressed_size  # with the headers
    cut = bytearray(content)
    cut[chunk.data_page_offset : chunk.data_page_offset + 30] = bytes(30)
    path.write_bytes(cut)
    assert "cannot be read as a table" in refusal(InputFileError, read_table, path)


def test_a_table_of_a_hundred_kilobytes_ends_in_little_memory(tmp_path):
    path = parquet(
        tmp_path / "t.parquet", pa.table({"lat": np.ones(10**6), "a": repeated(TEXT * 10, 10**6)}), store_schema=False
    )
    assert path.stat().st_size < 2**21
    code, said = bounded("statistics", f"table={path}", "where=lat > 0", cwd=tmp_path)
    assert (code, said.count("\n")) == (2, 1)
    assert "needs more than" in said


@pytest.mark.parametrize("compression", ["snappy", "zstd", "gzip", "none"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_honest_tables_are_read(tmp_path, compression, version):
    rows = 20_000
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            **{"lat": rng.uniform(-90, 90, rows), "lon": 0.0, "name": [f"file{i}.h5" for i in range(rows)]},
            **{"kind": pd.Categorical(rng.choice(["a", "b"], rows)), "date": pd.Timestamp("2012"), "good": True},
        }
    )
    settings = {"compression": compression, "data_page_version": version, "row_group_size": 6000}
    table.to_parquet(tmp_path / "t.parquet", write_page_index=True, write_page_checksum=True, **settings)
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.parquet"), pd.read_parquet(tmp_path / "t.parquet"))
    assert len(read_table(tmp_path / "t.parquet")) == rows


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".feather"])
def test_degrees_that_are_no_numbers_are_named(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    write_table(pd.DataFrame({"lat": ["1.5", "north\x1b[31m"], "lon": [1, 2]}), path)
    for read in (read_table, read_arrow, inspect_file):
        said = refusal(InputFileError, read, path)
        assert "expected degrees in the column lat, got 'north" in said
        assert "in row 1" in said
        assert "\x1b" not in said
    write_table(pd.DataFrame({"lat": ["1.5", "-2"], "lon": [1, 2]}), path)
    assert read_table(path)["lat"].tolist() == [1.5, -2.0]


def test_places_of_at_that_are_texts_are_named(nenya_cli, tmp_path):
    (tmp_path / "at.csv").write_text("lat,lon,datetime\n1,2,2010-01-01\nsouth,3,2010-01-01\n")
    (tmp_path / "a.nc").write_bytes(b"CDF\x01")
    code, said = nenya_cli("prepare", ["data=a.nc", "out=o_preproc.h5", "at=at.csv"])
    assert (code, said.count("\n")) == (2, 1)
    assert "column lat, got 'south' in row 1" in said


def test_columns_that_are_there_twice_are_named(tmp_path):
    path = parquet(tmp_path / "t.parquet", pa.table([pa.array([1.0]), pa.array([2.0])], names=["lat", "lat"]))
    for read in (read_table, read_arrow):
        assert "twice" in refusal(InputFileError, read, path)


# Arrays


def npy(shape: str, kind: str = "<f8", data: bytes = bytes(100)) -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


ARRAYS = {
    "large": npy("(1000000, 1000000)"),
    "beyond": npy("(99999999999999999999, 9)"),
    "negative": npy("(-1, 4)"),
    "objects": npy("(3, 4)", "|O"),
    "nothing in each": npy("(1000000000000, 10)", "|V0"),
    "header": b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little") + b"{" * 1000,
    "cut": npy("(4, 4)")[:60],
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_state_more_than_they_have_are_refused(tmp_path, name):
    (tmp_path / "a.npy").write_bytes(ARRAYS[name])
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", ARRAYS[name])
    for path in ("a.npy", "a.npz"):
        assert "numeric array" in refusal(InputFileError, read_arrays, tmp_path / path)
        refusal(InputFileError, read_image, str(tmp_path / path))


def test_packed_arrays_are_bounded_and_honest_ones_equal(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros((100, 1000, 1000), np.float32))
    assert (tmp_path / "a.npz").stat().st_size < 2**20
    assert "unpacked size" in refusal(InputFileError, read_arrays, tmp_path / "a.npz")
    values = np.arange(64.0).reshape(8, 8)
    for order in (values, values.T, values.astype(">i4")):
        np.save(tmp_path / "b.npy", order)
        np.savez_compressed(tmp_path / "b.npz", x=order)
        np.testing.assert_array_equal(read_arrays(tmp_path / "b.npy")[""], order)
        np.testing.assert_array_equal(read_arrays(tmp_path / "b.npz")["x"], order)


# Conditions


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return pd.DataFrame(
        {"lat": np.arange(100.0), "DT": 1.0, "datetime": pd.Timestamp("2010-01-01"), "name": ["a", "B"] * 50}
    )


GROWING = [
    "lat = 1 -- '",
    *(
        "E'\\'' || lpad('x', 9) = 'x'",
        "name = '\\'' || lpad('x', 9) || ''",
        "$$'$$ = lpad('x', 9)",
        "U&'a' = name",
    ),
    *("lpad('x', 1000000000000, 'y') = 'x'", "lpad (name, 9) = 'x'", "LPAD/* */(name, 9) = 'x'", '"lpad"(name, 9) = 1'),
    *("`repeat`('x', 1000000000) = 'x'", "replace(name, 'a', 'aa') = 'x'", "rpad(name, 9) = 'x'", "space(9) = name"),
    *("range(1, 1000000000) IS NULL", "generate_series(1, 9) IS NULL", "array_repeat(1, 99) IS NULL"),
    *("lat IN (SELECT 1)", "exists (SELECT 1)", "cast(lat AS decimal(76, 75)) > 0", "concat(name, name) = 'x'"),
    *("lat > " + "+".join(["lat"] * 5000), "(not " * 30 + "lat = 1" + ")" * 30, "name = " + "||".join(["name"] * 900)),
    *("(" * 40 + "lat = 1" + ")" * 40, "lat = " + "- " * 3000 + "1", " OR ".join(["lat = 1"] * 100_000)),
    *("name = '" + "a" * 20_000 + "'", "lat = " + "1" * 20_000, "name LIKE '" + "%a" * 10_000 + "'"),
]


@pytest.mark.parametrize("sql", GROWING, ids=lambda sql: sql[:30])
def test_conditions_that_grow_are_refused_before_the_database(table, sql):
    with pytest.raises(OptionError, match=r"not (an )?allowed|at most|comment|not supported") as caught:
        rows_where(table, sql)
    assert len(str(caught.value)) < 2000
    if "IN (SELECT" not in sql:  # which the database refuses by itself
        refusal(OptionError, Conditions(where=sql).sql, list(table.columns))


HARMLESS = {
    "abs(lat - 50) < 2 AND lower(name) = 'b'": lambda t: (abs(t.lat - 50) < 2) & (t.name == "B"),
    "date_part('year', datetime) = 2010": lambda t: t.lat >= 0,
    "lat IN (" + ",".join(f"-{i}" for i in range(5000)) + ", 3)": lambda t: t.lat.isin([0, 3]),
    " OR ".join(f"lat = {i}" for i in range(2000)): lambda t: t.lat >= 0,
    "datetime > timestamp'2009-01-01' and'a'='a' or lat in(1)": lambda t: t.lat >= 0,
    "name LIKE 'a%' AND lat BETWEEN 1 AND (2 + 3) * 2": lambda t: (t.name == "a") & t.lat.between(1, 10),
    "not (lat > 5 or (lat < 2 and name = 'lpad(x'))": lambda t: t.lat <= 5,
    "round(sqrt(lat), 1) = 3.0 and coalesce(DT, 0) > 0 and DT IS NOT NULL": lambda t: t.lat == 9,
    "cast(lat AS int) % 2 = 0 AND datetime < '2011-01-01'": lambda t: t.lat % 2 == 0,
}


@pytest.mark.parametrize("sql", HARMLESS, ids=lambda sql: sql[:30])
def test_conditions_that_cannot_grow_mean_what_they_did(table, sql):
    wanted = HARMLESS[sql](table).to_numpy()
    np.testing.assert_array_equal(rows_where(table, Conditions(where=sql).sql(list(table.columns))), wanted)


@pytest.mark.parametrize("command", ["statistics", "figures"])
def test_a_condition_that_grows_ends_in_one_line(tmp_path, command):
    write_table(pd.DataFrame({"lat": [1.0], "lon": [2.0]}), tmp_path / "t.csv")
    more = ["kind=map"] if command == "figures" else []
    where = "where=lpad('x', 2000000000, 'y') || lpad('x', 2000000000, 'y') = 'x'"
    code, said = bounded(command, "table=t.csv", where, *more, cwd=tmp_path)
    assert (code, said.count("\n")) == (2, 1)
    assert "function lpad is not allowed in conditions" in said
