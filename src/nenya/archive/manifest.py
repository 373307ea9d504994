"""Metadata of an archive: `archive.json`, the states of its indexes, and the files an update is about to publish.

These files may come from an untrusted source, so they are parsed here, in one place, into checked values: anything
that nenya would not write is refused with one line that names the file and the key.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from nenya.errors import InputFileError, OptionError
from nenya.latents.index import check_about
from nenya.options.commands import PrepareOptions
from nenya.options.files import recipe_keys
from nenya.options.sections import Options, build_options
from nenya.storage.names import Entry, Json, entry_of, is_plain, parse_json, refuse_overlaps
from nenya.storage.texts import quoted, visible

MANIFEST = "archive.json"
WORK = ".work"
FORMAT = 1
CUTOUTS = "cutouts"
"""Folder of the cutouts, shared by all versions."""

INDEX = "index"
STATES = "index-states"
_RESERVED = (CUTOUTS, "objects", "uploads", "lock")

SECTIONS: dict[str, tuple[str, ...]] = {
    "model": ("name", "ssl_model", "feat_dim", "nchannels", "width", "latent"),
    "preprocess": ("file", "image", "dt_crop"),
    "loader": ("train_key", "valid_key", "batch_size_valid"),
    "trainer": ("precision",),
}
"""The options that determine the results of a version; an archive sets these and no others."""

MASKED: dict[str, tuple[str, Any]] = {"model": ("mask_channel", False), "preprocess": ("masked", "nan")}
"""Of each section the key on masked pixels, which is recorded only where it differs from this value."""

MAP = ("ntrain", "n_neighbors", "min_dist", "metric")
CLUSTERS = ("k", "passes", "sample")
_HINT = "restore it from a backup"


@dataclass(frozen=True)
class Index:
    """The state of the index for the listed files.

    Attributes:
        version: of LanceDB's table.
        rows: in it.
        about: metadata of the index, on S3 also its list of files.
        searched_by: description of the vector index and its recall.
    """

    version: int
    rows: int
    about: Entry
    searched_by: str = ""


@dataclass(frozen=True)
class Added:
    """A cutout file of the archive, with everything made from it.

    Attributes:
        stem: name of the cutout file without suffix.
        sources: [name, bytes, mark] of each source; granules by name, cutout files by path.
        cutouts: the file.
        latents: of its cutouts.
        table: one row per cutout, with US0, US1 and cluster.
        rows: partition -> cutouts.
        left_out: cutouts without a latent because of missing pixels.
        dates: first and last datetime, if the table has dates.
        nenya: the version that made it.
        date: of its addition.
        row_order: order of the rows of its cutouts, empty if the file does not record one.
    """

    stem: str
    sources: list[list[Any]]
    cutouts: Entry
    latents: Entry
    table: Entry
    rows: dict[str, int]
    left_out: int
    dates: list[str]
    nenya: str
    date: str
    row_order: str = ""


@dataclass
class Version:
    """One model version.

    Attributes:
        settings: section -> key -> value: the options that determine the results.
        made: versions of nenya and of the libraries that began it.
        weights: the network.
        projector: of the UMAP.
        clusters: the cluster centres.
        index: of all files.
        files: in order of addition.
        empty: granules without a cutout, as `Added.sources`.
        calibration: of the weights, if there is one; None is not recorded.
    """

    settings: dict[str, Any]
    made: dict[str, str]
    weights: Entry
    projector: Entry
    clusters: Entry
    index: Index
    files: list[Added] = field(default_factory=list)
    empty: list[list[Any]] = field(default_factory=list)
    calibration: Entry | None = None

    def entries(self) -> Iterator[Entry]:
        """Yield all listed files."""
        yield from (self.weights, self.projector, self.clusters, self.index.about)
        if self.calibration is not None:
            yield self.calibration
        for added in self.files:
            yield from (added.cutouts, added.latents, added.table)


Manifest = dict[str, Version]
"""Version name -> version."""


@dataclass(frozen=True)
class State:
    """A state of an index.

    Attributes:
        about: metadata of the index, as `nenya.latents.index.check_about` checks it.
        files: on S3, the files of the index.
        index: folder of the index, relative to the archive.
    """

    about: dict[str, Any]
    files: list[Entry]
    index: str

    def below(self, entry: Entry) -> str:
        """Return the name of a file in the folder of the index."""
        return entry.name.removeprefix(f"{self.index}/")


def render(manifest: Manifest) -> bytes:
    """Return the content of `archive.json`: one line per setting and file."""
    lines = ["{", f' "format": {FORMAT},', ' "about": "an archive of nenya: run nenya status to list its contents",']
    lines.append(' "versions": {')
    for number, (name, version) in enumerate(manifest.items()):
        rows = {key: getattr(version, key) for key in ("files", "empty")}
        values = {key: value for key, value in vars(version).items() if key not in rows and value is not None}
        lines.append(f"  {json.dumps(name)}: {{")
        lines += [f"   {json.dumps(key)}: {json.dumps(value, default=vars)}," for key, value in values.items()]
        for key, items in rows.items():
            inner = ",\n".join(f"    {json.dumps(item, default=_plain)}" for item in items)
            lines.append(f'   "{key}": [' + (f"\n{inner}\n   ]" if items else "]") + ("," if key == "files" else ""))
        lines.append("  }" + ("," if number < len(manifest) - 1 else ""))
    return ("\n".join([*lines, " }", "}"]) + "\n").encode()


def parse(data: bytes, place: str) -> Manifest:
    """Return the manifest in `archive.json`.

    Raises:
        InputFileError: It is damaged, of a newer nenya, or names files outside the archive.
    """
    found = parse_json(data, place, _HINT)
    if (number := found["format"].count()) > FORMAT:
        raise InputFileError(f"{place}: expected format {FORMAT}, got format {number} of a newer nenya; update nenya")
    versions = found["versions"].object()
    for name in versions:
        if not is_version(name):
            raise InputFileError(f"{place}: names a file outside the archive: {quoted(name)} is not a model version")
    return {name: _version(versions, version) for name, version in versions.items()}


def parse_state(data: bytes, place: str, entry: Entry) -> State:
    """Return the state of the index of a version, from `about-<number>.json` in the archive.

    Raises:
        InputFileError: It is damaged, or names files outside the folder of the index.
    """
    found, index = parse_json(data, place, _HINT), f"{entry.name.partition('/')[0]}/{INDEX}"
    found.object(("about", "files"))
    files = [_within(item, index, deep=True) for item in found["files"].items()]
    refuse_overlaps(files, found["files"])
    return State(check_about(found["about"]), files, index)


def parse_publishing(data: bytes, place: str, version: str) -> list[str]:
    """Return the names of the files that an update of a version was about to publish.

    They are in the folders that an update publishes to and nowhere else, as those of them that the archive does not
    list are removed.

    Raises:
        InputFileError: It is damaged, or names other files.
    """
    hint = f"remove the folder {WORK}, which holds only unfinished work"
    try:
        found = parse_json(data, place, hint)
    except InputFileError:  # killed before it reached the disk, hence before any publication
        return []
    names = [item.name() for item in found.items()]
    folders = (version, f"{version}/latents", f"{version}/tables", CUTOUTS)
    for name in names:
        if name.rpartition("/")[0] not in folders:
            raise InputFileError(f"{place}: names a file that no update publishes: {quoted(name)}; {hint}")
    return names


def is_version(name: str) -> bool:
    """Return whether a string can be the name of a model version and its folder."""
    return is_plain(name, one=True) and not name.startswith(".") and name not in _RESERVED


def _within(found: Json, *folders: str, deep: bool = False) -> Entry:
    """Return a file in one of the given folders, or with `deep` also in their subfolders."""
    entry = entry_of(found)
    own = (folder for folder in folders if entry.name.startswith(f"{folder}/"))
    if not any(deep or "/" not in entry.name[len(folder) + 1 :] for folder in own):
        key = f"{found.key}: " if found.key else ""
        raise InputFileError(
            f"{found.place}: names a file outside the folders of the archive: {key}{quoted(entry.name)}; {found.hint}"
        )
    return entry


def _version(versions: Collection[str], found: Json) -> Version:
    found.object(Version.__dataclass_fields__)
    return Version(
        settings=_settings(found["settings"]),
        made=found["made"].texts(),
        weights=_within(found["weights"], *versions),
        projector=_within(found["projector"], *versions),
        clusters=_within(found["clusters"], *versions),
        index=_index(versions, found["index"]),
        files=[_added(versions, item) for item in found["files"].items()],
        empty=[_source(item) for item in found["empty"].items()] if found.get("empty") else [],
        calibration=_within(found["calibration"], *versions) if found.get("calibration") else None,
    )


def _index(versions: Collection[str], found: Json) -> Index:
    found.object(Index.__dataclass_fields__)
    said = found.get("searched_by")
    return Index(
        version=found["version"].count(),
        rows=found["rows"].count(),
        about=_within(found["about"], *(f"{name}/{STATES}" for name in versions)),
        searched_by=said.text() if said else "",
    )


def _plain(item: Any) -> dict[str, Any]:
    """Return the values of an entry, without a row order that is not recorded."""
    return {key: value for key, value in vars(item).items() if value or key != "row_order"}


def _added(versions: Collection[str], found: Json) -> Added:
    found.object(Added.__dataclass_fields__)
    order = found.get("row_order")
    return Added(
        stem=found["stem"].name(one=True),
        sources=[_source(item) for item in found["sources"].items()],
        cutouts=_within(found["cutouts"], CUTOUTS),
        latents=_within(found["latents"], *(f"{name}/latents" for name in versions)),
        table=_within(found["table"], *(f"{name}/tables" for name in versions)),
        rows=found["rows"].counts(),
        left_out=found["left_out"].count(),
        dates=[item.text() for item in found["dates"].items()],
        nenya=found["nenya"].text(),
        date=found["date"].text(),
        row_order=order.text() if order else "",
    )


def _source(found: Json) -> list[Any]:
    """Return the identity of a source: name, bytes and mark."""
    if len(values := found.items()) != 3:
        found.refuse("name, bytes and mark of a source")
    return [values[0].text(), values[1].count(), values[2].text()]


def _settings(found: Json) -> dict[str, Any]:
    """Return the settings of a version; options that an archive may not set are refused."""
    found.object((*SECTIONS, "seed", "map", "clusters", "sensor"))
    for section, keys in SECTIONS.items():
        values = found[section].object((*keys, *MASKED.get(section, ())[:1]))
        if lacking := [key for key in keys if key not in values]:
            found[section][lacking[0]]
    _as_options(found, Options, {name: found[name].value for name in SECTIONS})
    found["seed"].count()
    found["map"].object((*MAP, "projector_sha256"))
    for key in ("ntrain", "n_neighbors"):
        found["map"][key].count()
    found["map"]["min_dist"].number()
    found["map"]["metric"].text()
    if found["map"].get("projector_sha256"):
        found["map"]["projector_sha256"].sha256()
    for value in found["clusters"].object(CLUSTERS).values():
        if value.value is not None:
            value.count()
    if found.get("sensor"):
        found["sensor"].object(recipe_keys())
        _as_options(found, PrepareOptions, found["sensor"].value)
    whole: dict[str, Any] = found.value
    return whole


def _as_options(found: Json, kind: type[Options], values: dict[str, Any]) -> None:
    """Check values like options of the command line."""
    try:
        build_options(kind, values)
    except OptionError as error:
        raise InputFileError(
            f"{found.place}: damaged: {found.key}: {visible(str(error)[:200])}; {found.hint}"
        ) from error
