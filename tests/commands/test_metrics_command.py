import json
import re
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import red_noise, write_cutouts

from nenya.commands.compose import compose
from nenya.commands.metrics import _quantities, table_of
from nenya.errors import OptionError
from nenya.latents import metrics
from nenya.latents.components import fit_pca
from nenya.latents.eigen_images import nearest_latents, optimise_images
from nenya.latents.invariance import invariances
from nenya.latents.metrics import rankme, uniformity
from nenya.latents_extraction import calc_latent
from nenya.models.contrastive import load_model
from nenya.options.sections import AugmentOptions
from nenya.pca import load, open_coefficients


@pytest.fixture(scope="module")
def net(tiny_weights):
    """The module of the untrained network of `model=demo`."""
    options = compose("metrics", ["model=demo", f"ckpt={tiny_weights}"])
    return load_model(options, options.ckpt)[1].eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory, net):
    """A cutout file with a missing pixel, its latents and its table."""
    folder = tmp_path_factory.mktemp("metrics")
    images = {"train": red_noise(48, seed=1), "valid": red_noise(16, seed=2)}
    scale = np.geomspace(0.2, 3, 48)
    images["train"] *= scale[:, None, None].astype(np.float32)
    images["train"][5, 3, 3] = np.nan
    write_cutouts(folder / "few_preproc.h5", **images)
    latents = {name: calc_latent(net, torch.from_numpy(array[:, None]), False) for name, array in images.items()}
    with h5py.File(folder / "few_preproc_latents.h5", "w") as file:
        for name, array in latents.items():
            file[name] = array
    table = pd.DataFrame(
        {
            "pp_file": "few_preproc.h5",
            "pp_type": 1,
            "pp_idx": np.arange(48),
            "lat": np.linspace(-60, 60, 48),
            "datetime": pd.date_range("2012-01-01", periods=48, freq="9D"),
            "T10": -scale,
            "T90": scale,
        }
    )
    table.to_parquet(folder / "few.parquet")
    return folder, latents


def test_a_page_and_numbers_of_all_that_is_given(files, tiny_weights, nenya_cli):
    folder, latents = files
    args = [folder / "few_preproc_latents.h5", f"table={folder / 'few.parquet'}", f"images={folder}", "model=demo"]
    args += [f"ckpt={tiny_weights}", f"out={folder / 'out'}", "neighbours=4", "cutouts=16", "modes=2", "steps=3"]
    code, said = nenya_cli("metrics", args)
    assert code == 0, said
    results = json.loads((folder / "out" / "few_preproc_latents_metrics.json").read_text())
    good = np.concatenate([np.delete(latents["train"], 5, axis=0), latents["valid"]])
    assert results["nonfinite_rows"] == 1
    assert results["spectrum"]["rankme"] == pytest.approx(rankme(good), rel=1e-9)
    assert results["uniformity"] == pytest.approx(uniformity(good), rel=1e-9)
    assert set(results["neighbours"]) == {"DT", "latitude", "season"}
    assert results["neighbours"]["DT"]["column"] == "T90 - T10"
    assert results["network_against_file"] < 1e-4
    assert results["eigen_images"]["rows"][0][0] != 5
    page = (folder / "out" / "few_preproc_latents_metrics.html").read_text()
    assert "N99" in said and "N99" in page
    written = [
        str(folder / "out" / f"few_preproc_latents_{end}") for end in ("metrics.json", "metrics.html", "pca.npz")
    ]
    assert said.splitlines()[-3:] == written and all(Path(name).is_file() for name in written)
    assert page.count("data:image/") == 2
    assert not re.search(r"(src|href)=.(?!data:)", page), "the page asks for something outside itself"
    assert "<script" not in page
    pca = load(folder / "out" / "few_preproc_latents_pca.npz")
    assert pca.modes_for(0.95) == results["spectrum"]["N95"]
    assert np.isnan(open_coefficients(folder / "out" / "few_preproc_latents_pca.npz")[5]).all()
    code, said = nenya_cli("metrics", args)
    assert code == 2 and "exists" in said and "clobber=true" in said


def test_what_cannot_be_is_said_in_one_line(files, nenya_cli, tmp_path):
    folder, _ = files
    latents = folder / "few_preproc_latents.h5"
    code, said = nenya_cli("metrics", [latents, f"images={folder}"])
    assert code == 2 and "images= needs the weights" in said
    code, said = nenya_cli("metrics", [latents, f"table={folder / 'few.parquet'}", "neighbours=47", "out=a"])
    assert code == 2 and "expected more than neighbours=47 rows of the table" in said
    pd.read_parquet(folder / "few.parquet").assign(pp_file="other.h5").to_parquet("other.parquet")
    code, said = nenya_cli("metrics", [latents, "table=other.parquet", "out=b"])
    assert code == 2 and "no row of the table has a latent" in said
    assert not (tmp_path / "b").exists()


