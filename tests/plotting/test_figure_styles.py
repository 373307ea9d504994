"""Style of figures: fonts in files, sizes, formats, colours that everybody can read, and values in place."""

import re

import matplotlib
import numpy as np
import pandas as pd
import pytest
from conftest import red_noise, write_cutouts
from matplotlib.colors import LogNorm, to_rgb
from PIL import Image

from nenya.errors import InputFileError, OptionError
from nenya.plotting import Style, closest_strip, map_metric, umap_density, umap_metric
from nenya.plotting.colours import CATEGORIES, SAFE, colour_map, colours_of, count_colours, ends_of, is_diverging
from nenya.plotting.cutouts import contact_sheet, eigen_sheet
from nenya.plotting.scale_bar import round_length

WITHOUT = {  # Machado et al. 2009, severity 1: linear sRGB as seen without one kind of cone
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}
EYES = ("all cones", *WITHOUT)


def seen(colours: np.ndarray, eye: str) -> np.ndarray:
    """OKLab (Ottosson 2020) times 100 of sRGB colours (n, 3), as an eye sees them: lightness, and two of hue."""
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    if eye in WITHOUT:
        linear = np.clip(linear @ np.array(WITHOUT[eye]).T, 0, 1)
    cones = np.array(
        [[0.4122215, 0.5363325, 0.0514460], [0.2119035, 0.6806995, 0.1073970], [0.0883025, 0.2817188, 0.6299787]]
    )
    lab = np.array(
        [[0.2104543, 0.7936178, -0.0040720], [1.9779985, -2.4285922, 0.4505937], [0.0259040, 0.7827718, -0.8086758]]
    )
    return 100 * np.cbrt(linear @ cones.T) @ lab.T


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("name", [*SAFE, "cividis", "viridis"])
def test_colour_maps_keep_their_order_for_every_eye(name, eye):
    lab = seen(colour_map(name)(np.linspace(0, 1, 64))[:, :3], eye)
    sides = [lab[:32], lab[32:][::-1]] if is_diverging(name) else [lab]
    for side in sides:
        steps = np.diff(side[:, 0])
        assert (steps * np.sign(steps.sum()) > -0.4).all(), "lightness turns back"
    step = np.linalg.norm(np.diff(lab, axis=0), axis=1)
    assert step.max() < 4.5 * np.median(step), "a step that looks like an edge"
    if is_diverging(name):
        middle = lab[31:33, 0].mean()
        assert middle > max(lab[0, 0], lab[-1, 0]) + 40
        assert np.linalg.norm(lab[8] - lab[-9]) > 8, "its two sides look the same"


@pytest.mark.parametrize("eye", EYES)
def test_categories_are_told_apart_by_every_eye(eye):
    for count, least in ((6, 11), (12, 6.5), (20, 5)):
        lab = seen(np.array([to_rgb(colour) for colour in CATEGORIES[:count]]), eye)
        apart = np.linalg.norm(lab[:, None] - lab, axis=2)[np.triu_indices(count, 1)]
        assert apart.min() > least
    grey = np.sort(seen(np.array([to_rgb(colour) for colour in CATEGORIES[:8]]), "all cones")[:, 0])
    assert np.diff(grey).min() > 4


def test_a_rainbow_is_said_to_be_uneven(caplog):
    for name in ("thermal", "balance", "RdBu", "viridis", "cmo.haline_r"):
        Style(cmap=name)
    assert not caplog.records
    Style(cmap="jet")
    assert "lightness goes up and down" in caplog.text


def test_zero_is_in_the_middle_of_a_diverging_map_whatever_its_limits():
    values = np.array([-1.0, 0.2, 3.0])
    neutral = colour_map("balance")(0.5)
    for limits in (None, (-1.0, 3.0), (-3.0, 0.5)):
        cmap, norm = colours_of(values, limits=limits)
        np.testing.assert_allclose(cmap(norm(0.0)), neutral, atol=0.03)
        if limits:
            assert (norm.vmin, norm.vmax) == limits
    cmap, norm = colours_of(values, limits=(-1.0, 3.0))
    ends = [abs(seen(np.array([cmap(norm(v))[:3]]), "all cones")[0, 0] - 95) for v in (-1.0, 3.0)]
    assert ends[0] < 0.6 * ends[1], "one K has one contrast on both sides"
    assert colours_of(np.array([1.0, 2.0]))[0].name == "viridis"


