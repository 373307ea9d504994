import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import red_noise, write_cutouts
from golden_weights import golden_state_dict

import nenya
from nenya.commands.compose import compose
from nenya.extraction import job as jobs
from nenya.extraction.journal import BlockStore
from nenya.models.checkpoint import load_checkpoint, load_weights
from nenya.models.contrastive import ContrastiveModule, make_net
from nenya.options.commands import ExtractOptions
from nenya.options.sections import build_options
from nenya.runtime import trainer as runtime
from nenya.storage.disk import sha256_file

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def extract(nenya_cli, tiny_weights):
    """Run `nenya extract` with the tiny weights: (data, *overrides) -> (exit code, error output)."""

    def call(data, *overrides):
        if not any(o.startswith("ckpt=") for o in overrides):
            overrides = (f"ckpt={tiny_weights}", *overrides)
        return nenya_cli("extract", ["model=demo", f"data={data}", "trainer.accelerator=cpu", *overrides])

    return call


@pytest.fixture
def latents_of(extract, tmp_path):
    """Extract one file into `out/<n>`, which must work, and read what was written."""
    runs = iter(range(100))

    def call(data, *overrides):
        folder = tmp_path / "out" / str(next(runs))
        code, said = extract(data, f"out={folder}", *overrides)
        assert code == 0, said
        (output,) = folder.iterdir()
        return read_latents(output)

    return call


@pytest.fixture(scope="module")
def reference(tiny_weights):
    """The network itself: cutouts (N, H, W) -> latents (N, D)."""
    net = make_net(compose("extract", ["model=demo"]))
    load_weights(net, load_checkpoint(tiny_weights))
    net.eval()

    @torch.no_grad()
    def call(cutouts, encoder=False):
        images = torch.from_numpy(np.asarray(cutouts, np.float32))[:, None]
        return (net.encode(images) if encoder else net(images)).numpy()

    return call


def read_latents(path):
    with h5py.File(path) as file:
        assert all(file[name].dtype == np.dtype("<f4") for name in file)
        return {name: file[name][()] for name in file}


def read_attributes(path):
    with h5py.File(path) as file:
        return dict(file.attrs)


