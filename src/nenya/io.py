"""The published models by name, their options under the names in users' scripts, and tables."""

import inspect
import json
import logging
import os
import re
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nenya.errors import (
    InputFileError,
    MissingCheckpointError,
    MissingFileError,
    NenyaError,
    OptionError,
    OptionFileError,
    OutputError,
)
from nenya.options.declare import suggest, to_dict
from nenya.options.files import model_versions, read_group, read_json
from nenya.options.flat import FLAT, flat_view, from_flat, warm_up
from nenya.options.old_keys import (
    DERIVED,
    IGNORED,
    OLDER,
    WARM_UP,
    recorded,
    say_ignored,
    warm_up_values,
)
from nenya.options.sections import Options, build_options
from nenya.storage.disk import atomic_path
from nenya.storage.paths import expand, is_s3, temporary_copy
from nenya.storage.s3.service import join_url, store
from nenya.storage.shipped import AVAILABLE, is_shipped, shipped_path
from nenya.storage.small_files import check_regular
from nenya.storage.table_files import check_numbers, check_table
from nenya.storage.table_integers import from_arrow, integers_of_texts, restore_integers
from nenya.storage.texts import first_words

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

O = TypeVar("O", bound=Options)  # noqa: E741  # the type of the options of one command

_NONE = ("cuda_use", "nenya_data", *WARM_UP)  # None where an option file does not give them
TABLE_SUFFIXES = (".parquet", ".csv", ".feather")
_ROW_GROUP = 2**20  # rows of a Parquet file that are written at once, pyarrow's default
_ALIASES = {"LLC_local": "LLC"}


