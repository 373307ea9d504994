"""Option files of all years of the first nenya load, with the values and names that it gave them."""

import copy
import json
import logging

import pytest

from nenya.commands.compose import compose
from nenya.errors import OptionError
from nenya.io import Params, load_opt, option_preprocess
from nenya.options.old_keys import say_ignored

RATES = {"learning_rate": 0.05, "lr_decay_rate": 0.1, "weight_decay": 1e-4, "momentum": 0.9, "temp": 0.07}
FLAGS = {"cosine": True, "warm": True, "syncBN": False, "trial": 5, "feat_dim": 256, "num_workers": 8}
NEWEST = {
    **RATES, **FLAGS, "lr_decay_epochs": "700, 800, 900", "ssl_method": "SimCLR", "ssl_model": "resnet50",
    "batch_size_train": 64, "batch_size_valid": 32, "epochs": 50, "model_root": "SWOT_L3", "sensor": "SWOT",
    "data_folder": "./", "images_file": "swot.h5", "train_key": "train", "valid_key": "valid",
    "s3_bucket": "s3://ssh/", "s3_outdir": "s3://ssh/Nenya/", "local_outdir": "s3://viirs/Nenya/", "nchannels": 1,
    "random_cropjitter": [110, 10], "gauss_noise": 0.0, "flip": True, "rotate": True, "demean": True,
    "nenya_data": True, "cuda_use": True, "print_freq": 20, "save_freq": 1, "valid_freq": 1, "eval_root": "x.h5",
    "orig_tbl_file": "s3://ssh/a.parquet", "nenya_tbl_file": "s3://ssh/b.parquet",
}  # fmt: skip
OLDEST = {
    **RATES, **FLAGS, "trial": 0, "lr_decay_epochs": [700, 800, 900], "method": "SimCLR", "model": "resnet50",
    "dataset": "LLC_MODIS_2012_curl", "batch_size": 128, "valid_batch_size": 64, "epochs": 25, "data_key": "valid",
    "eval_key": "train", "valid_key": "valid", "modis_file": "llc.h5", "data_folder": "d/train/",
    "valid_folder": "d/valid/", "model_folder": "./experiments/kin_model/", "latents_folder": "./experiments/kin/",
    "modis_data": True, "cuda_use": False, "save_freq": 50, "valid_freq": 2, "print_freq": 2,
}  # fmt: skip
NAME = "resnet50_lr_0.05_decay_0.0001_bsz"


@pytest.fixture
def written(tmp_path):
    def write(values, name="opts.json"):
        (tmp_path / name).write_text(json.dumps(values))
        return tmp_path / name

    return write


def test_a_file_of_the_newest_years(written):
    opt = Params(json_path=written(NEWEST))
    for key, value in NEWEST.items():
        assert getattr(opt, key) == ([700, 800, 900] if key == "lr_decay_epochs" else value), key
    assert opt.random_jitter == [110, 10]
    assert opt.model_name == f"SimCLR_{NAME}_64_temp_0.07_trial_5_cosine_warm"
    assert opt.model_folder == opt.save_folder == f"models/SWOT_L3/{opt.model_name}"
    assert opt.latents_folder == f"latents/SWOT_L3/{opt.model_name}"
    assert (opt.warmup_from, opt.warm_epochs, opt.warmup_epochs) == (0.01, 10, None)
    assert opt.warmup_to == pytest.approx(0.04523019943451431, rel=1e-14)
    assert option_preprocess(opt) is opt


def test_a_file_of_the_first_years(written):
    opt = Params(written(OLDEST))
    today = {"ssl_method": "SimCLR", "ssl_model": "resnet50", "batch_size_train": 128, "batch_size_valid": 64}
    today |= {"train_key": "valid", "valid_key": "valid", "images_file": "llc.h5", "model_root": "LLC_MODIS_2012_curl"}
    for key, value in (OLDEST | today).items():
        assert getattr(opt, key) == value, key
    assert opt.model_name == f"SimCLR_LLC_MODIS_2012_curl_{NAME}_128_temp_0.07_trial_0_cosine_warm"
    assert opt.save_folder == f"experiments/kin_model/{opt.model_name}"
    assert opt.nchannels == 3
    without = {key: value for key, value in OLDEST.items() if key != "model_folder"}
    assert Params(without).model_folder == "./experiments/SimCLR/LLC_MODIS_2012_curl_models"


