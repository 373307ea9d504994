"""Scripts such as users of the first nenya have, ten kinds of them, run with this nenya in its place."""

import json
import runpy
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import red_noise, write_cutouts

OPTIONS = {
    "ssl_method": "SimCLR", "ssl_model": "resnet18", "width": 4, "feat_dim": 8, "learning_rate": 0.05,
    "lr_decay_epochs": "700, 800, 900", "lr_decay_rate": 0.1, "weight_decay": 1e-4, "momentum": 0.9, "temp": 0.07,
    "cosine": True, "warm": True, "syncBN": False, "trial": 5, "batch_size_train": 16, "batch_size_valid": 16,
    "epochs": 2, "num_workers": 0, "model_root": "VIIRS_tst", "sensor": "VIIRS", "data_folder": "./PreProc",
    "images_file": "VIIRS_tst_preproc.h5", "train_key": "train", "valid_key": "valid", "s3_bucket": "s3://viirs/",
    "s3_outdir": "s3://viirs/Nenya/", "local_outdir": "s3://viirs/Nenya/", "nchannels": 1,
    "random_cropjitter": [24, 3], "gauss_noise": 0.0, "flip": True, "rotate": True, "demean": True,
    "nenya_data": True, "cuda_use": True, "print_freq": 1, "save_freq": 1, "valid_freq": 1, "eval_root": "tst",
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A folder with options, cutouts and a table; later scripts use what earlier ones leave."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "PreProc").mkdir()
    (folder / "opts.json").write_text(json.dumps(OPTIONS))
    cutouts = {"train": red_noise(60), "valid": red_noise(30, seed=1)}
    write_cutouts(folder / "PreProc" / "VIIRS_tst_preproc.h5", **cutouts)
    rng = np.random.default_rng(0)
    table = pd.DataFrame({
        "lat": rng.uniform(-60, 60, 90), "lon": rng.uniform(-180, 180, 90), "DT40": rng.uniform(0.0, 2.4, 90),
        "T90": 20 + rng.random(90), "T10": 19 + rng.random(90), "LL": rng.normal(size=90), "clear_fraction": 0.01,
        "UID": np.arange(90), "mean_temperature": 20.0, "zonal_slope": -1.5, "merid_slope": -2.0, "min_slope": -2.0,
        "ulmo_pp_file": "s3://viirs/PreProc/VIIRS_tst_preproc.h5", "ulmo_pp_type": np.repeat([1, 0], [60, 30]),
        "ulmo_pp_idx": np.concatenate([np.arange(60), np.arange(30)]),
    })  # fmt: skip
    table.to_parquet(folder / "table.parquet")
    return folder


@pytest.fixture
def script(study, monkeypatch):
    """Run the text of a script, with words of its command line, in the folder of the study."""
    monkeypatch.chdir(study)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # whoever asks S3 fails
    monkeypatch.setenv("OS_SST", str(study / "OS_SST"))

    def run(text, *words):
        Path("script.py").write_text(text)
        monkeypatch.setattr(sys, "argv", ["script.py", *words])
        return runpy.run_path("script.py", run_name="__main__")

    return run


TASKS = """
from nenya import workflow

def main(task):
    if task == "train":
        workflow.train("opts.json", debug=False)
    elif task == "evaluate":
        workflow.evaluate("opts.json", "PreProc/VIIRS_tst_preproc.h5", latents_file="latents/tst_latents.h5",
                          local_model_path="./", base_model_name="ckpt_epoch_1.pth")
    elif task == "chk_latents":
        workflow.chk_latents("tst", "latents/tst_latents.h5", "PreProc/VIIRS_tst_preproc.h5", 7, partition="valid")
    elif task == "eigenimages":
        workflow.find_eigenmodes("opts.json", "pca.npz", (1, 32, 32), "eigen.npz", Neigenmodes=2, num_iterations=4,
                                 local_model_path="./", use_eigenmatch_start=True, tv_weight=1e-4,
                                 latents_file="latents/tst_latents.h5", preproc_file="PreProc/VIIRS_tst_preproc.h5")

if __name__ == "__main__":
    main(workflow.return_task())
"""


def test_train(script, caplog):
    script(TASKS, "train")
    assert "the weights are kept in" in caplog.text, "only the upload at the end needs S3"
    opt = script("from nenya import params\nopt = params.Params('opts.json')\nparams.option_preprocess(opt)")["opt"]
    folder = Path(opt.model_folder)
    assert folder.parent == Path("models/VIIRS_tst")
    assert {"ckpt_epoch_1.pth", "ckpt_epoch_2.pth", "last.pth", "opts.json"} <= {p.name for p in folder.iterdir()}
    found = script("""
from nenya import plotting, params, io as nenya_io
opt = params.Params("opts.json")
train_file, valid_file = nenya_io.losses_filenames(opt)
plotting.learn_curve(valid_file, train_file, outfile="learn.png", ylog=True)
""")
    assert Path(found["train_file"]).is_file()
    assert Path("learn.png").stat().st_size > 1000


def test_evaluate(script):
    script(TASKS, "evaluate")
    with h5py.File("latents/tst_latents.h5") as file:
        assert (file["train"].shape, file["valid"].shape) == ((60, 8), (30, 8))
        options = json.loads(file.attrs["options"]) if "options" in file.attrs else {}
    assert "print_freq" in json.dumps(options)
    before = Path("latents/tst_latents.h5").read_bytes()
    script(TASKS, "evaluate")
    assert Path("latents/tst_latents.h5").read_bytes() == before, "complete latents are not made again"


def test_chk_latents(script):
    script(TASKS, "chk_latents")
    assert Path("nenya_tst_valid_chk_latents_7.png").stat().st_size > 1000
    found = script("""
import h5py
from nenya import analysis
with h5py.File("latents/tst_latents.h5") as f:
    idx, sims = analysis.find_closest_latents(f["valid"][:], 7)
""")
    assert 7 not in found["idx"]
    assert len(found["idx"]) == 29
    assert (np.diff(found["sims"]) <= 0).all()


def test_pca(script):
    found = script("""
import numpy as np
from nenya import pca
pca.fit_latents("latents/tst_latents.h5", "pca.npz", 80, key=None)
pca.fit_latents("latents/tst_latents.h5", "pca_old.npz", "valid", 20)
rows, sims = pca.find_eigenmatches("pca.npz", "latents/tst_latents.h5", [0, 2, 1], nimages=3, partition="valid")
d = np.load("pca.npz")
""")
    assert found["d"]["Y"].shape == (80, 8)
    assert np.load("pca_old.npz")["Y"].shape == (20, 8)
    assert found["rows"].shape == found["sims"].shape == (3, 3)
    with h5py.File("latents/tst_latents.h5") as file:
        latents, mode = file["valid"][:], found["d"]["M"][2]
    assert found["sims"][0, 1] == pytest.approx((latents @ mode / np.linalg.norm(latents, axis=1)).max(), abs=1e-6)


def test_eigenimages(script):
    script(TASKS, "eigenimages")
    found = np.load("eigen.npz")
    assert found["eigen_images"].shape == (2, 1, 32, 32)
    assert found["similarities"].shape == (2,)
    assert found["eigenmodes"].shape == (2, 8)


def test_tasks_of_the_command_line(script):
    for words in ((), ("trian",), ("train", "evaluate")):
        with pytest.raises(SystemExit, match="one of train, evaluate"):
            script(TASKS, *words)


UMAP = """
import os, shutil
import pandas as pd
from nenya import params
{module}
opt = params.Params("opts.json")
params.option_preprocess(opt)
folder = os.path.join(os.getenv("OS_SST"), opt.sensor, "Nenya", opt.latents_folder)
os.makedirs(folder, exist_ok=True)
shutil.copy("latents/tst_latents.h5", os.path.join(folder, "VIIRS_tst_latents.h5"))
tbl = pd.read_parquet("table.parquet")
"""


def test_umap_subset(script):
    call = """
umap.umap_subset(tbl, "opts.json", "out.parquet", DT_cut="DT1", max_cloud_fraction=0.05, ntrain=30, local=True,
                 umap_savefile="DT1_UMAP.pkl", DT_key="DT40", debug=False, remove=True)
result = pd.read_parquet("out.parquet")
"""
    for name in ("out.parquet", "DT1_UMAP.h5"):  # both are overwritten
        (Path.cwd() / name).write_bytes(b"of an earlier run")
    found = script(UMAP.format(module="from nenya import umap") + call)
    assert (found["result"].DT40.between(0.5, 1.0)).all()
    assert found["result"][["US0", "US1"]].notna().all(axis=None)
    assert Path("DT1_UMAP.h5").is_file()
    old = """
nenya_umap.umap_subset(modis_tbl=tbl, opt_path="opts.json", outfile="all.parquet", ntrain=60, train_umap=True,
                       umap_savefile="all_UMAP.pkl", CF=False)
mapping, xy = nenya_umap.umap_latents(["latents/tst_latents.h5"] * 2, ntrain=50, keys=["train", "valid"])
"""
    found = script(UMAP.format(module="from nenya import nenya_umap") + old)
    assert found["xy"].shape == (90, 2)
    everything = pd.read_parquet("all.parquet")
    assert len(everything) == 90
    documented = """
tbl = tbl.rename(columns={"ulmo_pp_file": "pp_file", "ulmo_pp_idx": "pp_idx"})  # as the documentation's example
nenya_umap.umap_subset(tbl=tbl, opt_path="opts.json", outfile="doc.parquet", umap_savefile="all_UMAP.pkl",
                       train_umap=False)
"""
    script(UMAP.format(module="from nenya import nenya_umap") + documented)
    np.testing.assert_array_equal(pd.read_parquet("doc.parquet").US0, everything.US0)


def test_regional_analysis(script):
    found = script("""
import numpy as np
from nenya import nenya_umap, defs, io as nenya_io
tbl = nenya_io.load_main_table("all.parquet")
counts, counts_geo, cut, grid, xedges, yedges = nenya_umap.regional_analysis("north", tbl, 4, ("US0", "US1"),
                                                                             min_counts=0)
grid_only = nenya_umap.grid_umap(tbl.US0.values, tbl.US1.values, nxy=4)
tbl2, cutouts, _ = nenya_umap.cutouts_on_umap_grid(tbl, 4, ("US0", "US1"))
lats = defs.geo_regions["north"]["lats"]
north = cut[(cut.lat > lats[0]) & (cut.lat < lats[1])]
mine, _, _ = np.histogram2d(north.US0, north.US1, bins=(grid["xval"], grid["yval"]))
everything, _, _ = np.histogram2d(cut.US0, cut.US1, bins=(grid["xval"], grid["yval"]))
nenya_io.write_main_table(cut, "cut.csv", to_s3=False)
again = nenya_io.load_main_table("cut.csv")
""")
    grid, tbl = found["grid"], found["tbl"]
    assert found["counts"].shape == (6, 6)
    np.testing.assert_allclose(found["counts_geo"], found["mine"] / found["mine"].sum())
    np.testing.assert_allclose(found["counts"], found["everything"] / found["everything"].sum())
    low, high = np.percentile(tbl.US0, [0.05, 99.95])
    step = (high - low) / 4
    assert (grid["dxv"], grid["xmin"], grid["xmax"]) == pytest.approx((step, low - step, high + step))
    np.testing.assert_allclose(grid["xval"], np.arange(7) * step + low - step)
    assert grid["xval"].tolist() == found["xedges"].tolist() == found["grid_only"]["xval"].tolist()
    assert len(found["cut"]) == 90, "the table of all regions"
    assert len(found["cutouts"]) == 36
    assert found["again"].UID.tolist() == found["cut"].UID.tolist()
    assert found["again"].index.tolist() == found["cut"].index.tolist()


def test_portal_on_one_image(script):
    found = script("""
import numpy as np
from bokeh.document import Document
from nenya import portal
from nenya.portal import Image, OSSinglePortal
import os, shutil
os.makedirs(os.path.join(os.environ["OS_SST"], "VIIRS", "PreProc"), exist_ok=True)
shutil.copy("PreProc/VIIRS_tst_preproc.h5", os.path.join(os.environ["OS_SST"], "VIIRS", "PreProc"))
image = Image(np.random.default_rng(0).normal(size=(32, 32)), Us=(0.5, 0.5), DT=2.0, lat=35.0, lon=-120.0)
session = OSSinglePortal("all.parquet", input_Image=image)
session.set_matched(3.0)
images, titles = session.load_images([3, -1])

async def show():
    document = Document()
    session(document)
    import asyncio, urllib.request
    page = await asyncio.to_thread(lambda: urllib.request.urlopen(session.address(), timeout=300).read().decode())
    return document, page

import asyncio
document, page = asyncio.run(show())
""")
    session, tbl = found["session"], pd.read_parquet("all.parquet")
    assert session.row == int(np.argmin((tbl.US0 - 0.5) ** 2 + (tbl.US1 - 0.5) ** 2))
    with h5py.File("PreProc/VIIRS_tst_preproc.h5") as file:
        np.testing.assert_array_equal(found["images"][0], file["train"][3].squeeze())
    assert not found["images"][1].any()
    assert "Nenya" in found["page"]
    assert len(found["document"].roots) == 1
    copied = found["image"].copy()
    copied.image[0, 0] = 7
    assert found["image"].image[0, 0] != 7


def test_spectra(script):
    found = script("""
from nenya import pk
cutouts = pk.load_images("PreProc/VIIRS_tst_preproc.h5", partition="train")
k, power, wavelength = pk.orig_compute_ensemble_spectrum_parallel(cutouts, dx=2.0, detrend=True, n_workers=2)
pk.plot_spectrum(k, power, wavelength, title="T", outfile="pk.png", show=False)
""")
    cutouts, k, power = (found[name] for name in ("cutouts", "k", "power"))
    assert cutouts.shape == (60, 32, 32)
    from scipy import signal

    total = 0.0
    for image in cutouts.astype(float):
        plain = signal.detrend(signal.detrend(image - image.mean(), axis=0), axis=1)
        total += np.abs(np.fft.fftshift(np.fft.fft2(plain * np.outer(np.hanning(32), np.hanning(32))))) ** 2 / 1024
    radial = np.hypot(*np.meshgrid(*[np.fft.fftshift(np.fft.fftfreq(32)) / 2.0] * 2))
    edges = np.linspace(0, radial.max(), 17)
    for i, (centre, value) in enumerate(zip(k, power, strict=True)):
        inside = (radial >= edges[i]) & (radial < edges[i + 1])
        assert centre == pytest.approx((edges[i] + edges[i + 1]) / 2)
        assert value == pytest.approx((total / 60)[inside].mean())
    assert np.allclose(found["wavelength"], 1 / k)
    assert Path("pk.png").stat().st_size > 1000


def test_gallery(script):
    script("""
from nenya import plotting
import pandas as pd
tbl = pd.read_parquet("all.parquet")
tbl[tbl.ulmo_pp_type == 0].reset_index(drop=True).to_parquet("valid.parquet")
plotting.umap_gallery("valid.parquet", "PreProc/VIIRS_tst_preproc.h5", dxv=2.0, dyv=2.0, min_pts=1,
                      outfile="gallery.png", in_vmnx=(-1, 1), cmap="jet", annotate=False, skip_incidence=True)
""")
    assert Path("gallery.png").stat().st_size > 5000


def test_extraction_in_the_orders_of_all_years(script):
    found = script("""
from nenya import latents_extraction, params
from nenya.train_util import set_model
from nenya.io import load_model_name
opt, weights = load_model_name("opts.json", "./", "ckpt_epoch_1.pth")
file = "PreProc/VIIRS_tst_preproc.h5"
documented = latents_extraction.model_latents_extract(opt, file, weights, partitions=("valid",))
import torch
model, _ = set_model(opt, cuda_use=False)
model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=False)["model"])
newest = latents_extraction.model_latents_extract(opt, model, file, False, partitions=["valid"])
sizes = []
named = dict(batch_size=64, num_workers=0)
for args, kwargs in (((64, 0), {}), ((1,), named), ((1, 64, 0), {}), ((), dict(nchannels=1))):
    dset, loader = latents_extraction.build_loader(file, "valid", *args, **kwargs)
    sizes.append((dset.nchannels, loader.batch_size, loader.num_workers))
_, loader = latents_extraction.build_loader(file, "valid", 1, batch_size=16, num_workers=0)
mine = latents_extraction.model_latents_extract(opt, None, weights, loader=loader, partitions=["valid"])
""")
    assert found["sizes"] == [(3, 64, 0), (1, 64, 0), (1, 64, 0), (1, 1, 1)]
    with h5py.File("latents/tst_latents.h5") as file:
        for latents in (found["documented"], found["newest"], found["mine"]):
            np.testing.assert_allclose(latents["valid"], file["valid"][:], atol=1e-6)


def test_one_image_by_the_names_of_the_arguments(script):
    found = script("""
import numpy as np
from nenya import analyze_image, single_image
from nenya.io import load_model_name
opt, weights = load_model_name("opts.json", local_model_path="./")
img = np.random.default_rng(1).normal(size=(32, 32)).astype("f4")
latents, pp_img = analyze_image.get_latents(img=img, model_file=weights, opt=opt)
DT = analyze_image.calc_DT(img, opt.random_jitter, verbose=True)
views = next(iter(single_image.image_loader(np.random.default_rng(2).normal(size=(1, 64, 64)), version="v4")))
""")
    assert found["latents"].shape == (1, 8)
    assert [view.shape for view in found["views"]] == [(1, 3, 64, 64)] * 2
    assert not np.array_equal(*found["views"])


def test_prep_lists_latents_by_both_names(script, study):
    opts = {**OPTIONS, "s3_outdir": str(study)}
    (study / "local.json").write_text(json.dumps(opts))
    found = script("""
import os, shutil
from nenya import latents_extraction, params
opt = params.Params("local.json")
os.makedirs(opt.latents_folder, exist_ok=True)
shutil.copy("latents/tst_latents.h5", os.path.join(opt.latents_folder, "VIIRS_tst_preproc_latents.h5"))
model, existing = latents_extraction.prep(opt)
""")
    assert Path(found["model"]).name == "last.pth"
    assert {"VIIRS_tst_latents.h5", "VIIRS_tst_preproc_latents.h5"} <= set(found["existing"])
