"""`nenya calibrate`, and what extraction writes of masked cutouts with and without a calibration."""

import json
import shutil

import h5py
import numpy as np
import pytest
from conftest import red_noise, write_cutouts

from nenya.commands.verify import verify_file
from nenya.data.mask_shapes import varied_masks
from nenya.extraction import calibrate as calibrating
from nenya.extraction.calibrate import choose_masks
from nenya.latents.calibration import distances
from nenya.latents.calibration_file import load
from nenya.latents.files import Latents, open_latents
from nenya.models.contrastive import ContrastiveModule
from nenya.options.calibration import CalibrateOptions

SIDE, CLEAR, MASKED = 16, 90, 40
HOW = ["model=demo", "model.width=4", "trainer.accelerator=cpu", "preprocess.masked=fill"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a small untrained network."""
    from nenya.commands.compose import compose
    from nenya.models.checkpoint import save_pth
    from nenya.models.contrastive import make_net
    from nenya.options.flat import flat_view

    options = compose("extract", ["model=demo", "model.width=4"])
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    save_pth(path, make_net(options), options=flat_view(options), epoch=1)
    return path


def write(path, *, seed=1, side=SIDE, clear=CLEAR, masked=MASKED, most=0.5, nan=False):
    """Write a file whose first cutouts are masked; by NaN, or by a data set `train_mask`."""
    images = red_noise(clear + masked, side, seed)
    masks = np.zeros(images.shape, bool)
    if masked:
        masks[:masked] = varied_masks(masked, side, most, np.random.default_rng(seed))
    if nan:
        return write_cutouts(path, train=np.where(masks, np.float32(np.nan), images))
    write_cutouts(path, train=images)
    with h5py.File(path, "a") as file:
        file["train_mask"] = masks.astype(np.uint8)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write(tmp_path_factory.mktemp("source") / "a_preproc.h5")


@pytest.fixture(scope="module")
def calibration(source, weights, tmp_path_factory):
    """The calibration, made once."""
    from nenya.cli import run_command

    path = tmp_path_factory.mktemp("calibration") / "made.h5"
    assert run_command("calibrate", [str(source), *HOW, f"ckpt={weights}", f"out={path}", "masks=2"]) == 0
    return path


@pytest.fixture
def extract(nenya_cli, tmp_path, weights):
    def run(source, *more, code=0):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        found, said = nenya_cli("extract", [source, *HOW, f"ckpt={weights}", f"out={tmp_path / 'out'}", *more])
        assert found == code, said
        return tmp_path / "out" / f"{source.stem}_latents.h5", said

    return run


def test_rows_get_the_clear_share_and_the_cosine(extract, source, calibration):
    path, _ = extract(source, f"calibration={calibration}")
    with h5py.File(source) as file, h5py.File(path) as made:
        assert set(made) == {"train", "train_clear", "train_cosine", "train_cosine_low"}
        assert {made[name].dtype.str for name in made} == {"<f4"}
        clear, cosine, low = (made[f"train_{name}"][:] for name in ("clear", "cosine", "cosine_low"))
        assert (clear == 1 - file["train_mask"][:].mean(axis=(1, 2)).astype(np.float32)).all()
        said = json.loads(made.attrs["calibration"])
        assert made.attrs["masked"] == "fill" and len(made.attrs["calibration_sha256"]) == 64
    assert (cosine[MASKED:] == 1).all() and (low[MASKED:] == 1).all()
    known = np.isfinite(low)
    assert known[:MASKED].sum() > MASKED - 6 and (np.isnan(cosine) == ~known).all()
    assert (low[known] <= cosine[known]).all() and (cosine[:MASKED][known[:MASKED]] < 1).all()
    assert (
        said["cutouts"] == CLEAR and said["seed"] == 1234 and said["masks_of"] == "of masked cutouts of the same files"
    )
    assert verify_file(path).problems == []


def test_without_masked_latents_a_file_is_as_ever(extract, source, nenya_cli, weights):
    path, said = extract(source, "preprocess.masked=nan")
    with h5py.File(path) as made:
        assert list(made) == ["train"] and not {"masked", "calibration"} & set(made.attrs)
    assert "calibration" not in said
    _, said = extract(source, "preprocess.masked=nan", "calibration=x.h5", code=2)
    assert "no effect with preprocess.masked=nan" in said and said.count("\n") == 1


def test_without_a_calibration_only_the_clear_share_is_known(extract, source):
    path, _ = extract(source)
    with h5py.File(path) as made:
        assert set(made) == {"train", "train_clear"}
    assert verify_file(path).problems == []
    assert Latents([path]).columns == ["clear"]


def test_inspect_says_what_is_known_of_masked_cutouts(extract, source, calibration, nenya_cli):
    path, _ = extract(source, f"calibration={calibration}")
    code, said = nenya_cli("inspect", [path])
    assert code == 0 and f"train: {MASKED} of {CLEAR + MASKED} cutouts are masked in part" in said, said
    with h5py.File(path) as file:
        low = file["train_cosine_low"][:MASKED]
        digest = file.attrs["calibration_sha256"]
    assert f"cosine_low {np.nanmedian(low):.4f} (median), {np.nanmin(low):.4f} (least)" in said
    assert f"preprocess.masked=fill, calibration {digest[:12]} of {CLEAR} cutouts under masks of masked cutouts" in said
    code, said = nenya_cli("inspect", [calibration])
    assert code == 0 and "calibration of masked cutouts" in said and "masked fill" in said and "unseen pairs" in said
    path, _ = extract(source)
    said = nenya_cli("inspect", [path])[1]
    assert f"{MASKED} of {CLEAR + MASKED} cutouts are masked in part" in said and "fill, no calibration" in said
    path, _ = extract(source, "preprocess.masked=nan")
    assert "masked" not in nenya_cli("inspect", [path])[1]


def test_it_is_found_beside_the_weights(nenya_cli, source, weights, tmp_path):
    own = shutil.copy(weights, tmp_path / "last.pth")
    how = [source, *HOW, f"ckpt={own}"]
    code, said = nenya_cli("calibrate", [*how, "masks=1"])
    assert code == 0 and "unseen pairs are below cosine_low" in said
    assert load(tmp_path / "last_fill_calibration.h5").about["masked"] == "fill"
    assert nenya_cli("calibrate", how)[0] == 2, "it exists"
    assert nenya_cli("extract", [*how, f"out={tmp_path / 'b'}"])[0] == 0
    with h5py.File(tmp_path / "b" / "a_preproc_latents.h5") as made:
        assert "train_cosine_low" in made
    code, said = nenya_cli("extract", [*how, f"out={tmp_path / 'c'}", "preprocess.file=demean"])
    assert code == 0 and "is of preprocessing none instead of demean" in said


def test_that_of_other_weights_or_options_is_refused(extract, source, calibration, tiny_weights):
    _, said = extract(source, f"calibration={calibration}", "preprocess.masked=mean", code=2)
    assert "is of masked fill instead of mean" in said and said.count("\n") == 1
    _, said = extract(source, f"calibration={calibration}", f"ckpt={tiny_weights}", "model.width=16", code=2)
    assert "is of other weights" in said


def test_that_of_cutouts_of_another_size_is_refused(extract, calibration, tmp_path):
    larger = write(tmp_path / "larger_preproc.h5", side=32, clear=3, masked=2)
    path, said = extract(larger, f"calibration={calibration}", code=2)
    assert "expected cutouts of 16 pixels a side, those of the calibration, got 32" in said
    assert not path.parent.exists() or not list(path.parent.iterdir())


def test_nan_is_the_mask_where_no_data_set_says_it(extract, calibration, tmp_path):
    stored, marked = write(tmp_path / "a_preproc.h5", seed=5, clear=5), tmp_path / "n_preproc.h5"
    write(marked, seed=5, clear=5, nan=True)
    found = []
    for path in (stored, marked):
        with h5py.File(extract(path, f"calibration={calibration}")[0]) as made:
            found.append({name: made[name][:] for name in made})
    assert all(np.array_equal(found[0][name], found[1][name], equal_nan=True) for name in found[0])


def test_stopped_extraction_resumes_with_the_same_columns(
    extract, source, calibration, monkeypatch, nenya_cli, weights
):
    steps = [f"calibration={calibration}", "loader.block_size=16", "loader.batch_size_valid=16"]
    path, _ = extract(source, *steps)
    with h5py.File(path) as made:
        wanted = {name: made[name][:] for name in made}
    original, done = ContrastiveModule.predict_step, []

    def stops(module, batch, batch_idx):
        if len(done) == 3:
            raise RuntimeError("stopped")
        done.append(batch["number"])
        return original(module, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(ContrastiveModule, "predict_step", stops)
        extract(source, *steps, code=2)
    how = [source, *HOW, f"ckpt={weights}", f"out={path.parent}"]
    code, said = nenya_cli("extract", [*how, *steps[1:]])
    assert code == 2 and "holds finished rows that were made with columns" in said, "rows without cosine are others"
    code, said = nenya_cli("extract", [*how, *steps])
    assert code == 0 and "resuming an earlier run with 48 of 130 rows" in said
    with h5py.File(path) as made:
        assert set(made) == set(wanted)
        assert all(np.array_equal(made[name][:], wanted[name], equal_nan=True) for name in wanted)


def test_complete_latents_are_kept_unless_a_calibration_is_to_be_added(
    extract, source, calibration, nenya_cli, weights
):
    path, _ = extract(source)
    how = [source, *HOW, f"ckpt={weights}", f"out={path.parent}"]
    code, said = nenya_cli("extract", [*how, f"calibration={calibration}"])
    assert code == 2 and "made with calibration_sha256 None instead of" in said
    assert nenya_cli("extract", [*how, f"calibration={calibration}", "clobber=true"])[0] == 0
    before = path.stat().st_mtime_ns
    for more in ([], [f"calibration={calibration}"]):
        assert nenya_cli("extract", [*how, *more])[0] == 0
        assert path.stat().st_mtime_ns == before


def test_a_cutout_without_a_latent_has_no_cosine(extract, calibration, tmp_path):
    path = write(tmp_path / "a_preproc.h5", clear=6, masked=6)
    with h5py.File(path, "a") as file:
        file["train_mask"][0] = 1
    with h5py.File(extract(path, f"calibration={calibration}")[0]) as made:
        assert np.isnan(made["train"][0]).all() and np.isnan(made["train_cosine"][0])
        assert made["train_clear"][0] == 0 and np.isfinite(made["train"][1:]).all()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("train_clear", 1.5, "are not from 0 to 1"),
        ("train_cosine", -3, "are not from -1 to 1"),
        ("train_cosine_low", 1.0, "above the cosine"),
    ],
)
def test_verify_sees_impossible_columns(extract, source, calibration, name, value, said):
    path, _ = extract(source, f"calibration={calibration}")
    with h5py.File(path, "a") as file:
        file[name][3] = value
    assert any(said in problem for problem in verify_file(path).problems)
    with h5py.File(path, "a") as file:
        file[name][3] = 0.5 if name == "train_clear" else np.float32(0.123)
    assert verify_file(path).problems, "an altered value is seen by its hash"
    with h5py.File(path, "a") as file:
        del file[name]
        file[name] = np.ones(7, np.float32)
    assert any("expected 130 floating-point numbers" in problem for problem in verify_file(path).problems)


def test_columns_are_no_partitions(extract, source, calibration):
    path, _ = extract(source, f"calibration={calibration}")
    latents = open_latents(str(path))
    assert [part.partition for part in latents.parts] == ["train"] and len(latents) == CLEAR + MASKED
    with h5py.File(path, "a") as file:
        for name in list(file.attrs):
            del file.attrs[name]
    assert verify_file(path, provenance=False).rows == {"train": CLEAR + MASKED}, "also where no attribute names them"


def test_what_cannot_be_calibrated_is_refused_in_one_line(nenya_cli, source, weights, tmp_path):
    how = [f"ckpt={weights}", *HOW, f"out={tmp_path / 'x.h5'}"]
    few = write(tmp_path / "few_preproc.h5", clear=20)
    other = write(tmp_path / "other_preproc.h5", side=32, clear=1)
    none = write(tmp_path / "none_preproc.h5", clear=70, masked=0)
    hole = write(tmp_path / "hole_preproc.h5")
    with h5py.File(hole, "a") as file:
        file["train"][MASKED + 3, ..., 2, 2] = np.nan
    for args, wanted in (
        ([source, *how, "preprocess.masked=nan"], "set preprocess.masked=fill, mean or mask"),
        ([few, *how], "expected at least 60 cutouts without a masked pixel, got 20 of 60"),
        ([hole, *how], "row 43 of 'train' has 1 pixels that are not finite outside 'train_mask'"),
        ([source, *how, f"cloud_masks={hole}"], "row 43 of 'train' has 1 pixels that are not finite"),
        ([source, *how, f"cloud_masks={other}"], "expected masks of 16 pixels a side, got 32"),
        ([source, *how, f"cloud_masks={none}"], "expected masked cutouts, got none"),
        ([source, *how, f"cloud_masks={tmp_path / 'nothing.h5'}"], "nothing.h5"),
        ([source, *how[:-1], f"out={tmp_path / 'x.json'}"], "expected an HDF5 file"),
    ):
        code, said = nenya_cli("calibrate", args)
        assert code == 2 and wanted in said, said
        assert not (tmp_path / "x.h5").exists()


def test_masks_are_drawn_evenly_over_their_shares_and_apart_for_both_halves():
    bank = varied_masks(300, SIDE, 0.3, np.random.default_rng(0)) | varied_masks(
        300, SIDE, 0.3, np.random.default_rng(1)
    )
    part = np.repeat([0, 1, 2], 400)
    masks, number, _ = choose_masks(bank, part, SIDE, CalibrateOptions(), np.random.default_rng(2), named=False)
    assert not set(number[part == 0]) & set(number[part > 0])
    assert (masks.sum(axis=(1, 2)) == bank[number].sum(axis=(1, 2))).all(), "turned and mirrored, not changed"
    assert (masks != bank[number]).any()
    share = masks.mean(axis=(1, 2))
    counts = np.histogram(share, 6, (0, share.max()))[0]
    assert counts.min() > 0.4 * counts.max()


def test_generated_masks_stand_in_for_few(caplog):
    bank = varied_masks(calibrating.LEAST_MASKS - 1, SIDE, 0.3, np.random.default_rng(0))
    part = np.zeros(50, np.int64)
    masks, _, source = choose_masks(bank, part, SIDE, CalibrateOptions(), np.random.default_rng(2), named=False)
    assert masks.shape == (50, SIDE, SIDE) and "generated" in source and "masks are generated" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("masked", ["fill", "mean"])
def test_five_percent_of_an_unseen_file_are_below(nenya_cli, tmp_path, weights, masked):
    """The whole way: a file calibrates, another one is extracted with and without its masks."""
    write(tmp_path / "a_preproc.h5", seed=11, clear=500, masked=400)
    images, masks = red_noise(1500, SIDE, 12), varied_masks(1500, SIDE, 0.48, np.random.default_rng(12))
    write_cutouts(tmp_path / "clear_preproc.h5", train=images)
    write_cutouts(tmp_path / "masked_preproc.h5", train=np.where(masks, np.float32(np.nan), images))
    how = ["model=demo", "model.width=4", "trainer.accelerator=cpu", f"preprocess.masked={masked}", f"ckpt={weights}"]
    code, said = nenya_cli("calibrate", [tmp_path / "a_preproc.h5", *how, f"out={tmp_path / 'made.h5'}"])
    assert code == 0, said
    for name in ("clear", "masked"):
        more = [f"calibration={tmp_path / 'made.h5'}", f"out={tmp_path}"]
        assert nenya_cli("extract", [tmp_path / f"{name}_preproc.h5", *how, *more])[0] == 0
    with (
        h5py.File(tmp_path / "clear_preproc_latents.h5") as clear,
        h5py.File(tmp_path / "masked_preproc_latents.h5") as made,
    ):
        found, low = 1 - distances(clear["train"][:], made["train"][:]), made["train_cosine_low"][:]
    known = np.isfinite(low)
    assert known.mean() > 0.95
    assert abs((found < low)[known].mean() - 0.05) < 0.03
