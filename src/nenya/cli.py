"""The `nenya` command and the scripts: Hydra in, one call out, one line and an exit code for each error."""

import importlib
import json
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Any

import nenya
from nenya.commands.help import help_text
from nenya.commands.output import say
from nenya.errors import Interrupted, NenyaError, OptionError
from nenya.options.commands import (
    ClustersOptions,
    EmbedOptions,
    FiguresOptions,
    IndexOptions,
    MetricsOptions,
    MigrateOptions,
    PortalOptions,
    SearchOptions,
    StatisticsOptions,
    StatusOptions,
    UpdateOptions,
)
from nenya.options.files import config_dir, read_group, read_json, read_recipe
from nenya.options.sections import (
    ExportOptions,
    ExtractOptions,
    GenerateOptions,
    InspectOptions,
    Options,
    PrepareOptions,
    RepackOptions,
    SpectraOptions,
    TrainOptions,
    VerifyOptions,
    build_options,
    check_keys,
    from_flat,
    suggest,
    to_dict,
)
from nenya.storage.texts import LineFormatter, Lines, printed, visible

log = logging.getLogger(__name__)

# command -> (its options, the module whose `run` does it, what it does)
COMMANDS: dict[str, tuple[type[Options], str, str]] = {
    "prepare": (PrepareOptions, "nenya.prepare.job", "make cutouts and their table of ocean fields"),
    "train": (TrainOptions, "nenya.train", "train a model on cutouts"),
    "extract": (ExtractOptions, "nenya.latents_extraction", "extract a latent vector for each cutout"),
    "demo": (TrainOptions, "nenya.commands.demo", "train and extract on generated cutouts, and draw what comes out"),
    "verify": (VerifyOptions, "nenya.commands.verify", "read latents files back and check them"),
    "repack": (RepackOptions, "nenya.commands.repack", "write cutout files anew, with chunks that read fast"),
    "generate": (
        GenerateOptions,
        "nenya.commands.generate",
        "make cutouts with a known truth: noise, power laws, an ocean",
    ),
    "spectra": (SpectraOptions, "nenya.data.spectra", "power spectra of cutouts and their slopes"),
    "inspect": (
        InspectOptions,
        "nenya.commands.inspect",
        "say what a file is, what is in it and what is wrong with it",
    ),
    "embed": (EmbedOptions, "nenya.latents.embed", "make a two-dimensional map of latents (UMAP)"),
    "metrics": (MetricsOptions, "nenya.commands.metrics", "numbers on latents: spectrum, spread, invariance ..."),
    "clusters": (ClustersOptions, "nenya.commands.clusters", "divide latents into groups, with their typical cutouts"),
    "figures": (
        FiguresOptions,
        "nenya.commands.figures",
        "draw a UMAP, a map, a gallery or eigen-images of a table's cutouts",
    ),
    "statistics": (
        StatisticsOptions,
        "nenya.tables.statistics",
        "where, when and what chosen cutouts are, against the whole",
    ),
    "index": (
        IndexOptions,
        "nenya.commands.index",
        "make or extend the index of an archive of latents (nenya index add ...)",
    ),
    "search": (SearchOptions, "nenya.commands.search", "find the cutouts most similar to others, or to an image"),
    "portal": (
        PortalOptions,
        "nenya.commands.portal",
        "see an archive in a browser: UMAP, map, gallery, similar cutouts",
    ),
    "migrate": (
        MigrateOptions,
        "nenya.commands.migrate",
        "say what of a folder of the first nenya works, and how to convert",
    ),
    "update": (
        UpdateOptions,
        "nenya.archive.update",
        "bring new granules or cutout files into an archive, with all made of them",
    ),
    "status": (StatusOptions, "nenya.commands.status", "say what is in an archive, what is missing, and what made it"),
    "export": (ExportOptions, "nenya.commands.export", "write the weights of a checkpoint as safetensors"),
}
_FREE_IN_A_RESUME = (
    *("loader.num_workers", "loader.cache_dir", "loader.memory_limit_gb", "loader.on_device"),
    *("data", "resume", "traceback"),
)
_NOT_FOR_USERS = ("given", "archive_dir")  # archive= is what they call it
_LONGEST = 4000  # characters of an error line, which may quote what was given
_PIPE = 141  # as a shell says of a command that SIGPIPE ends
GROUPS = ("model", "trainer", "logger", "sensor")
HYDRA_FLAGS = ("--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--package", "-p")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `nenya COMMAND key=value ...`.

    Returns:
        The exit code: 0 done, 1 some of several files failed, 2 bad input, option or environment, 75 interrupted.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ["--version"]:
        print(f"nenya {nenya.__version__}")
        return 0
    if not args or args[0] in ("--help", "-h"):
        print("usage: nenya COMMAND key=value ...   (nenya COMMAND --help lists the keys)\n")
        print("\n".join(f"  {name:10s} {doc}" for name, (_, _, doc) in COMMANDS.items()))
        return 0 if args else 2
    if args[0] not in COMMANDS:
        hint = suggest(args[0], list(COMMANDS))
        print(printed(f"nenya: unknown command {args[0]}{hint} (possible: {', '.join(COMMANDS)})"), file=sys.stderr)
        return 2
    return run_command(args[0], args[1:])


