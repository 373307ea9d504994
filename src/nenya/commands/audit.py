"""`nenya audit`: what latents tell of the columns of their table, and whether they should; as page, table and JSON."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import nenya
from nenya.commands.untrained import read_as, untrained_latents
from nenya.errors import OptionError
from nenya.io import read_table, write_table
from nenya.latents.audit import Audit, Finding, audit
from nenya.latents.files import open_latents
from nenya.latents.nearest import identity_of
from nenya.latents.rarity import RowsOf, joined_rows
from nenya.latents.shares import neighbour_shares
from nenya.options.calibration import AnalysisOptions
from nenya.options.declare import at_least, option, within
from nenya.plotting.audit_page import KINDS, page
from nenya.storage.disk import atomic_path, check_output, together
from nenya.storage.kept import Kept
from nenya.storage.paths import local_path
from nenya.storage.texts import lines_of, say
from nenya.tables.split import TRAIN, VALID, sides_of

if TYPE_CHECKING:
    import pandas as pd


log = logging.getLogger(__name__)

IntArray = NDArray[np.int64]

_FOLDER = "outputs/audit"


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(type(one) is str for one in value)


@dataclass
class AuditOptions(AnalysisOptions):
    """Options of the audit of latents."""

    uses: ClassVar[tuple[str, ...]] = ("model", "preprocess", "loader", "data", "out", "seed", "clobber", "sha256")

    columns: Any = option(  # noqa: RUF009  # declared as in nenya.options
        None,
        "columns to audit; default: all but keys and those made of latents",
        ("a list of columns, or null", lambda v: v is None or _is_names(v)),
    )
    k: int = option(10, "nearest rows of the probe, and neighbours", at_least(1))
    sample: int = option(4000, "rows that are probed", at_least(50))
    permutations: int = option(199, "permutations for p-values, and draws for intervals", at_least(19))
    duplicate: float = option(0.999, "cosine from which two latents are near-duplicates", within(-1, 1))
    images: Any = option(  # noqa: RUF009
        None, "cutout files, to compare with an untrained network of the same kind (with ckpt= or model=)"
    )
    ckpt: str | None = option(None, "weights of the latents, which define the kind of network; default model.weights")


def run(options: AuditOptions) -> int:
    """Audit latents: write a page that begins with the verdicts, a table and JSON.

    Args:
        options: of `scripts/audit.py`.

    Returns:
        0.

    Raises:
        NenyaError: An option is not possible, a file cannot be read or joined, or a result cannot be written.
    """
    if not options.table:
        raise OptionError("expected table=, the table whose columns are audited")
    if options.images and not (options.ckpt or options.model != type(options.model)()):
        raise OptionError("images= needs the kind of network that made the latents: give ckpt= or model=")
    if options.ckpt and not options.images:
        raise OptionError("ckpt= defines the kind of an untrained network, which needs images=, the cutout files")
    folder = local_path(options.out or _FOLDER)
    if folder.suffix and not folder.is_dir():
        raise OptionError(f"out={folder}: expected a folder")
    places = {end: folder / f"audit.{end}" for end in ("html", "json", "csv")}
    for path in places.values():
        check_output(path, options.clobber)
    latents = open_latents(options.data, options.loader.cache_dir, allow_external=options.loader.allow_external)
    table = read_table(local_path(options.table))
    positions = latents.positions(table)
    first, _ = joined_rows(positions)
    part = table.iloc[first].reset_index(drop=True)
    whole = RowsOf(latents, positions[first])
    untrained = _untrained(options, part, latents.shape[1]) if options.images else None
    kept = Kept(folder / "audit.partial")
    found = audit(
        whole, part, columns=options.columns, k=options.k, sample=options.sample, permutations=options.permutations,
        seed=options.seed, untrained=untrained, kept=kept,
    )  # fmt: skip
    identity = replace(identity_of(part, None, None), number=np.arange(len(part)))
    valid = _validation(part, latents.keys(positions[first])["pp_type"].to_numpy())
    shares = neighbour_shares(
        whole, identity, valid, k=options.k, duplicate=options.duplicate, permutations=options.permutations,
        seed=options.seed,
    )  # fmt: skip
    results = results_of(found, shares, options)
    name = Path(local_path(options.table)).stem
    with together():
        _write(places["html"], page(name, results))
        _write(places["json"], json.dumps(_plain(results), indent=1) + "\n")
        write_table(_table_of(results), places["csv"])
    kept.discard()
    for lines in results["verdicts"].values():
        for line, _ in lines:
            say(line)
    for column, why in found.left_out.items():
        log.info("%s is not audited: %s", column, why)
    log.info("%s", lines_of(places.values()))
    return 0


def _validation(table: "pd.DataFrame", kinds: IntArray) -> NDArray[np.bool_] | None:
    """Return which rows are validated on, by the column split of a row list or by pp_type; None if unknown."""
    split = sides_of(table, kinds)
    return split == VALID if {TRAIN, VALID} <= set(np.unique(split)) else None


def results_of(found: Audit, shares: dict[str, Any], options: AuditOptions) -> dict[str, Any]:
    """Return the results as JSON values: verdicts, columns, neighbours, left_out, folds and made_by."""
    verdicts = {kind: [(one.verdict, one.found) for one in found.findings if one.kind == kind] for kind in KINDS}
    return {
        "verdicts": {**verdicts, "neighbours": list(share_lines(shares))},
        "columns": [_column(one) for one in found.findings],
        "neighbours": shares,
        "left_out": found.left_out,
        "folds": found.folds,
        "made_by": {
            "nenya_version": nenya.__version__,
            "seed": options.seed,
            "rows probed": found.rows,
            "rows whose neighbours were searched": shares["rows"],
            "permutations": options.permutations,
            "blocks": ", ".join(f"{number} {kind}" for kind, number in found.folds.items()),
        },
    }


def _column(one: Finding) -> dict[str, Any]:
    main = one.scores[one.main]
    return {
        "column": one.name, "kind": one.kind, "measure": one.measure, "value": main.value, "low": main.low,
        "high": main.high, "p": main.p, "q": one.q, "found": one.found, "knn": main.knn, "linear": main.linear,
        "shuffled": main.shuffled, "contrast": one.contrast, "contrast_of": one.contrast_of,
        "untrained": one.untrained, "rows": one.rows,
        "folds": {kind: score.value for kind, score in one.scores.items()},
        "p_of_folds": {kind: score.p for kind, score in one.scores.items()},
    }  # fmt: skip


def share_lines(shares: dict[str, Any]) -> list[tuple[str, bool]]:
    """Return lines on neighbours, near-duplicates and the split, and whether each is a reason to worry."""
    lines = []
    if (same := shares.get("same_granule")) and same["chance"] > 0:
        found, times = same["p"] < 0.05, same["value"] / same["chance"]
        lines.append((
            f"{_share(same['value'])} of the {shares['k']} nearest neighbours are of the same granule: {times:.1f} "
            f"times chance ({_share(same['chance'])}, p = {same['p']:.2g})", found,
        ))  # fmt: skip
    twins = shares["duplicates"]
    elsewhere = f", {_share(twins['other_granule'])} in another granule" if "other_granule" in twins else ""
    lines.append((
        f"{_share(twins['any'])} of the rows have a near-duplicate (cosine of {shares['cosine_of_duplicates']:g} or "
        f"more; random pairs: {shares['median_cosine_of_random_pairs']:.3f}){elsewhere}", twins["any"] > 0.01,
    ))  # fmt: skip
    if split := shares.get("split"):
        if split["granule_in_train"] is not None:
            share = split["granule_in_train"]
            lines.append((f"{_share(share)} of the validation rows are of a granule that is also in train", share > 0))
        if split["duplicate_in_train"] is not None:
            share = split["duplicate_in_train"]
            lines.append((f"{_share(share)} of the validation rows have a near-duplicate in train", share > 0.01))
            lines.append((
                f"{_share(split['nearest_in_train'])} of the validation rows have their nearest neighbour in train "
                f"({_share(split['nearest_in_train_by_chance'])} by chance)", False,
            ))  # fmt: skip
    return lines


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _untrained(options: AuditOptions, table: "pd.DataFrame", width: int) -> Callable[[IntArray], NDArray[np.float32]]:
    """Return a function that gives latents of an untrained network for rows of a table; see `untrained_latents`."""
    from nenya.data.table_images import TableImages

    images = TableImages(options.images, table, options.loader, read_as(options.preprocess.masked))
    return untrained_latents(options, images, width)


def _table_of(results: dict[str, Any]) -> "pd.DataFrame":
    import pandas as pd

    rows = []
    for column in results["columns"]:
        kinds = {f"{kind}_folds": value for kind, value in column["folds"].items()}
        rows.append({key: value for key, value in column.items() if not isinstance(value, dict)} | kinds)
    return pd.DataFrame(rows)


def _plain(value: Any) -> Any:
    """Return results as JSON takes them: NaN is None."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
