"""New images through a real network, its projector and a real page."""

import io
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import red_noise, write_cutouts
from portal_page import Page, chromium, needs_chromium, serve

from nenya.commands import embed
from nenya.commands.compose import compose
from nenya.errors import CheckpointError, InputFileError, OptionError
from nenya.extraction import batch
from nenya.io import read_table, write_table
from nenya.latents.files import Latents
from nenya.latents.projector import Projector
from nenya.portal.dataset import open_dataset
from nenya.portal.encoder import Encoder
from nenya.portal.upload import Given

SIDE, ROWS, TWIN = 32, (90, 30), 17


class World:
    """Cutouts, their latents of real weights, and a table with a map and its projector."""

    def __init__(self, folder, weights):
        rng = np.random.default_rng(6)
        self.folder, self.images = folder, red_noise(sum(ROWS), side=SIDE, seed=8)
        self.images -= self.images.mean((1, 2), keepdims=True)
        self.weights = folder / "weights.pth"
        shutil.copy(weights, self.weights)
        self.cutouts = write_cutouts(
            folder / "a_preproc.h5", train=self.images[: ROWS[0], None], valid=self.images[ROWS[0] :, None]
        )
        args = ["model=demo", f"data={self.cutouts}", f"ckpt={self.weights}", f"out={folder}"]
        assert batch.run(compose("extract", args)) == 0
        self.latents = folder / "a_preproc_latents.h5"
        bare = folder / "bare.parquet"
        self.table, self.projector = folder / "a_umap.parquet", folder / "a_UMAP.h5"
        frame = {
            "lat": rng.uniform(-60, 60, sum(ROWS)),
            "lon": rng.uniform(-180, 180, sum(ROWS)),
            "pp_file": "a_preproc.h5",
            "pp_type": np.repeat([1, 0], ROWS),
            "pp_idx": np.concatenate([np.arange(n) for n in ROWS]),
        }
        write_table(pd.DataFrame(frame), bare)
        rows = Latents([self.latents])[0 : sum(ROWS)].astype(np.float64)
        layout = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[0][:, :2] * 50
        Projector.fit(rows, 8, embedding=layout).save(self.projector)  # a layout of elsewhere: umap-learn takes long
        args = [f"data={self.latents}", f"table={bare}", f"out={self.table}", f"projector={self.projector}"]
        assert embed.run(compose("embed", args)) == 0
        self.places = read_table(self.table)[["US0", "US1"]].to_numpy()
        self.options = compose("portal", ["model=demo"])

    def dataset(self, *, projector=True, latents=None, images=True):
        return open_dataset(
            self.table,
            Latents([latents or self.latents]),
            str(self.cutouts) if images else None,
            projector=self.projector if projector is True else projector or None,
        )

    def encoder(self, weights=None):
        return Encoder(str(weights or self.weights), self.options)

    def other_weights(self, path):
        """Write weights that differ in one tensor."""
        held = torch.load(self.weights, weights_only=True)
        state = held.get("model", held.get("state_dict"))
        name = next(name for name in state if name.endswith("conv1.weight"))
        state[name] = torch.flip(state[name], (0,))
        torch.save(held, path)
        return path

    def anonymous(self, path):
        """Write latents that do not say which weights they are of."""
        shutil.copy(self.latents, path)
        with h5py.File(path, "a") as file:
            del file.attrs["checkpoint_sha256"]
        return path


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_weights):
    return World(tmp_path_factory.mktemp("world"), tiny_weights)


def none(_share):
    """Take no notice of progress."""


def test_an_image_gets_the_latent_and_the_place_that_its_cutout_has(world):
    dataset, encoder = world.dataset(), world.encoder()
    assert encoder.check(dataset) == ""
    size = np.ptp(world.places, axis=0).max()
    for image in (world.images[TWIN] + 15, np.kron(world.images[TWIN], np.ones((2, 2))) + 290):
        found = encoder.encode("x.npy", Given(image.astype(np.float32)), dataset, none)
        latent = dataset.latents.take([TWIN])[0].astype(np.float64)
        assert found.latent @ latent / np.linalg.norm(found.latent) / np.linalg.norm(latent) > 1 - 1e-6
        assert np.abs(np.array(found.place) - world.places[TWIN]).max() < 0.02 * size
    assert world.encoder().encode("x.npy", Given(world.images[3]), world.dataset(projector=False), none).place is None


def test_other_weights_are_refused_by_their_sha256_and_by_what_they_make(world, tmp_path):
    other = world.other_weights(tmp_path / "other.pth")
    with pytest.raises(OptionError, match="expected those of the latents"):
        world.encoder(other).check(world.dataset())
    silent = world.dataset(projector=False, latents=world.anonymous(tmp_path / "a_preproc_latents.h5"))
    with pytest.raises(OptionError, match=r"do not reproduce the latents of the archive's cutouts.*cosine"):
        world.encoder(other).check(silent)
    assert world.encoder().check(silent) == ""
    blind = world.dataset(projector=False, latents=tmp_path / "a_preproc_latents.h5", images=False)
    assert "could not be checked" in world.encoder(other).check(blind)
    with pytest.raises(CheckpointError, match="does not exist"):
        world.encoder(tmp_path / "none.pth").check(world.dataset())


