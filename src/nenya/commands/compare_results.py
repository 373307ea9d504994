"""Results of `nenya compare` as tables, figures and words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nenya.latents.agreement import Agreement
from nenya.latents.comparison import LEAST, Compared, Settings, TwoSets
from nenya.latents.comparison_words import said, words
from nenya.latents.difference import Estimate
from nenya.plotting.comparison_page import NOTES, SEED_NOTES, Table

if TYPE_CHECKING:
    import pandas as pd

Float64Array = NDArray[np.float64]

_WHOLE = "whole"
_MOST_STRATA = 30  # in the figure


@dataclass
class Results:
    """What the command writes.

    Attributes:
        title: of the page.
        answer: of `compare.json`.
        words: sentences, the answer first.
        page_tables: tables of the page.
        tables: file name -> table.
        figures: title -> file.
        notes: definitions.
    """

    title: str
    answer: dict[str, Any]
    words: list[str]
    page_tables: list[Table]
    tables: "dict[str, pd.DataFrame]"
    figures: dict[str, Path] = field(default_factory=dict)
    notes: Sequence[str] = NOTES


def compare_results(
    sets: TwoSets,
    settings: Settings,
    compared: tuple[Compared, list[Compared]],
    ratios: Float64Array,
    names: tuple[str, str],
    gallery: tuple[Sequence[Any], int, Path],
) -> Results:
    """Return the results of two sets.

    Args:
        sets: the two sets.
        settings: how they were compared.
        compared: all rows, and the strata.
        ratios: (N,) the density ratio of each row.
        names: of the sets.
        gallery: cutouts of each set or None, the number of them to show, and the folder of the figures.
    """
    whole, parts = compared
    answer = {
        "whole": whole.json(),
        "strata": {one.stratum.label: one.json() for one in parts if one.stratum is not None},
    }
    rows = long_table(whole, parts)
    of_sets = {"a": ratios[sets.of_a], "b": ratios[~sets.of_a]}
    tables = {"compare.csv": rows}
    for (name, values), table in zip(of_sets.items(), sets.tables, strict=True):
        tables[f"{name}_density_ratio.parquet"] = table.assign(density_ratio=values)
    figures = _figures(sets, settings, rows, names, gallery[2])
    figures |= _galleries(sets, of_sets, names, gallery)
    shown = [_page_table("Whole", whole), *(_strata_table(parts) if parts else [])]
    title = f"{names[0]} and {names[1]} compared"
    return Results(title, answer, words(whole, parts, names), shown, tables, figures)


def long_table(whole: Compared, parts: Sequence[Compared]) -> "pd.DataFrame":
    """Return one row for each stratum, what is measured (latents, a quantity, pairs) and measure."""
    import pandas as pd

    rows = []
    for one in (whole, *parts):
        first = {"by": "", "name": _WHOLE, "label": _WHOLE, "lon": np.nan, "lat": np.nan}
        if one.stratum is not None:
            part = one.stratum
            lon, lat = (np.nan if v is None else v for v in (part.lon, part.lat))
            first = {"by": part.by, "name": part.name, "label": part.label, "lon": lon, "lat": lat}
        for measured, measures in {"latents": one.latents, **one.quantities, "pairs": one.pairs}.items():
            for measure, found in measures.items():
                rate = one.rates.get(measure, np.nan) if measured == "latents" else np.nan
                rows.append({**first, "measured": measured, "measure": measure, **vars(found), "q": rate, **one.rows})
    return pd.DataFrame(rows)


def _figures(
    sets: TwoSets, settings: Settings, rows: "pd.DataFrame", names: tuple[str, str], folder: Path
) -> dict[str, Path]:
    from nenya.plotting.comparison import draw_globe, draw_strata, draw_umap_difference

    found = {}
    areas = rows[(rows["measure"] == "auc") & np.isfinite(rows["value"])]
    shown = list(dict.fromkeys(areas[areas["by"] != "cell"]["label"]))[:_MOST_STRATA]
    if len(shown):
        found["AUC of all rows and of strata"] = folder / "strata.png"
        draw_strata(areas[areas["label"].isin(shown)], folder / "strata.png")
    cells = areas[(areas["by"] == "cell") & (areas["measured"] == "latents")]
    if len(cells):
        found["Globe: how far apart the two sets are"] = folder / "globe.png"
        draw_globe(cells, settings.side, folder / "globe.png")
    if all({"US0", "US1"} <= set(table) for table in sets.tables):
        points = np.concatenate([table[["US0", "US1"]].to_numpy(np.float64, na_value=np.nan) for table in sets.tables])
        if np.isfinite(points).all(axis=1).any():
            found["UMAP: where each set is denser"] = folder / "umap.png"
            draw_umap_difference(points, sets.of_a, folder / "umap.png", names)
    return found


def _galleries(
    sets: TwoSets, ratios: Mapping[str, Float64Array], names: tuple[str, str], gallery: tuple[Sequence[Any], int, Path]
) -> dict[str, Path]:
    """Draw the cutouts with the highest density ratio of each set, at most one of a block."""
    from nenya.plotting import contact_sheet

    images, count, folder = gallery
    found = {}
    for number, (name, values) in enumerate(ratios.items()):
        if images[number] is None:
            continue
        blocks = sets.blocks[sets.of_a if name == "a" else ~sets.of_a]
        rows = rarest(np.where(images[number].known, values, np.nan), blocks, count)
        if len(rows):
            title = f"{names[number]} has, {names[1 - number]} lacks: highest local density ratio"
            path = folder / f"gallery_{name}.png"
            contact_sheet(images[number].read(rows), path, title=images[number].titled(title))
            found[title] = path
    return found


def rarest(values: Float64Array, blocks: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the rows of the highest values above 1, at most one of a block: (m,), m at most `count`."""
    order = np.argsort(-np.where(np.isfinite(values), values, -np.inf), kind="stable")
    order = order[values[order] > 1]
    _, first = np.unique(blocks[order], return_index=True)
    return np.asarray(order[np.sort(first)][:count], np.int64)


