"""Generated latents of the structure of real ones, in files of a million rows, with their tables: data of growth.py.

A row is a point of a curved surface of ten dimensions in 256, plus noise: z of a mixture of 300 clusters, unlike in
size, goes through a fixed random layer of sines. Rows come in granules of 250 with a common place, time and offset of
z, so that neighbours of a row are often of its own granule, as in cutouts that overlap. Every file has its own seed:
file 7 is the same whatever is made besides.
"""

from pathlib import Path

import h5py
import numpy as np
import pandas as pd

FILE_ROWS = 1_000_000
DIM, HIDDEN, INNER, CLUSTERS, GRANULE = 256, 96, 10, 300, 250
_NOISE, _BLOCK = 0.025, 50_000


class Surface:
    """The distribution of the latents; the same for every file."""

    def __init__(self):
        rng = np.random.default_rng(2026)
        self.centres = rng.standard_normal((CLUSTERS, INNER)) * 1.6
        self.spread = rng.uniform(0.15, 0.6, CLUSTERS)
        share = rng.pareto(1.2, CLUSTERS) + 0.2
        self.share = share / share.sum()
        self.first = (rng.standard_normal((INNER, HIDDEN)) * 0.7).astype(np.float32)
        self.phase = rng.uniform(0, 2 * np.pi, HIDDEN).astype(np.float32)
        self.second = (rng.standard_normal((HIDDEN, DIM)) / HIDDEN**0.5).astype(np.float32)

    def granules(self, count, rng):
        """Return the offsets of z of granules, (count, INNER), their spreads (count,)."""
        own = rng.choice(CLUSTERS, count, p=self.share)
        middle = self.centres[own] + self.spread[own, None] * rng.standard_normal((count, INNER))
        return middle, 0.4 * self.spread[own]

    def rows(self, middle, spread, rng):
        """Return unit latents (rows, DIM) float32 of rows with a middle and a spread."""
        z = (middle + spread[:, None] * rng.standard_normal(middle.shape)).astype(np.float32)
        found = np.sin(z @ self.first + self.phase) @ self.second
        found += _NOISE * rng.standard_normal(found.shape, dtype=np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def name_of(number):
    """Return the name of a cutout file without suffix."""
    return f"year{number:02d}"


def make_file(folder, number, rows=FILE_ROWS):
    """Write the latents file and the table of a cutout file, unless they are there; return their paths."""
    latents, table = folder / f"{name_of(number)}_latents.h5", folder / "tables" / f"{name_of(number)}.parquet"
    if not (latents.is_file() and table.is_file()):
        table.parent.mkdir(parents=True, exist_ok=True)
        rng, surface = np.random.default_rng([1, number]), Surface()
        middle, spread = surface.granules(rows // GRANULE, rng)
        made_table(number, rows, rng).to_parquet(table, row_group_size=2**17)
        with h5py.File(latents.with_suffix(".tmp"), "w") as file:
            data = file.create_dataset("valid", (rows, DIM), "<f4")
            for start in range(0, rows, _BLOCK):
                own = np.arange(start, min(start + _BLOCK, rows)) // GRANULE
                data[start : start + _BLOCK] = surface.rows(middle[own], spread[own], rng)
            file.attrs.update(source=f"{name_of(number)}.h5", checkpoint_sha256="0" * 64, latent="representation")
        latents.with_suffix(".tmp").replace(latents)
    return latents, table


def made_table(number, rows, rng):
    """Return the table of a file: keys, granule, place and time, four quantities, and a UMAP."""
    count = rows // GRANULE
    own = np.arange(rows) // GRANULE
    lat, lon = np.degrees(np.arcsin(rng.uniform(-0.9, 0.9, count))), rng.uniform(-180, 180, count)
    begin = np.datetime64("2003-01-01T00:00:00", "us") + np.timedelta64(365 * number, "D")
    times = np.sort(begin + rng.integers(0, 365 * 86_400, count).astype("m8[s]"))
    t10 = 28 - 0.3 * np.abs(lat[own]) + rng.standard_normal(rows)
    t90 = t10 + rng.exponential(1.0, rows)
    return pd.DataFrame(
        {
            "pp_file": pd.Categorical.from_codes(np.zeros(rows, np.int8), [f"{name_of(number)}.h5"]),
            "pp_type": np.zeros(rows, np.int64),
            "pp_idx": np.arange(rows),
            "UID": number * 10**9 + np.arange(rows),
            "filename": pd.Categorical.from_codes(own, [f"AQUA_MODIS.{number:02d}.{i:06d}.nc" for i in range(count)]),
            "lat": lat[own] + rng.uniform(-3, 3, rows),
            "lon": np.clip(lon[own] + rng.uniform(-3, 3, rows), -180, 180),
            "datetime": times[own],
            "T90": t90,
            "T10": t10,
            "DT": t90 - t10,
            "clear_fraction": 1 - rng.exponential(0.02, rows),
            "US0": rng.standard_normal(rows),
            "US1": rng.standard_normal(rows),
        }
    )


def make_table(folder, files):
    """Write one table of the first files, unless it is there; return its path."""
    import pyarrow.parquet as pq

    path = folder / f"table{files:02d}.parquet"
    if not path.is_file():
        parts = [folder / "tables" / f"{name_of(number)}.parquet" for number in range(files)]
        schema = pq.read_schema(parts[0])
        with pq.ParquetWriter(path.with_suffix(".tmp"), schema) as writer:
            for part in parts:
                source = pq.ParquetFile(part)
                for group in range(source.num_row_groups):
                    writer.write_table(source.read_row_group(group).cast(schema))
        path.with_suffix(".tmp").replace(path)
    return path


def make(folder, files):
    """Write the data of a number of million rows."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for number in range(files):
        make_file(folder, number)
    return make_table(folder, files)