def tree(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def assert_close(latents, wanted, atol=1e-6):
    assert latents.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(latents[name], wanted[name], rtol=0, atol=atol)


def assert_identical(latents, wanted):
    assert latents.keys() == wanted.keys()
    for name in wanted:
        assert latents[name].tobytes() == wanted[name].tobytes(), name


def assert_failed(result, folder, before, *words):
    code, said = result
    lines = said.splitlines()
    assert (code, len(lines)) == (2, 1), said
    assert lines[0].startswith("nenya extract: ")
    for word in words:
        assert word in lines[0]
    assert tree(folder) == before


# What the latents are


def test_latents_are_the_networks_in_row_order(latents_of, reference, small_file):
    latents = latents_of(small_file)
    wanted = {"train": reference(red_noise(40, seed=1)), "valid": reference(red_noise(24, seed=2))}
    assert_close(latents, wanted)
    np.testing.assert_allclose(np.linalg.norm(latents["train"], axis=1), 1, rtol=1e-6)
    assert np.abs(latents["train"][0] - latents["train"][1]).max() > 1e-4


@pytest.mark.parametrize("name", ["train", "valid"])
def test_one_partition_is_enough(latents_of, reference, tmp_path, name):
    path = write_cutouts(tmp_path / "one.h5", **{name: red_noise(10)})
    assert_close(latents_of(path), {name: reference(red_noise(10))})


def test_partitions_of_other_names(extract, reference, tmp_path):
    cutouts = {"spring": red_noise(6, seed=3), "deep/autumn": red_noise(5, seed=4), "train": red_noise(4)}
    path = write_cutouts(tmp_path / "seasons.h5", **cutouts)
    code, said = extract(path, "loader.train_key=spring", "loader.valid_key=deep/autumn")
    assert code == 0, said
    assert tree(tmp_path) == ["seasons.h5", "seasons_latents.h5"]
    with h5py.File(tmp_path / "seasons_latents.h5") as file:
        assert list(file) == ["deep", "spring"]
        for name in ("spring", "deep/autumn"):
            np.testing.assert_allclose(file[name][()], reference(cutouts[name]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["NHW", "gzip", "float64", "float16", "big-endian"])
def test_forms_of_files(latents_of, reference, tmp_path, form):
    cutouts = red_noise(50, seed=5)
    with h5py.File(tmp_path / "form.h5", "w") as file:
        if form == "NHW":
            file["train"] = cutouts
        elif form == "gzip":
            file.create_dataset("train", data=cutouts[:, None], chunks=True, compression="gzip")
        else:
            kind = {"float64": "<f8", "float16": "<f2", "big-endian": ">f4"}[form]
            file["train"] = cutouts[:, None].astype(kind)
    if form == "float16":
        cutouts = cutouts.astype(np.float16).astype(np.float32)
    assert_close(latents_of(tmp_path / "form.h5"), {"train": reference(cutouts)})


def test_bits_do_not_depend_on_blocks_or_workers(latents_of, small_file):
    first = latents_of(small_file, "loader.batch_size_valid=8")
    for blocks, workers in ((7, 0), (1, 0), (7, 2), (64, 2)):
        overrides = f"loader.block_size={blocks}", f"loader.num_workers={workers}"
        assert_identical(latents_of(small_file, "loader.batch_size_valid=8", *overrides), first)


def test_batch_size_changes_rounding_only(latents_of, small_file):
    first = latents_of(small_file, "loader.batch_size_valid=64")
    for size in (1, 13, 1000):
        assert_close(latents_of(small_file, f"loader.batch_size_valid={size}"), first)


@pytest.mark.parametrize("workers", [0, 2])
def test_nonfinite_cutouts_give_counted_nan_rows(extract, reference, tmp_path, workers):
    train, valid = red_noise(12, seed=6), red_noise(5, seed=7)
    clean = {"train": reference(train), "valid": reference(valid)}
    train[3, 0, 0], train[11, 5, 5], train[11, 5, 6], valid[0] = np.nan, np.inf, -np.inf, np.nan
    path = write_cutouts(tmp_path / "holes.h5", train=train, valid=valid)
    code, said = extract(path, f"loader.num_workers={workers}", "loader.batch_size_valid=4")
    assert code == 0
    assert "3 rows are NaN" in said
    assert "have means" not in said
    latents = read_latents(tmp_path / "holes_latents.h5")
    assert np.isnan(latents["train"]).all(axis=1).nonzero()[0].tolist() == [3, 11]
    assert np.isnan(latents["valid"]).all(axis=1).nonzero()[0].tolist() == [0]
    for name, bad in (("train", [3, 11]), ("valid", [0])):
        clean[name][bad] = np.nan
    assert_close(latents, clean)
    attributes = read_attributes(tmp_path / "holes_latents.h5")
    assert json.loads(attributes["nonfinite_rows"]) == {"train": 2, "valid": 1}


def test_encoder_features(latents_of, reference, small_file):
    latents = latents_of(small_file, "model.latent=encoder")
    wanted = {
        "train": reference(red_noise(40, seed=1), True),
        "valid": reference(red_noise(24, seed=2), True),
    }
    assert latents["train"].shape == (40, 128)
    assert_close(latents, wanted, atol=1e-5)  # features reach 10


def test_means_are_warned_of_and_can_be_removed(extract, reference, tmp_path):
    cutouts = red_noise(9, seed=8)
    cutouts -= cutouts.mean(axis=(1, 2), keepdims=True)
    shifted = cutouts + np.float32(2)
    path = write_cutouts(tmp_path / "warm.h5", valid=shifted)
    code, said = extract(path)
    assert code == 0
    assert "have means up to 2" in said and "preprocess.file=demean" in said
    assert_close(read_latents(tmp_path / "warm_latents.h5"), {"valid": reference(shifted)})
    code, said = extract(path, "preprocess.file=demean", "clobber=true")
    assert code == 0
    assert "have means" not in said
    assert_close(read_latents(tmp_path / "warm_latents.h5"), {"valid": reference(cutouts)}, atol=1e-5)
    assert read_attributes(tmp_path / "warm_latents.h5")["preprocessing"] == "demean"


@pytest.mark.parametrize("nchannels", [1, 3])
def test_goldens_through_the_whole_path(extract, goldens, tmp_path, nchannels):
    case = f"resnet18/nc{nchannels}"
    shapes = json.loads((goldens / "state_dict_shapes.json").read_text())[case]
    torch.save({"model": golden_state_dict(shapes), "epoch": 1}, tmp_path / "golden.pth")
    with np.load(goldens / "golden_public.npz", allow_pickle=False) as arrays:
        images = np.concatenate([arrays["img/synthetic"], arrays["img/real"]])
        wanted = arrays[f"latents/extract/{case}"]
    path = write_cutouts(tmp_path / "images.h5", train=images)
    network = ("model=custom", "model.ssl_model=resnet18", f"model.nchannels={nchannels}")
    code, said = extract(path, f"ckpt={tmp_path}/golden.pth", "loader.batch_size_valid=8", *network)
    assert code == 0, said
    assert_close(read_latents(tmp_path / "images_latents.h5"), {"train": wanted}, atol=1e-5)


def test_real_cutouts_go_through(latents_of, reference, shared):
    path = shared / "data" / "real_sst_preproc.h5"
    with h5py.File(path) as file:
        wanted = {name: reference(file[name][:, 0]) for name in ("train", "valid")}
    assert_close(latents_of(path), wanted)


# What is written


def test_provenance_is_complete(extract, small_file, tiny_weights, tmp_path):
    code, _ = extract(small_file, f"out={tmp_path}", "loader.batch_size_valid=16", "seed=7")
    assert code == 0
    attributes = read_attributes(tmp_path / "small_preproc_latents.h5")
    options = json.loads(attributes.pop("options"))
    assert build_options(ExtractOptions, options).loader.batch_size_valid == 16
    assert (options["data"], options["seed"]) == (str(small_file), 7)
    assert json.loads(attributes.pop("rows")) == {"train": 40, "valid": 24}
    assert json.loads(attributes.pop("nonfinite_rows")) == {"train": 0, "valid": 0}
    assert set(json.loads(attributes.pop("latents_sha256"))) == {"train", "valid"}
    assert attributes.pop("date") and attributes.pop("threads") >= 1
    attributes.pop("git_commit")
    assert attributes.pop("partitions") == "train,valid"
    assert attributes.pop("device").startswith("cpu: ")
    assert attributes == {
        "nenya_version": nenya.__version__,
        "model_version": "demo",
        "checkpoint": tiny_weights.name,
        "checkpoint_sha256": sha256_file(tiny_weights),
        "source": small_file.name,
        "source_size": small_file.stat().st_size,
        "image_size": 32,
        "ssl_model": "resnet18",
        "source_sha256": sha256_file(small_file),
        "preprocessing": "none",
        "latent": "projection",
        "precision": "32-true",
        "backend": "packed",
        "batch_size": 16,
        "torch_version": torch.__version__,
    }


def test_out_is_a_folder_a_file_or_the_sources(extract, small_file, tmp_path):
    data = shutil.copy(small_file, tmp_path / "data_preproc_1.h5")
    for out in ([], [f"out={tmp_path}/new/deeper"], [f"out={tmp_path}/other/name.h5"]):
        assert extract(data, *out)[0] == 0
    assert [p for p in tree(tmp_path) if p.endswith(".h5")] == [
        "data_preproc_1.h5",
        "data_preproc_1_latents.h5",
        "new/deeper/data_preproc_1_latents.h5",
        "other/name.h5",
    ]
    assert len(tree(tmp_path)) == 7


def test_debug_does_two_batches(extract, reference, small_file, tmp_path):
    code, _ = extract(small_file, f"out={tmp_path}", "debug=true", "loader.batch_size_valid=4")
    assert code == 0
    assert tree(tmp_path) == ["small_preproc_latents_debug.h5"]
    wanted = {"train": reference(red_noise(40, seed=1)[:8]), "valid": reference(red_noise(24, seed=2)[:8])}
    assert_close(read_latents(tmp_path / "small_preproc_latents_debug.h5"), wanted)


def test_an_existing_output_is_kept_unless_clobber(extract, small_file, tmp_path):
    output = tmp_path / "small_preproc_latents.h5"
    output.write_text("precious")
    result = extract(small_file, f"out={tmp_path}")
    assert_failed(result, tmp_path, [output.name], str(output), "clobber=true")
    assert output.read_text() == "precious"
    assert extract(small_file, f"out={tmp_path}", "clobber=true")[0] == 0
    assert tree(tmp_path) == [output.name]
    assert read_latents(output)["train"].shape == (40, 64)


@pytest.mark.parametrize("link", [False, True])
def test_the_source_is_never_replaced(extract, small_file, tmp_path, link):
    source = Path(shutil.copy(small_file, tmp_path / "source.h5"))
    out = source
    if link:
        out = tmp_path / "link.h5"
        out.symlink_to(source)
    before = source.read_bytes(), tree(tmp_path)
    result = extract(source, f"out={out}", "clobber=true")
    assert_failed(result, tmp_path, before[1], str(out), "out=")
    assert source.read_bytes() == before[0]


def test_a_folder_in_the_outputs_place_is_found_before_the_work(extract, small_file, tmp_path):
    (tmp_path / "small_preproc_latents.h5" / "inside").mkdir(parents=True)
    before = tree(tmp_path)
    result = extract(small_file, f"out={tmp_path}", "clobber=true")
    assert_failed(result, tmp_path, before, "folder", "out=")


def test_several_files_of_which_one_is_bad(extract, reference, tmp_path):
    for seed, name in enumerate("abc"):
        write_cutouts(tmp_path / f"{name}.h5", train=red_noise(5, seed=seed))
    (tmp_path / "b.h5").write_bytes(b"rubbish")
    (tmp_path / "a_latents_debug.h5").write_bytes(b"of an earlier trial")
    code, said = extract(tmp_path / "*.h5")
    assert code == 1
    assert said.count(f"failed: {tmp_path}/b.h5: not an HDF5 file") == 1  # at once
    assert said.count(f"  failed   {tmp_path}/b.h5: not an HDF5 file") == 1  # in the closing table
    assert "3 files: 2 done, 1 failed" in said
    for seed, name in ((0, "a"), (2, "c")):
        assert_close(read_latents(tmp_path / f"{name}_latents.h5"), {"train": reference(red_noise(5, seed=seed))})
    assert len(tree(tmp_path)) == 6
    made = (tmp_path / "a_latents.h5").stat().st_mtime_ns
    (tmp_path / "b.h5").unlink()
    write_cutouts(tmp_path / "b.h5", train=red_noise(5, seed=1))
    code, said = extract(f"[{tmp_path}/a.h5,{tmp_path}/b.h5,{tmp_path}/a.h5]")
    assert code == 0
    assert "2 files: 1 done, 1 skipped" in said
    assert (tmp_path / "a_latents.h5").stat().st_mtime_ns == made
    assert_close(read_latents(tmp_path / "b_latents.h5"), {"train": reference(red_noise(5, seed=1))})
    assert extract(tmp_path / "*.h5", "clobber=true")[0] == 0
    assert (tmp_path / "a_latents.h5").stat().st_mtime_ns > made


def test_a_bug_at_one_file_does_not_stop_the_others(extract, tmp_path, monkeypatch):
    for seed, name in enumerate("abc"):
        write_cutouts(tmp_path / f"{name}.h5", train=red_noise(5, seed=seed))
    original = jobs.cut_blocks

    def fail(file, *args):
        if file.path.name == "b.h5":
            raise RuntimeError("out of\nmemory")
        return original(file, *args)

    monkeypatch.setattr(jobs, "cut_blocks", fail)
    code, said = extract(tmp_path / "*.h5")
    assert code == 1
    assert "RuntimeError: out of (traceback=true shows where)" in said
    assert "3 files: 2 done, 1 failed" in said


def test_latents_of_other_partitions_are_not_taken_for_these(extract, tmp_path):
    path = write_cutouts(tmp_path / "a.h5", spring=red_noise(5), autumn=red_noise(4, seed=1))
    other = write_cutouts(tmp_path / "b.h5", spring=red_noise(3))
    both = f"[{path},{other}]"
    assert extract(both, "loader.train_key=spring", "loader.valid_key=spring")[0] == 0
    code, said = extract(both, "loader.train_key=spring", "loader.valid_key=spring")
    assert (code, said.count("skipped: ")) == (0, 2)
    code, said = extract(both, "loader.train_key=autumn", "loader.valid_key=spring")
    assert code == 1
    assert "made with partitions spring instead of autumn,spring: clobber=true" in said


@pytest.mark.parametrize("out", ["out={}/all.h5", "out={}/all"])
def test_two_files_never_share_an_output(extract, small_file, tmp_path, out):
    (tmp_path / "other").mkdir()
    other = shutil.copy(small_file, tmp_path / "other" / small_file.name)
    result = extract(f"[{small_file},{other}]", out.format(tmp_path))
    assert_failed(result, tmp_path, ["other", f"other/{small_file.name}"], str(tmp_path / "all"))


# Nothing half-done is left


def test_an_error_of_the_network_keeps_what_is_finished(extract, latents_of, small_file, tmp_path, monkeypatch):
    original, computed = ContrastiveModule.predict_step, []

    def fail(self, batch, batch_idx):
        if len(computed) == 2:
            raise RuntimeError("out of\nmemory")
        computed.append(batch["number"])
        return original(self, batch, batch_idx)

    monkeypatch.setattr(ContrastiveModule, "predict_step", fail)
    code, said = extract(small_file, f"out={tmp_path}", "loader.block_size=10")
    assert code == 2
    assert "RuntimeError: out of" in said and "traceback=true" in said
    assert tree(tmp_path)[0] == "small_preproc_latents.h5.partial"
    computed.append(None)
    assert extract(small_file, f"out={tmp_path}", "loader.block_size=10")[0] == 0
    assert computed == [0, 1, None, 2, 3, 4, 5, 6]
    assert tree(tmp_path) == ["small_preproc_latents.h5"]
    assert_identical(read_latents(tmp_path / "small_preproc_latents.h5"), latents_of(small_file))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("several", [False, True], ids=["one file", "several files"])
def test_a_signal_stops_and_leaves_nothing(extract, small_file, tmp_path, monkeypatch, number, several):
    original, calls = ContrastiveModule.forward, []

    def stop(self, images):
        calls.append(len(images))
        os.kill(os.getpid(), number)
        return original(self, images)

    monkeypatch.setattr(ContrastiveModule, "forward", stop)
    handler = signal.getsignal(signal.SIGINT)
    other = write_cutouts(tmp_path / "other.h5", train=red_noise(3))
    try:
        code, said = extract(f"[{small_file},{other}]" if several else small_file, f"out={tmp_path}")
    finally:
        signal.signal(signal.SIGINT, handler)
    assert code == 75
    assert said.startswith("nenya extract: interrupted") and said.count("\n") == 1
    assert len(calls) == 1
    assert tree(tmp_path) == ["other.h5"]


def test_a_full_disk_while_rows_are_written(extract, small_file, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    result = extract(small_file, f"out={tmp_path}")
    assert_failed(result, tmp_path, [], f"{tmp_path}/small_preproc_latents.h5", "No space left on device")


@pytest.mark.parametrize("kilobytes", [8, 24], ids=["rows do not fit", "the assembled file does not fit"])
def test_a_disk_that_is_really_full(extract, small_file, tmp_path, monkeypatch, kilobytes):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        monkeypatch.setattr(jobs, "check_room", lambda *_: None)
        result = extract(small_file, f"out={disk}")
        assert_failed(result, disk, [], str(disk / "small_preproc_latents.h5"), "No space left on device")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_rows_are_named(extract, tmp_path, workers):
    with h5py.File(tmp_path / "damaged.h5", "w") as file:
        cutouts = red_noise(30)[:, None]
        dataset = file.create_dataset("train", data=cutouts, chunks=(10, 1, 32, 32), fletcher32=True)
        place = dataset.id.get_chunk_info(1).byte_offset
    with (tmp_path / "damaged.h5").open("r+b") as file:
        file.seek(place)
        file.write(b"\0" * 100)
    result = extract(tmp_path / "damaged.h5", "loader.block_size=10", f"loader.num_workers={workers}")
    assert_failed(result, tmp_path, ["damaged.h5"], f"{tmp_path}/damaged.h5: rows", "'train'", "damaged")


def test_a_source_that_changes_meanwhile_is_refused(extract, small_file, tmp_path, monkeypatch):
    source = Path(shutil.copy(small_file, tmp_path / "growing.h5"))
    original = ContrastiveModule.predict_step

    def touch(self, batch, batch_idx):
        os.utime(source, ns=(0, batch_idx))
        return original(self, batch, batch_idx)

    monkeypatch.setattr(ContrastiveModule, "predict_step", touch)
    assert_failed(extract(source), tmp_path, ["growing.h5"], str(source), "changed")


def test_rows_that_are_missing_never_become_a_file(extract, small_file, tmp_path, monkeypatch):
    blocks = jobs.cut_blocks
    monkeypatch.setattr(jobs, "cut_blocks", lambda *a: blocks(*a)[:-1])
    code, said = extract(small_file, f"out={tmp_path}")
    assert code == 2
    assert "expected 24 rows of 'valid', got 0" in said
    assert tree(tmp_path)[0] == "small_preproc_latents.h5.partial"
    monkeypatch.undo()
    loader = jobs.BlocksDataModule
    monkeypatch.setattr(jobs, "BlocksDataModule", lambda file, blocks, *a: loader(file, blocks[:-1], *a))
    code, said = extract(small_file, f"out={tmp_path / 'other'}")
    assert code == 2
    assert "1 of 2 blocks are missing (first 1)" in said


def test_the_partial_folder_of_a_killed_run_is_replaced(extract, small_file, tmp_path):
    store = BlockStore(tmp_path / "small_preproc_latents.h5", {"train": 40}, 64)
    store.partial.mkdir()
    store.raw("train").write_bytes(b"old")
    assert extract(small_file, f"out={tmp_path}")[0] == 0
    assert tree(tmp_path) == ["small_preproc_latents.h5"]


# Weights


def test_exported_weights_give_the_same_bits(nenya_cli, latents_of, small_file, tiny_weights, tmp_path):
    first = latents_of(small_file)
    for name in ("weights.safetensors", "copy.pth"):
        code, said = nenya_cli("export", ["model=demo", f"ckpt={tiny_weights}", f"out={tmp_path}/w/{name}"])
        assert code == 0, said
        assert_identical(latents_of(small_file, f"ckpt={tmp_path}/w/{name}"), first)
    assert tree(tmp_path / "w") == ["copy.pth", "weights.safetensors"]
    assert load_checkpoint(tmp_path / "w" / "weights.safetensors").options["feat_dim"] == 64


def test_export_says_what_is_wrong(nenya_cli, small_file, tiny_weights, tmp_path):
    existing = tmp_path / "there.pth"
    existing.write_text("precious")
    for args, words in (
        ([], ("ckpt= is required",)),
        ([f"ckpt={tiny_weights}", "out=weights.bin"], ("weights.bin", ".safetensors, .pth, .onnx")),
        ([f"ckpt={tiny_weights}", f"out={existing}"], ("exists", "clobber=true")),
        ([f"ckpt={tiny_weights}", "model.width=8", "out=x.pth"], ("model.width=16",)),
        ([f"ckpt={tiny_weights}", f"out={existing}/deeper/x.pth"], ("out=",)),
    ):
        code, said = nenya_cli("export", ["model=demo", *args])
        assert (code, said.count("\n")) == (2, 1), said
        assert said.startswith("nenya export: ")
        assert all(word in said for word in words), said
    assert tree(tmp_path) == ["there.pth"]
    assert existing.read_text() == "precious"


def test_a_lightning_checkpoint_serves(latents_of, small_file, tiny_weights, tmp_path):
    options = compose("train", ["model=demo", "trainer.accelerator=cpu", "trainer.precision=32-true"])
    module = ContrastiveModule(options)
    load_weights(module.net, load_checkpoint(tiny_weights))
    trainer = runtime.make_trainer(options.trainer, logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert_identical(latents_of(small_file, f"ckpt={tmp_path}/last.ckpt"), latents_of(small_file))


# Several processes


@pytest.mark.slow  # test_resume has three processes in less time
def test_two_processes_write_what_one_writes(latents_of, small_file, tiny_weights, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    write_cutouts(work / "a.h5", train=red_noise(11, seed=1), valid=red_noise(3, seed=2))
    write_cutouts(work / "b.h5", train=red_noise(1))
    (work / "bad.h5").write_bytes(b"rubbish")
    ddp = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp", "loader.block_size=4")
    command = [
        sys.executable,
        ROOT / "scripts" / "extract.py",
        "model=demo",
        "data=*.h5",
        f"ckpt={tiny_weights}",
    ]
    done = subprocess.run([*command, *ddp], cwd=work, capture_output=True, text=True, timeout=900)
    assert done.returncode == 1, done.stderr
    assert tree(work) == ["a.h5", "a_latents.h5", "b.h5", "b_latents.h5", "bad.h5"]
    for words in ("a_latents.h5: train 11, valid 3 rows", "bad.h5: not an HDF5 file"):
        assert done.stderr.count(words) == 2, done.stderr  # at once, and in the summary
    for name in "ab":
        assert_close(read_latents(work / f"{name}_latents.h5"), latents_of(work / f"{name}.h5"))
    assert json.loads(read_attributes(work / "a_latents.h5")["rows"]) == {"train": 11, "valid": 3}


@pytest.mark.parametrize("model", ["LLC", "v2_2010", "v2_2012"])
def test_versions_trained_on_one_partition_extract_both(model, small_file, tiny_weights, nenya_cli):
    network = ["model.ssl_model=resnet18", "model.width=16", "model.feat_dim=64", "model.nchannels=1"]
    code, said = nenya_cli(
        "extract", [f"model={model}", *network, f"data={small_file}", f"ckpt={tiny_weights}", "out=o"]
    )
    assert code == 0, said
    with h5py.File("o/small_preproc_latents.h5") as file:
        assert {name: len(file[name]) for name in file} == {"train": 40, "valid": 24}