class Params:
    """The users' flat view on the options: `opt.feat_dim`, `opt.batch_size_valid = 64`.

    A value that is set is checked like any other option. The derived names (`model_name`, `model_folder`,
    `latents_folder`) follow from the other values, and making one creates no folder.

    Args:
        source: path or s3:// address of a JSON option file, a mapping of flat names, or options.
        json_path: the same, by the name in users' scripts.

    Attributes:
        options: the same values in their sections, which the rest of nenya works with.

    Raises:
        OptionError: The file does not exist, a name is unknown, or a value is invalid.
    """

    options: Options

    def __init__(
        self,
        source: "str | os.PathLike[str] | Mapping[str, Any] | Options | None" = None,
        *,
        json_path: str | os.PathLike[str] | None = None,
    ) -> None:
        source = json_path if source is None else source
        if source is None:
            raise OptionError("Params(): expected the path of an option file, or values by name")
        if isinstance(source, Options):
            self.__dict__["options"] = source
        else:
            self.__dict__["options"] = _read_options(source)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "options":
            raise AttributeError(name)
        if name in FLAT:
            section, key = FLAT[name]
            return getattr(getattr(self.options, section), key)
        if name in DERIVED:
            return flat_view(self.options)[name]
        if name in WARM_UP and warm_up(self.options) and name != "warmup_epochs":
            o = self.options.optim
            return warm_up_values(o.learning_rate, o.lr_decay_rate, self.epochs, o.cosine)[name]
        if name in OLDER and name not in IGNORED:
            return getattr(self, OLDER[name])
        if name in (known := recorded(self.options.archive.other)) or name in _NONE:
            return known.get(name)
        if name in OLDER:
            return getattr(self, OLDER[name])
        why = f"; {IGNORED[name]}" if name in IGNORED else suggest(name, [*FLAT, *DERIVED])
        raise AttributeError(f"no option {name}{why}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "options":
            self.__dict__["options"] = value
            return
        values = to_dict(self.options)
        name = {"model_folder": "models_place", "latents_folder": "latents_place"}.get(name, name)
        name = OLDER[name] if name in OLDER and name not in IGNORED else name
        if name in FLAT:
            section, key = FLAT[name]
            values[section][key] = list(value) if isinstance(value, tuple) else value
        elif name in IGNORED and name not in DERIVED:
            values["archive"]["other"] = json.dumps({**recorded(self.options.archive.other), name: value})
        elif name in DERIVED:
            raise OptionError(f"{name} is {IGNORED[name]}: set those")
        else:
            raise OptionError(f"no option {name}{suggest(name, list(FLAT))}")
        self.__dict__["options"] = build_options(type(self.options), values)

    def __getstate__(self) -> "dict[str, Any]":
        # Plain values under the users' names, so that a checkpoint that holds one needs no code to be read.
        return {**self.dict, "sections": to_dict(self.options), "command": type(self.options).__name__}

    def __setstate__(self, state: "dict[str, Any]") -> None:
        kinds: list[type[Options]] = [Options, *Options.__subclasses__()]
        kind = next(kind for kind in kinds if kind.__name__ == state["command"])
        self.__dict__["options"] = build_options(kind, state["sections"])

    def __repr__(self) -> str:
        return f"Params({self.options.model.name}: {self.model_name})"

    @property
    def dict(self) -> dict[str, Any]:
        """All flat names with their values, as plain types."""
        return flat_view(self.options)

    def save(self, json_path: str | os.PathLike[str]) -> None:
        """Write a JSON option file that can be loaded again."""
        with atomic_path(Path(json_path)) as temporary:
            temporary.write_text(json.dumps(self.dict, indent=4) + "\n")

    def update(self, json_path: str | os.PathLike[str]) -> None:
        """Take over the values of another JSON option file; the others stay.

        Raises:
            OptionError: The file does not exist, a name is unknown, or a value is invalid.
        """
        given = {"nchannels": self.nchannels, **read_json(os.fspath(json_path))}
        values = to_dict(self.options)
        for section, pairs in from_flat(given, self.options.model.name).items():
            values[section] |= pairs
        self.__dict__["options"] = build_options(type(self.options), values)


def _read_options(source: "str | os.PathLike[str] | Mapping[str, Any]") -> Options:
    """Return the options of a JSON option file, or of flat names and their values."""
    place = "" if isinstance(source, Mapping) else os.fspath(source)
    values = source if isinstance(source, Mapping) else read_json(place)
    name = Path(place).stem if place else "custom"
    try:
        options = build_options(Options, from_flat(values, name))
    except OptionError as error:
        raise OptionError(f"{place}: {error}" if place else str(error)) from error
    if place:
        say_ignored(place, tuple(recorded(options.archive.other)))
    return options


def option_preprocess(opt: Params) -> Params:
    """Return the options as they are: names and folders are always derived, and no folder is made."""
    if not isinstance(opt, Params):
        raise OptionError(f"opt={opt!r}: expected options from load_opt('v5') or Params('opts.json')")
    return opt


def load_opt(nenya_model: str) -> tuple[Params, str | None]:
    """Return the options of a published model version and the path of its weights.

    Args:
        nenya_model: name of the version, such as 'v5', or the path of a JSON option file.

    Returns:
        The options, and the path or s3:// address of the weights: the published location, else where a run with
        these options keeps them, `<s3_outdir>/<model_folder>/last.pth`; None if there is neither.

    Raises:
        OptionError: The name is unknown, or the environment variable with the folder of the data is not set.
        CheckpointError: The weights are not found.

    Examples:
        >>> opt, weights = load_opt("demo")
        >>> opt.feat_dim
        64
    """
    if str(nenya_model).endswith(".json"):
        own = Params(nenya_model)
        return own, weights_place(own)
    name = _ALIASES.get(nenya_model, nenya_model)
    if name not in model_versions():
        known = ", ".join(model_versions())
        raise OptionFileError(
            f"no model version {nenya_model}{suggest(str(nenya_model), model_versions())} (known: {known})"
        )
    opt = Params(build_options(Options, read_group("model", name)))
    published = opt.weights
    if not published:
        return opt, weights_place(opt) if opt.s3_outdir and opt.model_root else None
    if is_shipped(published):
        return opt, str(shipped_path(published))
    try:
        path = published if is_s3(published) else expand(published)
    except OptionError as error:
        raise OptionError(f"weights of model {name}: {error}; {AVAILABLE}") from error
    if not is_s3(path) and not os.path.isfile(path):
        variable = published.split("/")[0].strip("${}")
        raise MissingCheckpointError(
            f"weights of model {name} not found at {path}: download them from the archive of the published models, "
            f"or set {variable} to the folder that has {published.partition('/')[2]}; {AVAILABLE}"
        )
    return opt, path


def weights_place(opt: Params) -> str:
    """Return where the runs of these options keep their weights: `<s3_outdir>/<save_folder>/last.pth`."""
    return under_outdir(opt, opt.save_folder, "last.pth")


def run_place(opt: Params) -> Path:
    """Return the folder of the run of these options: in `s3_outdir` if that is a folder, else the working folder."""
    place = under_outdir(opt, opt.save_folder)
    return Path(opt.save_folder if is_s3(place) else place)


def losses_filenames(opt: Params) -> tuple[str, str]:
    """Return the files of the losses of a training: those of the training data, then of the validation data."""
    folder = run_place(opt) / "learning_curve"
    return str(folder / f"{opt.model_name}_losses_train.h5"), str(folder / f"{opt.model_name}_losses_valid.h5")


def load_model_name(
    opt_path: str | os.PathLike[str],
    local_model_path: str | os.PathLike[str] | None = None,
    base_model_name: str = "last.pth",
) -> tuple[Params, str]:
    """Return the options of an option file, and the place of the weights of its training.

    Args:
        opt_path: the JSON option file.
        local_model_path: folder with `<model_folder>/`; by default a file of that name in the working folder, else the
            place where `nenya.train.main` leaves the weights.
        base_model_name: name of the file with the weights, such as `ckpt_epoch_10.pth`.
    """
    opt = Params(opt_path)
    if local_model_path is not None:
        return opt, str(Path(local_model_path) / opt.save_folder / base_model_name)
    if Path(base_model_name).is_file():
        return opt, base_model_name
    own = run_place(opt) / base_model_name
    return opt, str(own) if own.is_file() else under_outdir(opt, opt.save_folder, base_model_name)


def load_main_table(tbl_file: str | os.PathLike[str], verbose: bool = True) -> "pd.DataFrame":
    """Read a table of cutouts, as users' scripts do.

    A CSV file's first column without a name becomes the index, its `datetime` becomes dates; `DT` is added where `T90`
    and `T10` are.

    Args:
        tbl_file: .parquet, .csv or .feather; a path or an s3:// address.
        verbose: log it.

    Raises:
        InputFileError: The table is missing, damaged or of another format.
        StorageError: An S3 service does not return it.
    """
    import pandas as pd

    place = os.fspath(tbl_file)
    with temporary_copy(place if is_s3(place) else Path(expand(place)), None) as path:
        table = read_table(path)
    first = str(table.columns[0]) if len(table.columns) else ""
    if place.endswith(".csv"):
        table = table.set_index(first).rename_axis(None) if first.startswith("Unnamed: 0") else table
        if "datetime" in table:
            table["datetime"] = pd.to_datetime(table["datetime"], errors="coerce")
    for name in {"gradb_Npos", "FS_Npos", "UID", "pp_type"} & set(table.columns):
        if pd.api.types.is_numeric_dtype(table[name]):
            table[name] = table[name].astype("Int64")
    if "DT" not in table and {"T90", "T10"} <= set(table.columns):
        table["DT"] = table["T90"] - table["T10"]
    if verbose:
        log.info("%s: %d rows", tbl_file, len(table))
    return table


def write_main_table(main_table: "pd.DataFrame", outfile: str | os.PathLike[str], to_s3: bool = True) -> None:
    """Write a table of cutouts, as users' scripts do.

    Args:
        main_table: the table.
        outfile: .parquet, .csv or .feather; a path or an s3:// address.
        to_s3: whether an s3:// address may be written to; a path is always written to the disk.

    Raises:
        OptionError: The suffix is not that of a table, or an s3:// address with `to_s3=False`.
        OutputError: It cannot be written.
    """
    place = os.fspath(outfile)
    table = main_table.rename_axis("").reset_index() if place.endswith(".csv") else main_table
    if not is_s3(place):
        write_table(table, expand(place))
        return
    if not to_s3:
        raise OptionError(f"outfile={place} is an address of S3, but to_s3=False: give a path")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / place.rpartition("/")[2]
        write_table(table, path)
        store().upload(path, place)


def under_outdir(opt: Params, *names: str) -> str:
    """Return a path below `opt.s3_outdir`, or `opt.local_outdir`: an s3:// address, a folder, or the working folder.

    Raises:
        OptionError: It names an environment variable that is not set.
    """
    root = opt.s3_outdir or opt.local_outdir
    if not root:
        return str(Path(*names))
    return join_url(root, *names) if is_s3(root) else str(Path(expand(root)).joinpath(*names))


def as_options(cls: type[O], opt: Any) -> O:
    """Return the options of a command from what is passed as `opt`.

    Args:
        cls: `ExtractOptions`, `TrainOptions` ...
        opt: `Params`, options, a mapping of flat names, or any object with these names as attributes.

    Raises:
        OptionError: A name is unknown or a value is invalid.
    """
    if isinstance(opt, Options):
        options = opt
    elif isinstance(opt, Params):
        options = opt.options
    elif isinstance(opt, Mapping) or hasattr(opt, "__dict__"):
        options = Params(opt if isinstance(opt, Mapping) else vars(opt)).options
    else:
        raise OptionError(f"opt={opt!r}: expected options from load_opt('v5') or Params('opts.json')")
    return build_options(cls, to_dict(options))


def read_table(path: str | os.PathLike[str], *, leave_out: Collection[str] = ()) -> "pd.DataFrame":
    """Read a table: .parquet, .csv or .feather; integers with gaps keep their digits (Int64 or similar).

    Args:
        path: the table.
        leave_out: names of columns that are not wanted; those of a .parquet file are not read.

    Raises:
        InputFileError: The table is missing, damaged or of another format.
    """
    place = Path(path)
    readers: dict[str, Any] = {".parquet": _read_parquet, ".csv": _read_csv, ".feather": _read_feather}
    if place.suffix not in readers:
        raise InputFileError(f"{place}: not a table by its suffix; expected one of {', '.join(TABLE_SUFFIXES)}")
    check_regular(place, "a table")
    if not place.is_file():
        raise MissingFileError(f"{place}: no such table; check the path")
    try:
        check_table(place)
        found: pd.DataFrame
        if place.suffix == ".parquet" and leave_out:
            found = _read_parquet(place, leave_out)
        else:
            found = readers[place.suffix](place).drop(columns=list(leave_out), errors="ignore")
    except InputFileError:
        raise
    except Exception as error:  # pyarrow and pandas raise anything for a damaged file
        first = first_words(str(error).strip() or type(error).__name__)
        raise InputFileError(f"{place}: cannot be read as a table ({first}); copy or create it again") from error
    return check_numbers(found, place)


def _read_parquet(path: Path, leave_out: Collection[str] = ()) -> "pd.DataFrame":
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = [name for name in pq.read_schema(path).names if name not in leave_out]
    # Of a large table, pandas otherwise holds two copies, and pyarrow the bytes of the file. Columns of one row group
    # would be views of what pyarrow read, which cannot be changed in place.
    freed: dict[str, Any] = {}
    known = inspect.signature(pd.read_parquet).parameters
    if pq.read_metadata(path).num_row_groups > 1 and "to_pandas_kwargs" in known:
        freed = {"to_pandas_kwargs": {"split_blocks": True, "self_destruct": True}}
    table = pd.read_parquet(path, columns=wanted if leave_out else None, pre_buffer=False, **freed)
    pa.default_memory_pool().release_unused()
    return restore_integers(table, lambda names: pq.read_table(path, columns=names), pq.read_schema(path))


def _read_feather(path: Path) -> "pd.DataFrame":
    import pyarrow.feather as feather

    table = feather.read_table(path, memory_map=False)
    table.validate(full=True)  # nothing else looks at the offsets of texts, and damaged ones lead out of their buffers
    return from_arrow(table)


def _read_csv(path: Path) -> "pd.DataFrame":
    import pandas as pd

    return integers_of_texts(path, pd.read_csv(path))


def write_table(table: "pd.DataFrame", path: str | os.PathLike[str]) -> None:
    """Write a table, .parquet, .csv or .feather; the file is either complete or absent.

    Raises:
        OptionError: The suffix is not that of a table.
        OutputError: It cannot be written.

    Examples:
        >>> import pandas as pd
        >>> write_table(pd.DataFrame({"lat": [30.0], "lon": [-60.0]}), "table.parquet")
        >>> read_table("table.parquet").columns.tolist()
        ['lat', 'lon']
    """
    place = Path(path)
    writers = {".parquet": "to_parquet", ".csv": "to_csv", ".feather": "to_feather"}
    if place.suffix not in writers:
        raise OptionError(f"{place}: not a table by its suffix; expected one of {', '.join(TABLE_SUFFIXES)}")
    settings = {} if place.suffix == ".feather" else {"index": False}
    try:
        with atomic_path(place) as temporary:
            if place.suffix == ".parquet" and len(table) > _ROW_GROUP:
                _write_large_parquet(table, temporary)
            else:
                getattr(table, writers[place.suffix])(temporary, **settings)
    except NenyaError:
        raise
    except OSError as error:  # pyarrow names the temporary file, and ends with the system's reason
        reason = re.sub(r".*\bDetail: \[errno \d+\] ", "", error.strerror or str(error))
        raise OutputError(f"cannot write {place}: {reason}; choose another place with out=") from error


def _write_large_parquet(table: "pd.DataFrame", path: Path) -> None:
    """Write a table by row groups, so that pyarrow does not hold a second copy of it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.Schema.from_pandas(table, preserve_index=False)
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(table), _ROW_GROUP):
            part = table.iloc[start : start + _ROW_GROUP]
            writer.write_table(pa.Table.from_pandas(part, schema=schema, preserve_index=False))