@pytest.mark.parametrize("values", [NEWEST, OLDEST])
def test_every_way_to_read_a_file_agrees_and_it_loads_again(written, tmp_path, values):
    path = written(values)
    opt = Params(path)
    for command in ("train", "extract"):
        assert Params(compose(command, [f"model={path}"])).dict == opt.dict
    same, weights = load_opt(str(path))
    assert same.dict == opt.dict
    assert weights == f"{'s3://ssh/Nenya/' if values is NEWEST else ''}{opt.save_folder}/last.pth"
    opt.save(tmp_path / "again.json")
    assert Params(tmp_path / "again.json").dict == opt.dict
    assert copy.deepcopy(opt).dict == opt.dict


def test_keys_without_effect_are_listed_once_and_recorded(written, caplog):
    caplog.set_level(logging.INFO, "nenya")
    say_ignored.cache_clear()
    path = written(OLDEST)
    for _ in range(2):
        Params(path)
        compose("extract", [f"model={path}"])
    said = [record.message for record in caplog.records if "without effect" in record.message]
    assert len(said) == 1
    for key in ("cuda_use", "print_freq", "valid_folder", "modis_data", "eval_key"):
        assert f"{key} (" in said[0]
        assert Params(path).dict[key] == OLDEST[key]


@pytest.mark.parametrize(
    ("changed", "key", "value"),
    [
        ({"random_cropjitter": 0}, "augment", "v3"),
        ({"random_cropjitter": None, "random_jitter": 0}, "random_jitter", 0),
        ({"warm": False, "warmup_to": 0.0125375, "warmup_from": 0.01, "warm_epochs": None}, "warmup_to", 0.0125375),
        ({"epochs": 15, "warmup_to": 0.05}, "warmup_to", 0.0125375),
        ({"batch_size_eval": 64, "num_workers_eval": 16}, "batch_size_valid", 32),
        ({"batch_size_train": None, "batch_size_valid": None, "batch_size": 6}, "batch_size_valid", 6),
        ({"batch_size_valid": None, "batch_size_eval": 64}, "batch_size_valid", 64),
        ({"model_folder": "elsewhere", "model_name": "x"}, "latents_folder", f"latents/SWOT_L3/SimCLR_{NAME}_64"),
        ({"tbl_file": None, "lr_decay_epochs": [700, 800, 900]}, "lr_decay_epochs", [700, 800, 900]),
    ],
)
def test_values_of_other_files(written, changed, key, value):
    found = getattr(Params(written({**NEWEST, **changed})), key)
    assert found == pytest.approx(value) if isinstance(value, float) else str(found).startswith(str(value))


@pytest.mark.parametrize(
    "values", [{"ssl_model": "resnet18", "model": "resnet50"}, {"batch_size": 6, "batch_size_train": 64}]
)
def test_two_names_of_one_option_must_agree(values):
    with pytest.raises(OptionError, match="same option"):
        Params(values)


def test_options_change_by_any_of_their_names(written, tmp_path):
    opt = Params(written(NEWEST))
    opt.batch_size, opt.print_freq, opt.model_folder = 8, 3, str(tmp_path / "here")
    assert (opt.batch_size_train, opt.batch_size, opt.dict["print_freq"]) == (8, 8, 3)
    assert opt.model_folder == opt.save_folder == str(tmp_path / "here")
    opt.update(written({"trial": 7, "learning_rate": 0.1}, "more.json"))
    assert (opt.trial, opt.nchannels, opt.batch_size_train) == (7, 1, 8)
    with pytest.raises(OptionError, match="epochz"):
        opt.epochz = 3


def test_published_versions_have_the_warm_up_of_the_first_nenya():
    opt, _ = load_opt("pk4")
    assert opt.warmup_to == pytest.approx(0.04523019943451431, rel=1e-14)
    assert (opt.cuda_use, opt.nenya_data) == (None, None)
