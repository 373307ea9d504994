import json
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml

from nenya.commands.compose import command_names, compose, options_of
from nenya.errors import OptionError
from nenya.options.commands import ExtractOptions
from nenya.options.files import config_dir, model_versions
from nenya.options.flat import FLAT, flat_view, from_flat
from nenya.options.old_keys import IGNORED
from nenya.options.sections import Options, build_options, keys_of, taken

STUDY = {"modis_2021", "modis_2km", "viirs_n21", "viirs_2km", "llc_nonoise", "llc_noise", "llc_ssh", "swot_l3"}
STUDY |= {"wnoise", "pk2", "pk4", "mnist"}


@pytest.fixture(scope="session")
def facts(shared):
    return yaml.safe_load((shared / "facts" / "model_versions.yaml").read_text())


def test_every_published_version_is_there_with_its_values(facts):
    assert set(facts["versions"]) | {"demo", "clouds", "custom", "ocean"} == set(model_versions())
    for name, stated in facts["versions"].items():
        flat = flat_view(compose("train", [f"model={name}"]))
        expected = {**facts["common"], **stated}
        expected.pop("note", None)
        assert {key: flat[key] for key in expected} == expected, name


def test_names_derived_from_the_stored_option_files(goldens):
    stored = json.loads((goldens / "golden_public.json").read_text())["opts"]
    cases = {"v5": "opts_nenya_modis_v5", "v4": "opts_ssl_modis_v4", "v3": "opts_96clear", "CF": "opts_cloud_free"}
    cases |= {"viirs_v1": "nenya__viirs_v1", "wnoise": "info_wnoise.", "pk2": "info_pk2", "mnist": "info_mnist"}
    cases |= {"viirs_n21": "info_viirs.", "llc_nonoise": "info_llc.", "modis_2021": "info_modis."}
    for version, part in cases.items():
        golden = next(v for k, v in stored.items() if part in k and "model_name" in v)
        flat = flat_view(compose("train", [f"model={version}"]))
        for key in ("model_name", "model_folder", "latents_folder", "lr_decay_epochs"):
            assert flat[key] == golden[key], (version, key)


def test_a_json_option_file_gives_the_same_options_as_the_version(tmp_path):
    values = {
        "ssl_method": "SimCLR", "ssl_model": "resnet50", "feat_dim": 256, "random_cropjitter": [40, 5],
        "lr_decay_epochs": "700, 800, 900", "batch_size_train": 256, "batch_size_valid": 128, "trial": 5,
        "model_root": "MODIS_R2019_v4", "images_file": "MODIS_SSL_96clear_images.h5", "cuda_use": True,
        "s3_outdir": "s3://modis-l2/SSL/", "tbl_file": "s3://modis-l2/Nenya/Tables/MODIS_Nenya_v5.parquet",
        "sensor": "MODIS", "print_freq": 10, "epochs": 50,
    }  # fmt: skip
    path = tmp_path / "opts [1].json"
    path.write_text(json.dumps(values))
    mine, published = (flat_view(compose("train", [f"model={m}"])) for m in (path, "v5"))
    mine.pop("weights"), published.pop("weights")
    assert (mine.pop("print_freq"), mine.pop("cuda_use")) == (10, True), "keys without effect are recorded"
    assert mine == published
    assert mine["nchannels"] == 3


def test_a_saved_flat_view_loads_again():
    options = compose("train", ["model=viirs_n21", "optim.cosine=false"])
    flat = json.loads(json.dumps(flat_view(options)))
    again = build_options(ExtractOptions, from_flat(flat))
    assert flat_view(again) == flat


def test_overrides_reach_their_sections():
    o = compose("extract", ["model.ssl_model=resnet18", "model.nchannels=1", "model.feat_dim=128", "trainer=cpu"])
    assert (o.model.ssl_model, o.model.nchannels, o.model.feat_dim) == ("resnet18", 1, 128)
    assert (o.trainer.accelerator, o.trainer.devices) == ("cpu", 1)
    assert compose("train", ["augment.random_jitter=[32,4]"]).augment.random_jitter == [32, 4]


