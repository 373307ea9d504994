"""What is read: each parser that users, visitors or shared archives reach."""

import importlib
import json
import shutil
import zipfile
import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fuzz import hdf5_cases, hdf5_changes, readers
from fuzz.mutators import (
    Rng,
    mutate_bytes,
    mutate_json,
    mutate_npy,
    mutate_png,
    mutate_safetensors,
    mutate_text,
    mutate_zip,
    pick,
)

Change = Callable[[bytes, Rng], bytes]


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        name: of it.
        write: writes good files, or folders, of which damaged ones are made.
        read: reads one as nenya does, and returns what numbers came out.
        match: which of the good files.
        changes: ways to damage one; `structure` stands for those of HDF5's own library.
        modules: what it needs, loaded once.
        batch: cases that one process reads, unless one ends it.
        ending: of a case of the corpus, by which its kind is told.
    """

    name: str
    write: Callable[[Path], object]
    read: Callable[[Path], readers.Arrays]
    match: str = "*"
    changes: tuple[Change | str, ...] = (mutate_bytes,)
    modules: tuple[str, ...] = field(default=("nenya.cli",))
    batch: int = 10
    ending: str = ""

    def load(self) -> None:
        """Import what it needs."""
        for module in self.modules:
            importlib.import_module(module)

    def make(self, seeds: Path, folder: Path, rng: Rng, case: int, outside: Path) -> Path:
        """Make a damaged file, and return its path; case -n is the n-th good file as it is."""
        every = sorted(seeds.glob(self.match))
        good = every[-1 - case % len(every)] if case < 0 else pick(rng, every)
        path = folder / good.name
        if case < 0:
            shutil.copytree(good, path) if good.is_dir() else shutil.copy(good, path)
            return path
        if good.is_dir():
            shutil.copytree(good, path, symlinks=True)
            _damage_folder(path, rng, outside)
            return path
        change = pick(rng, self.changes)
        if change == "structure":
            shutil.copy(good, path)
            hdf5_changes.change(path, rng, outside)
        elif change is mutate_json:
            path.write_bytes(mutate_json(good.read_bytes(), rng, str(outside)))
        else:
            path.write_bytes(change(good.read_bytes(), rng))
        return path

    def place(self, case: Path, folder: Path) -> Path:
        """Put a case of the corpus where it is read: NAME.ENDING.bin, or NAME.zip for a folder."""
        if case.suffix == ".zip":
            path = folder / case.stem
            with zipfile.ZipFile(case) as archive:
                archive.extractall(path)
            return path
        path = folder / case.name.removesuffix(".bin")
        shutil.copy(case, path)
        return path


class Cutouts(Target):
    """Cutout files whose every pixel is known; see `hdf5_cases`."""

    def make(self, seeds: Path, folder: Path, rng: Rng, case: int, outside: Path) -> Path:
        """Return the place of a case, whose number is all that is needed."""
        return folder / str(case)


def _damage_folder(path: Path, rng: Rng, outside: Path) -> None:
    """Damage one to three files of a folder, those of numbers and those of text each in their way."""
    files = sorted(item for item in path.rglob("*") if item.is_file())
    texts = [item for item in files if item.suffix == ".json" or item.name.startswith(".z")]
    damaged: set[Path] = set()
    for _ in range(int(rng.integers(1, 4))):
        chosen = pick(rng, texts if texts and rng.random() < 0.6 else files)
        if not chosen.exists():
            continue
        data = chosen.read_bytes()
        if rng.random() < 0.05:
            chosen.unlink()
        elif chosen.suffix == ".h5" and rng.random() < 0.7 and chosen not in damaged:
            hdf5_changes.change(chosen, rng, outside)
        elif chosen in texts:
            try:
                chosen.write_bytes(mutate_json(data, rng, str(outside)))
            except (ValueError, RecursionError):  # damaged before
                chosen.write_bytes(mutate_bytes(data, rng))
        else:
            chosen.write_bytes(mutate_bytes(data, rng))
        damaged.add(chosen)


def mutate_link(data: bytes, rng: Rng) -> bytes:
    """Damage the values that a link of the portal packs, or the link's text."""
    if rng.random() < 0.3:
        return mutate_text(data, rng)
    values = zlib.decompress(urlsafe_b64decode(data + b"=" * (-len(data) % 4)))
    if rng.random() < 0.2:
        big = pick(rng, ("1e15", "-1e15", "1e308", "1e-320", "1" + "0" * 400, "NaN", "Infinity", "7e37"))
        found = json.loads(values)
        found["f"] = [["lasso", {"plane": "umap", "points": [[0, 0], [5, 5], ["@", 1]] * pick(rng, (1, 30))}]]
        values = json.dumps(found).replace('"@"', big).encode()
    elif rng.random() < 0.05:
        values = bytes(2**24)
    else:
        values = mutate_json(values, rng)
    return urlsafe_b64encode(zlib.compress(values)).rstrip(b"=")


