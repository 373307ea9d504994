"""`nenya migrate`: reports which files of a folder of the first nenya work, need conversion, or cannot be used."""

import json
import logging
import os
import pickletools
import re
import shlex
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from nenya.commands.inspect import CHECKPOINT_SUFFIXES, inspect_file
from nenya.commands.migrate_scripts import CHANGES, INSTEAD, SCRIPT_SUFFIXES, read_script
from nenya.commands.migrate_scripts import WORKS as call_works
from nenya.commands.report import FileReport
from nenya.data.hdf5_links import damage_named, one_line
from nenya.data.hdf5_open import list_datasets, open_hdf5
from nenya.defs import DT_INTERVALS
from nenya.errors import CheckpointError, InputFileError, NenyaError, NoOptionsError, OptionError, OutputError
from nenya.io import TABLE_SUFFIXES, Params, read_table, write_table
from nenya.latents.files import Latents
from nenya.latents.projector_file import FORMAT
from nenya.options.commands import InspectOptions, MigrateOptions
from nenya.options.files import read_json
from nenya.options.flat import FLAT
from nenya.options.old_keys import IGNORED, OLDER, WARM_UP, recorded
from nenya.storage.disk import atomic_path
from nenya.storage.paths import HDF5_SUFFIXES, is_latents_name, key_of, local_path
from nenya.storage.texts import counted, say
from nenya.tables.key_columns import COLUMNS, Keys, read_keys
from nenya.tables.quantities import dt_name

log = logging.getLogger(__name__)

WORKS, PARTLY, CONVERT, CANNOT, OTHER = "works", "partly", "convert", "cannot", "other"
OUT = "migrated"
"""Folder below the working folder that the commands write into."""

_ROWS = 1024  # cutouts inspected per partition
_HEAD = 1 << 16  # bytes inspected of a pickle
_PICKLES = (".pkl", ".pickle", ".joblib")
_TABLE_COLUMNS = {"lat", "lon", "UID", *COLUMNS, "US0", "US1", "DT", "T90"}
_PCA_MEMBERS = {"M.npy", "explained_variance.npy"}
_LEAST_KEYS = 3
_LISTED = 8  # files that a command names individually, at most
_SHARE = (
    "from nenya.io import read_table, write_table; table = read_table({source}); "
    'table["clear_fraction"] = 1 - table["clear_fraction"]; write_table(table, {out})'
)


@dataclass
class Finding:
    """The report on a file.

    Attributes:
        path: relative to the folder.
        verdict: `works`, `partly` (latents without a table, scripts to be changed), `convert`, `cannot` or `other`
            (not a file of nenya).
        what: the kind of file, or the reason why it cannot be used.
        command: a command to run, such as a conversion; None where none is needed.
        notes: further information.
    """

    path: str
    verdict: str
    what: str
    command: str | None = None
    notes: list[str] = field(default_factory=list)


def run(options: MigrateOptions) -> int:
    """Report on the folder `options.folder` without changing it.

    Args:
        options: of `scripts/migrate.py`.

    Returns:
        0 if all files of nenya can be used or converted, 1 if some cannot.

    Raises:
        NenyaError: There is no such folder, or the report cannot be written.
    """
    if not options.folder:
        raise OptionError("expected folder=, a folder of the first nenya, such as folder=/path/to/Nenya")
    folder = local_path(options.folder)
    if not folder.is_dir():
        what = "is a file: give its folder" if folder.exists() else "no such folder; check the path"
        raise InputFileError(f"{folder}: {what}")
    out = local_path(options.out) if options.out else None
    if out is not None:
        _check_report(out, folder, clobber=options.clobber)
    found = examine(folder)
    for finding in found:
        say(f"{finding.verdict:8s} {finding.path}: {finding.what}")
        for note in finding.notes:
            say(f"         note: {note}")
        if finding.command:
            say(f"         {finding.command}")
    counts = [
        sum(finding.verdict == verdict for finding in found) for verdict in (WORKS, PARTLY, CONVERT, CANNOT, OTHER)
    ]
    words = ("work as they are", "work in part", "to convert", "cannot be used", "of other kinds")
    parts = ", ".join(f"{count} {what}" for count, what in zip(counts, words, strict=True))
    say(f"{counted(len(found), 'file')}: {parts}")
    if out is not None:
        try:
            _write_report(found, out)
        except NenyaError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write {out}: {error.strerror or error}") from error
        log.info("%s", out)
    return 1 if counts[3] else 0


