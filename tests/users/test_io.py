import copy
import json
import pickle

import pytest
import yaml

from nenya.commands.compose import compose
from nenya.errors import CheckpointError, NenyaError, OptionError
from nenya.io import Params, as_options, load_opt
from nenya.options.commands import ExtractOptions, TrainOptions
from nenya.options.files import model_versions
from nenya.options.flat import flat_view


@pytest.fixture
def weights_in(tmp_path, monkeypatch):
    """Put an empty file at a place below $OS_SST."""

    def make(place):
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        path.touch()
        monkeypatch.setenv("OS_SST", str(tmp_path))
        return str(path)

    return make


@pytest.mark.parametrize(
    ("version", "place"),
    [("v5", "MODIS_L2/Nenya/models/v4_last.pth"), ("viirs_v1", "VIIRS/Nenya/models/nenya_viirs_v1_last.pth")],
)
def test_published_weights_are_found_below_os_sst(weights_in, tmp_path, monkeypatch, version, place):
    path = weights_in(place)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for _ in range(2):  # twice, as the original could not
        opt, model_path = load_opt(version)
        assert model_path == path
        assert opt.options.model.name == version
    assert sorted(tmp_path.rglob("*")) == before


def test_places_of_the_other_versions(shared, monkeypatch):
    monkeypatch.delenv("OS_SST", raising=False)
    versions = yaml.safe_load((shared / "facts" / "model_versions.yaml").read_text())["versions"]
    assert load_opt("LLC")[1] == versions["LLC"]["weights"]
    assert load_opt("LLC_local")[1] == versions["LLC"]["weights"]
    for name, facts in versions.items():
        if "weights" in facts:
            continue
        opt, path = load_opt(name)
        if "s3_outdir" in facts and "model_root" in facts:
            assert path == f"{facts['s3_outdir'].rstrip('/')}/models/{facts['model_root']}/{opt.model_name}/last.pth"
        else:
            assert path is None


def test_the_options_are_those_of_the_scripts(weights_in):
    weights_in("MODIS_L2/Nenya/models/v4_last.pth")
    opt, _ = load_opt("v5")
    assert opt.dict == flat_view(compose("extract", ["model=v5"]))
    assert (opt.random_jitter, opt.feat_dim, opt.batch_size_valid) == ([40, 5], 256, 128)
    assert opt.s3_outdir == "s3://modis-l2/SSL/"


def test_derived_names_of_every_stored_option_file(goldens):
    stored = json.loads((goldens / "golden_public.json").read_text())["opts"]["nenya__info_mnist.json"]
    opt, _ = load_opt("mnist")
    for key in ("model_name", "model_folder", "latents_folder"):
        assert getattr(opt, key) == stored[key]


def test_a_missing_folder_or_file_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("OS_SST", raising=False)
    with pytest.raises(OptionError, match=r"v5: .*OS_SST is not set; set it to the folder"):
        load_opt("v5")
    monkeypatch.setenv("OS_SST", "")
    with pytest.raises(OptionError, match=r"OS_SST is not set"):
        load_opt("v5")
    monkeypatch.setenv("OS_SST", str(tmp_path))
    with pytest.raises(
        CheckpointError, match=rf"v5 not found at {tmp_path}/MODIS_L2/.*v4_last.pth: download .*set OS_SST"
    ):
        load_opt("v5")


@pytest.mark.parametrize("name", ["v55", "", "V5", "../v5", None])
def test_an_unknown_version_lists_the_known_ones(name):
    with pytest.raises(OptionError) as error:
        load_opt(name)
    for known in model_versions():
        assert known in str(error.value)


def test_values_are_set_and_checked():
    opt = Params({"feat_dim": 128})
    opt.batch_size_valid = 7
    opt.random_jitter = (30, 2)
    assert opt.options.loader.batch_size_valid == 7
    assert opt.random_cropjitter == [30, 2]
    opt.learning_rate = 0.1
    assert "lr_0.1_" in opt.model_name
    assert opt.nchannels == 3  # as option files without it mean
    with pytest.raises(OptionError, match="batch_size_valid=0: expected a number of at least 1"):
        opt.batch_size_valid = 0
    assert opt.batch_size_valid == 7
    with pytest.raises(OptionError, match="no option feat_dmi; did you mean feat_dim"):
        opt.feat_dmi = 3
    with pytest.raises(OptionError, match="derived"):
        opt.model_name = "mine"
    with pytest.raises(AttributeError, match="no option feat_dmi; did you mean feat_dim"):
        _ = opt.feat_dmi
    assert not hasattr(opt, "nothing_like_it")


def test_old_keys_read_back_what_the_file_says():
    opt = Params({"cuda_use": True, "feat_dim": 64})
    assert opt.cuda_use is True
    opt.cuda_use = False
    assert opt.cuda_use is False
    with pytest.raises(AttributeError, match=r"n_cuda.*trainer\.devices"):
        _ = opt.n_cuda


def test_saved_options_load_again(tmp_path):
    opt = Params({"feat_dim": 64, "random_cropjitter": [20, 2], "cuda_use": True, "model_root": "A"})
    opt.save(tmp_path / "opts.json")
    again = Params(tmp_path / "opts.json")
    assert again.dict == opt.dict
    assert again.random_jitter == [20, 2]


def test_options_copy_and_pickle():
    opt = Params({"feat_dim": 64, "cuda_use": True})
    opt.options.preprocess.image = "none"
    for twin in (copy.deepcopy(opt), pickle.loads(pickle.dumps(opt))):  # noqa: S301  # our own bytes
        assert twin.dict == opt.dict
        assert twin.options == opt.options
        twin.feat_dim = 32
    assert opt.feat_dim == 64


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not a JSON option file"), ("[1]", "a list"), ('{"feat_dmi": 3}', "did you mean feat_dim"), (None, "check")],
)
def test_a_bad_option_file_is_named(tmp_path, text, words):
    path = tmp_path / "opts.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(NenyaError) as error:
        Params(path)
    assert str(path) in str(error.value)
    assert words in str(error.value)


def test_whatever_has_the_names_is_options():
    class Old:
        def __init__(self):
            self.feat_dim, self.nchannels = 99, 1

    for source in (Old(), {"feat_dim": 99, "nchannels": 1}, Params({"feat_dim": 99, "nchannels": 1})):
        options = as_options(ExtractOptions, source)
        assert isinstance(options, ExtractOptions)
        assert (options.model.feat_dim, options.model.nchannels) == (99, 1)
    opt = Params({"feat_dim": 99})
    as_options(TrainOptions, opt).model.feat_dim = 1
    assert opt.feat_dim == 99
