"""An archive of masked cutouts: its calibration is kept with the version, and every later file uses it."""

import h5py
import numpy as np
import pandas as pd
from conftest import red_noise, write_cutouts

from nenya.archive.folder import open_version
from nenya.data.mask_shapes import varied_masks
from nenya.latents.calibration_file import digest_of, load
from nenya.latents.projector import Projector

TINY = ["model=demo", "model.width=1", "preprocess.masked=fill"]
QUICK = ["trainer.accelerator=cpu", "model.backend=eager"]


def write(path, seed, masked=30):
    images = red_noise(100, 16, seed)
    images[:masked][varied_masks(masked, 16, 0.4, np.random.default_rng(seed))] = np.nan
    return write_cutouts(path, train=images)


def test_later_files_get_the_cosine_of_the_first_calibration(nenya_cli, tmp_path):
    from nenya.commands.compose import compose
    from nenya.models.checkpoint import save_pth
    from nenya.models.contrastive import make_net

    (tmp_path / "w").mkdir()
    weights = tmp_path / "w" / "tiny.pth"
    save_pth(weights, make_net(compose("extract", TINY[:2])), options={}, epoch=1)
    rows = np.random.default_rng(0).standard_normal((100, 64)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    Projector.fit(rows, embedding=rows[:, :2] * 10).save(tmp_path / "w" / "map.h5")
    first, second = write(tmp_path / "a_preproc.h5", 1), write(tmp_path / "b_preproc.h5", 2)
    made = tmp_path / "made.h5"
    code, said = nenya_cli("calibrate", [first, *TINY, *QUICK, f"ckpt={weights}", f"out={made}", "masks=1"])
    assert code == 0, said
    begin = [*TINY, "k=3", "passes=1", f"ckpt={weights}", f"projector={tmp_path / 'w' / 'map.h5'}"]
    code, said = nenya_cli("update", ["archive=arc", *QUICK, *begin, f"calibration={made}", f"new={first}"])
    assert code == 0, said
    made.unlink()
    code, said = nenya_cli("update", ["archive=arc", *QUICK, f"new={second}"])
    assert code == 0, said
    opened = open_version(str(tmp_path / "arc"), None)
    kept = opened.version.calibration
    assert kept is not None and kept in list(opened.version.entries())
    digest = digest_of(load(opened.folder.local(kept)))
    for path in opened.paths("latents"):
        with h5py.File(path) as file:
            assert file.attrs["calibration_sha256"] == digest and "train_cosine_low" in file
    table = opened.table()
    assert {"clear", "cosine", "cosine_low", "umap_spread"} <= set(table)
    clear = table["clear"] == 1
    assert clear.sum() == 140 and (table["umap_spread"][clear] == 0).all() and (table["cosine_low"][clear] == 1).all()
    assert nenya_cli("status", ["arc", "check=true"])[0] == 0
    least = round(float(table["cosine_low"][~clear].median()), 4)
    below = int((~(table["cosine_low"] >= least)).sum())
    assert 0 < below < 60
    how = ["archive=arc", "like=b_preproc.h5:train:99", "k=199", f"least_cosine={least}", "out=f.csv"]
    code, said = nenya_cli("search", how)
    assert code == 0 and f"left out {below} of 200 rows" in said, said
    assert len(pd.read_csv(tmp_path / "f.csv")) == 199 - below
