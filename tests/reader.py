"""The folder of a reader who has what the pages speak of: cutouts, tables, latents, weights, runs, an S3 bucket.

Published networks are replaced by narrow ones, so that a page's commands take seconds: `nenya` and `python scripts/...`
in this folder set a few options of the model before those of the page.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from conftest import red_noise, write_cutouts
from granules import grid, write_swath

from nenya.commands.compose import compose
from nenya.io import Params, as_options, write_table
from nenya.latents.projector import Projector
from nenya.models.checkpoint import save_pth
from nenya.models.contrastive import make_net
from nenya.options.flat import flat_view
from nenya.options.sections import Options

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "docs"))

from pages import reader_environment  # noqa: E402  # docs/pages.py

NARROW = ("model.ssl_model=resnet18", "model.width=8", "model.feat_dim=16", "model.nchannels=1")
EXAMPLES = ("/path/to/", "/archive/", "/fast/disk/", "/data/")
"""Folders that the pages name and nobody has: they lie in the reader's folder."""

_SHIM = """
import re, sys
from pathlib import Path

if __name__ == "__main__":  # not in the processes that a command starts
    from nenya.cli import main
    from nenya.commands.compose import command_names, options_of
    from nenya.options.sections import taken

    args = sys.argv[1:]
    if args[0].startswith("scripts/"):
        args[0] = re.search(r'run_command\\("(\\w+)"\\)', Path(args[0]).read_text())[1]
    given = {{arg.partition("=")[0] for arg in args}}
    has_network = args[0] in command_names() and "model" in taken(options_of(args[0]))
    more = [*{narrow!r}, *(["trainer.max_epochs=1", "loader.batch_size_train=16"] if args[0] == "train" else [])]
    # A run, a version in an archive and the shipped weights know their network.
    own = args[0] == "demo" or "resume" in given or "model=ocean" in args
    own = own or ("archive" in given and "ckpt" not in given)
    sys.exit(main([args[0], *(more if has_network and not own else []), *args[1:]]))
"""


def table_of(stem: str, rows: dict[str, int], seed: int = 0) -> pd.DataFrame:
    """A table with the columns that the pages ask for; most cutouts of group 3 lie close together."""
    rng, count = np.random.default_rng(seed), sum(rows.values())
    t10 = 10 + rng.normal(size=count)
    table = pd.DataFrame(
        {
            "lat": rng.uniform(-60, 60, count),
            "lon": rng.uniform(-180, 180, count),
            "datetime": np.datetime64("2012-01-01", "ns") + rng.integers(0, 365, count).astype("timedelta64[D]"),
            "T10": t10,
            "T90": t10 + rng.gamma(2, 1.0, count),
            "clear_fraction": rng.uniform(0.95, 1, count),
            "LL": rng.normal(-300, 200, count),
            "filename": [f"{stem}_{i // 5}.nc" for i in range(count)],
            "UID": rng.integers(1, 2**60, count),
            "alpha": rng.normal(-2, 0.5, count),
            "cluster": rng.integers(0, 5, count),
            "US0": rng.uniform(0, 6, count),
            "US1": rng.uniform(-3, 3, count),
            "pp_file": f"{stem}.h5",
            "pp_type": np.repeat([1, 0], [rows.get("train", 0), rows.get("valid", 0)]),
            "pp_idx": np.concatenate([np.arange(n) for n in rows.values()]),
        }
    )
    table["DT"] = table["T90"] - table["T10"]
    near = table["cluster"] == 3
    table.loc[near, "lon"], table.loc[near, "lat"] = -55.5, 44.5  # in the Gulf Stream's region
    return table


