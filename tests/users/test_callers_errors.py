"""What a script that expects Python's own exceptions catches."""

import h5py
import numpy as np
import pytest

from nenya import analyze_image, errors, nenya_umap, pca
from nenya.io import Params, load_opt, read_table
from nenya.models.checkpoint import load_checkpoint


def test_each_error_is_also_pythons_own():
    for kind in (errors.InputFileError, errors.CheckpointError, errors.OutputError, errors.StorageError):
        assert issubclass(kind, OSError)
    for kind in (errors.OptionError, errors.InputFileError):
        assert issubclass(kind, ValueError)
    for kind in (errors.MissingFileError, errors.MissingCheckpointError, errors.MissingOptionFileError):
        assert issubclass(kind, FileNotFoundError)


@pytest.mark.parametrize("read", [read_table, Params, load_checkpoint])
def test_a_missing_file_is_not_found(tmp_path, read):
    with pytest.raises(FileNotFoundError, match="missing") as caught:
        read(tmp_path / "missing.parquet")
    assert isinstance(caught.value, errors.NenyaError)
    assert "None" not in str(caught.value)


def test_an_unknown_model_is_an_os_error():
    for call in (load_opt, nenya_umap.load):
        with pytest.raises(OSError, match="v99"):
            call("v99")


def test_a_bad_value_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="epochs"):
        Params({"epochs": "many"})
    with pytest.raises(OSError, match="shape"):
        analyze_image.calc_DT(np.zeros(3), [40, 5])
    with h5py.File(tmp_path / "a_latents.h5", "w") as file:
        file["valid"] = np.eye(4, 3, dtype="f4")
    with pytest.raises(ValueError, match="Nmax=5"):
        pca.fit_latents(tmp_path / "a_latents.h5", tmp_path / "a.npz", None, 5)
    with pytest.raises(OSError, match="train"):
        pca.fit_latents(tmp_path / "a_latents.h5", tmp_path / "a.npz", "train")
