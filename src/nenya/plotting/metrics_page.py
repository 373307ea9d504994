"""The page of `nenya metrics`: one self-contained HTML file."""

import base64
import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem 1rem .2rem 0; text-align: left; vertical-align: top; }
tr { border-bottom: 1px solid #eee; } td { overflow-wrap: anywhere; } th { font-weight: 500; white-space: nowrap; }
img { max-width: 100%; } .note { color: #555; }
"""

_NOTES = (
    "N95, N99: principal components (mean removed) with 95 and 99 % of the variance of all partitions.",
    "Participation ratio: (sum of variances)^2 / sum of their squares.",
    "RankMe: exp of the entropy of the singular values, the mean not removed (Garrido et al. 2023).",
    "Uniformity: log of the mean of exp(-2 |x - y|^2) over pairs of a seeded sample (Wang and Isola 2020).",
    "Invariance: latents of a rotated, mirrored or shifted cutout compared with the unchanged one; crop and "
    "view compared with the cutout in the file; two_views between two training views; other "
    "between different cutouts.",
    "Neighbours: 1 - (mean difference to the nearest latents) / (mean difference of all pairs), within a seeded "
    "sample; the season is the day of the year of the calendar, on both hemispheres, and circular.",
    "Images: for each end of a component the cutouts whose latents, relative to the mean, are closest to its "
    "direction, and an image from gradient ascent with a penalty on its total variation, within the contrasts of the "
    "cutouts.",
)
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"  # no script
)
_MIME = {".svg": "image/svg+xml", ".png": "image/png"}


def page(name: str, lines: Mapping[str, str], results: Mapping[str, Any], figures: Mapping[str, Path]) -> str:
    """Return the page.

    Args:
        name: of the latents file.
        lines: description -> value.
        results: results, of which provenance and settings are shown.
        figures: title -> figure, .svg or .png, embedded in the page.
    """
    pictures = "".join(
        f'<h2>{_text(title)}</h2><img alt="{_text(title)}" src="data:{_MIME[path.suffix]};base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}">\n'
        for title, path in figures.items()
    )
    made = {**results["made_by"], "principal components": results["pca_file"]}
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{_text(name)}: latents</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{_text(name)}</h1>\n{_table(lines)}\n{pictures}"
        f"<h2>Definitions</h2><ul class=note>{''.join(f'<li>{_text(note)}</li>' for note in _NOTES)}</ul>\n"
        f"<h2>Provenance of the latents</h2>{_table(results['provenance']) or '<p>The file has none.</p>'}\n"
        f"<h2>This page</h2>{_table(made)}\n</body></html>\n"
    )


def _table(rows: Mapping[str, Any]) -> str:
    lines = (f"<tr><th>{_text(key)}</th><td>{_text(value)}</td></tr>" for key, value in rows.items())
    return f"<table>{''.join(lines)}</table>" if rows else ""


def _text(value: Any) -> str:
    return html.escape(value if isinstance(value, str) else json.dumps(value, default=str))
