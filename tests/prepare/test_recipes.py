"""Each recipe on a file of its product's layout; their list, and what `nenya inspect` says of a file of fields."""

from pathlib import Path

import numpy as np
import pytest
from field_files import CELSIUS, LAT, LON, TIME, H, W, cutouts, grid, save
from product_files import PRODUCTS, SSH, hycom

from nenya.options.files import config_dir, read_group
from nenya.prepare.recipes import fitting, recipe_lines
from nenya.prepare.sources import open_fields

SIDE = 16
LAND = [(r, c) for r in range(0, H, SIDE) for c in range(0, W, SIDE) if (r, c) != (0, 0)]


def pixels(table, images, truth, flip=False):
    """Compare images with the cutouts of the truth; rows are counted from the other end if `flip`."""
    for image, row in zip(images, table.itertuples(), strict=True):
        top = H - SIDE - row.row if flip else row.row
        wanted = truth[top : top + SIDE, row.col : row.col + SIDE]
        np.testing.assert_allclose(image, wanted[::-1] if flip else wanted, atol=6e-3)


@pytest.mark.parametrize("name", PRODUCTS)
def test_recipes_on_files_of_their_products(tmp_path, name):
    path = PRODUCTS[name](tmp_path / f"{name}.nc")
    with open_fields(Path(path)) as dataset:
        assert fitting(dataset) == name
    images, table = cutouts(path, tmp_path / "x_preproc.h5", sensor=name, field_size=SIDE, sub_grid_step=1)
    places = list(zip(table.row, table.col, strict=True))
    assert (table.datetime.dt.date == TIME.astype("datetime64[D]").astype(object)).all() and (
        table.pp_root == name
    ).all()
    if name in ("swot_l2", "swot_l3"):
        pixels(table, images, SSH)
        rows, cols = range(0, H, SIDE), (0, 16, 48)
        bad = {(0, c) for c in cols} | {(r, 0) for r in (32, 48)} if name == "swot_l2" else set()
        assert set(places) == {(r, c) for r in rows for c in cols} - bad
    elif name == "goes":
        assert len(table) == 4 * 5 and set(table.col) == {0, 16, 32, 48, 64} and (table.lat > 25).all()
        pixels(table, images, CELSIUS, flip=True)
    elif name == "ghrsst":
        pixels(table, images, CELSIUS)
        assert set(places) == {(r, c) for r in range(0, H, SIDE) for c in range(0, 80, SIDE)}
    else:
        pixels(table, images, CELSIUS)
        assert set(places) == set(LAND) if name != "glorys" else len(places) == 24
        row = table.iloc[-1]
        np.testing.assert_allclose(row.lat, LAT[row.row + 7 : row.row + 9].mean(), atol=1e-3)
        np.testing.assert_allclose(row.lon, LON[row.col + 7 : row.col + 9].mean(), atol=1e-3)


def test_other_variables_of_a_product(tmp_path):
    path = hycom(tmp_path / "h.nc")
    with open_fields(Path(path)) as dataset:
        again = dataset.load().assign(surf_el=(("time", "lat", "lon"), SSH[None] * 100, {"units": "cm"}))
    path = save(again.drop_vars("tau"), tmp_path / "s.nc")
    options = {"sensor": "hycom", "variable": "surf_el", "quantity": "height", "field_size": SIDE}
    images, table = cutouts(path, tmp_path / "s_preproc.h5", **options)
    pixels(table, images, SSH)


def test_the_list_has_each_recipe_with_a_line(nenya_cli):
    code, said = nenya_cli("prepare", ["--list"])
    lines = recipe_lines()
    assert code == 0 and set(PRODUCTS) <= set(lines) == {p.stem for p in (config_dir() / "sensor").glob("*.yaml")}
    for name, about in lines.items():
        assert 20 < len(about) < 130 and f"  {name} " in said and about in said
        assert read_group("sensor", name)["recipe"] == name


@pytest.mark.parametrize("name", ["swot_l2", "era5", "goes"])
def test_inspection_says_what_would_be_taken(tmp_path, nenya_cli, name):
    PRODUCTS[name](tmp_path / "f.nc")
    code, said = nenya_cli("inspect", ["f.nc"])
    assert code == 0, said
    wanted = {
        "swot_l2": ("'ssha_karin' in 'm'", "flags of ssha_karin_qual", "latitude 34.", "m, ", "% masked"),
        "era5": ("'sst' in 'K', converted to degC", "2015-01-01T00:00", "64 x 96 pixels, latitude 30.00 to 36.30"),
        "goes": ("'SST' in 'K'", "DQF <= 0", "quality 16.7 %"),
    }[name]
    for words in (f"recipe: sensor={name} fits", *wanted):
        assert words in said, said


def test_inspection_of_files_without_a_recipe_and_with_ones_own(tmp_path, nenya_cli):
    save(grid(CELSIUS + 273.15), tmp_path / "k.nc")
    (tmp_path / "mine.yaml").write_text("units: K\nquality: none\n")

    def said(*args):
        code, log = nenya_cli("inspect", list(args))
        assert code == 0, log
        return log

    assert "sensor=grid fits" in said("k.nc") and "units=K corrects this" in said("k.nc")
    text = said("k.nc", "recipe=mine.yaml")
    assert "sensor=mine.yaml as given" in text and "15" in text and "warning" not in text
    grid().to_zarr(tmp_path / "z.zarr")
    assert "z.zarr: fields" in said("z.zarr")
    code, log = nenya_cli("inspect", ["k.nc", "recipe=modsi"])
    assert code == 2 and "did you mean modis?" in log
