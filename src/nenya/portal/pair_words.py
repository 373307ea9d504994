"""Texts on two selections, A and B: what they are, their statistics side by side, and their differences."""

from typing import Any

from nenya.latents.comparison import Compared
from nenya.latents.comparison_words import said, words
from nenya.portal.pages import part
from nenya.portal.pair import COLOURS, NAMES, Pair, Sizes
from nenya.portal.pair_compare import LIMITS, PERMUTATIONS, Difference
from nenya.portal.state import Filter, View
from nenya.portal.summary import Summary
from nenya.portal.words import bounds_of, filter_text, ratio_of
from nenya.tables.quantities import title_of

_MEASURES = {
    "auc": "AUC",
    "energy": "energy distance",
    "coverage_of_a": "coverage of A by B",
    "coverage_of_b": "coverage of B by A",
    "density": "density",
}


def _text(filters: tuple[Filter, ...]) -> str:
    return " and ".join(map(filter_text, filters)) or "all rows"


def legend(sizes: Sizes) -> str:
    """Return the legend of the colours of two selections."""
    counts = (sizes.a - sizes.both, sizes.b - sizes.both, sizes.both)
    titles = ("in A", "in B", "in both")
    lines = [
        (COLOURS[k], f"{titles[k]}", f"{count:,}") for k, count in enumerate(counts) if count or NAMES[k] != "both"
    ]
    return part("pair_legend", lines=lines)


def panel(view: View, pair: Pair | None, sizes: Sizes | None, difference: Difference | None, *, latents: bool) -> str:
    """Return what is held, what can be done with it, and the differences that were found.

    Args:
        view: of the page.
        pair: the two selections, if there are two.
        sizes: their numbers of rows, once they are known.
        difference: between these two, if it was requested.
        latents: whether latents can be compared.
    """
    lines = []
    for name, held, colour in zip("AB", view.held, COLOURS, strict=False):
        filters = held if held is not None else (None if pair is None else pair.a if name == "A" else pair.b)
        count = "" if sizes is None else f"{sizes.a if name == 'A' else sizes.b:,} cutouts"
        text = "nothing yet" if filters is None else _text(filters)
        lines.append((name, colour, text, count, held is not None))
    return part(
        "against",
        lines=lines,
        held=any(one is not None for one in view.held),
        two=pair is not None,
        latents=latents,
        result=None if difference is None or pair is None else _result(difference),
    )


def choices() -> list[int]:
    """Return the numbers of cutouts that can be compared."""
    return list(LIMITS)


def _result(found: Difference) -> dict[str, Any]:
    compared = found.compared
    measured = {"latents": compared.latents, **{title_of(name): one for name, one in compared.quantities.items()}}
    lines = [
        (what, [said(one[name], name.startswith("coverage")) for name in _MEASURES])
        for what, one in measured.items()
        if any(estimate.value == estimate.value for estimate in one.values())
    ]
    return {
        "words": words(compared, [], ("A", "B")),
        "names": list(_MEASURES.values()),
        "lines": lines,
        "notes": [_sample(compared, found), *found.notes],
    }


def _sample(compared: Compared, found: Difference) -> str:
    rows = compared.rows
    parts = [f"{rows[f'compared_of_{own}']:,} of {rows[f'rows_of_{own}']:,} cutouts of {own.upper()}" for own in "ab"]
    return (
        f"Sample: {' and '.join(parts)}, at most {found.sample:,} of each, drawn with the seed {found.seed}; "
        f"p-values from {PERMUTATIONS} permutations. nenya compare gives the same numbers for the same rows, with "
        f"permutations={PERMUTATIONS} sample={found.sample} seed={found.seed}."
    )


def statistics(a: Summary, b: Summary) -> str:
    """Return the statistics of two selections side by side."""
    tables = []
    for kind in a.comparisons:
        if kind not in b.comparisons:
            continue
        rows: list[Any] = []
        one: Any
        other: Any
        for one, other in zip(a.comparisons[kind].itertuples(), b.comparisons[kind].itertuples(), strict=True):
            name = str(one.name)
            if one.whole > 0:
                cells = [(f"{line.selected:,}", ratio_of(line)) for line in (one, other)]
                rows.append((name, bounds_of(kind, name), cells, f"{one.whole:,}"))
        tables.append((kind, rows))
    medians = [
        (name, f"{mine:.4g}", f"{other:.4g}", f"{whole:.4g}")
        for (name, mine, whole), (_, other, _) in zip(a.medians, b.medians, strict=True)
    ]
    return part("pair_statistics", tables=tables, medians=medians)