def run_command(name: str, args: Sequence[str] | None = None) -> int:
    """Run one command with its overrides; see `main` for the exit codes."""
    args = list(sys.argv[1:] if args is None else args)
    if name == "portal" and "--export" in args[:-1]:  # as in `nenya portal --export DIR`
        place = args.index("--export")
        args[place : place + 2] = [f"export={args[place + 1]}"]
    flags = {a.split("=")[0] for a in args} & {*HYDRA_FLAGS}
    set_up_logging()
    many = any(arg in ("--multirun", "-m") for arg in args)
    show = any(arg.lower() == "traceback=true" for arg in args)
    try:
        if flags - {"--help", "-h"}:
            return _hydra_help(name, args)
        if many and not flags:
            return int(importlib.import_module("nenya.commands.sweep").run(name, args))
        options = compose(name, [arg for arg in args if arg not in flags])
        if flags:
            say(Lines(help_text(name, options, [f.name for f in fields(_own_first(type(options)))])))
            sys.stdout.flush()
            return 0
        code = int(importlib.import_module(COMMANDS[name][1]).run(options))
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who read the answer, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE
    except NenyaError as error:
        return _say(name, error, str(error), error.exit_code, show)
    except KeyboardInterrupt as error:
        return _say(name, error, "interrupted", Interrupted.exit_code, show)
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        hint = "" if show else " (traceback=true shows where)"
        return _say(name, error, f"{type(error).__name__}: {first}{hint}", 2, show)


def _say(name: str, error: BaseException, line: str, code: int, show: bool) -> int:
    if show:
        print(printed("".join(traceback.format_exception(error)), lines=True), end="", file=sys.stderr)
    said = printed(f"nenya {name}: {' '.join(line.split())}")
    print(said if len(said) <= _LONGEST else f"{said[:_LONGEST]} ...", file=sys.stderr, flush=True)
    return code


