"""`nenya repack`: every bit and everything beside the pixels is carried over, or nothing is written."""

import json
import shutil

import h5py
import numpy as np
import pytest
from conftest import red_noise

from nenya.commands import repack as module
from nenya.commands.compose import compose
from nenya.commands.repack import repack_file
from nenya.data.cutouts import CutoutReader, inspect_cutouts
from nenya.errors import OutputError

BITS = np.array([0x7FC00001, 0xFFC12345, 0x7F800000, 0x80000000, 0x00000001], np.uint32).view(np.float32)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "_SECONDS", 0.01)
    monkeypatch.setattr(module, "_CHUNK", 16 * 1024)
    monkeypatch.setattr(module, "_BLOCK", 64 * 1024)


def options(*args):
    return compose("repack", ["force=true", *args])  # in a few milliseconds, speeds are chance


def pixels(rows=75, side=16, kind="<f4"):
    values = red_noise(rows, side=side).reshape(rows, 1, side, side).astype(np.float32)
    values[3, 0, 0, :5] = BITS
    return values.astype(kind) if kind != "<f4" else values


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "cutouts_preproc.h5"
    rng = np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        train = file.create_dataset("train", data=pixels(), compression="gzip", chunks=(50, 1, 4, 4))
        train.attrs["units"], train.attrs["levels"] = "K", np.array([1.5, 2.5])
        file.create_dataset("valid", data=pixels(20)[:, 0], maxshape=(None, 16, 16), compression="lzf")
        file.create_dataset("train_labels", data=rng.integers(0, 9, 75), chunks=(10,), compression="gzip")
        texts = [f"granule {i}" for i in range(75)]
        file.create_dataset("train_metadata", data=texts, dtype=h5py.string_dtype())
        kind = np.dtype([("lat", "<f8"), ("name", "S5"), ("when", "<i8")])
        file.create_dataset("valid_metadata", data=np.array([(i / 3, b"abc", i) for i in range(20)], kind))
        file.create_dataset("extra/deep/image", data=np.arange(12).reshape(3, 4))
        file["extra"].attrs["who"] = "me"
        file["again"], file["alias"], file["soft"] = file["extra/deep"], file["train"], h5py.SoftLink("/extra/deep")
        file.attrs.update({"note": "µ", "flags": np.array([True, False]), "empty": h5py.Empty("f4"), "bytes": b"xy"})
        file.attrs["texts"] = np.array(["a", "bc"], h5py.string_dtype())
    return path


def contents(path):
    """Return all names with their values and attributes, pixels as raw bits."""

    def value(item):
        return item[()].tobytes() if item.dtype.kind != "O" else [*item.asstr()[()]]

    def attributes(item):
        return {
            k: (str(item.attrs.get_id(k).dtype), np.array(v).tolist()) for k, v in item.attrs.items() if k != "empty"
        }

    found = {}
    with h5py.File(path) as file:
        found["/"] = attributes(file), sorted(file), file.attrs["empty"]

        def note(name, item):
            data = (
                (item.shape, item.maxshape, item.dtype, value(item)) if isinstance(item, h5py.Dataset) else sorted(item)
            )
            found[name] = data, attributes(item)

        file.visititems(note)
        found["links"] = (
            file["again"] == file["extra/deep"],
            file["alias"] == file["train"],
            file.get("soft", getlink=True).path,
        )
    return found


@pytest.mark.parametrize("codec", ["gzip", "lzf", "none"])
def test_everything_is_carried_over(source, tmp_path, codec):
    before, output = source.read_bytes(), tmp_path / "out" / "new.h5"
    said = repack_file(source, output, options(f"codec={codec}"))
    assert contents(output) == contents(source)
    assert source.read_bytes() == before
    assert [path.name for path in output.parent.iterdir()] == ["new.h5"]
    assert "95 cutouts" in said and "cutouts/s" in said
    with h5py.File(output) as file:
        whole = (16, 1, 16, 16)
        assert file["train"].chunks == (None if codec == "none" else whole)
        assert file["train"].compression == (None if codec == "none" else codec)
        assert file["valid"].chunks == (16, 16, 16), "which may grow"


@pytest.mark.parametrize("kind", [">f4", "<f2", "<f8", ">f8"])
@pytest.mark.parametrize("chunks", [None, (7, 1, 16, 16), (75, 1, 2, 16)])
def test_other_types_keep_their_bits(tmp_path, kind, chunks):
    path, values = tmp_path / "c.h5", pixels(kind=kind)
    with h5py.File(path, "w") as file:
        file.create_dataset("train", data=values, chunks=chunks)
    repack_file(path, tmp_path / "new.h5", options())
    with h5py.File(tmp_path / "new.h5") as file:
        assert file["train"].dtype == np.dtype(kind)
        assert file["train"][()].tobytes() == values.tobytes()
    with CutoutReader(tmp_path / "new.h5", "train") as reader:
        assert reader.read(0, 75).tobytes() == values.astype(np.float32).tobytes()