def test_weights_that_are_replaced_while_the_portal_runs_are_refused(world, tmp_path):
    dataset, path = world.dataset(), tmp_path / "weights.pth"
    shutil.copy(world.weights, path)
    encoder = world.encoder(path)
    encoder.encode("x.npy", Given(world.images[0]), dataset, none)
    world.other_weights(tmp_path / "new.pth").replace(path)
    with pytest.raises(OptionError, match="expected those of the latents"):
        encoder.encode("x.npy", Given(world.images[0]), dataset, none)


def test_another_size_and_an_image_without_a_latent_are_one_sentence(world):
    dataset, encoder = world.dataset(), world.encoder()
    with pytest.raises(InputFileError, match="expected an image of 32 x 32"):
        encoder.encode("x.npy", Given(np.zeros((40, 40), np.float32)), dataset, none)
    with pytest.raises(InputFileError, match="no finite latent"):
        encoder.encode(
            "x.npy", Given(np.full((32, 32), 3e38, np.float32) * np.eye(32, dtype=np.float32)), dataset, none
        )


def test_a_projector_of_another_map_is_refused(world, tmp_path):
    rng = np.random.default_rng(1)
    latents = Latents([world.latents])[0 : sum(ROWS)]
    Projector.fit(latents, 8, embedding=rng.normal(size=(len(latents), 2))).save(tmp_path / "other.h5")
    with pytest.raises(OptionError, match="does not reproduce US0 and US1"):
        world.dataset(projector=tmp_path / "other.h5")
    with pytest.raises(InputFileError, match="expected a projector"):
        world.dataset(projector=world.latents)
    with pytest.raises(OptionError, match="needs latents="):
        open_dataset(world.table, None, None, projector=world.projector)


def test_the_command_refuses_other_weights_in_one_line(world, tmp_path, nenya_cli):
    other = world.other_weights(tmp_path / "other.pth")
    args = [f"table={world.table}", f"latents={world.latents}", f"ckpt={other}", "model=demo", "port=0"]
    code, text = nenya_cli("portal", args)
    assert code != 0 and "expected those of the latents" in text and "Traceback" not in text
    code, text = nenya_cli("portal", [a for a in args if not a.startswith("latents")])
    assert code != 0 and "needs latents=" in text


def saved(array, writer=np.save):
    stream = io.BytesIO()
    writer(stream, array)
    return stream.getvalue()


def hdf5_of(images, path):
    write_cutouts(path, valid=images[:, None])
    return path.read_bytes()


def netcdf_of(image, path):
    import h5netcdf

    with h5netcdf.File(path, "w") as file:
        file.dimensions = {"y": len(image), "x": image.shape[1]}
        file.create_variable("sst", ("y", "x"), data=image)
    return path.read_bytes()


def png_of(image, low, high):
    from PIL import Image

    grey = np.round((image[::-1] - low) / (high - low) * 65535).astype(np.uint16)
    stream = io.BytesIO()
    Image.fromarray(grey).save(stream, "PNG")
    return stream.getvalue()


class Form:
    """The page's form for images."""

    def __init__(self, page):
        self.page = page
        page.page.locator("#tab_upload").click()

    def send(self, name, data, words, **fields):
        for field in ("row", "low", "high"):
            self.page.page.fill(f"#upload_{field}", str(fields.get(field, "0" if field == "row" else "")))
        self.page.page.set_input_files("#upload_file", {"name": name, "mimeType": "", "buffer": data})
        self.page.page.locator("#upload_form button").first.click()
        self.page.page.locator("#upload_answer", has_text=words).wait_for(timeout=300_000)
        self.page.idle()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as context:
        yield context


@pytest.fixture(scope="module")
def page(browser, world):
    from nenya.portal.holding import Portal

    encoder = world.encoder()
    portal = Portal(world.dataset(), "a", encoder, limit_mb=2)
    encoder.check(portal.dataset)
    portal.url, stop = serve(portal)
    found = Page(browser, portal)
    yield found
    found.check_quiet()
    stop()


