"""Checks before an update writes anything."""

from dataclasses import dataclass
from pathlib import Path

from nenya.archive.arrivals import find_new
from nenya.archive.folder import Folder
from nenya.archive.lease import LEASE
from nenya.archive.manifest import MANIFEST, Manifest, is_version
from nenya.archive.settings import check_settings, choose_versions, extract_options, settings_of
from nenya.archive.stages import named_table
from nenya.errors import InputFileError, OptionError
from nenya.models.contrastive import load_model, weights_source
from nenya.options.commands import UpdateOptions
from nenya.options.extras import need
from nenya.storage.paths import is_s3
from nenya.storage.s3.service import store
from nenya.storage.shipped import AVAILABLE


@dataclass(frozen=True)
class Opening:
    """An archive and what an update of it is about, checked.

    Attributes:
        folder: the archive.
        manifest: of the archive.
        names: versions to update.
        new: cutout files and granules; None for the cutouts that other versions have.
    """

    folder: Folder
    manifest: Manifest
    names: list[str]
    new: tuple[list[Path | str], list[Path | str]] | None

    @classmethod
    def of(cls, options: UpdateOptions) -> "Opening":
        """Return what the options ask for.

        Raises:
            NenyaError: It is not possible.
        """
        place = check_options(options)
        need("search", "the index of an archive")
        folder = Folder(place, options.loader.cache_dir)
        manifest = folder.read()
        if not options.new and not manifest:
            raise OptionError("expected new=, granules or cutout files, such as new=/path/to/day/")
        check_place(folder, manifest)
        names = choose_versions(options, manifest)
        for name in names:
            check_version(options, manifest, name)
        folder.check_links([*manifest, *names])
        new = find_new(options.new) if options.new else None
        if options.table:
            named_table(options.table)  # before any work
        if new and new[1]:
            check_recipe(options, manifest, str(new[1][0]))
        return cls(folder, manifest, names, new)


def check_options(options: UpdateOptions) -> str:
    """Check that the required options are given; return the location of the archive.

    Raises:
        OptionError: An option is missing or empty.
    """
    if not options.archive_dir:
        raise OptionError("expected archive=, the folder or s3:// address of the archive")
    if "new" in (options.given or []) and not options.new:
        raise OptionError(
            "new= is empty: expected granules or cutout files, such as new=/path/to/day/; or leave it out"
        )
    return options.archive_dir


def check_place(folder: Folder, manifest: Manifest) -> None:
    """Check that a folder for a new archive is empty.

    Raises:
        OptionError: It is not.
    """
    if manifest or (folder.url is None and (folder.work.is_dir() or not folder.root.exists())):
        return
    if folder.url is None:
        if not folder.root.is_dir():
            raise OptionError(f"archive={folder.place}: expected a folder, got a file; give a new folder")
        others = [path.name for path in folder.root.iterdir()]
    else:
        others = [] if folder.work.is_dir() else [o.url for o in store().find(folder.url + "/") if o.name != LEASE]
    if others:
        raise OptionError(f"archive={folder.place} has no {MANIFEST}, but other files ({others[0]}): give a new folder")


def check_version(options: UpdateOptions, manifest: Manifest, name: str) -> None:
    """Check the options against those of the version, or those that a new version needs.

    Raises:
        NenyaError: They do not agree.
    """
    if not is_version(name):
        raise OptionError(f"version={name}: expected a plain name, as its folder gets it; give another")
    if name in manifest:
        check_settings(options, name, manifest[name].settings)
        return
    if not options.ckpt and not options.model.weights:
        if manifest:
            there = f"version={name}: {options.archive_dir} has {', '.join(manifest)}; to begin another version, give"
            raise OptionError(f"{there} model= and ckpt=")
        raise OptionError(f"{options.archive_dir}: no archive; give model= and ckpt= to create one; {AVAILABLE}")
    check_weights(options)


def check_recipe(options: UpdateOptions, manifest: Manifest, granule: str) -> None:
    """Check that there is a recipe for granules, in the options or in any version.

    Raises:
        OptionError: There is none.
    """
    if settings_of(options)["sensor"] or any(version.settings["sensor"] for version in manifest.values()):
        return
    recipe = "the recipe for their cutouts, such as sensor=modis"
    raise OptionError(f"expected sensor= with the first granules, such as {granule}: {recipe}")


def check_weights(options: UpdateOptions) -> None:
    """Check, before anything is written, that the weights of a new version exist and fit the model.

    Raises:
        NenyaError: They do not.
    """
    chosen = extract_options(options, settings_of(options))
    source = weights_source(chosen, options.ckpt)
    if is_s3(source):
        return
    if not Path(source).is_file():
        raise InputFileError(f"{source}: no such file of weights; check ckpt=")
    load_model(chosen, source)
