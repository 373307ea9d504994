"""A comparison of two sets in words."""

from collections.abc import Sequence

import numpy as np

from nenya.latents.comparison import Compared
from nenya.latents.difference import Estimate

LEVEL = 0.05
"""Level of p-values and of false discovery rates at which a difference is stated."""

_MOST_NAMED = 8
_CHANCE = 0.5  # the AUC of sets that do not differ
_FEW = 6  # blocks of a set, below which no p-value means much


def words(whole: Compared, parts: Sequence[Compared], names: tuple[str, str]) -> list[str]:
    """Return a comparison in sentences, the answer first.

    Args:
        whole: the answer for all rows.
        parts: the answers for the strata.
        names: of a and b.
    """
    found = [_verdict(whole, names), _alone(whole), _coverage(whole, names)]
    found += [_strata(parts)] if parts else []
    found += [_pairs(whole)] if whole.pairs else []
    found.append(_rows(whole, names))
    return [line for line in found if line]


def is_apart(one: Compared, rates: bool = False) -> bool:
    """Return whether latents differ by energy distance or AUC: the smaller of two p-values (or rates) counts twice."""
    values = [one.rates.get(n, np.nan) if rates else one.latents[n].p for n in ("energy", "auc")]
    return bool(2 * min([v for v in values if np.isfinite(v)], default=1.0) <= LEVEL)


def said(estimate: Estimate, percent: bool = False) -> str:
    """Return a value with its interval and p-value."""
    if not np.isfinite(estimate.value):
        return "unknown"
    scale, form = (100, ".0f") if percent else (1, ".2f")
    value = f"{scale * estimate.value:{form}}{' %' if percent else ''}"
    inside = []
    if np.isfinite(estimate.low) and np.isfinite(estimate.high):
        inside.append(f"95 %: {scale * estimate.low:{form}} to {scale * estimate.high:{form}}")
    if np.isfinite(estimate.p):
        inside.append(f"p = {estimate.p:.2g}")
    return f"{value} ({'; '.join(inside)})" if inside else value


def _verdict(whole: Compared, names: tuple[str, str]) -> str:
    auc, energy = whole.latents["auc"], whole.latents["energy"]
    if not np.isfinite(energy.value):
        return f"{names[0]} and {names[1]} cannot be compared: a set has fewer than two rows with a latent."
    numbers = f"AUC {said(auc)}, where 0.5 is chance; energy distance {said(energy)}"
    few = _few(whole) and not is_apart(whole)
    if few or not (np.isfinite(energy.p) or np.isfinite(auc.p)):
        return f"Whether {names[0]} and {names[1]} differ cannot be decided from so few blocks: {numbers}."
    if is_apart(whole):
        return f"{names[0]} and {names[1]} differ: a classifier separates unseen latents of the two with {numbers}."
    if auc.low > _CHANCE:
        return (
            f"Whether {names[0]} and {names[1]} differ is uncertain: the interval of the AUC is above chance, but "
            f"blocks that change sides give as much, as few blocks of unequal sizes do: {numbers}."
        )
    return f"No difference between {names[0]} and {names[1]} is seen: {numbers}."


def _alone(whole: Compared) -> str:
    known = {name: found["auc"] for name, found in whole.quantities.items() if np.isfinite(found["auc"].value)}
    if not known or not np.isfinite(whole.latents["auc"].value):
        return ""
    each = ", ".join(f"{name.replace('_', ' ')} {said(auc)}" for name, auc in known.items())
    best = max(auc.value for auc in known.values())
    if not is_apart(whole):
        end = ""
    elif whole.latents["auc"].low > best:
        end = " The latents separate the sets better than each of these, so the difference is not only one of contrast."
    else:
        end = " The latents separate the sets no better, so the difference may be one of contrast or temperature alone."
    return f"AUC from one quantity alone: {each}.{end}"


def _coverage(whole: Compared, names: tuple[str, str]) -> str:
    if not np.isfinite(whole.latents["energy"].value):
        return ""
    both = [(whole.latents[f"coverage_of_{own}"], name) for own, name in zip("ab", names, strict=True)]
    parts, usual, unknown = [], [], []
    for (of, name), other in zip(both, names[::-1], strict=True):
        if np.isfinite(of.value):
            parts.append(f"{other} covers {said(of, True)} of the patterns of {name}")
            usual.append(f"{100 * of.expected:.0f} %")
        else:
            unknown.append(name)
    beside = "" if unknown or _few(whole) else f"; two sets of the same kind would cover {' and '.join(usual)}"
    lines = [f"{', and '.join(parts)}{beside}."] if parts else []
    if unknown:
        lines.append(
            f"How much of the patterns of {' and of '.join(unknown)} is covered is unknown: some cutouts have fewer "
            "than k= others of their set in other blocks."
        )
    return " ".join(lines)


def _strata(parts: Sequence[Compared]) -> str:
    tested = [one for one in parts if np.isfinite(one.latents["auc"].p)]
    apart = sorted((one for one in tested if is_apart(one, True)), key=lambda one: -one.latents["auc"].value)
    if not tested:
        return f"None of the {len(parts)} strata can be tested: each has too few rows or blocks of one of the sets."
    small = f" ({len(parts) - len(tested)} more have too few rows or blocks)" if len(tested) < len(parts) else ""
    if not apart:
        return f"Of {len(tested)} strata{small}, none differs at a false discovery rate of 5 %."
    named = [f"{one.stratum.label} ({one.latents['auc'].value:.2f})" for one in apart if one.stratum][:_MOST_NAMED]
    rest = f" and {len(apart) - len(named)} more" if len(apart) > len(named) else ""
    return (
        f"Of {len(tested)} strata{small}, {len(apart)} differ at a false discovery rate of 5 %, by AUC: "
        f"{', '.join(named)}{rest}."
    )


def _pairs(whole: Compared) -> str:
    closer, apart, chance = (whole.pairs[name] for name in ("closer", "distance", "random_distance"))
    right = closer.value > 0.5 and closer.p <= LEVEL
    end = "the right pattern at the right place and time" if right else "no more than the right climate"
    return (
        f"A matched pair is closer than {said(closer, True)} of random pairs, by latents {apart.value:.2f} apart "
        f"instead of {chance.value:.2f}: {end}."
    )


def _rows(whole: Compared, names: tuple[str, str]) -> str:
    rows = whole.rows
    parts = []
    for name, own in zip(names, "ab", strict=True):
        total, used = rows[f"rows_of_{own}"], rows[f"compared_of_{own}"]
        kept = f"{used} of {total} cutouts" if used < total else f"{total} cutouts"
        blocks = rows[f"blocks_of_{own}"]
        parts.append(f"{kept} in {blocks} block{'' if blocks == 1 else 's'} of {name}")
    end = (
        " With so few blocks, p-values and intervals mean little: block= names other ones, such as day or a column."
        if _few(whole)
        else ""
    )
    return f"Compared were {' and '.join(parts)}.{end}"


def _few(whole: Compared) -> bool:
    return min(whole.rows["blocks_of_a"], whole.rows["blocks_of_b"]) < _FEW