def test_an_invariant_encoder_is_found_invariant_and_another_is_not():
    images = torch.from_numpy(red_noise(24, side=32, seed=4)[:, None])
    options = AugmentOptions(random_jitter=[20, 3])

    def spread(batch):  # no mirroring changes it
        return torch.stack([batch.std((1, 2, 3)), batch.abs().mean((1, 2, 3)), batch.amax((1, 2, 3))], 1).numpy()

    found = invariances(spread, images, options, seed=1)
    assert found["flip"]["cosine"] == pytest.approx(1, abs=1e-6)
    assert found["rotation"]["cosine"] < 1 - 1e-6
    assert all(0 <= of["squared_distance"] <= 4 for of in found.values())
    pixels = invariances(lambda batch: batch.flatten(1).numpy(), images, options, seed=1)
    assert pixels["jitter"]["cosine"] > pixels["flip"]["cosine"]  # smooth fields: a shift of 3 pixels changes less
    assert abs(pixels["other"]["cosine"]) < 0.2
    again = invariances(lambda batch: batch.flatten(1).numpy(), images, options, seed=1)
    assert again == pixels
    still = AugmentOptions(random_jitter=[20, 0], flip=False, rotate=False)
    view = invariances(lambda batch: batch.flatten(1).numpy(), images, still, seed=1)
    assert view["jitter"]["cosine"] == pytest.approx(1, abs=1e-5)
    assert view["two_views"]["cosine"] == pytest.approx(1, abs=1e-5)
    assert view["flip"]["cosine"] < 0.9, "measured also where training does not mirror"


def test_nearest_latents_equal_a_sort_of_all_cosines():
    latents = np.random.default_rng(2).standard_normal((200, 6)).astype(np.float32)
    latents[7] = np.nan
    pca = fit_pca(latents)
    found = nearest_latents(pca, latents, modes=2, count=3)
    centred = latents - pca.mean
    cosine = centred @ pca.components[1] / np.linalg.norm(centred, axis=1)
    order = np.argsort(np.where(np.isnan(cosine), 0, cosine))
    np.testing.assert_array_equal(found.rows[2], order[::-1][:3])
    np.testing.assert_array_equal(found.rows[3], order[:3])
    np.testing.assert_allclose(found.cosines[2], cosine[order[::-1][:3]], rtol=1e-6)
    few = nearest_latents(pca, latents[5:8], modes=1, count=4)
    assert (few.rows[0] >= 0).sum() == 2
    with pytest.raises(OptionError, match="modes=7: expected 1 to 6"):
        nearest_latents(pca, latents, 7, 1)


def test_made_images_climb_towards_their_direction(net, files):
    pca = fit_pca(files[1]["valid"])
    before = optimise_images(net, pca, 1, 32, std=(0.3, 0.6), steps=0, seed=3)
    images, reached = optimise_images(net, pca, 1, 32, std=(0.3, 0.6), steps=15, smoothness=0.01, seed=3)
    assert images.shape == (2, 32, 32)
    assert (reached > before[1] + 0.2).all()
    spread = images.std(axis=(1, 2), ddof=1)
    assert (spread > 0.3).all() and (spread < 0.6).all()
    np.testing.assert_allclose(images.mean(axis=(1, 2)), 0, atol=1e-5)
    again, _ = optimise_images(net, pca, 1, 32, std=(0.3, 0.6), steps=15, smoothness=0.01, seed=3)
    np.testing.assert_array_equal(again, images)
    smooth, _ = optimise_images(net, pca, 1, 32, std=(0.3, 0.6), steps=15, smoothness=1.0, seed=3)
    assert np.abs(np.diff(smooth)).mean() < np.abs(np.diff(images)).mean()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_constants_are_not_measured_and_the_season_is_that_of_the_calendar():
    rng = np.random.default_rng(3)
    table = pd.DataFrame({"lat": np.where(np.arange(40) % 2, 30.0, -30.0), "datetime": pd.Timestamp("2012-03-01")})
    found = _quantities(table)
    assert np.ptp(found["season"][1]) == 0  # on both hemispheres
    near = metrics.nearest_rows(rng.normal(size=(40, 4)), 3)
    assert np.isnan(metrics.neighbour_agreement(near, found["season"][1], 1.0)[0])
    texts = pd.DataFrame({"latitude": [1.0, 2.0], "time": ["2012-03-01", "2012-99-01"]})
    assert np.isnan(_quantities(texts)["season"][1]).tolist() == [False, True]
    assert "season" not in _quantities(pd.DataFrame({"time": [1.5, 2.5]}))  # hours
    agreement = {"agreement": None, "error": None, "column": "lat", "rows": 40, "k": 3}
    results = {
        "spectrum": {"N95": 1, "N99": 1, "participation_ratio": 1.0, "rankme": 1.0}, "rows": {"train": 40}, "dim": 4,
        "nonfinite_rows": 0, "uniformity": None, "feature_std": None, "neighbours": {"latitude": agreement},
    }  # fmt: skip
    assert table_of(results)["neighbours agree in latitude"] == "not applicable: all rows have one value   (lat)"