def set_up_logging() -> None:
    """Send nenya's own log lines to the standard error output, and quieten the libraries."""
    logger = logging.getLogger("nenya")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter("%(message)s"))
    logger.handlers[:] = [handler]
    main_rank = os.environ.get("LOCAL_RANK", "0") == "0"
    logger.setLevel(logging.INFO if main_rank else logging.ERROR)
    logger.propagate = False
    for other in ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(other).setLevel(logging.WARNING)
    warnings.formatwarning = _warning


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Write a library's warning, which may have names of a file's variables in it."""
    return printed(f"{filename}:{lineno}: {category.__name__}: {visible(message)}\n", lines=True)


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

    options_type = COMMANDS[name][0]
    overrides = prepare(name, args)
    with _hydra(name):
        try:
            config = hydra_compose(config_name=name, overrides=overrides)
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


def prepare(name: str, args: Sequence[str]) -> list[str]:
    """Return overrides as Hydra takes them: checked, quoted, and groups first.

    So an option file never wins over a key that is given beside it.

    Raises:
        OptionError: An override does not parse, or names a key or a value that does not exist.
    """
    ordered = sorted(_in_full(name, args), key=lambda arg: arg.partition("=")[0] not in GROUPS)
    return [o for arg in ordered for o in _prepare(COMMANDS[name][0], arg)]


def _in_full(name: str, args: Sequence[str]) -> Sequence[str]:
    """Return arguments that may be given without their key, or by a shorter one, as overrides."""
    if name in ("verify", "repack", "inspect", "spectra", "clusters", "metrics", "embed"):
        return _files_as_data(args)
    if name == "index":
        return ["add=true" if arg == "add" else arg for arg in args]
    key = {"migrate": "folder", "status": "archive"}.get(name)
    if key is not None:
        args = [arg if "=" in arg or arg.startswith("-") else f"{key}={arg}" for arg in args]
    if hasattr(COMMANDS[name][0], "archive_dir"):  # the section of that name is not set as a whole
        args = [f"archive_dir={arg[8:]}" if arg.startswith("archive=") else arg for arg in args]
    return args


def _files_as_data(args: Sequence[str]) -> list[str]:
    """Let files be named without `data=`, as in `nenya verify a_latents.h5 b_latents.h5`."""
    files = [arg for arg in args if "=" not in arg and not arg.startswith("-")]
    rest = [arg for arg in args if arg not in files]
    return [*rest, "data=[" + ",".join(f"'{file}'" for file in files) + "]"] if files else rest


def first_cause(error: BaseException) -> str:
    """Return what a Hydra error says, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")), "")
    if found := re.match(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", lines[0]):
        kinds = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
        return f"{key}={found[1]}: wanted is {kinds.get(found[2], found[2])}"
    if found := re.match(r"Value '(.*)' is not a valid bool", lines[0]):
        return f"{key}={found[1]}: wanted is true or false"
    return f"{key}: {lines[0]}" if key else lines[0]


@contextmanager
def _hydra(name: str) -> Iterator[None]:
    """Open Hydra on the configs, with the schema that the dataclasses are."""
    from hydra import initialize_config_dir

    store_schema(name)
    with initialize_config_dir(config_dir=str(config_dir()), version_base="1.3"):
        yield


def store_schema(name: str) -> None:
    """Let Hydra know the options of a command."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name=f"schema_{name}", node=_own_first(COMMANDS[name][0]))


def _own_first(options_type: type[Options]) -> type:
    """Return the same options in the order in which --help lists them: the command's own, those of all, sections."""
    depth = {f.name: sum(f.name in getattr(t, "__dataclass_fields__", ()) for t in options_type.__mro__)
             for f in fields(options_type)}  # fmt: skip
    ordered = sorted(fields(options_type), key=lambda f: (is_dataclass(f.type), depth[f.name]))
    return make_dataclass(
        options_type.__name__,
        [(f.name, f.type, field(default=f.default, default_factory=f.default_factory)) for f in ordered],
    )


def _hydra_help(name: str, args: list[str]) -> int:
    """Let Hydra answer its own flags (--cfg job, --info ...)."""
    import hydra

    store_schema(name)
    sys.argv = [name, *args]
    hydra.main(config_path=str(config_dir()), config_name=name, version_base="1.3")(lambda _: None)()
    sys.stdout.flush()
    return 0


def _prepare(options_type: type[Options], arg: str) -> list[str]:
    """Check one override and quote its value, so that any path may stand there as it is."""
    key, equals, value = arg.partition("=")
    if not equals:
        raise OptionError(f"{arg}: wanted key=value, such as data=/path/to/cutouts_preproc.h5")
    if key in GROUPS and (key != "sensor" or issubclass(options_type, PrepareOptions)):
        return _choose(key, value)
    annotation = _annotation(options_type, key)
    if annotation in (str, str | None) or key in ("data", "source", "latents", "images", "origins", "new"):
        value = quote(value)
    return [f"{key}={value}"]


def _choose(group: str, value: str) -> list[str]:
    """Return the overrides that choose a file of a group, or a user's JSON option file as the model."""
    if group == "model" and value.endswith(".json"):
        return ["model=custom", *_json_overrides(value)]
    if group == "sensor" and value.endswith((".yaml", ".yml")):
        return ["sensor=grid", *_recipe_overrides(value)]
    read_group(group, value)
    return [f"{group}={value}"]


def _json_overrides(path: str) -> list[str]:
    """Return the overrides that a user's JSON option file stands for."""
    values = read_json(path)
    try:
        sections = from_flat(values, name=Path(path).stem)
        checked = build_options(Options, sections)
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from error
    return [
        f"{section}.{key}={_literal(getattr(getattr(checked, section), key))}"
        for section, values in sections.items()
        for key in values
    ]


def _recipe_overrides(path: str) -> list[str]:
    """Return the overrides that a user's own recipe stands for."""
    values = read_recipe(path)
    try:
        checked = build_options(PrepareOptions, {"recipe": Path(path).stem, **values})
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from error
    return [f"{key}={_literal(getattr(checked, key))}" for key in ("recipe", *values)]


def _literal(value: Any) -> str:
    """Return a value as Hydra's grammar wants it."""
    if isinstance(value, str):
        return quote(value) if value else "''"
    return json.dumps(value)


def quote(value: str) -> str:
    """Quote a text for Hydra's grammar; a quoted text, null and a list stay what they are."""
    if value in ("null", "") or (value[0] in "'\"" and value[-1] == value[0]):
        return value or "null"
    if value[0] == "[" and value[-1] == "]" and not Path(value).exists():
        items = re.findall(r"\s*('[^']*'|\"[^\"]*\"|[^,]+)", value[1:-1])
        return "[" + ",".join(quote(item.strip()) for item in items if item.strip()) + "]"
    # Hydra's grammar wants backslashes doubled where they stand before a quote, and only there.
    escaped = re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), value)
    return f"'{escaped}'"