def mutate_sql(data: bytes, rng: Rng) -> bytes:
    """Damage a condition: other functions, numbers, nesting, or bytes."""
    parts = (
        *("lpad(region, 2147483647, 'x') = 'a'", "repeat(region, 100000000) = 'a'", "rpad(region, 999999999) = region"),
        *(
            "1=1",
            "lat / 0 > 1",
            "UID << 70 > 0",
            "pp_idx % 0 = 1",
            "CAST('x' AS INT) = 1",
            "region = 1",
            "'",
            '"',
            "--",
        ),
        *("; DROP TABLE rows", "NOT " * 3000 + "true", "(" * 2000 + "1" + ")" * 2000, "lat = 1 OR " * 2000 + "true"),
        *("regexp_like(region, '(a*)*b')", "array_repeat(1, 1000000000) IS NULL", "to_timestamp(1e300) IS NULL"),
        *(
            "random() > 0.5",
            "md5(region) = ''",
            "lat = 9e999",
            "interval '9999999 years' IS NULL",
            "\0",
            "date_bin(interval '0', datetime) > 0",
        ),
        *("generate_series(1, 10000000000) IS NULL", "range(0, 10000000000) IS NULL", "encode(region, 'x') = ''"),
        *("power(10, 1000) > 1", "factorial(200) > 1", "substr(region, -9223372036854775808) = ''", "chr(-1) = 'a'"),
    )
    choice = int(rng.integers(4))
    if choice == 0:
        return mutate_text(data, rng)
    joined = pick(rng, (b" AND ", b" OR ", b"", b", ")) + pick(rng, parts).encode()
    return data + joined if choice < 3 else pick(rng, parts).encode()


def _member(change: Change) -> Change:
    return lambda data, rng: mutate_zip(data, rng, change)


_HDF5: tuple[Change | str, ...] = (mutate_bytes, "structure", "structure")
_WEIGHTS = ("nenya.cli", "nenya.models.checkpoint", "nenya.models.contrastive", "fuzz.hdf5_cases")
_FIELDS = ("nenya.cli", "nenya.prepare.job", "nenya.prepare.work", "xarray", "zarr", "h5netcdf", "scipy.io")
_PORTAL = (
    "nenya.cli",
    "nenya.portal.upload",
    "nenya.portal.state",
    "PIL.Image",
    "PIL.PngImagePlugin",
    "h5netcdf",
    "xarray",
)
_TABLES = ("nenya.cli", "nenya.io", "pandas", "pyarrow.parquet", "pyarrow.feather", "nenya.portal.columns")
_ARCHIVE = (
    "nenya.cli",
    "nenya.archive.folder",
    "nenya.commands.status",
    "nenya.archive.update",
    "pandas",
    "pyarrow.parquet",
)
_PUBLISHED = ("nenya.cli", "nenya.publish.opened", "nenya.prepare.zarr_stores", "pandas", "pyarrow.parquet", "zarr")
r = readers