def test_shuffle_is_used_where_it_helps(tmp_path):
    smooth, steps = red_noise(40, side=16), np.round(red_noise(40, side=16) * 20).astype(np.float32) * np.float32(0.05)
    for name, values, wanted in (("smooth", smooth, True), ("steps", steps, False)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["valid"] = values.reshape(40, 1, 16, 16).astype(np.float32)
        repack_file(tmp_path / f"{name}.h5", tmp_path / f"{name}_new.h5", options())
        with h5py.File(tmp_path / f"{name}_new.h5") as file:
            assert file["valid"].shuffle == wanted


def test_data_behind_links_and_virtual_data_sets_become_the_files_own(source, tmp_path):
    path = tmp_path / "linked.h5"
    layout = h5py.VirtualLayout((75, 1, 16, 16), "f4")
    layout[:] = h5py.VirtualSource(source.name, "train", (75, 1, 16, 16))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("train", layout)
        file["valid"] = h5py.ExternalLink(source.name, "valid")
    repack_file(path, tmp_path / "own.h5", options())
    info = inspect_cutouts(tmp_path / "own.h5").partitions
    assert (info["train"].sources, info["valid"].sources) == ((), ())
    assert contents_of_pixels(tmp_path / "own.h5") == contents_of_pixels(source)


def contents_of_pixels(path):
    with h5py.File(path) as file:
        return {name: file[name][()].tobytes() for name in ("train", "valid")}


def test_the_command(nenya_cli, source, tmp_path):
    shutil.copy(source, tmp_path / "second.h5")
    code, said = nenya_cli("repack", [source, "force=true"])
    assert code == 0, said
    assert "cutouts_preproc_repacked.h5: 95 cutouts" in said
    code, said = nenya_cli("repack", [source, "force=true"])
    assert code == 2 and "exists" in said and "clobber=true" in said
    code, said = nenya_cli("repack", [f"data={tmp_path}", "force=true"])
    assert code == 1, "the first one is there already"
    assert "2 files: 1 done, 1 failed" in said
    code, said = nenya_cli("repack", [f"data={tmp_path}/*.h5", "clobber=true", f"out={tmp_path}/out", "force=true"])
    assert code == 0, said
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["cutouts_preproc_repacked.h5", "second_repacked.h5"]


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (["data=s3://bucket/a.h5"], "expected a local file"),
        (["data={source}", "out=s3://bucket/"], "expected a local file"),
        (["data={source}", "out={source}"], "is itself a source"),
        (
            ["data=[{source},{folder}/b.h5]", "out={folder}/new.h5"],
            "out= and data= are 2|is one file, but data= names 2",
        ),
        (["data={source}", "codec=zip"], "expected one of gzip, lzf, none|gzip, lzf"),
        (["data={folder}/none.h5"], "no such file"),
        ([], "data= is needed"),
    ],
)
def test_bad_orders_end_in_one_line(nenya_cli, source, tmp_path, args, wanted):
    code, said = nenya_cli("repack", [arg.format(source=source, folder=tmp_path) for arg in args])
    assert code == 2
    assert any(text in said for text in wanted.split("|")), said
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_too_little_room_is_told_first(source, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 10))
    with pytest.raises(OutputError, match="the repacked file needs"):
        repack_file(source, tmp_path / "new.h5", options())
    assert not (tmp_path / "new.h5").exists()


def test_a_damaged_source_gives_no_file(source, tmp_path, nenya_cli):
    with h5py.File(source, "r+") as file:
        file["train"].id.write_direct_chunk((50, 0, 4, 4), b"no gzip")
    code, said = nenya_cli("repack", [source, "force=true"])
    assert code == 2 and "of 'train' cannot be read" in said
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_what_is_written_wrong_gets_no_name(source, tmp_path, monkeypatch):
    pack = module.pack_gzip

    def wrong(chunk, level, *, shuffle):
        chunk = chunk.copy()
        chunk.reshape(-1)[1] += 1
        return pack(chunk, level, shuffle=shuffle)

    monkeypatch.setattr(module, "pack_gzip", wrong)
    with pytest.raises(OutputError, match="differs from the source after writing"):
        repack_file(source, tmp_path / "new.h5", options())
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_a_source_that_changes_meanwhile_is_refused(source, tmp_path, monkeypatch):
    write = module._write

    def change(file, *more):
        result = write(file, *more)
        source.touch()
        return result

    monkeypatch.setattr(module, "_write", change)
    with pytest.raises(Exception, match="changed while it was repacked"):
        repack_file(source, tmp_path / "new.h5", options())
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_references_are_left_out(source, tmp_path, caplog):
    with h5py.File(source, "r+") as file:
        file["train"].attrs["scale"] = file["train_labels"].ref
    repack_file(source, tmp_path / "new.h5", options())
    with h5py.File(tmp_path / "new.h5") as file:
        assert "scale" not in file["train"].attrs and json.dumps(file["train"].attrs["units"]) == '"K"'


def test_a_file_is_not_made_slower_unasked(tmp_path, nenya_cli, monkeypatch, source):
    rates = iter(2 * [module.Rates(100.0, 50.0), module.Rates(40.0, 45.0)])
    monkeypatch.setattr(module, "_rates", lambda file: next(rates))
    before = sorted(path.name for path in tmp_path.iterdir())
    code, said = nenya_cli("repack", [source])
    assert code == 2 and len(said.splitlines()) == 1 and sorted(path.name for path in tmp_path.iterdir()) == before
    assert "reads 40 cutouts/s in order and 45 in random batches, slower than the source (100 and 50)" in said
    code, said = nenya_cli("repack", [source, "force=true"])
    assert code == 0 and "slower than the source" in said and "in random batches at 45 (before 50)" in said


def test_speeds_that_are_not_slower():
    for before, after in (((9, 9), (8, 8)), ((9, 9), (3, 90)), ((9, 9), (90, 3)), ((1, 1), (9, 9))):
        assert not module._slower(module.Rates(*before), module.Rates(*after))
