"""Quality levels, flags by name and by bit, and masks; counts of real granules against plain numpy."""

import logging
import re

import numpy as np
import pytest
import xarray as xr
from field_files import CELSIUS, H, W, cutouts, grid, save

from nenya.errors import InputFileError, NenyaError
from nenya.prepare.flags import flag_test, high_is_good, sea_test
from nenya.prepare.job import prepare

MEANINGS = "microwave land ice twilight"


def flagged(dtype="i2", **attrs):
    """A grid with l2p_flags: bit 9 on columns 0-47, land on rows 0-15."""
    dataset = grid()
    flags = np.zeros((1, H, W), dtype)
    flags[..., :48] |= np.array(512, dtype)
    flags[:, :16] |= np.array(2, dtype)
    attrs = {"flag_masks": np.array([1, 2, 4, 512], dtype), "flag_meanings": MEANINGS, **attrs}
    dataset["l2p_flags"] = (("time", "lat", "lon"), flags, attrs)
    return dataset


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"mask_bits": [9]}, 12),
        ({"mask_bits": 9, "mask": "l2p_flags"}, 12),
        ({"mask_bits": [9, 1]}, 9),
        ({"mask_flags": ["twilight"]}, 12),
        ({"mask_flags": "TWILIGHT", "quality": "l2p_flags"}, 12),
        ({"mask_flags": ["land", "ice"], "mask": "l2p_flags"}, 18),
        ({"mask_flags": ["*a*"]}, 18),
        ({"mask_flags": ["land"], "mask_bits": [9]}, 9),
    ],
    ids=str,
)
def test_flags_by_name_or_bit_mask_pixels(tmp_path, options, kept):
    for dtype in ("i2", "u4") if len(options) == 1 else ("i2",):
        path = save(flagged(dtype), tmp_path / f"{dtype}.nc")
        _, table = cutouts(path, tmp_path / f"{dtype}_preproc.h5", **options)
        assert len(table) == kept