@pytest.mark.parametrize(
    "path",
    [
        "/a b/c[1].h5",
        "s3://b/k*.h5",
        "ü€.h5",
        "/x=y~(z).h5",
        "it's.h5",
        'say "hi".h5',
        "a,b.h5",
        "back\\slash.h5",
        "end\\",
    ],
)
def test_any_path_may_stand_unquoted(path):
    assert compose("extract", [f"data={path}"]).data == path
    assert compose("extract", [f"ckpt={path}"]).ckpt == path


def test_a_list_of_paths():
    assert compose("extract", ["data=[a b.h5, c=d.h5,'e,f.h5']"]).data == ["a b.h5", "c=d.h5", "e,f.h5"]


def test_a_key_beside_an_option_file_wins_in_any_order(tmp_path):
    (tmp_path / "o.json").write_text('{"learning_rate": 0.3}')
    for args in (
        ["optim.learning_rate=0.1", f"model={tmp_path}/o.json"],
        [f"model={tmp_path}/o.json", "optim.learning_rate=0.1"],
    ):
        assert compose("train", args).optim.learning_rate == 0.1


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("modle=v5", ["modle", "did you mean model"]),
        ("model=v55", ["v55", "did you mean v5", "viirs_v1"]),
        ("model.feat_dmi=3", ["model.feat_dmi", "did you mean feat_dim"]),
        ("feat_dim=3", ["it is model.feat_dim"]),
        ("optim.learning_rate=abc", ["learning_rate", "abc"]),
        ("optim.learning_rate=0", ["learning_rate", "above 0"]),
        ("optim.learning_rate=nan", ["learning_rate", "above 0"]),
        ("model.nchannels=2", ["nchannels=2", "one of 1, 3"]),
        ("model.feat_dim=0", ["feat_dim=0", "from 1 to 65536"]),
        ("loss.ssl_method=simclr", ["simclr", "SimCLR, SupCon"]),
        ("augment.random_jitter=7", ["random_jitter=7", "two integers"]),
        ("augment.random_jitter=0", ["random_jitter=0", "v4"]),
        ("loader.batch_size_valid=abc", ["batch_size_valid", "abc"]),
        ("trainer.max_epochs=2.5", ["max_epochs", "2.5"]),
        ("trainer=tpu", ["trainer=tpu", "cpu, ddp, default, gpu"]),
        ("logger=tensorboard", ["none, wandb"]),
        ("optim=3", ["optim is a section"]),
        ("data.x=3", ["data has no keys"]),
        ("seed", ["seed", "key=value"]),
    ],
)
def test_a_wrong_option_dies_in_one_line_that_says_what_is_possible(override, parts):
    with pytest.raises(OptionError) as error:
        compose("train", [override])
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"feat_dmi": 3}, ["feat_dmi", "did you mean feat_dim"]),
        ({"random_jitter": [40, 5], "random_cropjitter": [41, 5]}, ["same option"]),
        ({"epochs": "many"}, ["max_epochs", "many"]),
        ({"lr_decay_epochs": "a, b"}, ["lr_decay_epochs", "integers"]),
        ({"cosine": "yes"}, ["cosine", "true or false"]),
    ],
)
def test_a_wrong_json_option_dies_in_one_line(values, parts):
    with pytest.raises(OptionError) as error:
        build_options(ExtractOptions, from_flat(values))
    for part in parts:
        assert part in str(error.value)


def test_ignored_keys_have_a_reason_and_no_other_meaning():
    assert not set(IGNORED) & set(FLAT)
    assert all(IGNORED.values())


def test_configs_state_no_unknown_keys():
    for path in Path(config_dir(), "model").glob("*.yaml"):
        assert compose("extract", [f"model={path.stem}"]).model.name == path.stem


def test_no_section_is_taken_without_a_key_and_what_reads_files_reads_s3():
    for name in command_names():
        kind = options_of(name)
        sections = {f.name for f in fields(Options) if is_dataclass(f.type)} & set(taken(kind))
        assert not [section for section in sections if not keys_of(kind, section)], name
        assert ("storage" in sections) == ("loader" in sections), name
    for name in ("prepare", "verify", "inspect", "extract", "metrics", "search"):
        options = compose(name, ["storage.anonymous=[bucket]", "storage.requester_pays=true"])
        assert (options.storage.anonymous, options.storage.requester_pays) == (["bucket"], True), name
