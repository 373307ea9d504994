"""Command line to checked options: finds the commands, reads overrides, config groups and option files."""

import importlib
import io
import json
import logging
import os
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import field, fields, is_dataclass, make_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import nenya.commands
from nenya.commands.hydra_errors import first_cause
from nenya.commands.kept import composed
from nenya.errors import OptionError
from nenya.options.commands import PrepareOptions, TrainOptions, UpdateOptions
from nenya.options.declare import check_keys, suggest, to_dict
from nenya.options.files import config_dir, read_group, read_json, read_recipe, read_yaml
from nenya.options.flat import from_flat
from nenya.options.old_keys import recorded, say_ignored
from nenya.options.own import permit_arguments
from nenya.options.sections import TRAINING_ONLY, Options, build_options, keys_of, taken
from nenya.storage.texts import LineFormatter, printed, visible

log = logging.getLogger(__name__)

_FREE_IN_A_RESUME = (
    *("loader.num_workers", "loader.cache_dir", "loader.memory_limit_gb", "loader.on_device"),
    *("data", "rows", "resume", "traceback"),
)


_ORDER = (
    *("prepare", "derive", "split", "prune", "train", "calibrate", "extract", "demo", "verify"),
    *("repack", "generate", "spectra"),
    *("inspect", "embed", "metrics", "clusters", "figures", "statistics", "compare", "outliers", "audit", "probe"),
    *("index", "search", "portal", "migrate", "update", "status", "publish", "export"),
)
_NOT_FOR_USERS = ("given",)
GROUPS = ("model", "trainer", "logger", "sensor")
# Any of these may be a list of texts.
_QUOTED = ("data", "source", "latents", "images", "origins", "new", "mask_flags", "cloud_masks")


class _ToStandardError(logging.StreamHandler[Any]):
    """Writes to the standard error of the moment, which a progress bar replaces to stay below the lines."""

    @property
    def stream(self) -> Any:
        """The stream."""
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        """Ignore the stream that the base class wants to keep."""


def set_up_logging() -> None:
    """Send log lines of nenya to standard error, and warnings of libraries, which may quote a file or a visitor."""
    logger = logging.getLogger("nenya")
    handler = _ToStandardError()
    handler.setFormatter(LineFormatter("%(message)s"))
    logger.handlers[:] = [handler]
    main_rank = os.environ.get("LOCAL_RANK", "0") == "0"
    logger.setLevel(logging.INFO if main_rank else logging.ERROR)
    logger.propagate = False
    for other in ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(other).setLevel(logging.WARNING)
    warnings.formatwarning = _warning
    root = logging.getLogger()
    if not root.handlers:  # else a library sets up its own, which prints anything
        others = _OfLibraries(logging.WARNING)
        others.setFormatter(LineFormatter("%(levelname)s: %(name)s: %(message)s"))
        root.addHandler(others)


class _OfLibraries(logging.Handler):
    """Writes to what standard error is at that time."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            sys.stderr.write(self.format(record) + "\n")
        except Exception:
            self.handleError(record)


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format a warning of a library; it may quote names from a file, so control characters are made visible."""
    return printed(f"{filename}:{lineno}: {category.__name__}: {visible(message)}\n", lines=True)


def command_names() -> list[str]:
    """Return the names of the commands: modules of this package that have a file in `configs/`."""
    modules = {module.name for module in pkgutil.iter_modules(nenya.commands.__path__)}
    found = sorted(path.stem for path in config_dir().glob("*.yaml") if path.stem in modules)
    return [*(name for name in _ORDER if name in found), *(name for name in found if name not in _ORDER)]


def about(name: str) -> str:
    """Return a short description of a command."""
    return str(read_yaml(config_dir() / f"{name}.yaml", own=True)["hydra"]["help"]["header"])


def module_of(name: str) -> ModuleType:
    """Return the module of a command; its `run` does the work."""
    return importlib.import_module(f"nenya.commands.{name}")


def options_of(name: str) -> type[Options]:
    """Return the options class of a command: the annotation of `options` in its `run`."""
    found: type[Options] = get_type_hints(module_of(name).run)["options"]
    return found


