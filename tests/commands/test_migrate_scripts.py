"""`nenya migrate` on scripts and notebooks: call by call, without executing them."""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from nenya.commands.migrate import CANNOT, OTHER, PARTLY, WORKS, examine
from nenya.commands.migrate_scripts import CHANGED, INSTEAD, REPLACED, _home, read_script
from nenya.errors import InputFileError

SCRIPT = """
import os
raise SystemExit("a script is never executed")
from ulmo import io as ulmo_io
from nenya import io as nenya_io, workflow, nenya_umap
from nenya.train import main as train_main
from ulmo.nenya.analyze_image import umap_image
import nenya.models.resnet_big as nets
from nenya.portal import OSSinglePortal

opt, path = nenya_io.load_opt("v5")
train_main("opts.json", debug=False, load_epoch=3)
load = nenya_umap.load
mapping, table = load("v5", DT=2.0)
workflow.evaluate("a.json", "b.h5", latents_file="c.h5")
nenya_io.load_model("x.pth", opt, False)
nenya_umap.umap_subset(table, "o.json", "out.parquet", DT_cutt="DT1")
embedding = umap_image("v5", img=None)
net = nets.SupConResNet(name="resnet50", feat_dim=128)
nenya_umap.grid_umapp(1, 2)

class Mine(OSSinglePortal):
    def find(self):
        return self.find_closest_U((0, 0))
"""


@pytest.fixture
def write(tmp_path):
    def make(name, text):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return make


def test_each_call_is_told(write):
    found = read_script(write("study.py", SCRIPT))
    said = {(call.name, call.where): (call.verdict, call.what) for call in found.calls}
    verdicts = {name.removeprefix("nenya."): verdict for (name, _), (verdict, _) in said.items()}
    assert verdicts == {
        "io.load_opt": "works",
        "train.main": "changes in meaning",
        "nenya_umap.load": "changes in meaning",
        "workflow.evaluate": "changes in meaning",
        "io.load_model": "write instead",
        "nenya_umap.umap_subset": "write instead",
        "analyze_image.umap_image": "changes in meaning",
        "models.resnet_big.SupConResNet": "works",
        "nenya_umap.grid_umapp": "write instead",
        "portal.OSSinglePortal": "changes in meaning",
    }
    assert "set aside" in said["nenya.train.main", "line 12"][1]
    assert "DT_cut?" in said["nenya.nenya_umap.umap_subset", "line 17"][1]
    assert "did you mean grid_umap" in said["nenya.nenya_umap.grid_umapp", "line 20"][1]
    assert "set_model" in said["nenya.io.load_model", "line 16"][1]
    assert found.others == {"ulmo"}


def test_notebooks_are_read_cell_by_cell(write):
    cells = [
        {"cell_type": "markdown", "source": ["from nenya import nothing"]},
        {"cell_type": "code", "source": ["%matplotlib inline\n", "!ls\n", "from nenya.pca import *\n"]},
        {"cell_type": "code", "source": "%%bash\nfor x in"},
        {"cell_type": "code", "source": ["\n", "fit_latents('a.h5', 'b.npz', 100)"]},
    ]
    calls = read_script(write("a.ipynb", json.dumps({"cells": cells}))).calls
    assert [(call.where, call.name) for call in calls] == [("cell 3, line 2", "nenya.pca.fit_latents")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("old.py", "from nenya import io\nprint 'two'\n"),
        ("a.ipynb", "{"),
        ("b.ipynb", '{"cells": [{"cell_type": "code"}]}'),
        ("deep.py", "import nenya\nx = " + "(" * 500 + ")" * 500),
        ("null.py", "import nenya\0"),
        ("long.py", "import nenya" + ".io" * 100_000),
        ("chain.py", "import nenya\nx = nenya" + ".io" * 900),
        ("large.py", "x = 1\n" * 200_000),
        ("large.ipynb", json.dumps({"cells": [{"cell_type": "code", "source": ["#" * 300_000]}] * 4})),
        ("many.py", "import nenya.io\n" + "nenya.io.load_opt(1)\n" * 6000),
    ],
)
def test_what_is_not_a_script_is_refused_in_one_line(write, name, text):
    with pytest.raises(InputFileError) as error:
        read_script(write(name, text))
    assert "\n" not in str(error.value)


def test_names_of_a_megabyte_are_cut(write):
    found = read_script(
        write("a.py", f"import nenya.io\nnenya.io.{'x' * 10**6}()\nnenya.io.load_opt({'y' * 9999}=1)\n")
    )
    assert len(found.calls) == 2 and all(len(str(call)) < 500 for call in found.calls)


def test_scripts_in_any_encoding_are_read(write, tmp_path):
    code = "from nenya import io\nio.load_opt('v5')  # caf\u00e9\n"
    (tmp_path / "mark.py").write_text(code, encoding="utf-8-sig")
    (tmp_path / "latin.py").write_text("# -*- coding: latin-1 -*-\n" + code, encoding="latin-1")
    for name in ("mark.py", "latin.py"):
        assert [call.name for call in read_script(tmp_path / name).calls] == ["nenya.io.load_opt"], name


