"""Numbers that nenya made once of generated cutouts, and joins written by hand, for clones without other data."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import write_cutouts

sys.path.insert(0, str(Path(__file__).parent))

from reference import make

from nenya.latents.files import Latents
from nenya.models.checkpoint import save_pth
from nenya.models.resnet import ContrastiveNet

NAMES = [f"{kind}_{network}" for kind in ("latents", "features") for network in make.NETWORKS]
NAMES += ["views_v4", "views_v2", "power_hann", "power_none", "slopes_hann", "slopes_none", "DT", "loss", "metrics"]
TOLERANCE = {"latents": 1e-5, "features": 1e-4, "views": 1e-4, "power": 1e-6, "slopes": 1e-6, "metrics": 1e-5}


@pytest.fixture(scope="module")
def stored():
    assert make.PLACE.stat().st_size < 500_000
    with np.load(make.PLACE) as file:
        return dict(file)


@pytest.fixture(scope="module")
def found(stored):
    return make.values(stored["images"])


def test_the_cutouts_are_those_of_the_rule(stored):
    np.testing.assert_allclose(stored["images"], make.images(), atol=1e-6)
    assert stored["images"].std() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_what_they_were(stored, found, name):
    tolerance = TOLERANCE.get(name.partition("_")[0], 1e-5)
    scale = float(np.abs(stored[name]).max())
    np.testing.assert_allclose(found[name], stored[name], rtol=tolerance, atol=tolerance * scale)
    assert found.keys() | {"images"} == stored.keys()


def test_latents_of_a_file_are_those_of_the_network(stored, tmp_path, nenya_cli):
    write_cutouts(tmp_path / "a_preproc.h5", train=stored["images"][:5], valid=stored["images"][5:])
    net = ContrastiveNet(*make.NETWORKS["a"])
    net.load_state_dict(make.golden_state_dict([(k, tuple(v.shape), v.dtype) for k, v in net.state_dict().items()]))
    save_pth(tmp_path / "w.pth", net, options={}, epoch=1)
    code, said = nenya_cli("extract", ["a_preproc.h5", "ckpt=w.pth", "trainer.accelerator=cpu"])
    assert code == 0, said
    latents = Latents([tmp_path / "a_preproc_latents.h5"])
    np.testing.assert_allclose(latents[:], stored["latents_a"], atol=1e-5)
    # (file name in the table, partition, row) -> row of the latents, -1 for none
    joins = [
        (("a_preproc.h5", 1, 0), 0), (("a_preproc.h5", 0, 0), 5), (("a_preproc.h5", 0, 2), 7),
        (("s3://bucket/PreProc/a_preproc.h5", 1, 4), 4), (("a_preproc", 1, 1), 1), (("a_preproc.h5", 1, 5), -1),
        (("b_preproc.h5", 1, 0), -1), (("a_preproc.h5", 0, 3), -1),
    ]  # fmt: skip
    table = pd.DataFrame([key for key, _ in joins], columns=["pp_file", "pp_type", "pp_idx"])
    for own in (table, table.rename(columns={"pp_type": "ulmo_pp_type"})):
        assert list(latents.join(own).number) == [number for _, number in joins]
