import sys

import h5py
import numpy as np
import pytest
from PIL import Image

from nenya.errors import InputFileError, OptionError
from nenya.plotting.curves import learning_curve, read_losses
from nenya.plotting.cutouts import GAP, gallery, mosaic, nearest_to_centres
from nenya.plotting.paper import central_limits

UNIT = ((0.0, 1.0), (0.0, 1.0))


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def slow_picks(coordinates, cells, limits):
    picks = np.full((cells, cells), -1)
    (x0, x1), (y0, y1) = limits
    for row in range(cells):
        for column in range(cells):
            best = np.inf
            for index, (x, y) in enumerate(coordinates):
                u, v = (x - x0) / (x1 - x0) * cells - column, (y - y0) / (y1 - y0) * cells - row
                distance = (u - 0.5) ** 2 + (v - 0.5) ** 2
                if 0 <= u < 1 and 0 <= v < 1 and distance < best:
                    best, picks[row, column] = distance, index
    return picks


def test_picks_equal_a_slow_search(rng):
    coordinates = rng.standard_normal((400, 2)) * [30, 0.01]
    limits = ((-60.0, 50.0), (-0.02, 0.03))
    np.testing.assert_array_equal(nearest_to_centres(coordinates, 7, limits), slow_picks(coordinates, 7, limits))


def test_picks_do_not_depend_on_the_order_of_the_points(rng):
    coordinates = rng.random((200, 2))
    order = rng.permutation(200)
    picks, shuffled = (nearest_to_centres(points, 6, UNIT) for points in (coordinates, coordinates[order]))
    np.testing.assert_array_equal(np.where(shuffled < 0, -1, order[shuffled]), picks)


def test_ties_borders_and_points_without_a_place():
    coordinates = np.array([[np.nan, 0.2], [0.2, 0.25], [0.3, 0.25], [1.0, 1.0], [1.01, 0.5], [0.3, 0.25]])
    np.testing.assert_array_equal(nearest_to_centres(coordinates, 2, UNIT), [[1, -1], [-1, 3]])


def test_mosaic_puts_each_image_at_its_cell():
    images = np.arange(1, 4, dtype=np.float32)[:, None, None] * np.ones((3, 4, 5), np.float32)
    board = mosaic(images, np.array([[2, -1], [0, 1]]))
    assert board.shape == (2 * (4 + GAP), 2 * (5 + GAP))
    quarters = board.reshape(2, 4 + GAP, 2, 5 + GAP).swapaxes(1, 2)
    inner = quarters[:, :, GAP // 2 : GAP // 2 + 4, GAP // 2 : GAP // 2 + 5]
    np.testing.assert_array_equal(inner[0, 0], images[2])
    np.testing.assert_array_equal(inner[1], images[:2])
    assert np.isnan(quarters[0, 1]).all()
    assert np.isfinite(board).sum() == 3 * 20


def test_own_scale_brings_every_image_to_one_and_survives_a_constant(rng):
    images = rng.standard_normal((3, 1, 8, 8)) * np.array([0.01, 1, 0])[:, None, None, None]
    board = mosaic(images, np.array([[0, 1, 2]]), own_scale=True)
    assert np.nanmax(np.abs(board)) == pytest.approx(1)
    assert np.nanmax(np.abs(board[:, : 8 + GAP])) == pytest.approx(1)
    assert np.isfinite(board).sum() == images.size


def test_limits_leave_out_the_far_away(rng):
    coordinates = np.concatenate([rng.random((1000, 2)), [[1e6, -1e6], [np.nan, 0]]])
    (x0, x1), (y0, y1) = central_limits(coordinates)
    assert -0.1 < x0 < 0.05 and 0.95 < x1 < 1.1 and -0.1 < y0 < 0.05 and 0.95 < y1 < 1.1
    (x0, x1), _ = central_limits(np.ones((5, 2)))
    assert x0 < 1 < x1


@pytest.mark.parametrize("scale", ["shared", "own"])
def test_gallery_writes_a_picture_with_the_cutouts_in_it(tmp_path, rng, scale):
    images = rng.standard_normal((50, 16, 16)).astype(np.float32)
    path = tmp_path / "new" / "gallery.png"
    gallery(
        images,
        rng.random((50, 2)),
        path,
        cells=4,
        title="a title",
        labels=("PC 1 (34 %)", "PC 2"),
        scale=scale,
    )
    with Image.open(path) as picture:
        assert min(picture.size) > 1000
        assert picture.convert("RGB").getcolors(200) is None  # more colours than axes and labels alone have
    assert [file.name for file in path.parent.iterdir()] == ["gallery.png"]


def test_gallery_reads_only_the_picked_images_of_a_file(tmp_path, rng):
    with h5py.File(tmp_path / "cutouts.h5", "w") as file:
        images = file.create_dataset("valid", data=rng.standard_normal((20, 1, 8, 8)).astype(np.float32))
        gallery(images, rng.random((20, 2)), tmp_path / "gallery.pdf", cells=2)
    assert (tmp_path / "gallery.pdf").read_bytes().startswith(b"%PDF")


def test_figures_leave_pyplot_alone(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    learning_curve({"epoch": [1], "loss_train": [2.0]}, tmp_path / "curve.png")
    assert "matplotlib.pyplot" not in sys.modules


def test_learning_curve_from_a_table_equals_that_from_arrays(tmp_path):
    table = tmp_path / "losses.csv"
    table.write_text("epoch,loss_train,loss_valid\n1,5.5,\n2,4.25,4.5\n")
    losses = read_losses(table)
    np.testing.assert_array_equal(losses["loss_valid"], [np.nan, 4.5])
    learning_curve(table, tmp_path / "a.png")
    learning_curve(losses, tmp_path / "b.png")
    with Image.open(tmp_path / "a.png") as first, Image.open(tmp_path / "b.png") as second:
        np.testing.assert_array_equal(np.asarray(first), np.asarray(second))


def test_what_cannot_be_drawn_is_refused(tmp_path, rng):
    images, coordinates = rng.random((3, 4, 4)), rng.random((3, 2))
    target = tmp_path / "x.png"
    with pytest.raises(InputFileError, match=r"got \(3, 4, 4\) and \(2, 2\)"):
        gallery(images, coordinates[:2], target)
    with pytest.raises(InputFileError, match="expected finite coordinates, got none in 3 rows"):
        gallery(images, coordinates * np.nan, target)
    with pytest.raises(OptionError, match="cells=0"):
        gallery(images, coordinates, target, cells=0)
    with pytest.raises(OptionError, match="unknown format 'bmpx'"):
        gallery(images, coordinates, tmp_path / "x.bmpx")
    with pytest.raises(InputFileError, match=r"the columns epoch and loss_train"):
        learning_curve({"epoch": [1, 2]}, target)
    with pytest.raises(InputFileError, match=r"expected loss_train of the shape of epoch, .*got \(1,\)"):
        learning_curve({"epoch": [1, 2], "loss_train": [1.0]}, target)
    with pytest.raises(InputFileError, match="table of losses"):
        learning_curve(tmp_path / "absent.csv", target)
    assert not list(tmp_path.iterdir())