def examine(folder: Path) -> list[Finding]:
    """Inspect all files of a folder; nothing is executed, unpickled or changed.

    Args:
        folder: with option files, checkpoints, cutouts, latents, tables, maps, in any order.

    Returns:
        A finding for each file, or for a complete folder of wandb, a run or an index, in order of name.
    """
    found: dict[Path, Finding] = {}
    pickles: list[Path] = []
    for path in _walk(folder):
        if path.suffix.lower() in _PICKLES and path.is_file() and _is_map(path):
            pickles.append(path)
            continue
        try:
            found[path] = _look(path, Path(OUT) / path.relative_to(folder))
        except NenyaError as error:
            found[path] = Finding("", CANNOT, str(error).removeprefix(f"{path}").removeprefix(": "))
        except OSError as error:
            found[path] = Finding("", CANNOT, f"cannot be read ({error.strerror}); check its permissions")
        except Exception as error:  # libraries raise any exception for damaged files
            found[path] = Finding("", CANNOT, f"damaged, or of unknown kind ({one_line(error)})")
    good = [path for path, finding in found.items() if finding.verdict in (WORKS, CONVERT)]
    latents = [path for path in good if found[path].what.startswith("latents")]
    tables = [path for path in good if path.suffix in TABLE_SUFFIXES]
    found.update((path, _map(path, latents, tables)) for path in pickles)
    for path in latents:
        _say_without_table(found[path], path, tables)
    for path, finding in found.items():
        finding.path = str(path.relative_to(folder))
    return [found[path] for path in sorted(found)]


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder, and folders that count as one item; links to folders are not followed."""
    for place, folders, names in os.walk(folder):
        here = Path(place)
        whole = [name for name in folders if _whole(here / name)]
        folders[:] = sorted(name for name in folders if name not in whole and not name.startswith("."))
        yield from (here / name for name in sorted([*whole, *names]) if not name.startswith("."))


def _whole(folder: Path) -> bool:
    inside = set(os.listdir(folder)) if os.access(folder, os.R_OK | os.X_OK) else set()
    of_wandb = folder.name == "wandb" and any("run-" in name for name in inside)
    return folder.is_symlink() or not inside or of_wandb or "config.yaml" in inside or "nenya.json" in inside


def _look(path: Path, out: Path) -> Finding:
    """Return the report on one file; its conversion goes to `out`. Raises NenyaError if it cannot be used."""
    if path.is_dir():
        return _look_at_folder(path)
    if not path.exists():
        raise InputFileError("a link to a missing file")
    if not stat.S_ISREG(path.stat().st_mode):
        return Finding("", OTHER, "a device, pipe or socket")
    kinds: list[tuple[tuple[str, ...], Callable[[Path, Path], Finding]]] = [
        ((".json",), _options),
        (CHECKPOINT_SUFFIXES, _checkpoint),
        (HDF5_SUFFIXES, _hdf5),
        (TABLE_SUFFIXES, _table),
        (_PICKLES, _pickle),
        ((".npz",), _arrays),
        ((".nc", ".nc4", ".grib", ".grb"), _fields),
        (SCRIPT_SUFFIXES, _script),
    ]
    for suffixes, look in kinds:
        if path.suffix.lower() in suffixes:
            return look(path, out)
    return Finding("", OTHER, "not a file of nenya")


def _look_at_folder(path: Path) -> Finding:
    if path.is_symlink():
        return Finding("", OTHER, f"a link to {os.readlink(path)}, not followed")
    if path.name == "wandb":
        return Finding("", WORKS, "wandb runs: read by wandb, not needed by nenya")
    if (path / "nenya.json").is_file():
        return Finding("", WORKS, "an index of nenya, for nenya search index=")
    if (path / "config.yaml").is_file():
        try:
            return _as_reported(inspect_file(path))
        except NenyaError:
            return Finding("", OTHER, "a folder with a config.yaml, but not a run of nenya")
    return Finding("", OTHER, "an empty folder" if os.access(path, os.R_OK) else "a folder without read permission")


def _as_reported(report: FileReport, command: str | None = None) -> Finding:
    return Finding("", WORKS, report.kind, command, list(report.warnings))


def _fields(path: Path, out: Path) -> Finding:
    return Finding("", OTHER, "fields; nenya prepare makes cutouts of them")


def _script(path: Path, out: Path) -> Finding:
    """Report on the calls of a script or notebook."""
    found = read_script(path)
    if not found.mentions:
        return Finding("", OTHER, "Python, without a call of nenya")
    kinds = [call.verdict for call in found.calls]
    counts = ", ".join(f"{kinds.count(kind)} {word}" for kind, word in _CALLS if kind in kinds) or "none"
    notes = [f"{name} is not part of nenya: install it beside, or replace it" for name in sorted(found.others)]
    verdict = WORKS if set(kinds) <= {call_works} and not notes else PARTLY
    return Finding("", verdict, f"a script; of its calls of nenya: {counts}", None, [*map(str, found.calls), *notes])


_CALLS = ((call_works, "work"), (CHANGES, "change in meaning"), (INSTEAD, "need another name or argument"))


def _options(path: Path, out: Path) -> Finding:
    """Recognise an option file by its keys; other JSON files belong to other programs."""
    try:
        values = read_json(path)
    except NoOptionsError:
        return Finding("", OTHER, "JSON, but not an option file")
    except OptionError as error:
        if path.stat().st_size:
            return Finding("", CANNOT, str(error).removeprefix(f"{path}: "))
        raise
    known = [key for key in values if key in FLAT or key in IGNORED or key in OLDER]
    if len(known) < min(_LEAST_KEYS, max(1, len(values))):
        return Finding("", OTHER, "JSON, but not an option file")
    opt = Params(path)
    notes = [
        f"{key} has no effect: {IGNORED[key]}" for key in recorded(opt.options.archive.other) if key not in WARM_UP
    ]
    if "nchannels" not in values:
        notes.append("no nchannels: a network of three input channels, the default of the first nenya")
    what = f"options of {opt.ssl_method} {opt.ssl_model}, feat_dim {opt.feat_dim}: model={shlex.quote(str(path))}"
    return Finding("", WORKS, what, None, notes)


def _checkpoint(path: Path, out: Path) -> Finding:
    try:
        report = inspect_file(path)
    except CheckpointError as error:
        from nenya.models.checkpoint import load_checkpoint

        found = load_checkpoint(path)  # raises again for damaged or hostile files
        epoch = "" if found.epoch is None else f" (epoch {found.epoch})"
        raise InputFileError(
            f"its {len(found.options)} options and {len(found.state_dict)} tensors{epoch} were read without executing "
            f"anything, but {str(error).removeprefix(f'{path}: ')}; only part of a network: get the complete file"
        ) from error
    network = [f"model.{key}={report.facts[key]}" for key in ("ssl_model", "feat_dim", "width")]
    finding = _as_reported(report)
    finding.what += f": ckpt={shlex.quote(str(path))} {' '.join(network)}"
    if path.suffix != ".safetensors":
        finding.command = _command("export", f"ckpt={path}", *network, f"out={out.with_suffix('.safetensors')}")
        finding.notes.append("the command writes its weights in a form without code, safe to share")
    return finding


def _hdf5(path: Path, out: Path) -> Finding:
    with open_hdf5(path) as file, damage_named(str(path)):
        names = list(file)
        projector = file.attrs.one("format") == FORMAT
        shapes = list_datasets(file)
    if projector:
        return Finding("", WORKS, "a projector, for nenya embed projector=")
    if names and all(name.startswith("loss") for name in names):
        return Finding("", WORKS, "learning curves: plain HDF5, readable by h5py")
    if not {"train", "valid"} & set(names):
        raise InputFileError(
            f"expected a data set train or valid, got {shapes}; if these are cutouts, name them by "
            "loader.train_key= and loader.valid_key="
        )
    report = inspect_file(path, InspectOptions(rows=_ROWS, sheet=False))
    if report.kind.startswith("latents"):
        finding = _as_reported(report, _command("verify", f"data={path}", "provenance=false"))
        if not is_latents_name(path.name):
            finding.notes.append(
                "folders and globs match *_latents.h5 (or *_latents_*.h5) only: give its full name in data="
            )
        return finding
    if any("automatic chunks" in warning for warning in report.warnings):
        return _as_reported(report, _command("repack", f"data={path}", f"out={out}"))
    return _as_reported(report)


def _table(path: Path, out: Path) -> Finding:
    report = inspect_file(path)
    columns = set(report.facts["columns"])
    if not columns & _TABLE_COLUMNS:
        return Finding("", OTHER, "a table, but not of cutouts")
    finding = _as_reported(report)
    if {"US0", "US1"} <= columns:
        finding.notes.append(
            "US0 and US1 belong to the old UMAP: valid in figures and the portal, not to be mixed with new ones"
        )
    if report.facts["masked_share"]:
        code = _SHARE.format(source=json.dumps(str(path)), out=json.dumps(str(out)))
        finding.verdict, finding.command = CONVERT, shlex.join(["python", "-c", code])
    return finding


def _arrays(path: Path, out: Path) -> Finding:
    if not zipfile.is_zipfile(path):
        raise InputFileError("expected a .npz file, got another or damaged one; copy it again")
    with zipfile.ZipFile(path) as archive:
        ours = set(archive.namelist()) >= _PCA_MEMBERS
    if ours:
        return Finding("", WORKS, "principal components, for nenya.pca.load")
    return Finding("", OTHER, "NumPy arrays")


def _pickle(path: Path, out: Path) -> Finding:
    names = _globals(path)
    holds = f" of {', '.join(dict.fromkeys(names[:3]))}" if names else ""
    return Finding(
        "", CANNOT, f"a pickle{holds}, which nenya never reads, as pickles run code; recompute it from its data"
    )


def _globals(path: Path) -> list[str]:
    """Return the class names at the beginning of a pickle, from its opcodes; nothing is executed."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    texts: list[str] = []
    found: list[str] = []
    try:
        for opcode, argument, _ in islice(pickletools.genops(head), 10_000):
            if opcode.name == "GLOBAL":
                found.append(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                found.append(".".join(texts[-2:]))
            elif "UNICODE" in opcode.name:
                texts.append(str(argument))
    except Exception:  # cut off at _HEAD, or not a pickle: any exception may come
        log.debug("%s: opcodes end early", path)
    return found


def _is_map(path: Path) -> bool:
    """Return whether a pickle is a fitted UMAP, by its name or first class."""
    try:
        first = _globals(path)[:1]
    except OSError:
        return False
    return any(name.startswith("umap.") for name in first) or "umap" in path.stem.lower()


def _map(path: Path, latents: list[Path], tables: list[Path]) -> Finding:
    """Return how to refit a pickled UMAP from the latents and table in the folder."""
    stem = re.sub(r"_?umap$", "", path.stem, flags=re.I)
    interval = next((name for name in DT_INTERVALS if name != "all" and stem.endswith(f"_{name}")), None)
    tables = sorted(tables, key=lambda table: (table.stem != stem, str(table)))
    for table in tables:
        own = _latents_of(table, latents)
        if own is None:
            continue
        columns = set(read_table(table).columns)
        cut = interval if interval and table.stem != stem and dt_name(columns, central=True) else None
        command = _command(
            "embed", f"data={_listed(own, latents)}", f"table={table}", *([f"DT_cut={cut}"] if cut else []),
            f"out={OUT}/Tables/{stem}.parquet", f"umap_savefile={OUT}/UMAP/{stem}_UMAP.h5",
        )  # fmt: skip
        words = {word for name in (*(part.stem for part in Latents(own).parts), table.stem) for word in _words(name)}
        notes = [f"the names do not show that it was a UMAP of {own[0].name}: check before refitting"]
        if words & _words(stem):
            notes = []
        what = "a pickled UMAP, which nenya never reads, as pickles run code: fit it again"
        return Finding("", CONVERT, what, command, notes)
    lacking = "no latents in the folder" if not latents else "no table in the folder has rows of its latents"
    hint = f"nenya embed data=..._latents.h5 table=... {f'DT_cut={interval} ' if interval else ''}fits it again"
    return Finding(
        "", CANNOT, f"a pickled UMAP, which nenya never reads, as pickles run code; {lacking}: with them, {hint}"
    )


def _say_without_table(finding: Finding, path: Path, tables: list[Path]) -> None:
    """Change the finding on latents that no table in the folder has rows of."""
    if any(_latents_of(table, [path]) for table in tables):
        return
    lacking = "none of the tables in the folder has rows of them" if tables else "there is no table in the folder"
    finding.verdict = PARTLY
    finding.what += f", but {lacking}: good for metrics and search; embed, clusters and the portal need their table"


def _words(name: str) -> set[str]:
    return set(re.split(r"[\W_]+", name.lower()))


@lru_cache(maxsize=16)
def _keys_of(table: Path, changed: int) -> Keys:
    """Return the keys of a table that was last changed at this time."""
    return read_keys(read_table(table))


def _latents_of(table: Path, latents: list[Path]) -> list[Path] | None:
    """Return the latents files of a table's cutout files; None if there are none, or if several models made them."""
    try:
        keys = _keys_of(table, table.stat().st_mtime_ns)
        if keys.names is not None:
            names = set(map(key_of, keys.names))
            latents = [p for p in latents if any(names & set(map(key_of, part.names)) for part in Latents([p]).parts)]
        if latents:
            Latents(latents).join(keys)
            return latents
    except InputFileError as error:
        log.debug("%s: %s", table, error)
    return None


def _listed(own: list[Path], latents: list[Path]) -> str:
    """Return the value of `data=` for latents files: their folder if it has many and no others."""
    if len(own) == 1:
        return str(own[0])
    folder = Path(os.path.commonpath(own))
    below = [path for path in latents if folder in path.parents and is_latents_name(path.name)]
    return f"{folder}/" if len(own) > _LISTED and set(below) == set(own) else f"[{','.join(map(str, own))}]"


def _command(name: str, *args: str) -> str:
    return shlex.join(["nenya", name, *args])


def _check_report(out: Path, folder: Path, *, clobber: bool) -> None:
    if out.suffix not in (".json", ".csv"):
        raise OptionError(f"out={out}: expected a file ending in .json or .csv")
    if folder.resolve() in out.resolve().parents:
        raise OptionError(
            f"out={out}: expected a place outside the inspected folder, where nothing is written; name another"
        )
    if out.exists() and not clobber:
        raise OutputError(f"{out} exists (clobber=true overwrites it, out= names another path)")


def _write_report(found: list[Finding], out: Path) -> None:
    rows: list[dict[str, Any]] = [asdict(finding) for finding in found]
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".json":
        with atomic_path(out) as temporary:
            temporary.write_text(json.dumps(rows, indent=1) + "\n")
        return
    import pandas as pd

    columns = ["path", "verdict", "what", "command", "notes"]
    write_table(pd.DataFrame([{**row, "notes": "; ".join(row["notes"])} for row in rows], columns=columns), out)
