"""What `nenya probe` found in words: the printed table and the page."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nenya.latents.column_probes import R2, Probed
from nenya.plotting.comparison_page import comparison_page

Found = Mapping[str, Mapping[str, Mapping[str, Probed]]]

_WORDS = {"linear": "linear", "knn": "nearest"}
NOTES = (
    "linear: ridge regression of numbers, logistic regression of categories; the penalty is chosen within the "
    "training rows. nearest: the mean, or the most frequent category, of the nearest training rows.",
    "R2: 1 - the squared errors of all predictions over the variance; 0 or less: nothing is known, 1: everything. "
    "Balanced accuracy: the mean over the categories of the share of correct rows.",
    "Complete blocks (granules, 30 days, 10 by 10 degrees) are predicted from the others. In brackets: 95 % interval, "
    "by a bootstrap of complete blocks. shuffled: the mean value for the column with its blocks shuffled.",
    "Image PCA, log power spectrum, DT and moments, untrained: what takes no training, on the same rows.",
)


def table_lines(found: Found) -> Iterator[str]:
    """Yield the lines of the printed table: of each column, its models with both probes and their 95 % intervals."""
    width = max(len(model) for models in found.values() for model in models)
    for column, models in found.items():
        yield f"{column} ({_about(models)})"
        for model, probes in models.items():
            cells = "   ".join(f"{_WORDS[probe]} {shown(one)}" for probe, one in probes.items())
            yield f"  {model:{width}}  {cells}"


def probe_page(
    name: str,
    found: Found,
    trained: Sequence[str],
    figure: Path,
    made: Mapping[str, object],
    left_out: Sequence[tuple[str, str]],
) -> str:
    """Return the page.

    Args:
        name: of the page.
        found: column -> model -> probe -> value.
        trained: the models among them.
        figure: .png file, embedded in the page.
        made: how the page was made.
        left_out: columns that were not probed, and why.
    """
    head = ("model", "linear", "shuffled", "nearest", "shuffled")
    tables: list[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = [
        (
            f"{column} ({_about(models)})",
            head,
            [
                (model, *(text for one in probes.values() for text in (shown(one), f"{one.shuffled:.2f}")))
                for model, probes in models.items()
            ],
        )
        for column, models in found.items()
    ]
    if left_out:
        tables.append(("Columns left out", ("column", "why"), left_out))
    words = [_sentence(column, models, trained) for column, models in found.items()]
    return comparison_page(f"{name}: what the latents know", words, tables, {"All columns": figure}, made, NOTES)


def shown(one: Probed) -> str:
    """Return a value and its interval: ` 0.61 (0.58 to 0.64)`."""
    texts = (f"{value:.2f}".replace("-0.00", "0.00") for value in (one.value, one.low, one.high))
    return "{:>5} ({} to {})".format(*texts)


def _about(models: Mapping[str, Mapping[str, Probed]]) -> str:
    first = next(iter(models.values()))["linear"]
    chance = "" if first.metric == R2 else f", {first.chance:.2f} by chance"
    return f"{first.metric}{chance}, {first.n} rows, {first.blocks} blocks"


def _sentence(column: str, models: Mapping[str, Mapping[str, Probed]], trained: Sequence[str]) -> str:
    """Return what the best model knows of a column, beside the best of what takes no training."""

    def best(names: Sequence[str]) -> str:
        name, probe = max(((name, probe) for name in names for probe in _WORDS), key=lambda x: models[x[0]][x[1]].value)
        return f"{name} {shown(models[name][probe]).strip()}, {_WORDS[probe]}"

    others = [name for name in models if name not in trained]
    beside = f"; without training: {best(others)}" if others else ""
    return f"{column}: {best([name for name in models if name in trained])}{beside}"
