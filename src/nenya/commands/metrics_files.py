"""The files of `nenya metrics`: how a shard shares them among workers, and the table of all of them.

Each file is measured by one worker, as its principal components are those of all its rows. A worker notes a file before
it writes the results, and keeps a line of the table when they are written, so that a killed one continues.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nenya
from nenya.errors import InputFileError
from nenya.io import write_table
from nenya.latents.kept_answers import SHARDS, KeptAnswers
from nenya.options.commands import MetricsOptions
from nenya.options.declare import to_dict
from nenya.runtime.shards import Share
from nenya.storage.disk import check_output
from nenya.storage.paths import is_s3, local_path
from nenya.storage.s3.service import store

log = logging.getLogger(__name__)

SUMMARY = "metrics.csv"
"""Name of the table of several files, a line each."""

_ELSEWHERE = ("shard", "dask", "clobber", "traceback", "out", "storage", "loader")  # do not change a result


class Files:
    """The latents files of a command, and what of each is done.

    Args:
        places: local paths and s3:// addresses.
        folder: of the results.
        ends: of the names of the results of a file.
        options: of the command.
        share: of this worker, None for all files.
        images: cutout files that the results depend on.

    Raises:
        InputFileError: A file is missing.
        OutputError: Results exist.
    """

    def __init__(
        self, places: Sequence[Path | str], folder: Path, ends: Sequence[str], options: MetricsOptions,
        share: Share | None, images: Sequence[Path | str] = (),
    ) -> None:  # fmt: skip
        self.places, self.folder, self.share = places, folder, share
        self._lines: dict[int, dict[str, Any]] = {}
        work = None if share is None else folder / f"metrics{SHARDS}"
        self.kept = KeptAnswers(work, "" if share is None else _inputs(places, options, images), share)
        self.left = [number for number in range(len(places)) if self.kept.owns(number) and not self._is_done(number)]
        if not self._merges:
            for number in self.left:
                if self.kept.take(_begun(number)) is None:
                    for end in ends:
                        check_output(folder / f"{stem_of(places[number])}_{end}", options.clobber)
        if self._merges or (share is None and len(places) > 1):
            check_output(folder / SUMMARY, options.clobber)

    @property
    def _merges(self) -> bool:
        return self.share is not None and self.share.merges

    def _is_done(self, number: int) -> bool:
        line = self.kept.take(_done(number))
        if line is not None:
            self._lines[number] = json.loads(line)
        return line is not None

    def begin(self, number: int) -> None:
        """Note that the results of a file are going to be written."""
        self.kept.keep(_begun(number), b"")

    def end(self, number: int, line: dict[str, Any]) -> None:
        """Keep the line of a file whose results are written."""
        self._lines[number] = line
        self.kept.keep(_done(number), json.dumps(line).encode())

    def close(self) -> None:
        """Write the table of several files, unless this worker does a share of them.

        Raises:
            OutputError: It cannot be written, or shards are missing.
        """
        if self._merges:
            missing = [number for number in range(len(self.places)) if not self._is_done(number)]
            self.kept.refuse_missing(missing, len(self.places))
        elif self.share is not None or len(self.places) < 2:
            return
        import pandas as pd

        lines = [self._lines[number] for number in range(len(self.places))]
        write_table(pd.DataFrame(lines), self.folder / SUMMARY)
        log.info("%s: %d files", self.folder / SUMMARY, len(lines))
        self.kept.remove()


def stem_of(place: Path | str) -> str:
    """Return the name of a file without folder and suffix."""
    return Path(str(place)).stem


def line_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results of a file as a line of a table."""
    spectrum = results["spectrum"]
    return {
        "file": Path(results["file"]).name,
        "rows": sum(results["rows"].values()),
        **{name: results[name] for name in ("dim", "nonfinite_rows")},
        **{name: spectrum[name] for name in ("N95", "N99", "participation_ratio", "rankme")},
        **{name: results[name] for name in ("uniformity", "feature_std")},
        **{f"invariance_{name}": of["cosine"] for name, of in results.get("invariance", {}).items()},
        **{f"neighbours_{name}": of["agreement"] for name, of in results.get("neighbours", {}).items()},
    }


def _begun(number: int) -> str:
    return f"begun-{number:08d}"


def _done(number: int) -> str:
    return f"file-{number:08d}"


def _inputs(places: Sequence[Path | str], options: MetricsOptions, images: Sequence[Path | str]) -> str:
    """Return a digest of the files and of the options that results depend on."""
    named = [one if is_s3(one) else local_path(one) for one in (options.table, options.ckpt) if one]
    given = [place for place in named if not isinstance(place, Path) or place.is_file()]  # a hub's name is a setting
    settings = {key: value for key, value in to_dict(options).items() if key not in _ELSEWHERE}
    found = hashlib.sha256(f"{nenya.__version__}\n{json.dumps(settings, sort_keys=True, default=str)}\n".encode())
    for place in [*places, *given, *images]:
        found.update(f"{_state(place)}\n".encode())
    return found.hexdigest()[:32]


def _state(place: Path | str) -> str:
    if isinstance(place, Path):
        try:
            state = place.stat()
        except OSError as error:
            raise InputFileError(f"{place}: cannot be read ({error.strerror}); check the path") from error
        return f"{place.resolve()} {state.st_size} {state.st_mtime_ns}"
    found = store().head(place)
    if found is None:
        raise InputFileError(f"{place}: the object does not exist; check bucket and key")
    return f"{place} {found.size} {found.etag}"