def _page_table(title: str, one: Compared) -> Table:
    measured = {"latents": one.latents, **one.quantities}
    measures = list(one.latents)
    rows = [[m.replace("_", " "), *(_cell(found[m]) for found in measured.values())] for m in measures]
    return title, ["", *(name.replace("_", " ") for name in measured)], rows


def _cell(estimate: Estimate) -> str:
    return said(estimate) if np.isfinite(estimate.value) else "-"


def _strata_table(parts: Sequence[Compared]) -> list[Table]:
    """Return a table of the strata with numbers, that of the largest AUC first, and a list of the others."""
    rows, small = [], []
    for one in sorted(parts, key=lambda one: -np.nan_to_num(one.latents["auc"].value)):
        label, counts = one.stratum.label if one.stratum else "", [one.rows["rows_of_a"], one.rows["rows_of_b"]]
        if not np.isfinite(one.latents["energy"].value):
            small.append(f"{label} ({counts[0]}, {counts[1]})")
            continue
        measures = [_cell(one.latents[name]) for name in ("auc", "energy", "coverage_of_a", "coverage_of_b")]
        alone = [_cell(found["auc"]) for found in one.quantities.values()]
        rate = one.rates.get("auc", np.nan)
        rows.append([label, *map(str, counts), *measures, f"{rate:.2g}" if np.isfinite(rate) else "-", *alone])
    heads = ["stratum", "rows of a", "rows of b", "AUC", "energy", "coverage of a", "coverage of b", "q of AUC"]
    alone = [f"AUC of {name.replace('_', ' ')}" for name in parts[0].quantities]
    found: list[Table] = [("Strata", [*heads, *alone], rows)] if rows else []
    if small:
        found.append((f"Strata with fewer than {LEAST} rows of a set (rows of a, of b)", [], [[", ".join(small)]]))
    return found


def seed_results(found: Agreement, places: Sequence[str], table: "pd.DataFrame", number: NDArray[np.int64]) -> Results:
    """Return the results of several trainings.

    Args:
        found: their agreement.
        places: their names.
        table: of the cutouts.
        number: (len(table),) the latent of each row, -1 for none.
    """
    measures = found.measures()
    stability = np.where(number >= 0, found.stability[number], np.nan)
    pairs = [{"runs": [places[i], places[j]], **values} for i, j, values in found.pairs]
    near = measures["neighbours"]
    lines = [
        f"{len(places)} trainings of one recipe share {100 * near['value']:.0f} % of the nearest neighbours of a "
        f"cutout ({100 * near['low']:.0f} to {100 * near['high']:.0f} % for pairs of trainings; "
        f"{100 * near['expected']:.1g} % by chance).",
        f"Their clusters agree by an adjusted Rand index of {measures['clusters']['value']:.2f}, the distances of "
        f"cutouts by a rank correlation of {measures['distances']['value']:.2f} (1: the same; 0: unrelated).",
        f"Half of the cutouts keep at least {100 * np.nanmedian(found.stability):.0f} % of their neighbours, a tenth "
        f"at most {100 * np.nanquantile(found.stability, 0.1):.0f} %: statements on these depend on the seed.",
    ]
    heads = ["", "value", "low", "high", "expected"]
    rows = [[name, *(f"{values[key]:.3f}" for key in heads[1:])] for name, values in measures.items()]
    answer = {"runs": list(places), "whole": measures, "pairs": pairs, "sample": found.sample}
    tables = {"stability.parquet": table.assign(stability=stability)}
    return Results("Trainings compared", answer, lines, [("Agreement", heads, rows)], tables, {}, SEED_NOTES)