@needs_chromium[0]
@needs_chromium[1]
def test_every_format_finds_its_twin_and_its_place(page, world, tmp_path):
    warm = world.images + 15
    low, high = float(warm[TWIN].min()), float(warm[TWIN].max())
    form, size = Form(page), np.ptp(world.places, axis=0).max()
    for name, data, fields in (
        ("x.npy", saved(warm[TWIN]), {}),
        ("x.npz", saved(warm[:20], lambda stream, array: np.savez(stream, sst=array)), {"row": TWIN}),
        ("x.h5", hdf5_of(warm[:20], tmp_path / "x.h5"), {"row": TWIN}),
        ("x.nc", netcdf_of(warm[TWIN], tmp_path / "x.nc"), {}),
        ("x.png", png_of(warm[TWIN], low, high), {"low": low, "high": high}),
    ):
        page.act("row:3")
        page.idle()
        form.send(name, data, f"{name} is shown under New image", **fields)
        assert page.session.near_rows[0] == TWIN, name
        answer = page.page.locator("#upload_answer").inner_text()
        assert ("row 17 of the rows 0 to 19 of the file; Row chooses another" in answer) == ("row" in fields), name
        assert f"{page.session.upload.place[0]:.4g}" in page.page.locator("table.facts").first.inner_text(), name
        mark = page.session.planes["umap"].mark.data
        assert np.hypot(mark["x"][0] - world.places[TWIN, 0], mark["y"][0] - world.places[TWIN, 1]) < 0.05 * size, name
        assert "position of the image by the projector" in page.page.locator(".note").first.inner_text()
        assert np.allclose(page.session.primary.source.data["image"][0], warm[TWIN], atol=1e-3)


@needs_chromium[0]
@needs_chromium[1]
def test_what_cannot_be_looked_up_is_a_sentence_in_the_page(page, world, tmp_path):
    warm, form = world.images[0] + 15, Form(page)
    hole = warm.copy()
    hole[2, 2] = np.nan
    before = page.session.selection.view.row
    for name, data, words, fields in (
        ("x.npy", saved(np.full((32, 32), 290.0)), "a constant field has no structure", {}),
        ("x.npy", saved(hole), "1 pixels of the image are missing (NaN or infinite)", {}),
        ("x.npy", saved(np.eye(40, dtype="f4")), "expected an image of 32 x 32", {}),
        ("x.npy", saved(np.zeros((8, 8), "f4")), "expected an image of", {}),
        ("x.npy", saved(np.zeros((1100, 1100), "u1")), "expected an image of", {}),
        ("x.npy", saved(np.zeros((32, 20), "f4")), "crop it", {}),
        ("x.npy", b"just text", "cannot be read as npy", {}),
        ("x.npz", b"PK not a zip", "cannot be read as npz", {}),
        ("x.h5", hdf5_of(world.images[:3], tmp_path / "x.h5"), "expected a row from 0 to 2", {"row": 3}),
        ("x.h5", b"\x89HDF but damaged", "HDF5", {}),
        ("x.nc", netcdf_of(np.arange(9.0).reshape(3, 3), tmp_path / "y.nc"), "no variable of this NetCDF file", {}),
        ("x.png", png_of(warm, 0, 40), "give the values of black and white", {}),
        ("x.png", b"\x89PNG damaged", "cannot be read as png", {"low": 0, "high": 30}),
        ("x.pdf", b"%PDF-1.4", "got .pdf", {}),
        ("x.npy", b"0" * 2_100_000, "limit 2 MB", {}),
    ):
        form.send(name, data, words, **fields)
        text = page.page.locator("#upload_answer").inner_text()
        assert "/tmp" not in text and "Traceback" not in text, text
    assert page.session.selection.view.row == before and page.selected == sum(ROWS)


@needs_chromium[0]
@needs_chromium[1]
def test_without_the_projector_the_page_calls_the_place_a_stand_in(browser, world):
    from nenya.portal.holding import Portal

    portal = Portal(world.dataset(projector=False), "a", world.encoder())
    portal.url, stop = serve(portal)
    try:
        page = Page(browser, portal)
        Form(page).send("x.npy", saved(world.images[TWIN]), "shown under New image")
        text = page.page.locator(".note").first.inner_text()
        assert "an approximation, the mean position of the five closest" in text and "projector=" in text
        mark, five = page.session.planes["umap"].mark.data, world.places[page.session.near_rows[:5]]
        assert five[:, 0].min() <= mark["x"][0] <= five[:, 0].max()
        assert five[:, 1].min() <= mark["y"][0] <= five[:, 1].max()
        page.check_quiet()
    finally:
        stop()


@needs_chromium[0]
@needs_chromium[1]
def test_a_projector_of_other_data_that_takes_the_place_of_the_tables_is_said_in_the_page(browser, world, tmp_path):
    from nenya.portal.holding import Portal

    path, other = tmp_path / "a_UMAP.h5", tmp_path / "other.h5"
    shutil.copy(world.projector, path)
    portal = Portal(
        world.dataset(projector=path),
        "a",
        world.encoder(),
        reopen=lambda: world.dataset(projector=path),
        look_every=0.2,
    )
    portal.url, stop = serve(portal)
    try:
        page = Page(browser, portal)
        rows = np.random.default_rng(1).normal(size=(60, 5))
        Projector.fit(rows, 8, embedding=rows[:, :2]).save(other)
        other.replace(path)
        page.page.locator("#news .note", has_text="this page shows the earlier state").wait_for(timeout=300_000)
        Form(page).send("x.npy", saved(world.images[TWIN]), "shown under New image")
        away = np.subtract(page.session.upload.place, world.places[TWIN])
        assert np.abs(away).max() < 0.05 * np.ptp(world.places, axis=0).max()
        page.check_quiet()
    finally:
        stop()