def compose(name: str, args: Sequence[str]) -> Any:
    """Compose the configuration of a command and check it.

    Args:
        name: the command.
        args: overrides such as `model=v5`, `optim.learning_rate=0.1`.

    Returns:
        The options of the command.

    Raises:
        OptionError: An override does not parse, or names a key or a value that does not exist.
    """
    from hydra import compose as hydra_compose
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    options_type = options_of(name)
    permit_arguments(args)
    overrides = prepare(name, args)

    def by_hydra(chosen: Sequence[str]) -> Any:
        with _hydra(name):
            return hydra_compose(config_name=name, overrides=list(chosen))

    try:
        config = composed((name, options_type, config_dir()), overrides, GROUPS, by_hydra)
        values = OmegaConf.to_container(config, resolve=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise OptionError(first_cause(error)) from error
    assert isinstance(values, dict)
    options = build_options(options_type, {str(k): v for k, v in values.items()})
    if isinstance(options, TrainOptions) and options.resume:
        return _resumed(options, args)
    if isinstance(options, UpdateOptions):
        options.given = sorted({key for override in overrides for key in _keys_of(override)})
    return options


def _keys_of(override: str) -> list[str]:
    """Return the dotted keys that an override sets: its own, or those of a group's file."""
    key, _, value = override.partition("=")
    if key not in GROUPS:
        return [key]
    found = read_group(key, value)
    return [f"{name}.{inner}" for name, values in found.items() if isinstance(values, dict) for inner in values] + [
        name for name, values in found.items() if not isinstance(values, dict)
    ]


def takes_group(options_type: type[Options], group: str) -> bool:
    """Return whether a command has the choices of a group."""
    return group in taken(options_type) or (group == "sensor" and issubclass(options_type, PrepareOptions))


def prepare(name: str, args: Sequence[str]) -> list[str]:
    """Return overrides in Hydra's form: checked, quoted, config groups first.

    An explicit key therefore always overrides an option file.

    Raises:
        OptionError: An override does not parse, or names a key or a value that does not exist.
    """
    options_type = options_of(name)
    args = _in_full(options_type, args)
    _check_once(options_type, args)
    ordered = sorted(args, key=lambda arg: arg.partition("=")[0] not in GROUPS)
    return [o for arg in ordered for o in _prepare(options_type, arg)]


def _check_once(options_type: type[Options], args: Sequence[str]) -> None:
    """Refuse an input that is given twice; of another option the last value counts (see `given_twice`).

    Raises:
        OptionError: An input has two values.
    """
    given: dict[str, str] = {}
    for arg in args:
        key, equals, _ = arg.partition("=")
        if not equals or given.setdefault(key, arg) == arg:
            continue
        if key in _QUOTED and key != "mask_flags":
            raise OptionError(f"{given[key]} and {arg}: give {key}= once; several files are a list, {key}=[a,b]")
        if key == options_type.positional:
            raise OptionError(f"{given[key]} and {arg}: give {key.removesuffix('_dir')}= once")


def given_twice(args: Sequence[str]) -> list[str]:
    """Return a line on each option that is given several times: its last value was used."""
    given: dict[str, list[str]] = {}
    for arg in args:
        key, equals, _ = arg.partition("=")
        if equals and arg not in given.setdefault(key, []):
            given[key].append(arg)
    return [f"{' and '.join(values)}: the last one counted" for values in given.values() if len(values) > 1]


def _in_full(options_type: type[Options], args: Sequence[str]) -> Sequence[str]:
    """Return arguments given without a key, or by a short one, as full overrides."""
    args = _with_keys(options_type, [options_type.words.get(arg, arg) for arg in args])
    if "archive_dir" in taken(options_type):  # `archive` is also a section, which cannot be set at once
        args = [f"archive_dir={arg[8:]}" if arg.startswith("archive=") else arg for arg in args]
    return args


def _with_keys(options_type: type[Options], args: Sequence[str]) -> list[str]:
    """Give words without a key that of the command's input, as in `nenya verify a_latents.h5 b_latents.h5`.

    Raises:
        OptionError: The command has no input, has it twice or more than one, or the word is an option without a value.
    """
    words = [arg for arg in args if "=" not in arg and not arg.startswith("-")]
    key, rest = options_type.positional, [arg for arg in args if arg not in words]
    if not words:
        return rest
    keys = {*taken(options_type), "archive"} - {"archive_dir"}
    forgotten = [word for word in words if word in keys and not Path(word).exists()]
    if key not in taken(options_type) or forgotten:
        word = forgotten[0] if forgotten else words[0]
        said = f"such as {word}=true" if forgotten else "as this command has no input files"
        raise OptionError(f"{word}: expected key=value, {said}")
    name = "archive" if key == "archive_dir" else key
    if given := next((arg for arg in rest if arg.partition("=")[0] in (key, name)), None):
        raise OptionError(f"{given} and {words[0]}: give the input once: {name}=, or files without a key")
    if key in ("data", "latents"):
        return [*rest, f"{key}=[" + ",".join(map(_listed, words)) + "]"]
    if len(words) > 1:
        raise OptionError(f"{' '.join(words[:3])}: expected one {name}, got {len(words)}")
    return [*rest, f"{key}={words[0]}"]


def _listed(word: str) -> str:
    """Return a word as an item of a list, or the items of a list such as `[a.h5,b.h5]`."""
    is_list = word.startswith("[") and word.endswith("]") and not Path(word).exists()
    return word[1:-1] if is_list else _quoted(word)


def _quoted(word: str) -> str:
    return '"' + word + '"' if "'" in word else f"'{word}'"


@contextmanager
def _hydra(name: str) -> Iterator[None]:
    """Initialize Hydra with the configs and the schema of the command's dataclass."""
    from hydra import initialize_config_dir

    store_schema(name)
    with initialize_config_dir(config_dir=str(config_dir()), version_base="1.3"):
        yield


def store_schema(name: str) -> None:
    """Register the options of a command with Hydra."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name=f"schema_{name}", node=own_first(options_of(name)))


def own_first(options_type: type[Options]) -> type:
    """Return the options in the order of --help: the command's own, the common ones, then sections."""
    depth = {f.name: sum(f.name in getattr(t, "__dataclass_fields__", ()) for t in options_type.__mro__)
             for f in fields(options_type)}  # fmt: skip
    ordered = sorted(fields(options_type), key=lambda f: (is_dataclass(f.type), depth[f.name]))
    return make_dataclass(
        options_type.__name__,
        [(f.name, f.type, field(default=f.default, default_factory=f.default_factory)) for f in ordered],
    )


def hydra_answers(name: str, args: list[str]) -> int:
    """Have Hydra answer its own flags (--cfg job, --info ...)."""
    import hydra

    flags = [arg for arg in args if arg.startswith("-") or arg in ("job", "all", "hydra")]
    args = [*flags, *prepare(name, [arg for arg in args if arg not in flags])]
    store_schema(name)
    sys.argv = [name, *args]
    said = io.StringIO()  # Hydra would print a traceback when a pipe is closed
    with redirect_stdout(said):
        hydra.main(config_path=str(config_dir()), config_name=name, version_base="1.3")(lambda _: None)()
    sys.stdout.write(said.getvalue())
    return 0


def _prepare(options_type: type[Options], arg: str) -> list[str]:
    """Check one override and quote its value, so that any path can be given unchanged."""
    key, equals, value = arg.partition("=")
    if not equals or not key:
        hint = "; nenya COMMAND --help lists the options" if arg.startswith("-") else ""
        raise OptionError(f"{arg}: expected key=value, such as data=/path/to/cutouts_preproc.h5{hint}")
    if key in GROUPS and takes_group(options_type, key):
        return _choose(key, value)
    annotation = _annotation(options_type, key)
    if annotation in (str, str | None) or key in (
        "data",
        "source",
        "latents",
        "images",
        "origins",
        "new",
        "mask_flags",
        *("a", "b", "a_images", "b_images", "seeds"),
    ):
        value = quote(value)
    return [f"{key}={value}"]


def _choose(group: str, value: str) -> list[str]:
    """Return the overrides that select a file of a config group, or a user's JSON option file as the model."""
    if group == "model" and value.endswith(".json"):
        return ["model=custom", *_json_overrides(value)]
    if group == "sensor" and value.endswith((".yaml", ".yml")):
        return ["sensor=grid", *_recipe_overrides(value)]
    read_group(group, value)
    return [f"{group}={value}"]


def _json_overrides(path: str) -> list[str]:
    """Return the overrides equivalent to a user's JSON option file."""
    values = read_json(path)
    try:
        sections = from_flat(values, name=Path(path).stem)
        checked = build_options(Options, sections)
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from error
    say_ignored(path, tuple(recorded(checked.archive.other)))
    return [
        f"{section}.{key}={_literal(getattr(getattr(checked, section), key))}"
        for section, values in sections.items()
        for key in values
    ]


def _recipe_overrides(path: str) -> list[str]:
    """Return the overrides equivalent to a user's own recipe."""
    values = read_recipe(path)
    try:
        checked = build_options(PrepareOptions, {"recipe": Path(path).stem, **values})
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from error
    return [f"{key}={_literal(getattr(checked, key))}" for key in ("recipe", *values)]


def _literal(value: Any) -> str:
    """Return a value in Hydra's grammar."""
    if isinstance(value, str):
        return quote(value) if value else "''"
    return json.dumps(value)


def quote(value: str) -> str:
    """Quote a string for Hydra's grammar; quoted strings, null and lists stay unchanged."""
    if value in ("null", "") or (value[0] in "'\"" and value[-1] == value[0]):
        return value or "null"
    if value[0] == "[" and value[-1] == "]" and not Path(value).exists():
        items = re.findall(r"\s*('[^']*'|\"[^\"]*\"|[^,]+)", value[1:-1])
        return "[" + ",".join(quote(item.strip()) for item in items if item.strip()) + "]"
    # Hydra's grammar requires doubled backslashes before a quote, and only there.
    escaped = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), value)
    return f"'{escaped}'"