def test_scales_by_the_logarithm_and_arrows_only_where_values_are_beyond():
    assert isinstance(colours_of(np.array([0.1, 10]), log=True)[1], LogNorm)
    counts = np.array([[0, 5], [90, 1]])
    assert isinstance(count_colours(counts)[1], LogNorm) and not isinstance(
        count_colours(counts, log=False)[1], LogNorm
    )
    for limits, extend in (((0, 5), "neither"), ((1, 5), "min"), ((0, 3), "max"), ((1, 3), "both")):
        _, norm = colours_of(np.array([0.0, 2, 5]), limits=limits)
        assert ends_of(np.array([0.0, 2, 5, np.nan]), norm) == extend


@pytest.mark.parametrize(
    ("style", "says"),
    [
        ({"size": "triple"}, r"size=triple: expected single \(3.3 inches wide\), double"),
        ({"size": (3, 900)}, "size="),
        ({"font": "Helvetixa"}, "font=Helvetixa: no font of this name is installed"),
        ({"dpi": 5}, "dpi=5: expected a number from 20 to 2400"),
        ({"cmap": "termal"}, "cmap=termal: unknown colour map; did you mean thermal"),
        ({"limits": (3, 1)}, r"limits=\[3,1\]: expected two numbers, the smaller one first; swap them"),
        ({"limits": (1, float("nan"))}, "limits="),
        ({"limits": (-1, 2), "log": True}, "log=true: expected limits above 0"),
        ({"projection": "mercator"}, "projection=mercator.*expected one of plain, equal_earth"),
        ({"central_longitude": 400}, "central_longitude=400"),
    ],
)
def test_a_style_that_cannot_be_is_refused(style, says):
    with pytest.raises(OptionError, match=says):
        Style(**style)


@pytest.fixture(scope="module")
def points():
    return np.random.default_rng(1).standard_normal((400, 2))


def test_letters_in_a_pdf_are_truetype(points, tmp_path):
    path = tmp_path / "a.pdf"
    umap_density(points, path, cells=20, title="a title", style=Style(size="single"))
    fonts = re.findall(rb"/Type /Font\b.*?endobj", path.read_bytes(), re.S)
    kinds = {kind for font in fonts for kind in re.findall(rb"/Subtype /(\w+)", font)}
    assert b"Type3" not in kinds and kinds & {b"TrueType", b"CIDFontType2"}
    assert b"/FontFile2" in path.read_bytes(), "the font is not in the file"
    assert matplotlib.rcParams["pdf.fonttype"] == matplotlib.rcParamsDefault["pdf.fonttype"]
    once = path.read_bytes()
    umap_density(points, path, cells=20, title="a title", style=Style(size="single"))
    assert path.read_bytes() == once, "the same figure is another file"


def test_sizes_are_those_of_a_page_and_letters_stay_readable(points):
    for size, wide in (("single", 3.3), ("double", 6.9), ((5, 4), 5)):
        figure = umap_density(points, cells=20, style=Style(size=size))
        assert figure.get_figwidth() == pytest.approx(wide)
        assert 6 <= figure.axes[0].get_xticklabels()[0].get_fontsize() <= 8 == figure.axes[0].xaxis.label.get_fontsize()
    figure = umap_density(points, cells=20, style=Style(font="DejaVu Serif", font_size=12))
    assert figure.axes[0].xaxis.label.get_fontname() == "DejaVu Serif"
    assert figure.axes[0].xaxis.label.get_fontsize() == 12 and figure.get_figwidth() == 7.2


def test_one_picture_in_several_formats(points, tmp_path):
    paths = [tmp_path / f"a.{suffix}" for suffix in ("png", "pdf", "svg")]
    umap_density(points, paths, cells=20, style=Style(size=(2, 2), dpi=150))
    assert [path.read_bytes()[:4] for path in paths] == [b"\x89PNG", b"%PDF", b"<?xm"]
    with Image.open(paths[0]) as picture:
        assert picture.size == (300, 300)
    with pytest.raises(OptionError, match="unknown format"):
        umap_density(points, [tmp_path / "b.png", tmp_path / "b.xyz"], cells=20)
    assert not list(tmp_path.glob("b.*"))


