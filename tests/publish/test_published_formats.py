"""Published Zarr, Lance and STAC: what zarr, xarray, LanceDB and pystac read from them."""

import json

import h5py
import numpy as np
import pandas as pd
import pytest
from portal_data import write_archive

from nenya.io import read_table, write_table

ROWS = 300  # of the source, of which one has no latent
SHA256 = "ab" * 32
MODEL = {
    "model_version": "v7",
    "checkpoint": "/home/somebody/runs/last.pth",
    "checkpoint_sha256": SHA256,
    "latent": "projection",
    "image_size": "16",
    "preprocessing": "demean",
    "torch_version": "2.10.0",
    "nenya_version": "1.0",
    "options": json.dumps({"model": {"ssl_model": "resnet18", "nchannels": 1, "weights": "/home/somebody/w.pth"},
                           "preprocess": {"image": "std", "file": "/home/somebody/p.json"}, "data": "/secret"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Latents that say their model, and a table of columns of all types, some of them with gaps."""
    table, vectors, _ = write_archive(tmp_path_factory.mktemp("source"))
    with h5py.File(vectors, "a") as file:
        file.attrs.update(MODEL)
    frame = read_table(table)
    frame["UID"] = 2**62 + np.arange(ROWS)
    frame["cluster"] = pd.array(np.arange(ROWS) % 5, "Int64")
    frame.loc[3, "cluster"] = pd.NA
    frame["day"] = np.arange(ROWS) % 2 == 0
    frame["latitude"] = 7.0
    frame.loc[[20, 21], "lat"] = np.nan
    frame.loc[30, "datetime"] = pd.NaT
    frame.loc[31, "region"] = None
    write_table(frame, table)
    return vectors, table


@pytest.fixture
def publish(nenya_cli, source, tmp_path):
    """Return a function that publishes the source and returns the folder and what was said."""

    def call(*args, fails=False):
        code, said = nenya_cli("publish", [f"latents={source[0]}", f"table={source[1]}", "out=published", *args])
        assert code == (2 if fails else 0), said
        return tmp_path / "published", said

    return call


def original(source):
    with h5py.File(source[0]) as file:
        return np.concatenate([file["train"][:], file["valid"][:]])


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_zarr_and_xarray_read_the_store(publish, source, monkeypatch, dtype):
    import xarray as xr
    import zarr

    monkeypatch.setattr("nenya.publish.rows._BLOCK", 1)
    monkeypatch.setattr("nenya.publish.rows._FEWEST", 64)
    monkeypatch.setattr("nenya.publish.zarr_store._CHUNK", 1)
    monkeypatch.setattr("nenya.publish.zarr_store._FEWEST", 16)
    folder, _ = publish("format=zarr", f"dtype={dtype}")
    assert sorted(path.name for path in folder.iterdir()) == ["latents.zarr", "published.json"]
    store = folder / "latents.zarr"
    group = zarr.open_group(store, mode="r")
    assert group.metadata.zarr_format == 3 and group.metadata.consolidated_metadata is not None
    assert (group["latent"].chunks, group["latent"].shards) == ((16, 12), (64, 12))
    assert json.loads(group.attrs["nenya"])["model"]["checkpoint_sha256"] == SHA256
    found = xr.open_zarr(store, chunks=None).sortby("row")
    assert set(found.coords) == {"row", "latitude", "longitude", "time"} and found.latent.dims == ("row", "dimension")
    vectors = found.latent.to_numpy().astype(np.float32)
    if dtype == "int8":
        vectors = vectors * found.latent_scale.to_numpy()[:, None]
    wanted = original(source)[found.row.to_numpy()]
    np.testing.assert_allclose(vectors, wanted, atol=0 if dtype == "float32" else 1 / 250)
    table = read_table(source[1]).iloc[found.row.to_numpy()]
    assert len(table) == 299 and (found.UID.to_numpy() == table["UID"]).all()
    np.testing.assert_array_equal(found.latitude, table["lat"])  # not the table's own column of that name
    np.testing.assert_array_equal(found.time.to_numpy(), table["datetime"].to_numpy("datetime64[us]"))
    np.testing.assert_array_equal(found.cluster.to_numpy(), table["cluster"].to_numpy(float, na_value=np.nan))
    assert list(found.region.to_numpy()) == list(table["region"].fillna("")) and found.day.dtype == bool
    assert found.latitude.attrs["units"] == "degrees_north" and found.T10.attrs["units"] == "deg C"


def test_lancedb_searches_the_table(publish, source):
    lancedb = pytest.importorskip("lancedb")
    folder, _ = publish("format=[lance]")
    table = lancedb.connect(folder / "lance").open_table("latents")
    assert table.count_rows() == 299 and b"nenya" in table.schema.metadata
    query = original(source)[12]
    asked = table.search(query, vector_column_name="latent").distance_type("cosine").where("lat > 0")
    near = asked.limit(3).to_arrow()["archive_row"].to_pylist()
    lat = read_table(source[1])["lat"].to_numpy()
    cosine = np.where((lat > 0) & (np.arange(ROWS) != 7), original(source) @ query, -1)
    assert near == list(np.argsort(-cosine)[:3])


def test_pystac_reads_the_collection(publish, source):
    pystac = pytest.importorskip("pystac")
    folder, _ = publish("format=[geoparquet,stac,zarr]", "title=My ocean", "license=CC-BY-4.0", "dtype=int8")
    collection = pystac.Collection.from_file(str(folder / "stac" / "collection.json"))
    assert (collection.id, collection.title, collection.license) == ("My-ocean", "My ocean", "CC-BY-4.0")
    assert collection.extra_fields["emb:dimensions"] == 12 and collection.extra_fields["data_type"] == "int8"
    table = read_table(source[1]).drop(index=7)
    lon = table["lon"][table["lat"].notna()]
    (box,) = collection.extent.spatial.bboxes
    assert box == pytest.approx([lon.min(), table["lat"].min(), lon.max(), table["lat"].max()])
    first, last = collection.extent.temporal.intervals[0]
    assert (pd.Timestamp(first), pd.Timestamp(last)) == tuple(
        moment.tz_localize("UTC") for moment in (table["datetime"].min(), table["datetime"].max())
    )
    items = list(collection.get_items())
    years = sorted(table["datetime"].dropna().dt.year.unique())
    assert [item.id for item in items] == [*(f"My-ocean-year-{year}" for year in years), "My-ocean-year-unknown"]
    assert sum(item.properties["table:row_count"] for item in items) == 299
    for item in items:
        asset = item.assets["embeddings"]
        path = folder / "stac" / item.id.removeprefix("My-ocean-") / asset.href
        data = pd.read_parquet(path.resolve())
        assert len(data) == item.properties["table:row_count"] and asset.roles == ["data"]
        assert asset.media_type == "application/vnd.apache.parquet"
        assert {"latent", "latent_scale", "geometry"} <= {c["name"] for c in item.properties["table:columns"]}
        assert item.properties["emb:quantization"]["quantized_dtype"] == "int8"
        assert "nearest rows change" in item.properties["emb:uncertainty"]["description"]
        assert not {"region"} - set(data) and item.get_collection().id == collection.id
    assert "times of these rows are unknown" in items[-1].properties["description"]
    links = {link.rel: link for link in collection.links}
    model = pystac.Item.from_file(str(folder / "stac" / links["emb:model"].href))
    assert model.properties["mlm:name"] == "v7" and model.properties["nenya:checkpoint_sha256"] == SHA256
    assert model.properties["mlm:architecture"] == "resnet18"
    assert model.properties["mlm:input"][0]["input"]["shape"] == [-1, 1, 16, 16]
    assert collection.assets["zarr"].href.endswith("latents.zarr")
    texts = [path.read_text() for path in folder.rglob("*.json")]
    assert all("somebody" not in text and "/secret" not in text for text in texts), "no paths of the author"
    hrefs = [
        link["href"] for path in (folder / "stac").rglob("*.json") for link in json.loads(path.read_text())["links"]
    ]
    assert hrefs and all(href.startswith(".") for href in hrefs)


def test_stac_alone_brings_geoparquet_and_beside_others_needs_none(publish):
    folder, said = publish("format=stac")
    assert "geoparquet is written too" in said and (folder / "geoparquet").is_dir()
    folder, _ = publish("format=[stac,zarr]", "clobber=true")
    (item,) = [path for path in (folder / "stac").glob("all/*.json")]
    assert json.loads(item.read_text())["assets"]["embeddings"]["href"] == "../../latents.zarr"
    assert not (folder / "geoparquet").exists()


def test_published_json_lists_every_file(publish):
    from nenya.storage.disk import sha256_file

    folder, _ = publish("format=[geoparquet,stac,zarr]", "partition=region")
    about = json.loads((folder / "published.json").read_text())
    listed = {file["name"]: file["sha256"] for file in about["files"]}
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert set(listed) == set(there) - {"published.json"}
    assert all(sha256_file(there[name]) == sha256 for name, sha256 in listed.items())
    assert about["without_place"] == 2 and about["without_time"] == 1 and about["model"]["checkpoint"] == "last.pth"


def test_stac_needs_places_and_times(nenya_cli, source, tmp_path):
    frame = read_table(source[1])
    for column, wanted in (("datetime", "no row has a time"), ("lat", "no row has a place")):
        write_table(frame.assign(**{column: pd.NaT if column == "datetime" else np.nan}), tmp_path / "t.parquet")
        code, said = nenya_cli("publish", [f"latents={source[0]}", "table=t.parquet", "out=out", "format=[zarr,stac]"])
        assert code == 2 and wanted in said and not (tmp_path / "out").exists()


def test_zarr_needs_no_table(nenya_cli, source, tmp_path):
    import zarr

    code, said = nenya_cli("publish", [f"latents={source[0]}", "out=out", "format=zarr"])
    assert code == 0, said
    group = zarr.open_group(tmp_path / "out" / "latents.zarr", mode="r")
    assert sorted(group) == ["latent", "pp_file", "pp_idx", "pp_type", "row"] and group["latent"].shape == (299, 12)


def test_lance_without_lancedb_says_what_to_install(publish, monkeypatch, tmp_path):
    monkeypatch.setattr("nenya.options.extras._there", lambda module: False)
    _, said = publish("format=lance", fails=True)
    assert "pip install 'nenya[search]'" in said and not list(tmp_path.iterdir())
