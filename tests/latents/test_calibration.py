"""The calibration of masked cutouts: on cutouts and masks that it has not seen, and as a file."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
from conftest import red_noise
from scipy.ndimage import distance_transform_edt, gaussian_filter
from sklearn.linear_model import QuantileRegressor

from nenya.data.mask_shapes import SHAPE_NAMES, mask_shapes, varied_masks
from nenya.errors import InputFileError
from nenya.latents import calibration
from nenya.latents.calibration import MISSED, distances, divide, fit
from nenya.latents.calibration_file import digest_of, load, save

SIDE, CUTOUTS, TURNS = 16, 400, 4
ABOUT = {"checkpoint_sha256": "0" * 64, "masked": "mean", "preprocessing": "none", "latent": "projection"}
FAMILIES = ("smooth", "broken", "edge")


def network(seed, depth):
    """A random network of `depth` layers, smooth in its input, that sees the filled cutout."""
    rng = np.random.default_rng(seed)
    layers = [rng.standard_normal((a, 96)) / np.sqrt(a) for a in (SIDE * SIDE, *[96] * (depth - 1))]

    def encode(images, masks):
        clear = np.where(masks, 0.0, images).sum(axis=(1, 2)) / (~masks).sum(axis=(1, 2))
        filled = np.where(masks, clear[:, None, None], images).reshape(len(images), -1)
        for layer in layers:
            filled = np.tanh(filled @ layer)
        return (filled / np.linalg.norm(filled, axis=1, keepdims=True)).astype(np.float32)

    return encode


def cutouts(count, seed):
    contrast = np.exp(np.random.default_rng(seed).normal(0, 0.4, (count, 1, 1)))
    return (red_noise(count, SIDE, seed) * contrast).astype(np.float32)


def calibrated(encode, seed, masks=None):
    rng = np.random.default_rng(seed)
    images, number = cutouts(CUTOUTS, seed), np.repeat(np.arange(CUTOUTS), TURNS)
    masks = (
        varied_masks(len(number), SIDE, 0.6, rng) if masks is None else masks[rng.integers(0, len(masks), len(number))]
    )
    clear, masked = encode(images, np.zeros_like(images, bool)), encode(images[number], masks)
    return fit(mask_shapes(masks, images[number]), clear[number], masked, divide(CUTOUTS, rng)[number], rng, ABOUT)


@pytest.fixture(scope="module")
def made():
    return calibrated(network(1, 2), 1)


@pytest.mark.parametrize(("seed", "depth"), [(1, 1), (2, 2), (3, 3)])
def test_five_percent_of_unseen_cutouts_under_unseen_masks_are_below(seed, depth):
    encode = network(seed, depth)
    made = calibrated(encode, seed)
    images = cutouts(3000, seed + 100)
    masks = varied_masks(3000, SIDE, 0.6, np.random.default_rng(seed + 200))
    cosine, low = made.cosines(mask_shapes(masks, images))
    found = 1 - distances(encode(images, np.zeros_like(masks)), encode(images, masks))
    below, share = found < low, masks.mean(axis=(1, 2))
    assert not np.isnan(low).any() and (low <= cosine).all()
    assert abs(below.mean() - MISSED) < 0.03
    assert 0.4 < (found < cosine).mean() < 0.6
    for kind, name in enumerate(FAMILIES):
        assert abs(below[kind::3].mean() - MISSED) < 0.035, name
    for start in (0, 0.15, 0.3, 0.45):
        own = (share > start) & (share <= start + 0.15)
        assert own.sum() > 500 and abs(below[own].mean() - MISSED) < 0.03, start


def rough_cutouts(count, seed):
    noise = np.random.default_rng(seed).standard_normal((count, SIDE, SIDE))
    share = np.exp(np.random.default_rng(seed + 1).normal(-2, 1, (count, 1, 1)))
    return (cutouts(count, seed) + share * noise).astype(np.float32)


def blurred_masks(count, kind, rng):
    """Masks of a generator that no calibration has seen: blurred noise, or a slanting edge with such a rim."""
    fields = gaussian_filter(rng.standard_normal((count, SIDE, SIDE)), (0, *2 * [0.8 if kind == "broken" else 1.5]))
    fields /= fields.std(axis=(1, 2), keepdims=True)
    if kind == "edge":
        y, x = np.mgrid[:SIDE, :SIDE] / SIDE
        angle = rng.uniform(0, 2 * np.pi, (count, 1, 1))
        fields = 4 * (x * np.cos(angle) + y * np.sin(angle)) + 0.3 * fields
    order = fields.reshape(count, -1).argsort(1).argsort(1)
    return (order < SIDE**2 * rng.uniform(0.02, 0.55, (count, 1))).reshape(fields.shape)


def steepness(images):
    return np.abs(np.diff(images, axis=2)).mean(axis=(1, 2)) / images.std(axis=(1, 2))


def turned_away(images, masks, rng):
    """Latents of clear and of masked cutouts: smooth cutouts suffer from broken masks, rough ones hardly."""
    rims = (masks[:, 1:] != masks[:, :-1]).mean(axis=(1, 2))
    angle = 0.02 * rims / steepness(images) ** 2 * np.exp(rng.normal(0, 0.2, len(images)))
    clear = np.tile([1.0, 0.0], (len(images), 1))
    return clear.astype(np.float32), np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


@pytest.mark.parametrize("kind", FAMILIES)
def test_texture_counts_where_the_network_sees_it(kind):
    rng, number = np.random.default_rng(3), np.repeat(np.arange(2 * CUTOUTS), TURNS)
    images, masks = rough_cutouts(2 * CUTOUTS, 3)[number], varied_masks(len(number), SIDE, 0.6, rng)
    part = divide(2 * CUTOUTS, rng)[number]
    made = fit(mask_shapes(masks, images), *turned_away(images, masks, rng), part, rng, ABOUT)
    images, masks = rough_cutouts(3000, 103), blurred_masks(3000, kind, rng)
    _, low = made.cosines(mask_shapes(masks, images))
    known = np.isfinite(low)
    below = 1 - distances(*turned_away(images, masks, rng)) < low
    assert known.mean() > 0.95
    assert abs(below[known].mean() - MISSED) < 0.03
    for third in np.array_split(np.argsort(steepness(images)), 3):
        assert abs(below[third][known[third]].mean() - MISSED) < 0.04


def test_the_low_cosine_says_something(made):
    """It is not merely low: of two masks of one share, the more harmful one has the lower cosine."""
    images = np.repeat(cutouts(1, 7), 2, axis=0)
    one_hole, scattered = np.zeros((SIDE, SIDE), bool), np.zeros((SIDE, SIDE), bool)
    one_hole[4:12, 4:12] = True
    for row in (2, 10):
        scattered[row : row + 4, 2:6] = scattered[row : row + 4, 10:14] = True
    assert one_hole.sum() == scattered.sum()
    _, low = made.cosines(mask_shapes(np.stack([one_hole, scattered]), images))
    assert low[0] < low[1]


def test_lines_rise_with_the_share(made):
    for line in (made.median, made.high):
        assert (np.diff(line.at_knots) >= 0).all()


def test_masks_beyond_the_calibrated_ones_have_no_cosine():
    encode = network(1, 2)
    made = calibrated(encode, 5, masks=varied_masks(300, SIDE, 0.2, np.random.default_rng(0)))
    images = cutouts(2, 3)
    masks = np.zeros((2, SIDE, SIDE), bool)
    masks[0, :, :12], masks[1, 0, 0] = True, True
    cosine, low = made.cosines(mask_shapes(masks, images))
    assert np.isnan(cosine[0]) and np.isnan(low[0]), "75 % are masked, of at most 20 % calibrated"
    assert 0 < low[1] <= cosine[1] <= 1, "a smaller mask than any calibrated counts as the smallest"


def test_a_line_is_the_quantile_regression():
    rng = np.random.default_rng(0)
    columns = np.column_stack([np.ones(400), rng.random((400, 3))])
    values = columns @ [1, 2, 0.5, -1] + rng.exponential(1 + columns[:, 1])
    wanted = QuantileRegressor(quantile=0.95, alpha=0, solver="highs").fit(columns[:, 1:], values)
    found = calibration._fit_line(columns, values, 0.95, 3)
    assert found == pytest.approx([wanted.intercept_, *wanted.coef_], abs=1e-6)
    penalised = calibration._fit_line(columns, values, 0.95, 3, 5.0)
    wanted = QuantileRegressor(quantile=0.95, alpha=5.0 / 400, solver="highs").fit(columns[:, 1:], values)
    assert abs(penalised[3]) < abs(found[3]) and wanted.coef_[2] == pytest.approx(penalised[3], abs=0.3)
    assert calibration._fit_line(columns, values, 0.95, 3, 400.0)[3] == 0, "what tells little is left out"
    falling = calibration._fit_line(columns, -values, 0.95, 4)
    assert (falling[1:] >= 0).all(), "where the data fall, a rising line stays level"


def test_shapes_are_those_of_a_slow_count_and_independent_of_other_rows():
    masks, images = varied_masks(9, SIDE, 0.6, np.random.default_rng(3)), cutouts(9, 4)
    found = mask_shapes(masks, np.where(masks, np.nan, images))
    for i, (mask, image) in enumerate(zip(masks, images, strict=True)):
        distance = distance_transform_edt(mask) / SIDE
        pairs = [(mask[1:] != mask[:-1]).sum(), (mask[:, 1:] != mask[:, :-1]).sum()]
        wanted = [mask.mean(), distance.max(), distance[mask].mean(), sum(pairs) / (2 * SIDE * (SIDE - 1))]
        holes = np.where(mask, np.nan, image)
        steps = np.concatenate([np.diff(holes, axis=0).ravel(), np.diff(holes, axis=1).ravel()])
        contrast = image[~mask].std()
        wanted += [contrast, np.sqrt(np.nanmean(steps**2)) / contrast]
        assert np.exp(found[i]) == pytest.approx(wanted, rel=1e-6)
        assert (mask_shapes(masks[i : i + 1], images[i : i + 1])[0] == found[i]).all()
    assert found.shape == (9, len(SHAPE_NAMES))
    assert mask_shapes(masks[:0], images[:0]).shape == (0, len(SHAPE_NAMES))


def test_roughness_is_known_without_neighbours_and_of_flat_cutouts():
    board = np.indices((SIDE, SIDE)).sum(axis=0) % 2 == 0
    assert mask_shapes(board[None], cutouts(1, 4))[0, -1] == 0, "no two clear pixels are neighbours"
    assert np.isfinite(mask_shapes(board[None] & (np.arange(SIDE) < 4), np.ones((1, SIDE, SIDE)))).all()


def test_generated_masks_are_of_all_shares_and_three_kinds():
    masks = varied_masks(300, SIDE, 0.5, np.random.default_rng(0))
    share = masks.mean(axis=(1, 2))
    assert share.min() >= 1 / SIDE**2 and share.max() <= 0.5 and np.histogram(share, 5)[0].min() > 30
    edges = np.exp(mask_shapes(masks, np.ones(masks.shape))[:, 3])
    smooth, broken, edge = (np.median(edges[kind::3][share[kind::3] > 0.2]) for kind in range(3))
    assert broken > 1.5 * smooth > 1.5 * edge


def test_a_file_gives_the_same_calibration(made, tmp_path):
    save(made, tmp_path / "a.h5")
    again = load(tmp_path / "a.h5")
    shapes = mask_shapes(varied_masks(30, SIDE, 0.6, np.random.default_rng(8)), cutouts(30, 8))
    assert all((a == b).all() for a, b in zip(made.cosines(shapes), again.cosines(shapes), strict=True))
    assert again.about == made.about and digest_of(again) == digest_of(made)
    assert again.about["checkpoint_sha256"] == "0" * 64 and again.about["unseen"] > 0
    assert (again.directions == made.directions).all()


def test_an_earlier_calibration_without_roughness_holds_as_it_was(made, tmp_path):
    """Its file has four shapes beside the share, and eight slopes."""
    lines = [replace(line, slopes=line.slopes[:8]) for line in (made.median, made.high)]
    short = {name: getattr(made, name)[:-1] for name in ("centre", "scale", "least", "most")}
    earlier = replace(made, **short, median=lines[0], high=lines[1])
    save(earlier, tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file.attrs["format_version"] = 1
    again, images = load(tmp_path / "a.h5"), cutouts(30, 8)
    shapes = mask_shapes(varied_masks(30, SIDE, 0.5, np.random.default_rng(8)), images)
    assert digest_of(again) == digest_of(earlier)
    assert np.isfinite(again.cosines(shapes)).any()
    shapes[:, -1] = 1
    assert np.array_equal(again.cosines(shapes), earlier.cosines(shapes), equal_nan=True)


def test_directions_are_at_right_angles(made):
    assert np.linalg.norm(made.directions, axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda file: file["knots"].__setitem__(0, -99.0), "altered"),
        (lambda file: file.__delitem__("high_slopes"), "expected a calibration"),
        (lambda file: file.attrs.__setitem__("format", "nenya projector"), "another HDF5 file"),
        (lambda file: file.attrs.__setitem__("format_version", 99), "newer nenya"),
    ],
)
def test_a_changed_file_is_refused_in_one_line(made, tmp_path, change, said):
    save(made, tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        change(file)
    with pytest.raises(InputFileError, match=said) as error:
        load(tmp_path / "a.h5")
    assert "\n" not in str(error.value) and "nenya calibrate" in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"knots": np.array([0.0, -1.0])},
        {"scale": np.zeros(4)},
        {"most": np.full(5, np.nan)},
        {"centre": np.zeros(3)},
        {"about": {"masked": "fill"}},
    ],
)
def test_impossible_numbers_are_refused(made, tmp_path, change):
    save(replace(made, **change), tmp_path / "a.h5")
    with pytest.raises(InputFileError, match="damaged"):
        load(tmp_path / "a.h5")


@pytest.mark.parametrize("content", [None, b"\x80\x04K\x01.", b"text"])
def test_another_kind_of_file_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(InputFileError, match="nenya calibrate"):
        load(tmp_path / "a.h5")


def test_few_cutouts_with_latents_are_refused():
    clear = np.full((40, 8), np.nan, np.float32)
    with pytest.raises(InputFileError, match="40 of 40 pairs have none"):
        fit(np.zeros((40, 5)), clear, clear, divide(40, np.random.default_rng(0)), np.random.default_rng(0))
