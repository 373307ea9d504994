"""What is read, by the functions that commands and the portal read it with, and the good files to start from."""

import base64
import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

Arrays = list[np.ndarray]
DIM, SIDE, ROWS = 12, 16, 24


def images(rows: int = ROWS, side: int = SIDE) -> np.ndarray:
    """Return (rows, side, side) float32."""
    return np.random.default_rng(1).normal(size=(rows, side, side)).cumsum(1).astype(np.float32)


# Weights


def write_weights(folder: Path) -> None:
    import torch

    from nenya.commands.compose import compose
    from nenya.models.checkpoint import save_pth, save_safetensors
    from nenya.models.contrastive import make_net
    from nenya.options.flat import flat_view

    options = compose("extract", ["model=demo", "model.width=4", "model.feat_dim=8"])
    net = make_net(options)
    save_pth(folder / "a.pth", net, options=flat_view(options), epoch=1)
    save_safetensors(folder / "a.safetensors", net, options=flat_view(options), epoch=1)
    content = torch.load(folder / "a.pth", weights_only=True)
    torch.save(content, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    light = {"state_dict": {f"net.{k}": v for k, v in content["model"].items()}, "hyper_parameters": content["opt"]}
    torch.save({**light, "epoch": 3, "pytorch-lightning_version": "2.6.6"}, folder / "a.ckpt")


def read_weights(path: Path) -> Arrays:
    from nenya.models.checkpoint import load_checkpoint, load_weights
    from nenya.models.resnet import ContrastiveNet

    found = load_checkpoint(path)
    architecture = found.architecture
    if architecture["width"] <= 64 and architecture["feat_dim"] <= 1024 and architecture["nchannels"] <= 8:
        load_weights(ContrastiveNet(**architecture), found)
    json.dumps(found.options)
    return [value.float().numpy() for value in found.state_dict.values()]


# HDF5


def write_latents(folder: Path, rows: int = ROWS) -> None:
    import h5py

    rng = np.random.default_rng(2)
    for name, more in {"a": {}, "packed": {"compression": "gzip", "chunks": (8, DIM), "shuffle": True}}.items():
        with h5py.File(folder / f"{name}_latents.h5", "w") as file:
            for part, count in (("train", rows), ("valid", rows // 2)):
                unit = rng.normal(size=(count, DIM)).astype(np.float32)
                file.create_dataset(part, data=unit / np.linalg.norm(unit, axis=1, keepdims=True), **more)
            file.attrs.update(
                checkpoint_sha256="a" * 64, latent="projection", model_version="v5", source="a_preproc.h5"
            )
            file.attrs["source_sha256"], file.attrs["rows"] = "b" * 64, json.dumps({"train": rows, "valid": rows // 2})
            file.attrs["options"] = json.dumps({"model": {"name": "v5"}})


def read_latents(path: Path) -> Arrays:
    from nenya.extraction.existing import read_provenance
    from nenya.latents.files import Latents

    latents = Latents([path])
    if len(latents) > 10**6 or latents.shape[1] > 10**4:
        return [latents.take(np.array([0, len(latents) - 1]))]
    values = [latents[: len(latents)], latents.take(np.arange(0, len(latents), 3))]
    values += [np.array(piece) for piece in latents.view(slice(0, 10))]
    latents.keys()
    read_provenance(path)
    return values


def write_projector(folder: Path) -> None:
    from nenya.latents.projector import Parameters, Projector

    rng = np.random.default_rng(3)
    rows = rng.normal(size=(80, DIM)).astype(np.float32)
    layout = rng.normal(size=(80, 2)).astype(np.float32)
    Projector(rows, layout, Parameters(n_neighbors=5, a=1.5, b=0.9, seed=1)).save(folder / "a_projector.h5")


def read_projector(path: Path) -> Arrays:
    from nenya.latents.projector import Projector

    projector = Projector.load(path)
    return [projector.transform(projector.probes[:2]), projector.latents, projector.embedding]


def write_clusters(folder: Path) -> None:
    from nenya.storage.disk import write_hdf5

    with write_hdf5(folder / "clusters.h5") as file:
        file["centres"] = np.random.default_rng(4).normal(size=(5, DIM))
        file["sizes"] = np.arange(5)
        file.attrs.update(about="centres (K, D) of unit latents; a row belongs to the nearest", files=1)


def read_clusters(path: Path) -> Arrays:
    from nenya.archive.stages import read_centres
    from nenya.latents.clusters import assign_kmeans

    centres = read_centres(path)
    rows = np.random.default_rng(5).normal(size=(7, DIM)).astype(np.float32)
    return [np.asarray(centres), assign_kmeans(rows, centres)]


def write_cutouts(folder: Path) -> None:
    import h5py

    for name, more in {"a": {}, "packed": {"compression": "gzip", "chunks": (8, 1, 8, 8)}}.items():
        with h5py.File(folder / f"{name}_preproc.h5", "w") as file:
            file.create_dataset("train", data=images()[:, None], **more)
            file.create_dataset("valid", data=images(9)[:, None])
            file["train_labels"] = np.arange(ROWS)
            file["train_metadata"] = [f"granule {number}" for number in range(ROWS)]


def read_cutouts(path: Path) -> Arrays:
    from fuzz.hdf5_cases import read_all
    from nenya.commands.inspect import inspect_file

    inspect_file(path)
    return list(read_all(path).values())


# Fields


def _dataset(rows: int = 40, columns: int = 48) -> Any:
    from granules import grid

    return grid((rows, columns)).fillna(20.0) if rows == columns else grid((rows, columns))


def write_netcdf4(folder: Path) -> None:
    from granules import write_swath

    write_swath(folder / "swath.nc", shape=(40, 44), share=0.05)
    _dataset().to_netcdf(folder / "grid.nc", engine="h5netcdf")


def write_netcdf3(folder: Path) -> None:
    _dataset().to_netcdf(folder / "grid.nc", engine="scipy")
    _dataset(24, 24).to_netcdf(folder / "small.nc", engine="scipy", format="NETCDF3_64BIT")


def write_zarr(folder: Path, version: int) -> None:
    packed = {name: {"chunks": (1, 20, 24)} for name in ("tos",)}
    _dataset().to_zarr(folder / "grid.zarr", zarr_format=version, encoding=packed)


def write_zarr2(folder: Path) -> None:
    write_zarr(folder, 2)


def write_zarr3(folder: Path) -> None:
    write_zarr(folder, 3)


def write_references(folder: Path) -> None:
    """Write a store of version 2 as references (kerchunk), the chunks within them."""
    write_zarr(folder, 2)
    refs: dict[str, str] = {}
    for path in sorted((folder / "grid.zarr").rglob("*")):
        if path.is_file():
            text = path.read_text() if path.name.startswith(".z") else ""
            packed = text or "base64:" + base64.b64encode(path.read_bytes()).decode()
            refs[path.relative_to(folder / "grid.zarr").as_posix()] = packed
    shutil.rmtree(folder / "grid.zarr")
    (folder / "grid.json").write_text(json.dumps({"version": 1, "refs": refs}))


def read_fields(path: Path) -> Arrays:
    """Prepare cutouts of fields, and return them."""
    import h5py

    from nenya.prepare.job import prepare

    options = {"data": str(path), "out": "made_preproc.h5", "workers": 1, "field_size": 8, "quantity": "any"}
    made = prepare({**options, "quality_thresh": None, "clear_threshold": 80})
    with h5py.File(made.images) as file:
        return [file[name][...] for name in file]


# Images of users


def write_pictures(folder: Path) -> None:
    import h5py
    from PIL import Image

    np.save(folder / "a.npy", images(1, 20)[0])
    np.save(folder / "many.npy", images(3, 20))
    np.savez(folder / "a.npz", first=images(1, 20)[0], other=np.arange(3))
    np.savez_compressed(folder / "packed.npz", first=images(2, 20))
    for name, kind in (("grey", "L"), ("colour", "RGB"), ("deep", "I;16"), ("palette", "P")):
        Image.fromarray(images(1, 32)[0].astype(np.uint16 if kind == "I;16" else np.uint8)).convert(kind).save(
            folder / f"{name}.png"
        )
    Image.fromarray(images(1, 32)[0].astype(np.uint8)).save(folder / "a.tif")
    for name, more in {"a": {}, "packed": {"compression": "gzip", "shuffle": True}}.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file.create_dataset("image", data=images(2, 20), **more)
        with h5py.File(folder / f"{name}_cutouts.h5", "w") as file:
            file.create_dataset("train", data=images(2, 20)[:, None], **more)
    _dataset(20, 20).to_netcdf(folder / "four.nc", engine="h5netcdf", encoding={"tos": {"zlib": True}})
    _dataset(20, 20).to_netcdf(folder / "three.nc", engine="scipy")


def read_upload(path: Path) -> Arrays:
    from nenya.portal.upload import read_image

    name = path.name.replace(".tif", ".png") if path.stat().st_size % 2 else path.name
    return [read_image(name, path.read_bytes(), "0", ("0", "30")).image]


def read_example(path: Path) -> Arrays:
    from nenya.commands.search import image_examples, read_image  # noqa: F401  # as `nenya search image=` does

    return [np.asarray(image) for image in read_image(str(path))]


# Tables


@cache
def _table(rows: int = 60) -> Any:
    import pandas as pd

    rng = np.random.default_rng(6)
    return pd.DataFrame(
        {
            "lat": rng.uniform(-60, 60, rows),
            "lon": rng.uniform(-180, 180, rows),
            "datetime": pd.Timestamp("2010-01-01") + pd.to_timedelta(rng.integers(0, 9000, rows), unit="h"),
            "T10": rng.normal(10, 1, rows),
            "T90": rng.normal(12, 1, rows),
            "region": rng.choice(["here", "there"], rows),
            "UID": rng.integers(0, 2**60, rows),
            "US0": rng.normal(size=rows),
            "US1": rng.normal(size=rows),
            "pp_file": "a_preproc.h5",
            "pp_type": np.repeat([1, 0], [rows - 20, 20]),
            "pp_idx": np.concatenate([np.arange(rows - 20), np.arange(20)]),
        }
    )


def write_tables(folder: Path) -> None:
    from nenya.io import write_table

    for suffix in (".parquet", ".csv", ".feather"):
        write_table(_table(), folder / f"a{suffix}")
    _table().to_parquet(folder / "plain.parquet", compression=None, index=False)
    _table().to_feather(folder / "plain.feather", compression="uncompressed")


def read_tables(path: Path) -> Arrays:
    from nenya.io import read_table
    from nenya.portal.columns import Columns, read_arrow

    frame = read_table(path)
    columns = Columns(read_arrow(path))
    columns.metrics()
    columns.categories()
    return [np.asarray(frame[name]) for name in frame if frame[name].dtype.kind in "fiu"]


def write_places(folder: Path) -> None:
    _table()[["lat", "lon", "datetime"]].to_csv(folder / "at.csv", index=False)
    _table()[["lat", "lon", "datetime"]].to_parquet(folder / "at.parquet", index=False)


def read_at(path: Path) -> Arrays:
    from nenya.commands.compose import compose
    from nenya.prepare.job import read_places

    places, _ = read_places(compose("prepare", ["data=x", f"at={path}"]))
    return [] if places is None else [places.lat_lon]


# Manifests


def _entry(name: str, place: Path | None = None) -> dict[str, Any]:
    from nenya.storage.disk import sha256_file

    if place is None or not (place / name).exists():
        return {"name": name, "size": 10, "sha256": "a" * 64}
    return {"name": name, "size": (place / name).stat().st_size, "sha256": sha256_file(place / name)}


def write_archive(folder: Path) -> None:
    """Write an archive of one version with an index of two files, whose manifest names what is there."""
    from nenya.archive.folder import render
    from nenya.archive.manifest import parse
    from nenya.archive.settings import settings_of
    from nenya.commands.compose import compose
    from nenya.io import write_table

    place = folder / "archive"
    for name in ("cutouts", "v5/latents", "v5/tables", "v5/index-states"):
        (place / name).mkdir(parents=True)
    write_cutouts(place / "cutouts")
    write_latents(place / "v5/latents", 40)
    write_table(_table(), place / "v5/tables/a.parquet")
    write_index(folder)
    (folder / "a.index").rename(place / "v5/index")
    about = json.loads((place / "v5/index/nenya.json").read_text())
    entries = [_entry(f"v5/index/{name}", place) for name in ("nenya.json", "cutouts.lance/data/1.lance")]
    state = {"about": about, "files": [list(entry.values()) for entry in entries]}
    (place / "v5/index-states/about-1.json").write_text(json.dumps(state))
    added = {
        **{"stem": "a_preproc", "sources": [["a.nc", 10, "a" * 64]], "cutouts": _entry("cutouts/a_preproc.h5", place)},
        **{
            "latents": _entry("v5/latents/a_latents.h5", place),
            "table": _entry("v5/tables/a.parquet", place),
            "left_out": 0,
        },
        **{"rows": {"train": 40, "valid": 20}, "dates": ["2010", "2011"], "nenya": "1.0", "date": "2026-01-01"},
    }
    version = {
        **{"settings": settings_of(compose("update", ["archive=x", "new=y"])), "made": {"nenya": "1.0"}},
        **{name: _entry(f"v5/{name}.h5") for name in ("weights", "projector", "clusters")},
        **{
            "index": {"version": 1, "rows": 60, "about": _entry("v5/index-states/about-1.json", place)},
            "empty": [["b.nc", 1, ""]],
        },
    }
    values = {"format": 1, "versions": {"v5": {**version, "files": [added]}}}
    (place / "archive.json").write_bytes(render(parse(json.dumps(values).encode(), "x")))
    for old in (place / "v5/latents/packed_latents.h5", place / "cutouts/packed_preproc.h5"):
        old.unlink()


def read_archive(path: Path) -> Arrays:
    """Open an archive as the portal and `nenya status` do."""
    from nenya.archive.folder import open_version
    from nenya.commands.status import status_of

    status_of(str(path))
    opened = open_version(str(path))
    opened.table()
    opened.index()
    opened.with_settings({"model": {}, "preprocess": {}, "trainer": {}})
    return [opened.latents().take(np.array([0, 1]))]


def read_fetched(path: Path) -> Arrays:
    """Bring the files of an index to a folder, as is done for archives on S3."""
    from nenya.archive.folder import open_version

    opened = open_version(str(path))
    own = opened.folder.root / "v5" / "index-read"
    before = {item for item in path.parent.rglob("*") if item.is_file()}

    def copy(entry: object, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"fetched")

    opened.folder.url = "s3://bucket/archive"
    opened.folder.fetch = copy  # type: ignore[method-assign,assignment]
    opened.index()
    made = {item for item in path.parent.rglob("*") if item.is_file()} - before
    assert all(own in item.parents for item in made), f"fetched to {made}"
    return []


def write_partial(folder: Path) -> None:
    """Write the folder of an extraction that was killed."""
    from nenya.extraction.journal import BlockStore, journal_line

    path = folder / "extraction" / "a_latents.h5"
    write_cutouts(folder)
    (folder / "packed_preproc.h5").unlink()
    path.with_name(f"{path.name}.partial").mkdir(parents=True)
    (folder / "a_preproc.h5").rename(path.parent / "a_preproc.h5")
    store = BlockStore(path, {"train": ROWS, "valid": 9}, DIM)
    store.start(_manifest())
    data = bytes(4 * DIM * 8)
    (store.partial / "journal-0").write_bytes(journal_line(0, data, 0) + journal_line(1, data, 1))
    (store.partial / "work.json").write_text(
        json.dumps(
            {
                "done": [0],
                "backend": "eager",
                "block_size": 8,
                "batch_size": 4,
                "threads": 1,
                "sha256": None,
                "fresh": False,
            }
        )
    )
    (store.partial / "reserve").unlink()


def _manifest() -> dict[str, Any]:
    return {
        **{"checkpoint_sha256": "a" * 64, "preprocessing": "none", "latent": "projection", "precision": "32-true"},
        **{"rows": {"train": ROWS, "valid": 9}, "dim": DIM, "device": "cpu", "torch_version": "2.13.0"},
        **{"backend": "eager", "batch_size": 4, "block_size": 8, "threads": 1},
        "source": {"size": 1, "status": [1, 2, 3], "sha256": "c" * 64},
    }


def read_partial(path: Path) -> Arrays:
    """Go on with an extraction: find out what is done."""
    from nenya.data.cutouts import inspect_cutouts
    from nenya.extraction.journal import BlockStore, Work, begin

    store = BlockStore(path / "a_latents.h5", {"train": ROWS, "valid": 9}, DIM)
    file = inspect_cutouts(path / "a_preproc.h5")
    begin(store, _manifest(), file, clobber=False)
    Work.read(store)
    return []


def write_publishing(folder: Path) -> None:
    """Write an archive with the work of an update that was killed."""
    write_archive(folder)
    place = folder / "archive/.work/v5/0123456789abcdef"
    place.mkdir(parents=True)
    (place / "publishing.json").write_text(json.dumps(["v5/latents/b_latents.h5", "v5/tables/b.parquet"]))
    (folder / "archive/kept.txt").write_text("to be kept")


def read_publishing(path: Path) -> Arrays:
    """Remove what a killed update has published and not committed, and nothing else."""
    from types import SimpleNamespace

    from nenya.archive.folder import Folder
    from nenya.archive.update import Update

    folder = Folder(str(path))
    manifest = folder.read()
    arrivals = SimpleNamespace(wanted=[], failed=[])
    update = SimpleNamespace(folder=folder, manifest=manifest, work=folder.work / "v5", arrivals=arrivals, name="v5")
    Update._sweep(update)
    assert (path / "kept.txt").is_file() and (path / "archive.json").is_file(), "a file that is kept was removed"
    return []


# Options


def write_options(folder: Path) -> None:
    from nenya.commands.compose import compose
    from nenya.io import Params

    found = Params(compose("extract", ["model=demo"]))
    values = {key: value for key, value in found.dict.items() if value is not None}
    (folder / "opts.json").write_text(json.dumps(values, indent=1))
    (folder / "recipe.yaml").write_text(
        "field_size: 16\nquantity: any\nclear_threshold: 80.0\ntemp_bounds: [-2, 34]\nmedian: [3, 3]\nvariable: tos\n"
        "units: degC\ninpaint: fast\nnoise: 0.1\ndemean: true\n"
    )


def read_options(path: Path) -> Arrays:
    from nenya.commands.compose import compose
    from nenya.io import Params

    json.dumps(Params(path).dict)
    compose("extract", [f"model={path}", "data=x"])
    return []


def read_recipe(path: Path) -> Arrays:
    from nenya.commands.compose import compose

    options = compose("prepare", [f"sensor={path}", "data=x"])
    assert not options.clobber, "a recipe replaces outputs"
    return []


def read_run(path: Path) -> Arrays:
    from nenya.train import read_run_config

    (Path("run")).mkdir()
    shutil.copy(path, "run/config.yaml")
    read_run_config(Path("run"))
    return []


# The portal


@cache
def _columns() -> Any:
    import pyarrow as pa

    from nenya.portal.columns import Columns, compact

    return Columns(compact(pa.Table.from_pandas(_table(), preserve_index=False)))


def write_links(folder: Path) -> None:
    from nenya.portal import state

    lasso = state.make_lasso("umap", [(0.0, 0.0), (1.0, 0.5), (0.3, 2.0)])
    box = state.make_box("map", (-10.0, 30.0), (-5.0, 60.0))
    filters = (lasso, box, state.make_range("DT", 0.5, 2.5), state.Category("region", ("here",)))
    text = state.View(filters, 3, "DT", "shared").to_text()
    (folder / "link.txt").write_text(text)


def read_link(path: Path) -> Arrays:
    from nenya.portal.masks import Masks
    from nenya.portal.state import read_view

    text = path.read_bytes().decode("latin1")
    view = read_view(text, _columns())
    mask = Masks(_columns()).all_of(view.filters)
    return [] if mask is None else [mask]


# Indexes and conditions


def write_index(folder: Path) -> None:
    from nenya.latents.files import Latents
    from nenya.latents.index_build import add_files

    write_latents(folder, 40)
    (folder / "packed_latents.h5").unlink()
    latents = Latents([folder / "a_latents.h5"])
    add_files(folder / "a.index", latents, _table())
    (folder / "a_latents.h5").unlink()


def read_index(path: Path) -> Arrays:
    from nenya.latents.index import IndexSearcher

    index = IndexSearcher(path)
    query = np.ones(DIM) / DIM**0.5
    found = index.search(query, 3, "lat > 0")
    index.describe(found.rows)
    return [index.take(found.rows)]


def write_published(folder: Path) -> None:
    """Write folders of published latents of one format each."""
    from nenya.latents.files import Latents
    from nenya.publish.rows import Choice, select
    from nenya.publish.write import publish

    write_latents(folder, 40)
    for name, dtype in (("zarr", "int8"), ("geoparquet", "float16")):
        choice = Choice(partition=["region"])
        rows = select(Latents([folder / "a_latents.h5"]), _table(), choice)
        publish(rows, folder / name, [name], choice, dtype=dtype)
    for path in folder.glob("*.h5"):
        path.unlink()


def read_published(path: Path) -> Arrays:
    from nenya.publish.opened import open_archive

    table = open_archive(path, as_="arrow")
    return [table["latent"].combine_chunks().flatten().to_numpy(), table["archive_row"].to_numpy()]


def write_conditions(folder: Path) -> None:
    for number, text in enumerate(_CONDITIONS):
        (folder / f"{number}.sql").write_text(text)


_CONDITIONS = (
    "lat > 30 AND DT > 1",
    "region = 'here' AND lon BETWEEN -30 AND 20 OR UID IN (1, 2, 3)",
    "datetime >= '2010-03-01' AND NOT (US0 < 0.5)",
    "lower(region) LIKE 'h%' AND abs(lat) < 20 AND pp_idx % 2 = 0",
    "CAST(lat AS STRING) = '1' OR length(region) > 3 OR regexp_match(region, '(a|b)*c') IS NULL",
)


def read_condition(path: Path) -> Arrays:
    from nenya.tables.conditions import rows_where

    return [rows_where(_table(), path.read_bytes().decode("utf8", "replace")[:5000])]


# What no reader may do


def write_probe(folder: Path) -> None:
    (folder / "probe").write_text("probe")


def _outside(path: Path) -> Path:
    return path.parents[2] / "outside"


def probe_crash(path: Path) -> Arrays:
    import ctypes

    return [ctypes.string_at(8)]


def probe_hang(path: Path) -> Arrays:
    while True:
        pass


def probe_huge(path: Path) -> Arrays:
    return [np.ones(100 * 2**20)]


def probe_raised(path: Path) -> Arrays:
    return [np.array(json.loads(path.read_text()))]


def probe_wrote(path: Path) -> Arrays:
    (_outside(path) / "made").write_text("made")
    return []


def probe_ran(path: Path) -> Arrays:
    import subprocess

    subprocess.run(["true"], check=True)
    return []


def probe_stole(path: Path) -> Arrays:
    import h5py

    with h5py.File(_outside(path) / "secret.h5") as file:
        return [file["flat"][...] * 2]


def probe_leaked(path: Path) -> Arrays:
    return [np.empty(2**20, np.float32)]


def probe_lines(path: Path) -> Arrays:
    from nenya.errors import InputFileError

    raise InputFileError(f"{path}: two\nlines")