def test_commands_of_the_shell_and_of_ipython_are_no_obstacle(write):
    cells = [
        ["%%time\n", "from nenya import pk\n", "files = !ls\n", "if files:\n", "    !pwd\n", "pk?\n"],
        ["%time pk.load_images('a.h5')\n", "%matplotlib inline\n", "x = %who_ls\n"],
        ["%%bash\n", "nenya train | head -1\n"],
    ]
    cells = [{"cell_type": "code", "source": cell} for cell in cells]
    calls = read_script(write("a.ipynb", json.dumps({"cells": cells}))).calls
    assert [(call.where, call.name) for call in calls] == [("cell 2, line 1", "nenya.pk.load_images")]


def test_an_import_that_fails_is_told_without_a_call(write):
    text = "import nenya.nothing\nfrom nenya import workflow, moco\nfrom nenya.io import load_opt, gone\nmoco.f()\n"
    found = {call.name: (call.where, call.verdict) for call in read_script(write("a.py", text)).calls}
    assert found["nenya.nothing"] == ("line 1", INSTEAD) and found["nenya.io.gone"] == ("line 3", INSTEAD)
    assert not {"nenya.workflow", "nenya.io.load_opt"} & set(found)


def test_what_is_no_regular_file_is_said(tmp_path):
    os.mkfifo(tmp_path / "pipe.py")
    with pytest.raises(InputFileError, match=r"pipe\.py: expected a regular file, got a pipe"):
        read_script(tmp_path / "pipe.py")


def test_the_lists_name_what_is_and_what_is_not():
    for name in CHANGED:
        module, _, inner = f"nenya.{name}".rpartition(".")
        assert _home(module, inner) == (module, inner), name
    for name in REPLACED:
        module, _, inner = f"nenya.{name}".rpartition(".")
        assert _home(module, inner) is None, name


CALLS = """analyze_image.calc_DT get_latents umap_image; io.Params load_main_table load_opt losses_filenames
write_main_table; latents_extraction.evaluate main model_latents_extract prep; losses.SupConLoss;
models.resnet_big.SupConResNet LinearClassifier; nenya_umap.cutouts_on_umap_grid grid_umap load regional_analysis
umap_subset; params.Params option_preprocess; pca.find_eigenmatches fit_latents; pk.load_images plot_spectrum
orig_compute_ensemble_spectrum_parallel; plotting.learn_curve umap_gallery; portal.Image OSSinglePortal; train.main;
train_util.nenya_loader option_preprocess set_model train_model; umap.umap_latents; util.AverageMeter
adjust_learning_rate save_model warmup_learning_rate; workflow.chk_latents evaluate find_eigenmodes return_task train"""


def test_every_counted_call_is_there(write):
    import importlib

    for part in CALLS.split(";"):
        first, *more = part.split()
        module, _, name = first.rpartition(".")
        for inner in (name, *more):
            assert callable(getattr(importlib.import_module(f"nenya.{module}"), inner)), (module, inner)
            call = read_script(write("a.py", f"import nenya.{module}\nnenya.{module}.{inner}()")).calls[0]
            assert call.verdict != "write instead", str(call)


def test_a_folder_with_scripts(write, tmp_path, nenya_cli):
    write("study.py", SCRIPT)
    write("good.py", "from nenya.io import load_opt\nload_opt('v5')\n")
    write("plain.py", "print('hello')\n")
    write("old.py", "print 'two'\n")
    found = {finding.path: finding for finding in examine(tmp_path)}
    assert {path: finding.verdict for path, finding in found.items()} == {
        "study.py": PARTLY, "good.py": WORKS, "plain.py": OTHER, "old.py": CANNOT,
    }  # fmt: skip
    code, said = nenya_cli("migrate", [f"folder={tmp_path}"])
    assert code == 1
    assert "line 16: nenya.io.load_model: write instead: model, _ = nenya.train_util.set_model(opt)" in said
    assert "ulmo is not part of nenya" in said


def test_latents_without_a_table_do_not_simply_work(tmp_path):
    def latents(name):
        with h5py.File(tmp_path / name, "w") as file:
            file["valid"] = np.eye(6, 4, dtype="f4")

    def verdicts():
        return {finding.path: finding.verdict for finding in examine(tmp_path) if finding.path.endswith(".h5")}

    latents("a_latents.h5")
    assert verdicts() == {"a_latents.h5": PARTLY}
    table = pd.DataFrame({"pp_file": "b_preproc.h5", "pp_type": 0, "pp_idx": np.arange(6), "lat": 1.0, "lon": 2.0})
    table.to_parquet(tmp_path / "t.parquet")
    latents("b_latents.h5")
    assert verdicts() == {"a_latents.h5": PARTLY, "b_latents.h5": WORKS}
    assert Path(tmp_path / "t.parquet").exists()
