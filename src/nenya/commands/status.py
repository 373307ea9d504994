"""`nenya status`: lists the contents of an archive, missing or unfinished files, and their provenance."""

import json
from dataclasses import asdict, dataclass, field

from nenya.archive.check import VersionStatus, sizes_of, unnamed_files, version_status
from nenya.archive.folder import Folder
from nenya.archive.lease import Lease
from nenya.errors import InputFileError, OptionError
from nenya.options.commands import StatusOptions
from nenya.storage.lock import holder_of
from nenya.storage.texts import Lines, counted, say

_NOT_MADE_BY = ("date", "checkpoint_source", "checkpoint_revision", "checkpoint_hub")


@dataclass
class Status:
    """The state of an archive.

    Attributes:
        place: the archive.
        versions: name -> state of the version.
        unfinished: version -> number of files that an update began and did not finish.
        holder: the process that is updating it; empty for none.
        unnamed: cutouts, latents and tables in no version; filled if all versions were checked.
    """

    place: str
    versions: dict[str, VersionStatus]
    unfinished: dict[str, int]
    holder: str
    unnamed: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether the archive is complete, and finished unless an update is running."""
        broken = any(v.missing or v.damaged for v in self.versions.values())
        return not (self.unfinished and not self.holder) and not broken and not self.unnamed


def run(options: StatusOptions) -> int:
    """Print the state of an archive.

    Args:
        options: of `scripts/status.py`.

    Returns:
        0 if the archive is complete, 1 if something is unfinished or damaged.

    Raises:
        NenyaError: There is no archive, or it cannot be read.
    """
    if not options.archive_dir:
        raise OptionError("expected archive=, the folder or s3:// address of an archive")
    status = status_of(options.archive_dir, options.version, options.loader.cache_dir, check=options.check)
    if options.json:
        say(Lines(json.dumps({**asdict(status), "good": status.good}, indent=1)))
    else:
        _say(status)
    return 0 if status.good else 1


def status_of(place: str, version: str | None = None, cache_dir: str | None = None, *, check: bool = False) -> Status:
    """Return the state of an archive.

    Args:
        place: a folder or an s3:// address.
        version: one model version; None for all.
        cache_dir: of unfinished work for an archive on S3.
        check: read every file and compare its hash.

    Raises:
        InputFileError: There is no archive.
        OptionError: There is no such version.
        StorageError: An S3 service does not answer.
    """
    folder = Folder(place, cache_dir)
    manifest = folder.read()
    unfinished = {name: count for name, count in _unfinished(folder).items() if version in (None, name)}
    if folder.url is None and folder.root.is_file():
        raise InputFileError(f"expected the folder of an archive, got a file: {place}")
    if not manifest and not unfinished:
        raise InputFileError(
            f"{place}: no archive; nenya update archive={place} model=... ckpt=... new=... creates one"
        )
    if version is not None and version not in manifest:
        raise OptionError(f"version={version}: expected a version of {place}: {', '.join(manifest) or 'none yet'}")
    sizes = sizes_of(folder)
    found = {
        name: version_status(folder, about, sizes, check=check)
        for name, about in manifest.items()
        if version in (None, name)
    }
    holder = _holder(folder)
    unnamed = unnamed_files(folder, manifest, sizes) if check and not holder else []
    return Status(place, found, unfinished, holder, unnamed)


def _unfinished(folder: Folder) -> dict[str, int]:
    """Return version -> number of unfinished files; 0 if the first file of a version has not begun."""
    found: dict[str, int] = {}
    for path in folder.work.glob("*"):
        if path.is_dir() and path.name != "uploads":
            count = sum(inner.is_dir() and inner.name != "begin" for inner in path.iterdir())
            found[path.name] = count
    return found


def _holder(folder: Folder) -> str:
    """Return the process that is updating an archive."""
    if folder.url is not None:
        said = Lease(folder).holder()
        return f"process {said.get('pid')} on {said.get('host')} since {said.get('since')}" if said else ""
    found = holder_of(folder.work / "lock")  # the lock file of a killed process remains, unlocked
    return found.who if found is not None else ""


def _say(status: Status) -> None:
    for name, version in status.versions.items():
        rows = ", ".join(f"{partition} {count:,}" for partition, count in version.rows.items())
        model = version.model
        say(f"{status.place}, version {name}")
        files = counted(version.files, "cutout file")
        say(f"  complete    {files}, {rows or 'no'} cutouts, {version.bytes / 1e6:.1f} MB")
        if version.dates:
            say(f"  dates       {version.dates[0]} to {version.dates[1]}")
        if version.left_out:
            say(f"  left out    without a latent: {counted(version.left_out, 'cutout')} with missing pixels")
        if version.empty:
            say(f"  empty       {counted(version.empty, 'granule')} without a cutout")
        say(f"  index       {counted(version.indexed, 'row')}, {version.searched_by}")
        weights = model["weights_sha256"][:16]
        say(f"  model       {model['name']}: {model['ssl_model']}, {model['feat_dim']} dimensions, weights {weights}")
        if named := version.made.get("checkpoint_source"):
            revision = version.made.get("checkpoint_revision")
            say(f"  weights     {named}" + (f", revision {revision}" if revision else ""))
        made = ", ".join(f"{key} {value}" for key, value in version.made.items() if value and key not in _NOT_MADE_BY)
        say(f"  begun       {version.made.get('date')} by {made}")
        say(f"  last added  {version.last}; files by nenya {', '.join(version.nenya)}")
        for what, names in (("MISSING", version.missing), ("DAMAGED", version.damaged)):
            for file in names:
                say(f"  {what:11s} {file}")
    for file in status.unnamed:
        say(f"UNNAMED       {file}: in no version; nenya update of its cutouts adds it again")
    for name, count in status.unfinished.items():
        rest = "in work" if status.holder else "unfinished; run the same nenya update again to complete them"
        say(f"version {name}: {counted(count, 'cutout file')} {rest}")
    if status.holder:
        say(f"being updated by {status.holder}")
    say("complete" if status.good else "incomplete or damaged")