def test_values_without_a_picture_are_refused(points):
    none = np.full(400, np.nan)
    with pytest.raises(InputFileError, match="expected values of DT, got none that is finite in 400 rows"):
        umap_metric(points, none, name="DT")
    with pytest.raises(InputFileError, match="expected positions, got none"):
        map_metric(none, none, np.ones(400))
    with pytest.raises(OptionError, match=r"of .* values are not above 0, the smallest is -1"):
        umap_metric(points, np.full(400, -1.0), least=1, style=Style(log=True))
    with pytest.raises(OptionError, match="limits of x="):
        umap_density(points, limits=((1, 0), (0, 1)))
    one = umap_metric(points[:1], np.array([2.0]), least=1, cells=3)
    assert one.axes[0].images[0].get_array().count() == 1


# Scale bars and rows of images


@pytest.mark.parametrize(("most", "length"), [(96, 50), (100, 100), (9.9, 5), (0.3, 0.2), (1999, 1000), (2000, 2000)])
def test_bars_have_round_lengths(most, length):
    assert round_length(most) == pytest.approx(length)


def test_a_scale_bar_is_as_long_as_it_says(tmp_path):
    images = red_noise(6, 16, 1)
    figure = closest_strip(images[0], images[1:], np.arange(5), pixel_km=2.0)
    (bar,) = [artist for artist in figure.axes[0].artists if hasattr(artist, "size_bar")]
    assert bar.txt_label.get_text() == "20 km" and bar.size_bar.get_children()[0].get_width() == pytest.approx(10)
    assert not any(hasattr(artist, "size_bar") for axes in figure.axes[1:] for artist in axes.artists)
    with pytest.raises(OptionError, match="pixel_km=-1"):
        contact_sheet(images, tmp_path / "a.png", pixel_km=-1.0)


def test_colours_of_a_row_are_those_of_its_cutouts():
    cutouts = red_noise(3, 16, 2)
    images = np.stack([0.1 * cutouts, 5 * cutouts])
    images[:, 2] *= 40  # made by the network, with much contrast
    figure = eigen_sheet(images, ["+1", "-1"], ["nearest 1", "nearest 2", "optimised"], apart=1)
    rows = [axes for axes in figure.axes if axes.images]
    for axes, row in zip(rows, images, strict=True):
        reach = np.quantile(np.abs(row[:2]), 0.99)
        assert axes.images[0].get_clim()[1] == pytest.approx(reach, rel=1e-5)
        board = np.asarray(axes.images[0].get_array())
        assert np.nanmax(np.abs(board[:, -17:])) < 2 * reach
        (said,) = [text.get_text() for text in axes.texts]
        assert said.startswith("\N{MULTIPLICATION SIGN} 0.02")


# The command


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(3)
    rows = 300
    frame = pd.DataFrame({"US0": rng.normal(size=rows), "US1": rng.normal(size=rows), "DT": rng.gamma(2, 1, rows)})
    frame["lon"], frame["lat"] = rng.uniform(-180, 180, rows), rng.uniform(-60, 60, rows)
    frame["words"] = [f"word {i}" for i in range(rows)]
    frame["none"], frame["minus"] = np.nan, -frame["DT"]
    frame.to_parquet(tmp_path / "t.parquet")
    return frame


