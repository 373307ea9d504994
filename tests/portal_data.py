"""A small archive for the tests of the portal: smooth fields, their latents without a network, a table."""

import json

import h5py
import numpy as np
import pandas as pd

from nenya.io import write_table

SIDE, DIM, GRANULE = 16, 12, 5


def latents_of(images):
    """Latents without a network: the fields' largest waves, of length 1."""
    waves = np.fft.rfft2(np.asarray(images, np.float64) - np.mean(images, axis=(-2, -1), keepdims=True))
    flat = np.concatenate(
        [waves.real[:, :3, :2].reshape(len(waves), -1), waves.imag[:, :3, :2].reshape(len(waves), -1)], 1
    )
    return (flat / np.linalg.norm(flat, axis=1, keepdims=True)).astype(np.float32)


def write_archive(folder, rows=(240, 60), seed=5):
    """Write cutouts, latents (one row NaN) and a table; return their paths."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(sum(rows), SIDE, SIDE)).cumsum(1).cumsum(2)
    images = (images - images.mean((1, 2), keepdims=True)).astype(np.float32) / 20
    latents = latents_of(images)
    latents[7] = np.nan
    cutouts, vectors, table = folder / "a_preproc.h5", folder / "a_preproc_latents.h5", folder / "a.parquet"
    with h5py.File(cutouts, "w") as file, h5py.File(vectors, "w") as out:
        start = 0
        for name, count in zip(("train", "valid"), rows, strict=True):
            file[name] = images[start : start + count, None]
            out[name] = latents[start : start + count]
            start += count
    count = sum(rows)
    frame = pd.DataFrame(
        {
            "lat": rng.uniform(-60, 60, count),
            "lon": rng.uniform(-180, 180, count),
            "datetime": np.datetime64("2010-01-01T00:00", "ns")
            + rng.integers(0, 1400, count)[np.arange(count) // GRANULE * GRANULE].astype("timedelta64[D]"),
            "T10": 10 + rng.normal(size=count),
            "region": rng.choice(["here", "there"], count),
            "filename": [f"<granule {i // GRANULE}>" for i in range(count)],
            "US0": latents[:, 1] * 10,
            "US1": latents[:, 2] * 10,
            "pp_file": "s3://bucket/a_preproc.h5",
            "pp_type": np.repeat([1, 0], rows),
            "pp_idx": np.concatenate([np.arange(n) for n in rows]),
        }
    )
    frame["T90"] = frame["T10"] + rng.gamma(2, 0.5, count)
    write_table(frame, table)
    return table, vectors, cutouts


def settings_of(page):
    """Return what a page of the portal tells its script: its key, its token."""
    return json.loads(page.split('id="settings">')[1].split("</script>")[0])


def token_of(page):
    """Return the token by which a page opens its websocket."""
    return settings_of(page)["item"]["token"]