def _annotation(options_type: type[Options], key: str) -> Any:
    """Return the type of a dotted key, or raise OptionError if it does not exist."""
    kind: Any = options_type
    if re.match(r"hydra[./]", key):
        raise OptionError(f"{key} is for --multirun, which makes a job of each file: add --multirun, or leave it out")
    parts = key.split(".")
    for i, part in enumerate(parts):
        if not is_dataclass(kind):
            raise OptionError(f"unknown option {key}: {'.'.join(parts[:i])} has no keys of its own")
        known = {f.name: f.type for f in fields(kind)}
        prefix = "".join(p + "." for p in parts[:i])
        if part not in known and not prefix:
            _point_to_section(options_type, part)
        if part not in known or part == "given":
            check_keys({part: None}, [name for name in known if name not in _NOT_FOR_USERS], prefix)
        kind = known[part]
    if is_dataclass(kind):
        raise OptionError(f"{key} is a section: set one of its keys, such as {key}.{fields(kind)[0].name}=...")
    return kind


def _point_to_section(options_type: type[Options], key: str) -> None:
    """Raise OptionError that names the section of a key that was given without one."""
    for section in fields(options_type):
        if is_dataclass(section.type) and key in {f.name for f in fields(section.type)}:
            raise OptionError(f"unknown option {key}: it is {section.name}.{key}")


def _check_run_config(options: TrainOptions, run: Path, values: dict[str, Any]) -> None:
    """Check that the file of a run's options sets nothing that is only the command line's to say.

    Raises:
        OptionError: It does, or it is not the options of a run.
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
                f"{place} sets {key}=true, which only the command line may: give {key}=true if you want it"
            )


def _resumed(options: TrainOptions, args: Sequence[str]) -> TrainOptions:
    """Return the options of the run that is gone on with, changed only where that leaves it the same run."""
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
                raise OptionError(f"{arg}: the run {run} is of model {values['model']['name']}")
        elif section in ("trainer", "logger", "checkpoint") or key in _FREE_IN_A_RESUME:
            target = values[section] if inner else values
            target[inner or section] = getattr(given, inner) if inner else given
        else:
            was = values[section][inner] if inner else values[section]
            if was != (getattr(given, inner) if inner else given):
                raise OptionError(f"{arg}: the run {run} has {key}={was}, and resume continues the very same run")
    values.update(resume=str(run), traceback=options.traceback)
    return build_options(TrainOptions, values)