def test_the_command_writes_what_a_journal_takes(table, tmp_path, nenya_cli):
    given = [
        "table=t.parquet",
        "kind=metric",
        "metric=DT",
        "size=single",
        "dpi=300",
        "cmap=amp",
        "limits=[0,5]",
        "least=1",
    ]
    code, said = nenya_cli("figures", [*given, "format=[png,pdf,svg]", "out=a.png", "font_size=7"])
    assert code == 0, said
    assert {path.name for path in tmp_path.iterdir()} == {"t.parquet", "a.png", "a.pdf", "a.svg"}
    with Image.open("a.png") as picture:
        assert picture.size[0] == 990
    code, said = nenya_cli("figures", [*given, "out=[b/x.pdf,b/y.svg]"])
    assert code == 0 and {path.name for path in (tmp_path / "b").iterdir()} == {"x.pdf", "y.svg"}
    code, said = nenya_cli("figures", ["table=t.parquet", "format=[svg,pdf]", "out=c", "box=[-1,1,-1,1]", "log=false"])
    assert code == 0 and {path.name for path in (tmp_path / "c").iterdir()} == {"umap.svg", "umap.pdf"}
    code, said = nenya_cli("figures", ["table=t.parquet", "format=[svg,pdf]", "out=c"])
    assert code == 2 and "clobber=true" in said


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["limits=[3,1]"], "limits=[3, 1]: expected two numbers [low, high], the smaller one first"),
        (["limits=[1]"], "limits=[1]"),
        (["size=huge"], "size=huge: expected single, double, or two numbers"),
        (["size=[0,3]"], "size=[0, 3]"),
        (["format=bmp"], "format=bmp: expected one or several of png, pdf, svg"),
        (["format=[]"], "format=[]"),
        (["out=[]"], "out=[]: expected at least one picture"),
        (["out=[a.png,b.txt]"], "out=b.txt: expected a folder or a picture"),
        (["out=[a.png,b.pdf]", "format=svg"], "give one of them"),
        (["cmap=vridis"], "did you mean viridis"),
        (["font=Nosuch"], "font=Nosuch"),
        (["kind=map", "projection=mercator"], "projection=mercator: expected one of plain, equal_earth"),
        (["projection=north"], "projection=north: has an effect only with kind=map"),
        (["kind=metric", "metric=words"], "300 different values"),
        (["kind=metric", "metric=words", "categories=false"], "expected numbers in the column words"),
        (["kind=map", "metric=none"], "got none that is finite in 300 rows"),
        (["kind=metric", "metric=minus", "log=true"], "log=true"),
        (["kind=map", "metric=DT", "log=true", "limits=[0,3]"], "expected limits above 0"),
        (["kind=map", "projection=south", "where=lat > 5"], "none of"),
        (["kind=metric", "metric=DT", "names={1: a}"], "has an effect only with categories"),
        (["kind=gallery", "pixel_km=0"], "pixel_km=0"),
        (["box=[1,0,0,1]"], "box=[1, 0, 0, 1]"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(table, tmp_path, nenya_cli, args, says):
    code, said = nenya_cli("figures", ["table=t.parquet", *args])
    assert code == 2 and says in said and len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_a_gallery_has_a_bar_in_km(table, tmp_path, nenya_cli):
    write_cutouts(tmp_path / "c_preproc.h5", valid=red_noise(300, 8, 1))
    table.assign(pp_file="c_preproc.h5", pp_type=0, pp_idx=np.arange(300)).to_parquet("t.parquet")
    args = ["table=t.parquet", "kind=gallery", "images=c_preproc.h5", "cells=4", "out=a.svg"]
    for more in ([], ["pixel_km=1.5", "clobber=true"]):
        code, said = nenya_cli("figures", [*args, *more])
        assert code == 0, said
        texts = re.findall(r"<!-- (.*?) -->", (tmp_path / "a.svg").read_text())
        assert ("5 km" in texts) == bool(more) and "UMAP 1" in texts


def test_search_and_clusters_draw_in_the_same_style(tmp_path, nenya_cli):
    write_cutouts(tmp_path / "c_preproc.h5", valid=red_noise(30, 8, 1))
    latents = np.random.default_rng(2).standard_normal((30, 4)).astype(np.float32)
    write_cutouts(tmp_path / "c_preproc_latents.h5", valid=latents / np.linalg.norm(latents, axis=1, keepdims=True))
    common = ["data=c_preproc_latents.h5", "images=c_preproc.h5", "pixel_km=2", "size=double", "format=[svg,pdf]"]
    code, said = nenya_cli("search", [*common, "like=3", "k=3", "figure=a.svg"])
    assert code == 0, said
    assert {path.suffix for path in tmp_path.glob("a.*")} == {".svg", ".pdf"}
    code, said = nenya_cli("clusters", [*common, "k=2", "out=k.csv"])
    assert code == 0, said
    assert {path.name for path in (tmp_path / "k_groups").iterdir()} == {
        f"group_{i}.{s}" for i in "01" for s in ("svg", "pdf")
    }
    code, said = nenya_cli("search", ["data=c_preproc_latents.h5", "like=3", "size=double"])
    assert code == 2 and "size=double: has an effect only with images" in said
