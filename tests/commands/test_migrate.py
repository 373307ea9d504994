"""`nenya migrate`: each file of a folder of the first nenya is told, and what it names to do is done."""

import importlib
import json
import pickle
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import red_noise, write_cutouts

from nenya.commands.compose import command_names, compose
from nenya.commands.migrate import CANNOT, CONVERT, OTHER, PARTLY, WORKS, Finding, examine
from nenya.io import Params, read_table, write_table
from nenya.latents.files import open_latents
from nenya.models.checkpoint import load_checkpoint
from nenya.models.resnet import ContrastiveNet
from nenya.options.sections import Options

ROOT = Path(__file__).resolve().parents[2]

NAME = "MODIS_R2019_2010_95clear_128x128_preproc_std"
MAP = "MODIS_Nenya_96clear_v5_DT1"
ROWS = 60


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def old_checkpoint(path, monkeypatch):
    """Write a whole network as the first nenya did: a class among the options, `module.` in the names."""
    module = types.ModuleType("nenya.params")
    module.Params = type("Params", (), {"__module__": "nenya.params"})
    monkeypatch.setitem(sys.modules, "nenya.params", module)
    opt = module.Params()
    opt.__dict__.update(ssl_model="resnet18", feat_dim=16, epochs=3)
    torch.manual_seed(0)
    net = ContrastiveNet("resnet18", feat_dim=16, nchannels=3, width=4)
    names = {name.replace("encoder.", "encoder.module."): value for name, value in net.state_dict().items()}
    torch.save({"opt": opt, "model": names, "optimizer": {}, "epoch": 3}, path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of the first nenya, with what else lies about in such folders."""
    place = tmp_path / "Nenya of 2023"
    for below in ("models/v5", "PreProc", "latents", "Tables", "UMAP", "wandb/run-1", "learning_curve"):
        (place / below).mkdir(parents=True)
    old_checkpoint(place / "models/v5/last.pth", monkeypatch)
    (place / "models/v5/cut.pth").write_bytes((place / "models/v5/last.pth").read_bytes()[:9000])
    images = red_noise(ROWS)
    with h5py.File(place / f"PreProc/{NAME}.h5", "w") as file:
        file.create_dataset("valid", data=images[:, None], chunks=(60, 1, 4, 4), compression="gzip")
    write_cutouts(place / "PreProc/bytes.h5", train=np.zeros((4, 1, 32, 32), np.uint8))
    vectors = np.random.default_rng(0).standard_normal((ROWS, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for name in (f"{NAME}_latents.h5", "another_name.h5"):
        with h5py.File(place / "latents" / name, "w") as file:
            file["valid"] = vectors
    with h5py.File(place / "learning_curve/SimCLR_losses_train.h5", "w") as file:
        file["loss_train"] = np.ones(3)
    table = pd.DataFrame(
        {
            "lat": np.linspace(-60, 60, ROWS), "lon": np.linspace(-180, 170, ROWS), "clear_fraction": 0.02,
            "T90": 1.0, "T10": 0.25, "pp_file": f"s3://modis-l2/PreProc/{NAME}.h5", "ulmo_pp_type": 0,
            "pp_idx": np.arange(ROWS), "US0": 0.0, "US1": 1.0,
        }
    )  # fmt: skip
    write_table(table, place / "Tables/MODIS_Nenya_v5.parquet")
    write_table(pd.DataFrame({"price": [1.0]}), place / "Tables/bill.csv")
    (place / "Tables/broken.feather").write_bytes(b"FEA1 and no more")
    (place / f"UMAP/{MAP}_UMAP.pkl").write_bytes(
        b"\x80\x03cumap.umap_\nUMAP\n" + pickle.dumps(Trap(tmp_path / "sprung"))
    )
    (place / "UMAP/other.pkl").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    (place / "opts_typo.json").write_text('{"feat_dim": 256, "ssl_model": "resnet50", "temp": 0.07, "epoch": 5}')
    (place / "opts_cut.json").write_text('{"feat_dim": 256,')
    (place / "package.json").write_text('{"name": "a", "version": 1, "private": true}')
    (place / "notes.txt").write_text("what we did")
    (place / "earlier_report.json").write_text('[{"path": "opts.json", "verdict": "works"}]')
    (place / "gone.h5").symlink_to(place / "nowhere.h5")
    np.savez(place / "pca.npz", Y=np.zeros((4, 2)), M=np.zeros((2, 3)), mean=np.zeros(3), explained_variance=np.ones(2))
    return place


@pytest.fixture
def by_path(folder):
    return {finding.path: finding for finding in examine(folder)}


def test_each_file_is_told(by_path):
    verdicts = {path: finding.verdict for path, finding in by_path.items()}
    assert verdicts == {
        f"PreProc/{NAME}.h5": WORKS, "PreProc/bytes.h5": CANNOT, f"latents/{NAME}_latents.h5": WORKS,
        "latents/another_name.h5": PARTLY, "learning_curve/SimCLR_losses_train.h5": WORKS,
        "Tables/MODIS_Nenya_v5.parquet": CONVERT, "Tables/bill.csv": OTHER, "Tables/broken.feather": CANNOT,
        f"UMAP/{MAP}_UMAP.pkl": CONVERT, "UMAP/other.pkl": CANNOT, "models/v5/last.pth": WORKS,
        "models/v5/cut.pth": CANNOT, "wandb": WORKS, "opts_typo.json": CANNOT, "opts_cut.json": CANNOT,
        "package.json": OTHER, "earlier_report.json": OTHER, "notes.txt": OTHER, "gone.h5": CANNOT, "pca.npz": WORKS,
    }  # fmt: skip


def test_what_cannot_be_used_says_why(by_path):
    reasons = {
        "PreProc/bytes.h5": "uint8", "Tables/broken.feather": "cannot be read as a table", "gone.h5": "a link to",
        "UMAP/other.pkl": "open, which nenya never reads", "models/v5/cut.pth": "damaged",
        "opts_typo.json": "unknown option epoch; did you mean epochs?", "opts_cut.json": "not a JSON option file",
    }  # fmt: skip
    for path, words in reasons.items():
        assert words in by_path[path].what, (path, by_path[path].what)
        assert by_path[path].command is None
    assert {path for path, finding in by_path.items() if finding.verdict == CANNOT} == set(reasons)


def test_notes_say_what_differs(by_path):
    said = {path: " ".join(finding.notes) for path, finding in by_path.items()}
    assert "belong to the old UMAP" in said["Tables/MODIS_Nenya_v5.parquet"]
    assert "share of masked pixels" in said["Tables/MODIS_Nenya_v5.parquet"]
    assert "match *_latents.h5" in said["latents/another_name.h5"]
    assert "automatic chunks" in said[f"PreProc/{NAME}.h5"]
    assert "ssl_model=resnet18 model.feat_dim=16 model.width=4" in by_path["models/v5/last.pth"].what


def test_the_commands_that_it_names_work(folder, by_path, tmp_path, nenya_cli):
    commands = {p: shlex.split(f.command) for p, f in by_path.items() if f.command and "UMAP" not in p}
    assert len(commands) == 5
    for path, words in commands.items():
        if words[0] == "nenya":
            code, said = nenya_cli(words[1], words[2:])
            assert code == 0, (path, said)
        else:
            subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, check=True)
    out = tmp_path / "migrated"
    weights = load_checkpoint(out / "models/v5/last.safetensors")
    old = load_checkpoint(folder / "models/v5/last.pth")
    assert all(torch.equal(old.state_dict[name], tensor) for name, tensor in weights.state_dict.items())
    assert weights.epoch == 3 and weights.options["feat_dim"] == 16
    np.testing.assert_allclose(read_table(out / "Tables/MODIS_Nenya_v5.parquet")["clear_fraction"], 0.98)
    with h5py.File(out / f"PreProc/{NAME}.h5") as file, h5py.File(folder / f"PreProc/{NAME}.h5") as source:
        np.testing.assert_array_equal(file["valid"][:], source["valid"][:])
        assert file["valid"].chunks[-1] == 32


def test_a_pickled_map_is_not_read_and_its_command_is_of_files_that_are_there(folder, by_path, tmp_path):
    words = shlex.split(by_path[f"UMAP/{MAP}_UMAP.pkl"].command)
    options = compose(words[1], words[2:])
    assert words[:2] == ["nenya", "embed"] and options.DT_cut == "DT1"
    found = open_latents(options.data).positions(read_table(options.table))
    assert (found == np.arange(ROWS)).all()
    assert by_path[f"UMAP/{MAP}_UMAP.pkl"].notes == []
    (folder / f"UMAP/{MAP}_UMAP.pkl").rename(folder / "UMAP/LLC_UMAP.pkl")
    other = {finding.path: finding for finding in examine(folder)}["UMAP/LLC_UMAP.pkl"]
    assert "the names do not show that it was a UMAP of" in other.notes[0]
    (folder / "UMAP/LLC_UMAP.pkl").rename(folder / f"UMAP/{MAP}_UMAP.pkl")
    assert not (tmp_path / "sprung").exists()
    (folder / f"latents/{NAME}_latents.h5").unlink()
    (folder / "latents/another_name.h5").unlink()
    again = {finding.path: finding for finding in examine(folder)}[f"UMAP/{MAP}_UMAP.pkl"]
    assert again.verdict == CANNOT and "no latents in the folder: with them, nenya embed" in again.what


@pytest.mark.slow
def test_a_pickled_map_is_fitted_again_by_the_command(by_path, tmp_path, nenya_cli):
    words = shlex.split(by_path[f"UMAP/{MAP}_UMAP.pkl"].command)
    code, said = nenya_cli(words[1], words[2:])
    assert code == 0, said
    table = read_table(tmp_path / f"migrated/Tables/{MAP}.parquet")
    assert len(table) == ROWS and np.isfinite(table[["US0", "US1"]]).all(axis=None)
    assert (tmp_path / f"migrated/UMAP/{MAP}_UMAP.h5").is_file()


def test_nothing_in_the_folder_changes_and_the_report_is_written(folder, tmp_path, nenya_cli):
    before = {path: path.lstat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    code, said = nenya_cli("migrate", [folder, "out=report.json"])
    assert code == 1
    assert "20 files: 6 work as they are, 1 work in part, 2 to convert, 7 cannot be used, 4 of other kinds" in said
    assert {path: path.lstat().st_mtime_ns for path in [folder, *folder.rglob("*")]} == before
    assert [Finding(**row) for row in json.loads((tmp_path / "report.json").read_text())] == examine(folder)
    code, _ = nenya_cli("migrate", [f"folder={folder}", "out=report.csv"])
    rows = read_table(tmp_path / "report.csv")
    assert code == 1 and list(rows["verdict"]).count("cannot") == 7
    for place, words in (
        (folder / "report.json", "expected a place outside the inspected folder"),
        ("report.json", "exists"),
    ):
        code, said = nenya_cli("migrate", [folder, f"out={place}"])
        assert code == 2 and words in said
    code, said = nenya_cli("migrate", [tmp_path / "nowhere"])
    assert code == 2 and "no such folder" in said
    code, said = nenya_cli("migrate", [tmp_path / "report.json"])
    assert code == 2 and "is a file: give its folder" in said
    code, said = nenya_cli("migrate", [folder, "out=report.json/x.csv"])
    assert code == 2 and "nenya migrate: cannot write report.json/x.csv: File exists" in said


def test_option_files_of_all_versions_and_checkpoints_of_all_names(shared, goldens, tmp_path, nenya_cli):
    facts = yaml.safe_load((shared / "facts/model_versions.yaml").read_text())
    place = tmp_path / "old"
    place.mkdir()
    for name, own in facts["versions"].items():
        values = {**facts["common"], **own, "cuda_use": True, "print_freq": 10}
        (place / f"opts_{name}.json").write_text(json.dumps(values))
    (place / "modis.parquet").write_bytes((shared / "data/modis_metadata_sample.parquet").read_bytes())
    code, said = nenya_cli("migrate", [place])
    assert code == 0, said
    found = {finding.path: finding for finding in examine(place)}
    assert len(found) == len(facts["versions"]) + 1
    for name in facts["versions"]:
        assert found[f"opts_{name}.json"].verdict == WORKS
        assert Params(shlex.split(found[f"opts_{name}.json"].what)[-1].removeprefix("model=")).ssl_model == "resnet50"
        assert any("print_freq has no effect" in note for note in found[f"opts_{name}.json"].notes)
    for path in sorted((goldens / "checkpoints").iterdir()):
        (place / path.name).write_bytes(path.read_bytes())
    code, said = nenya_cli("migrate", [place])
    assert code == 1
    found = {f.path: f for f in examine(place) if f.path.startswith("tiny")}
    assert len(found) == 8 and {f.verdict for f in found.values()} == {CANNOT}
    hostile = found.pop("tiny_hostile.pth").what
    assert "refused: it would load" in hostile and "nothing was executed" in hostile
    for finding in found.values():
        assert "7 tensors (epoch 3) were read" in finding.what and "get the complete file" in finding.what


def test_the_guide_names_what_there_is(shared):
    text = (ROOT / "docs/migrate.md").read_text()
    names = set(re.findall(r"`(nenya(?:\.\w+)+)`", text.split("## Old call, new call")[1]))
    assert len(names) > 15
    for name in names:
        module, _, attribute = name.rpartition(".")
        if attribute == "transform":
            module, _, kind = module.rpartition(".")
            assert hasattr(getattr(importlib.import_module(module), kind), attribute)
        else:
            assert hasattr(importlib.import_module(module), attribute), name
    assert set(re.findall(r"nenya (\w+) [a-z]+=", text)) <= set(command_names())
    rows = re.findall(r"^\| `([a-z_.]+)` \| [^|]* \| `([\w-]+)` \|", text, re.M)
    assert len(rows) == 8
    for key, value in rows:
        found = Options()
        for part in key.split("."):
            found = getattr(found, part)
        assert str(found) == value, key
    common = yaml.safe_load((shared / "facts/model_versions.yaml").read_text())["common"]
    left_out = {**Params({}).dict, "nchannels": common["nchannels"]}
    assert {key: left_out[key] for key in common} == common
    assert Params({}).nchannels == 3


def test_an_empty_folder_has_nothing_to_say(tmp_path):
    (tmp_path / "old").mkdir()
    assert examine(tmp_path / "old") == []


def test_a_file_that_breaks_what_reads_it_does_not_end_the_report(tmp_path, monkeypatch):
    def fail(path, *args):
        raise ZeroDivisionError("inside a library")

    monkeypatch.setattr("nenya.commands.migrate.inspect_file", fail)
    for name in ("a.csv", "b.txt"):
        (tmp_path / name).write_text("lat\n1\n")
    (bad, other) = examine(tmp_path)
    assert bad.verdict == CANNOT and "inside a library" in bad.what and other.verdict == OTHER


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path):
    with h5py.File(tmp_path / "outside.h5", "w") as file:
        file["train"] = np.zeros((3, 4), np.float32)
    (tmp_path / "old").mkdir()
    with h5py.File(tmp_path / "old/linked.h5", "w") as file:
        file["train"] = h5py.ExternalLink("../outside.h5", "train")
    (found,) = examine(tmp_path / "old")
    assert found.verdict == CANNOT and "allow_external" in found.what, found
