"""What can be refused before an update makes anything."""

from pathlib import Path

from nenya.archive.folder import Folder
from nenya.archive.lease import LEASE
from nenya.archive.manifest import MANIFEST, Manifest, is_version
from nenya.archive.settings import check_settings, extract_options, settings_of
from nenya.errors import InputFileError, OptionError
from nenya.models.weights import load_model, weights_source
from nenya.options.commands import UpdateOptions
from nenya.storage.s3.service import is_s3, store


def check_options(options: UpdateOptions) -> str:
    """Check options that no archive takes, or that are empty; return the place of the archive.

    Raises:
        OptionError: One is.
    """
    if not options.archive_dir:
        raise OptionError("archive= is needed: the archive's folder or s3:// address")
    if "new" in (options.given or []) and not options.new:
        raise OptionError("new= is empty: granules or cutout files, such as new=/path/to/day/; or leave it out")
    return options.archive_dir


def check_place(folder: Folder, manifest: Manifest) -> None:
    """Check that a folder that is to become an archive has nothing else in it.

    Raises:
        OptionError: It has.
    """
    if manifest or (folder.url is None and (folder.work.is_dir() or not folder.root.exists())):
        return
    if folder.url is None:
        if not folder.root.is_dir():
            raise OptionError(f"archive={folder.place} is a file: give a new folder")
        others = [path.name for path in folder.root.iterdir()]
    else:
        others = [] if folder.work.is_dir() else [o.url for o in store().find(folder.url + "/") if o.name != LEASE]
    if others:
        raise OptionError(
            f"archive={folder.place} has no {MANIFEST} and other things in it ({others[0]}): give a new place"
        )


def check_version(options: UpdateOptions, manifest: Manifest, name: str) -> None:
    """Check the options against what a version was begun with, or what one needs to begin.

    Raises:
        NenyaError: They do not fit.
    """
    if not is_version(name):
        raise OptionError(f"version={name}: expected a plain name, as a folder is called by it; give another")
    if name in manifest:
        check_settings(options, name, manifest[name].settings)
        return
    if not options.ckpt and not options.model.weights:
        if manifest:
            there = f"version={name}: {options.archive_dir} has {', '.join(manifest)}; another one is begun with"
            raise OptionError(f"{there} model= and ckpt=")
        raise OptionError(f"{options.archive_dir}: no archive is there; model= and ckpt= begin one")
    check_weights(options)


def check_recipe(options: UpdateOptions, manifest: Manifest, granule: str) -> None:
    """Check that there is a recipe for granules: in the options, or of a version, whose others take it.

    Raises:
        OptionError: There is none.
    """
    if settings_of(options)["sensor"] or any(version.settings["sensor"] for version in manifest.values()):
        return
    recipe = "the recipe that makes cutouts of them, such as sensor=modis"
    raise OptionError(f"sensor= is needed, once, for granules such as {granule}: {recipe}")


def check_weights(options: UpdateOptions) -> None:
    """Check, before anything is made, that the weights that a version is to begin with are there and are the model's.

    Raises:
        NenyaError: They are not.
    """
    chosen = extract_options(options, settings_of(options))
    source = weights_source(chosen, options.ckpt)
    if is_s3(source):
        return
    if not Path(source).is_file():
        raise InputFileError(f"{source}: no such weights; check ckpt=")
    load_model(chosen, source)