def _annotation(options_type: type[Options], key: str) -> Any:
    """Return the type of a dotted key, or raise OptionError if it does not exist."""
    kind: Any = options_type
    if re.match(r"hydra[./]", key):
        raise OptionError(
            f"{key} applies to --multirun, which runs one job per file: add --multirun, or leave the option out"
        )
    known = [name for name in taken(options_type) if name not in _NOT_FOR_USERS]
    possible = sorted("archive" if name == "archive_dir" else name for name in known)  # the name on the command line
    parts = key.split(".")
    for i, part in enumerate(parts):
        if not is_dataclass(kind):
            raise OptionError(f"unknown option {key}: {'.'.join(parts[:i])} has no keys of its own")
        if part not in known:
            if not i:
                raise OptionError(f"unknown option {key}{_hint(options_type, key, possible)}")
            if key in TRAINING_ONLY:
                raise OptionError(f"{key}: has an effect only in a training; leave it out")
            check_keys({part: None}, known, "".join(p + "." for p in parts[:i]))
        known = [] if i else keys_of(options_type, part)
        kind = next(f.type for f in fields(kind) if f.name == part)
    if is_dataclass(kind):
        raise OptionError(f"{key} is a section: set one of its keys, such as {key}.{fields(kind)[0].name}=...")
    return kind