REFUSED = {
    "quality= without bits": ({"quality": "l2p_flags", "quality_thresh": 2}, "mask_flags=[...] names those that mask"),
    "quality= without a level": ({"quality": "l2p_flags"}, "'l2p_flags' holds bits (microwave, land, ice, twilight)"),
    "mask= without bits": ({"mask": "l2p_flags"}, "'l2p_flags' holds bits (microwave, land, ice, twilight)"),
    "a flag that is not there": ({"mask_flags": ["twiligt"]}, "did you mean twilight?"),
    "one of two": ({"mask_flags": ["land", "cloud"]}, "mask_flags=cloud: 'l2p_flags' has no such flag"),
    "a pattern without a flag": ({"mask_flags": ["x*"], "mask": "l2p_flags"}, "has no such flag"),
    "a bit beyond": ({"mask_bits": [16]}, "expected below 16, the bits of 'l2p_flags'"),
    "no such mask": ({"mask_bits": [1], "mask": "l2_flags"}, "mask=l2_flags: no such variable"),
    "no quality": ({"quality_thresh": 2}, "quality=none takes all pixels whatever their quality"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_flags_that_cannot_be_meant_are_refused(tmp_path, name):
    options, words = REFUSED[name]
    with pytest.raises(NenyaError) as caught:
        cutouts(save(flagged(), tmp_path / "f.nc"), tmp_path / "f_preproc.h5", **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_options_on_the_command_line(tmp_path, nenya_cli):
    save(flagged(), tmp_path / "f.nc")
    args = ["data=f.nc", "out=f_preproc.h5", "field_size=16", "workers=1", "clobber=true"]
    for given in ("mask_flags=[land,ice*]", "mask_bits=[1]", "mask_flags=land"):
        code, said = nenya_cli("prepare", [*args, given])
        assert code == 0 and "flags 25.0 %" in said and "flags of l2p_flags" in said, said
    for given in ("mask_bits=[-1]", "mask_bits=[64]", "mask_bits=land", "mask_flags=[]"):
        code, said = nenya_cli("prepare", [*args, given])
        assert (code, said.count("\n")) == (2, 1) and "expected" in said, said


def test_several_variables_with_flags_are_told_apart(tmp_path):
    dataset = flagged()
    dataset = dataset.rename(l2p_flags="flags_a").assign(flags_b=dataset.l2p_flags * 0)
    dataset.flags_b.attrs = dict(dataset.flags_a.attrs)
    with pytest.raises(InputFileError, match=r"several variables.*flags_a, flags_b.*mask= names the one"):
        cutouts(save(dataset, tmp_path / "f.nc"), tmp_path / "f_preproc.h5", mask_bits=[9])
    dataset.tos.attrs["ancillary_variables"] = "flags_a"
    _, table = cutouts(save(dataset, tmp_path / "g.nc"), tmp_path / "g_preproc.h5", mask_flags=["twilight"])
    assert len(table) == 12


def variable(values, **attrs):
    return xr.DataArray(np.asarray(values), dims="x", name="v", attrs=attrs)


def test_masks_with_values_and_high_bits():
    both = variable(
        np.array([0, 1, 2, 3, 4, 7], "u1"), flag_masks=np.array([3, 3, 4], "u1"), flag_values=np.array([1, 2, 4], "u1"),
        flag_meanings="cloudy rainy land",
    )  # fmt: skip
    masked = flag_test(both, ["cloudy"], [], "f.nc")(both.values)
    assert masked.tolist() == [False, True, False, False, False, False]
    assert flag_test(both, ["rainy", "land"], [], "")(both.values).tolist() == [False, False, True, False, True, True]
    top = variable(
        np.array([1 << 31, 1 << 30, 5], "u4"), flag_masks=np.array([1 << 30, 1 << 31], "u4"), flag_meanings="a b"
    )
    assert flag_test(top, ["b"], [], "")(top.values).tolist() == [True, False, False]
    signed = variable(np.array([-32768, 1, -1], "i2"), flag_masks=np.array([1, -32768], "i2"), flag_meanings="a b")
    assert flag_test(signed, ["b"], [], "")(signed.values).tolist() == [True, False, True]
    assert flag_test(signed, [], [15], "")(signed.values).tolist() == [True, False, True]
    wide = variable(np.array([1 << 63, 3], "u8"))
    assert flag_test(wide, [], [63], "")(wide.values).tolist() == [True, False]
    values = variable(np.array([0, 1, 2], "i1"), flag_values=np.array([0, 1, 2], "i1"), flag_meanings="ok, low, bad")
    assert flag_test(values, ["low", "bad"], [], "")(values.values).tolist() == [False, True, True]
    short = variable(np.array([0], "i1"), flag_values=np.array([0, 1], "i1"), flag_meanings="a")
    with pytest.raises(InputFileError, match="has 1 flag_meanings for 2 flags"):
        flag_test(short, ["a"], [], "f.nc")


def test_masks_say_what_is_sea():
    land = variable([0, 1], flag_values=np.array([0, 1]), flag_meanings="land open_water")
    assert sea_test(land)(land.values).tolist() == [False, True]
    ice = variable([1, 2, 8, 9], flag_masks=np.array([1, 2, 8]), flag_meanings="water land sea_ice")
    assert sea_test(ice)(ice.values).tolist() == [True, False, False, False]
    good = variable([0, 1], flag_values=np.array([0, 1]), flag_meanings="good_quality bad_quality")
    with pytest.raises(InputFileError, match="none of its flags is water, sea or ocean"):
        sea_test(good, "f.nc")
    assert not high_is_good(good, "auto") and high_is_good(good, "high")


def test_an_unused_quality_level_is_said_and_none_silences_it(tmp_path, caplog):
    dataset = grid()
    levels = np.full((1, H, W), 5, "i1")
    levels[..., :48] = 2
    dataset["quality_level"] = (("time", "lat", "lon"), levels)
    path = save(dataset, tmp_path / "q.nc")
    for options, count, said in (
        ({}, 24, True), ({"quality": "none"}, 24, False), ({"sensor": "ghrsst"}, 12, False),
        ({"sensor": "ghrsst", "quality": "none"}, 24, False),
    ):  # fmt: skip
        caplog.clear()
        with caplog.at_level(logging.WARNING, "nenya"):
            _, table = cutouts(path, tmp_path / "q_preproc.h5", clobber=True, **options)
        assert len(table) == count and ("quality_level is in the file and not used" in caplog.text) == said


# Real granules


def raw(shared, name):
    return xr.open_dataset(shared / "trials" / f"{name}.nc", mask_and_scale=False, decode_times=False).load()


def celsius(granule):
    packed = granule.sea_surface_temperature
    return (
        packed.values[0],
        packed.values[0] * np.float64(packed.scale_factor) + packed.add_offset - 273.15,
        packed.attrs,
    )


def clear_of(granule):
    """Return the pixels that the file's own fill value and valid range leave, and that can be."""
    stored, degrees, attrs = celsius(granule)
    clear = (stored != attrs["_FillValue"]) & (stored >= attrs["valid_min"]) & (stored <= attrs["valid_max"])
    return clear & (degrees >= -3) & (degrees <= 45), degrees


def windows(clear, placed, side, share):
    """Return the cutouts of the grid that are clear enough, and have a place between their four middle pixels."""
    rows, cols = (range(0, n - side + 1, side) for n in clear.shape)
    middle = np.s_[side // 2 - 1 : side // 2 + 1, side // 2 - 1 : side // 2 + 1]
    found = [(r, c, np.s_[r : r + side, c : c + side]) for r in rows for c in cols]
    return [(r, c) for r, c, w in found if clear[w].mean() >= share and placed[w][middle].all()]


@pytest.mark.parametrize(
    ("name", "options", "extra"),
    [
        ("viirs_npp_l2p", {"sensor": "ghrsst"}, lambda g: g.quality_level.values[0] >= 4),
        ("viirs_npp_l2p", {"sensor": "ghrsst", "mask_flags": ["ice", "lake"]},
         lambda g: (g.quality_level.values[0] >= 4) & (g.l2p_flags.values[0] & (4 | 8) == 0)),
        ("viirs_npp_l2p", {"sensor": "ghrsst", "quality": "none", "mask_bits": [9], "mask": "l2p_flags"},
         lambda g: g.l2p_flags.values[0] & 512 == 0),
        ("modis_terra_l2p", {"sensor": "ghrsst", "quality": "none"}, lambda g: True),
        ("modis_aqua_l2p", {"sensor": "ghrsst", "quality": "none"}, lambda g: True),
        ("amsr2_l2p", {"sensor": "ghrsst"}, lambda g: g.quality_level.values[0] >= 4),
        ("amsr2_l2p", {"sensor": "ghrsst", "mask_flags": ["*observation_is_bad*", "1_*"], "quality_thresh": 1},
         lambda g: (g.quality_level.values[0] >= 1) & (g.l2p_flags.values[0] & 0b111100010 == 0)),
        ("amsr2_l2p", {"sensor": "grid"}, lambda g: True),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)  # fmt: skip
def test_counts_of_real_granules(shared, tmp_path, caplog, name, options, extra):
    granule = raw(shared, name)
    clear, degrees = clear_of(granule)
    clear = clear & extra(granule)
    side = 8 if name in ("viirs_npp_l2p", "modis_aqua_l2p") else 32
    more = {"field_size": side, "clear_threshold": 40.0, "mask_constant": False, "possible": [-3, 45]}
    expected = windows(clear, granule.lat.values > -900, side, 0.4)
    with caplog.at_level(logging.INFO, "nenya"):
        try:
            path = str(shared / "trials" / f"{name}.nc")
            images, table = cutouts(path, tmp_path / "x_preproc.h5", **more, **options, inpaint="fast")
        except InputFileError as error:
            assert not expected and f"{100 * (1 - clear.mean()):.1f} % masked" in str(error)
            return
    assert images.min() >= -3 and images.max() <= 45
    found = list(zip(table.row, table.col, strict=True))
    left_out = re.search(r"; (\d+) cutouts left out for impossible filled pixels", caplog.text)
    assert found == [place for place in expected if place in found]
    assert len(found) + (int(left_out[1]) if left_out else 0) == len(expected) and len(found) > len(expected) / 2
    shares = [clear[r : r + side, c : c + side].mean() for r, c in found]
    np.testing.assert_allclose(table.clear_fraction, shares)
    said = re.search(r"([-\d.]+) to ([-\d.]+) degC, ([\d.]+) % masked", caplog.text)
    np.testing.assert_allclose(
        [float(v) for v in said.groups()],
        [degrees[clear].min(), degrees[clear].max(), 100 * (1 - clear.mean())],
        atol=0.06,
    )


@pytest.mark.parametrize("name", ["modis_aqua_l2p", "modis_terra_l2p"])
def test_a_granule_without_quality_is_refused(shared, tmp_path, name):
    data = str(shared / "trials" / f"{name}.nc")
    with pytest.raises(InputFileError, match="no quality variable found"):
        prepare({"data": data, "out": str(tmp_path / "x_preproc.h5"), "sensor": "ghrsst", "workers": 1})
    assert CELSIUS.dtype == np.float32