def write_latents(path: Path, like: Path, rows: dict[str, int], seed: int) -> None:
    """Write a latents file of random directions that says of itself what another one says."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(like) as model, h5py.File(path, "w") as file:
        for name, count in rows.items():
            vectors = rng.standard_normal((count, 16)).astype("<f4")
            file[name] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        file.attrs.update({k: v for k, v in model.attrs.items() if k not in ("latents_sha256", "rows", "source")})
        file.attrs["source"] = path.name.removesuffix("_latents.h5") + ".h5"


def narrow_weights(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = compose("extract", ["model=v5", *NARROW])
    save_pth(path, make_net(options), options=flat_view(options), epoch=1)
    return path


def prepare_folder(folder: Path) -> None:
    """Write all files that the README and the guides name."""
    rows = {"train": 48, "valid": 16}
    cutouts = write_cutouts(folder / "cutouts_preproc.h5", train=red_noise(48, 64, 1), valid=red_noise(16, 64, 2))
    table = table_of("cutouts_preproc", rows)
    table.loc[:8, "US0"], table.loc[:8, "US1"] = 3.0, 0.0
    for name in ("cutouts.parquet", "cutouts_preproc.parquet"):
        write_table(table, folder / name)
    write_table(table.iloc[:9], folder / "found.parquet")
    weights = narrow_weights(folder / "last.pth")
    narrow_weights(folder / "os_sst" / "MODIS_L2" / "Nenya" / "models" / "v4_last.pth")
    (folder / "scripts").symlink_to(ROOT / "scripts")
    (folder / "docs").symlink_to(ROOT / "docs")
    shims = folder / ".bin"
    shims.mkdir()
    (shims / "shim.py").write_text(_SHIM.format(narrow=NARROW))
    (shims / "nenya").write_text(f'#!/bin/bash\nexec {sys.executable} {shims}/shim.py "$@"\n')
    (shims / "python").write_text(f'#!/bin/bash\nexec {sys.executable} {shims}/shim.py "$@"\n')
    for shim in shims.iterdir():
        shim.chmod(0o755)
    call = [shims / "nenya", "extract", "model=v5", f"data={cutouts}", f"ckpt={weights}"]
    subprocess.run(call, check=True, capture_output=True, cwd=folder, env=reader_environment())
    latents = folder / "cutouts_preproc_latents.h5"
    shutil.copy(latents, folder / "ocean_preproc_latents.h5")

    for place in ("path/to", "archive"):
        (folder / place / "PreProc").mkdir(parents=True)
        (folder / place / "latents").mkdir()
        shutil.copy(cutouts, folder / place / "PreProc")
        shutil.copy(latents, folder / place / "latents")
    for name in ("cutouts_preproc.h5", "last.pth"):
        shutil.copy(folder / name, folder / "path" / "to")
    shutil.copy(weights, folder / "path" / "to" / "weights")
    old = folder / "path" / "to" / "Nenya"
    old.mkdir()
    for name in ("cutouts_preproc.h5", "cutouts_preproc_latents.h5", "cutouts.parquet", "last.pth"):
        shutil.copy(folder / name, old)
    for name in ("a.h5", "b.h5"):
        write_cutouts(folder / name, valid=red_noise(4, 64, ord(name[0])))
    (folder / "fast" / "disk").mkdir(parents=True)

    (folder / "archive" / "2010").mkdir()
    write_swath(folder / "archive" / "2010" / "granule.nc", shape=(400, 1354), share=0.0)
    grid().to_netcdf(folder / "model.nc", engine="h5netcdf")

    data = folder / "data"
    for place in ("2012", "incoming"):
        (data / place).mkdir(parents=True)
    for number, name in enumerate(("2012/day1.nc", "2012/day2.nc", "incoming/day3.nc")):
        time = f"2012-03-0{number + 1}T05:06:07"
        write_swath(data / name, shape=(400, 1354), share=0.0, seed=number, time=time)
    write_cutouts(data / "incoming" / "more_preproc.h5", valid=red_noise(60, 64, 6))
    write_table(table_of("more_preproc", {"valid": 60}), data / "incoming" / "more_preproc.parquet")
    narrow_weights(folder / "path" / "to" / "others")

    write_latents(folder / "new_latents.h5", latents, {"valid": 20}, 3)
    write_table(table_of("new", {"valid": 20}).drop(columns=["US0", "US1"]), folder / "new.parquet")

    tables = []
    (folder / "PreProc").mkdir()
    for year, count in (("2012", 1300), ("2013", 60)):
        write_latents(folder / "latents" / year / f"y{year}_preproc_latents.h5", latents, {"valid": count}, int(year))
        write_cutouts(folder / "PreProc" / f"y{year}_preproc.h5", valid=red_noise(count, 16, int(year)))
        tables.append(table_of(f"y{year}_preproc", {"valid": count}, int(year)))
        write_table(tables[-1], folder / f"{year}.parquet")
    write_table(pd.concat(tables, ignore_index=True), folder / "archive.parquet")


def prepare_run(folder: Path) -> None:
    """Make the run folder that the README names."""
    run = "out=outputs/v5/2026-01-31_12-00-00"
    subprocess.run(
        [folder / ".bin" / "nenya", "train", "model=v5", "data=cutouts_preproc.h5", run],
        check=True, capture_output=True, cwd=folder, env=reader_environment(),
    )  # fmt: skip


def prepare_library(folder: Path, client) -> None:
    """Write what the page on Python needs: the published network, an image, options, a projector, objects."""
    options = compose("extract", ["model=v5"])
    place = folder / "os_sst" / "MODIS_L2" / "Nenya"
    save_pth(place / "models" / "v4_last.pth", make_net(options), options=flat_view(options), epoch=1)
    np.save(folder / "image.npy", red_noise(1, 64, 5)[0] + 20)
    values = {"ssl_model": "resnet18", "width": 8, "feat_dim": 16, "nchannels": 1, "model_root": "M"}
    values |= {"s3_outdir": "s3://bucket/SSL/", "data_folder": ".", "images_file": "cutouts_preproc.h5"}
    values |= {"epochs": 1, "batch_size_train": 16}
    (folder / "opts.json").write_text(json.dumps(values))
    opt = Params(values)
    save_pth(folder / "narrow.pth", make_net(as_options(Options, opt)), options=opt.dict, epoch=1)
    client.upload_file(str(folder / "narrow.pth"), "bucket", f"SSL/{opt.model_folder}/last.pth")
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((40, 256)).astype(np.float32)
    (place / "UMAP").mkdir()
    (place / "Tables").mkdir()
    Projector.fit(latents, embedding=rng.standard_normal((40, 2))).save(
        place / "UMAP" / "MODIS_Nenya_96clear_v5_DT15_UMAP.h5"
    )
    write_table(table_of("modis", {"valid": 40}), place / "Tables" / "MODIS_Nenya_96clear_v5_DT15.parquet")


def fill_bucket(folder: Path, client) -> None:
    """Put the objects that the pages name into s3://bucket."""
    for name in ("a_preproc.h5", "b_preproc.h5"):
        client.upload_file(str(folder / f"{name[0]}.h5"), "bucket", f"PreProc/{name}")
    client.upload_file(str(folder / "last.pth"), "bucket", "models/v4_last.pth")
    client.upload_file(str(folder / "cutouts_preproc_latents.h5"), "bucket", "latents/cutouts_preproc_latents.h5")
    year = folder / "latents" / "2012" / "y2012_preproc_latents.h5"
    client.upload_file(str(year), "bucket", f"latents/2012/{year.name}")