def _hint(options_type: type[Options], key: str, possible: list[str]) -> str:
    """Return advice for a key that the command does not take.

    Args:
        options_type: of the command.
        key: as it was given.
        possible: options and sections of the command, by their names on the command line.
    """
    first = key.partition(".")[0]
    if first in options_type.instead:
        return f": {options_type.instead[first]}"
    for section in fields(options_type):
        if section.name in possible and is_dataclass(section.type) and key in {f.name for f in fields(section.type)}:
            return f": it is {section.name}.{key}"
    listed = f"(possible: {', '.join(possible)})"
    if first == "latents" and "data" in possible:
        return f": data= names the latents of this command {listed}"
    if first in {f.name for f in fields(Options)}:
        return f": this command does not use it {listed}"
    return f"{suggest(first, possible)} {listed}"


def _check_run_config(options: TrainOptions, run: Path, values: dict[str, Any]) -> None:
    """Check that the options file of a run sets nothing that only the command line may set.

    Raises:
        OptionError: It does, or the file does not hold the options of a run.
    """
    place = run / "config.yaml"
    try:
        was = build_options(TrainOptions, values)
    except OptionError as error:
        raise OptionError(f"{place}: {error}") from error
    for key, wanted, given in (
        ("clobber", was.clobber, options.clobber),
        ("loader.allow_external", was.loader.allow_external, options.loader.allow_external),
    ):
        if wanted and not given:
            raise OptionError(
                f"{place} sets {key}=true, which only the command line may set: give {key}=true to allow it"
            )


def _resumed(options: TrainOptions, args: Sequence[str]) -> TrainOptions:
    """Return the options of the resumed run; only options that do not change its results may differ."""
    from nenya.train import find_run, read_run_config

    run = find_run(options)
    try:
        values = to_dict(build_options(TrainOptions, read_run_config(run)))
    except OptionError as error:
        raise OptionError(f"{run}/config.yaml: {error}") from error
    _check_run_config(options, run, values)
    for arg in args:
        key, _, value = arg.partition("=")
        section, _, inner = key.partition(".")
        given: Any = getattr(options, section)
        if key in ("trainer", "logger"):
            chosen = {k for k in read_group(key, value)}
            values[key].update({k: getattr(given, k) for k in chosen})
        elif key == "model":
            if values["model"]["name"] != options.model.name:
                raise OptionError(f"{arg}: the run {run} has model={values['model']['name']}; leave model= out")
        elif section in ("trainer", "logger", "checkpoint") or key in _FREE_IN_A_RESUME:
            target = values[section] if inner else values
            target[inner or section] = getattr(given, inner) if inner else given
        else:
            was = values[section][inner] if inner else values[section]
            if was != (getattr(given, inner) if inner else given):
                raise OptionError(f"{arg}: the run {run} has {key}={was}; a resumed run must keep it: leave {key}= out")
    values.update(resume=str(run), traceback=options.traceback)
    return build_options(TrainOptions, values)
