"""The order of rows and columns in cutout files: recorded, shown with north up, and told where it is another one."""

import h5py
import numpy as np
import pytest
from conftest import red_noise, write_cutouts
from granules import grid, write_swath

import nenya.commands.repack as repack
from nenya.data.cutouts import inspect_cutouts
from nenya.data.orientation import SOUTH_TO_NORTH, SWATH, picture_text, read_row_order
from nenya.errors import InputFileError


@pytest.fixture(autouse=True)
def quick_measurements(monkeypatch):
    monkeypatch.setattr(repack, "_SECONDS", 0.01)


@pytest.fixture
def southward(tmp_path):
    """Grids that run north to south and south to north, warm in the north."""
    dataset = grid((32, 48), times=1)
    dataset.tos.values[:] = 15 + 0.1 * dataset.lat.values[:, None]
    dataset.isel(lat=slice(None, None, -1)).to_netcdf(tmp_path / "down.nc", engine="h5netcdf")
    dataset.to_netcdf(tmp_path / "up.nc", engine="h5netcdf")
    return tmp_path


def prepare(nenya_cli, name, *args):
    more = ["field_size=16", "workers=1", "inpaint=none", f"out={name}_preproc.h5"]
    return nenya_cli("prepare", [f"data={name}.nc", *more, *args])


def first_of(path):
    with h5py.File(path) as file:
        return next(iter(file.values()))[0, 0]


def test_new_files_run_from_south_to_north_and_say_so(southward, nenya_cli):
    for name in ("down", "up"):
        code, said = prepare(nenya_cli, name)
        assert code == 0, said
        assert read_row_order(southward / f"{name}_preproc.h5") == SOUTH_TO_NORTH
    np.testing.assert_array_equal(first_of("down_preproc.h5"), first_of("up_preproc.h5"))
    assert (np.diff(first_of("down_preproc.h5").mean(axis=1)) > 0).all()  # warmer to the north
    code, said = nenya_cli("repack", ["down_preproc.h5", "force=true"])
    assert code == 0 and read_row_order(southward / "down_preproc_repacked.h5") == SOUTH_TO_NORTH, said


def test_north_is_up_in_a_contact_sheet(southward, nenya_cli):
    from PIL import Image

    assert prepare(nenya_cli, "down", "demean=false")[0] == 0
    code, said = nenya_cli("inspect", ["down_preproc.h5", "sheet=true", "out=sheet.png"])
    assert code == 0 and "rows from south to north: north is up in pictures" in said, said
    with Image.open("sheet.png") as picture:
        pixels = np.asarray(picture.convert("RGB"), float)
    red, blue = pixels[..., 0] - pixels[..., 2] > 60, pixels[..., 2] - pixels[..., 0] > 60
    board = np.s_[:, : int(0.8 * pixels.shape[1])]  # without the colour bar
    top, bottom = np.argwhere(red[board])[:, 0].mean(), np.argwhere(blue[board])[:, 0].mean()
    assert top < bottom


def test_swaths_and_grids_are_not_mixed(southward, nenya_cli):
    write_swath(southward / "swath.nc", shape=(32, 48), share=0)
    code, said = nenya_cli("prepare", ["data=[up.nc,swath.nc]", "field_size=16", "workers=1", "out=m_preproc.h5"])
    assert code == 2 and "data= mixes swaths" in said.splitlines()[-1], said
    assert not list(southward.glob("m_preproc*"))
    assert prepare(nenya_cli, "swath")[0] == 0 and read_row_order("swath_preproc.h5") == SWATH
    code, said = nenya_cli("inspect", ["swath_preproc.h5"])
    assert code == 0 and "rows along a swath, in its own frame: the first row of pixels is at the bottom" in said


def test_files_without_a_row_order_say_so(tmp_path, nenya_cli):
    write_cutouts(tmp_path / "a_preproc.h5", train=red_noise(4))
    assert read_row_order(tmp_path / "a_preproc.h5") == ""
    code, said = nenya_cli("inspect", ["a_preproc.h5"])
    assert code == 0 and "rows in an order that is not recorded: the first row of pixels is at the bottom" in said
    assert picture_text([SOUTH_TO_NORTH, SOUTH_TO_NORTH]) == ""
    assert picture_text([SOUTH_TO_NORTH, ""]).startswith("rows in an order that is not recorded")


# MATLAB


def stored(path, values, **more):
    with h5py.File(path, "w") as file:
        file["train"] = values
        file["train_labels"] = np.arange(max(values.shape))
        file.attrs["note"] = "kept"
        for name, other in more.items():
            file[name] = other


@pytest.mark.parametrize(("axes", "channel"), [("hwn", False), ("whn", True)])
def test_files_in_the_order_of_matlab(tmp_path, nenya_cli, axes, channel):
    images = red_noise(20)[:, None]
    turned = images[:, 0].transpose(["nhw".index(letter) for letter in axes])
    stored(tmp_path / "m_preproc.h5", turned[:, :, None] if channel else turned)
    with pytest.raises(InputFileError, match=r"20 cutouts in MATLAB's order, .*nenya repack axes=hwn"):
        inspect_cutouts(tmp_path / "m_preproc.h5")
    code, said = nenya_cli("repack", ["m_preproc.h5", f"axes={axes}"])
    assert code == 0, said
    with h5py.File("m_preproc_repacked.h5") as file:
        np.testing.assert_array_equal(file["train"], images)
        assert file.attrs["note"] == "kept" and list(file["train_labels"]) == list(range(len(file["train_labels"])))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m_preproc.h5", "m_preproc_repacked.h5"]


def test_a_cube_whose_pixels_tell_another_order_is_refused(tmp_path, nenya_cli):
    side = red_noise(2).shape[-1]
    images = red_noise(side)
    stored(tmp_path / "right_preproc.h5", images)
    assert inspect_cutouts(tmp_path / "right_preproc.h5").partitions["train"].rows == side
    for order, axes in (("hwn", (1, 2, 0)), ("hnw", (1, 0, 2))):
        stored(tmp_path / "m_preproc.h5", images.transpose(axes))
        with pytest.raises(InputFileError, match=f"ambiguous shape .*the order is {order}, .*axes={order} .axes=nhw"):
            inspect_cutouts(tmp_path / "m_preproc.h5")
    code, said = nenya_cli("repack", ["m_preproc.h5", "axes=nhw"])
    assert code == 0, said
    with h5py.File("m_preproc_repacked.h5") as file:
        np.testing.assert_array_equal(file["train"][:, 0], images.transpose(1, 0, 2))


def test_axes_that_do_not_fit(tmp_path, nenya_cli):
    stored(tmp_path / "m_preproc.h5", np.zeros((4, 4), np.float32))
    code, said = nenya_cli("repack", ["m_preproc.h5", "axes=hwn"])
    assert (code, said.count("\n")) == (2, 1) and "axes=hwn names three dimensions" in said, said
    assert [p.name for p in tmp_path.iterdir()] == ["m_preproc.h5"]
    code, said = nenya_cli("repack", ["m_preproc.h5", "axes=xyz"])
    assert code == 2 and "one of nhw" in said