_ALL = (
    Target("weights-pth", r.write_weights, r.read_weights, "a.pth", (mutate_bytes, mutate_zip, mutate_zip), _WEIGHTS),
    Target("weights-legacy", r.write_weights, r.read_weights, "legacy.pth", (mutate_bytes,), _WEIGHTS),
    Target("weights-ckpt", r.write_weights, r.read_weights, "a.ckpt", (mutate_bytes, mutate_zip), _WEIGHTS),
    Target(
        "weights-safetensors",
        r.write_weights,
        r.read_weights,
        "*.safetensors",
        (mutate_bytes, mutate_safetensors),
        _WEIGHTS,
    ),
    Target("cutouts", r.write_cutouts, r.read_cutouts, "*.h5", _HDF5, _WEIGHTS),
    Cutouts("cutouts-known", r.write_cutouts, hdf5_cases.read_case, "*.h5", _HDF5, ("nenya.data.unpack",)),
    Target("latents", r.write_latents, r.read_latents, "*.h5", _HDF5, _WEIGHTS),
    Target("projector", r.write_projector, r.read_projector, "*.h5", _HDF5, ("nenya.latents.projector",), batch=25),
    Target(
        "clusters", r.write_clusters, r.read_clusters, "*.h5", _HDF5, ("nenya.archive.update", "nenya.latents.clusters")
    ),
    Target("netcdf4", r.write_netcdf4, r.read_fields, "*.nc", _HDF5, _FIELDS),
    Target("netcdf3", r.write_netcdf3, r.read_fields, "*.nc", (mutate_bytes,), _FIELDS),
    Target("zarr2", r.write_zarr2, r.read_fields, "*.zarr", (), _FIELDS),
    Target("zarr3", r.write_zarr3, r.read_fields, "*.zarr", (), _FIELDS),
    Target("references", r.write_references, r.read_fields, "*.json", (mutate_text,), _FIELDS),
    Target("upload-npy", r.write_pictures, r.read_upload, "*.npy", (mutate_npy, mutate_bytes), _PORTAL),
    Target("upload-npz", r.write_pictures, r.read_upload, "*.npz", (_member(mutate_npy), mutate_bytes), _PORTAL),
    Target("upload-hdf5", r.write_pictures, r.read_upload, "*.h5", _HDF5, _PORTAL),
    Target("upload-netcdf4", r.write_pictures, r.read_upload, "four.nc", _HDF5, _PORTAL),
    Target("upload-netcdf3", r.write_pictures, r.read_upload, "three.nc", (mutate_bytes,), _PORTAL),
    Target("upload-png", r.write_pictures, r.read_upload, "*.png", (mutate_png, mutate_bytes), _PORTAL),
    Target("upload-tiff", r.write_pictures, r.read_upload, "*.tif", (mutate_bytes,), _PORTAL),
    Target("example-npy", r.write_pictures, r.read_example, "*.npy", (mutate_npy, mutate_bytes), _ARCHIVE),
    Target(
        "example-npz", r.write_pictures, r.read_example, "packed.npz", (_member(mutate_npy), mutate_bytes), _ARCHIVE
    ),
    Target("table-parquet", r.write_tables, r.read_tables, "*.parquet", (mutate_bytes,), _TABLES),
    Target("table-feather", r.write_tables, r.read_tables, "*.feather", (mutate_bytes,), _TABLES),
    Target("table-csv", r.write_tables, r.read_tables, "*.csv", (mutate_text,), _TABLES),
    Target("places-csv", r.write_places, r.read_at, "*.csv", (mutate_text,), (*_TABLES, "nenya.prepare.job")),
    Target("places-parquet", r.write_places, r.read_at, "*.parquet", (mutate_bytes,), (*_TABLES, "nenya.prepare.job")),
    Target("archive", r.write_archive, r.read_archive, "archive", (), _ARCHIVE),
    Target("archive-fetched", r.write_archive, r.read_fetched, "archive", (), _ARCHIVE),
    Target("publishing", r.write_publishing, r.read_publishing, "archive", (), _ARCHIVE),
    Target("extraction", r.write_partial, r.read_partial, "extraction", (), (*_WEIGHTS, "nenya.extraction.journal")),
    Target("options-json", r.write_options, r.read_options, "opts.json", (mutate_json,), ("nenya.io", "hydra")),
    Target("recipe-yaml", r.write_options, r.read_recipe, "recipe.yaml", (mutate_text,), ("nenya.io", "hydra")),
    Target("run-yaml", r.write_options, r.read_run, "recipe.yaml", (mutate_text,), ("nenya.train", "hydra")),
    Target(
        "links", r.write_links, r.read_link, "link.txt", (mutate_link,), (*_PORTAL, "nenya.portal.columns", "pandas")
    ),
    Target("index", r.write_index, r.read_index, "a.index", (), ("nenya.latents.index",), batch=20),
    Target("published-zarr", r.write_published, r.read_published, "zarr", (), _PUBLISHED),
    Target("published-parquet", r.write_published, r.read_published, "geoparquet", (), _PUBLISHED),
    Target(
        "conditions",
        r.write_conditions,
        r.read_condition,
        "*.sql",
        (mutate_sql,),
        ("nenya.tables.conditions",),
        batch=20,
    ),
)
# Not parsers, but what no parser may do: that it is seen.
_PROBES = tuple(
    Target(f"probe-{name}", r.write_probe, getattr(r, f"probe_{name}"), batch=2)
    for name in ("crash", "hang", "huge", "raised", "wrote", "ran", "stole", "leaked", "lines")
)
PROBES = tuple(target.name for target in _PROBES)
TARGETS = {target.name: target for target in (*_ALL, *_PROBES)}
NAMES = tuple(target.name for target in _ALL)
