"""Options of `nenya publish`."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from nenya.options.calibration import LeastCosineOptions
from nenya.options.declare import one_of, option

FORMATS = ("geoparquet", "stac", "zarr", "lance")
"""Formats in which latents are published."""


def _is_formats(value: Any) -> bool:
    names = [value] if isinstance(value, str) else value
    return isinstance(names, list | tuple) and len(names) > 0 and all(name in FORMATS for name in names)


def _is_names(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(v, str) for v in value))


_LICENSE = ("letters, digits and . + -", lambda value: re.fullmatch(r"[\w.+-]+", value, re.ASCII) is not None)


@dataclass
class PublishOptions(LeastCosineOptions):
    """Options of the publication of latents."""

    uses: ClassVar[tuple[str, ...]] = ("loader.cache_dir", "loader.allow_external", "data", "out", "seed", "clobber")
    only_with: ClassVar = {"version": "archive_dir", "side": "partition"}

    archive_dir: str | None = option(None, "an archive of nenya update, instead of data= and table=")
    version: str | None = option(None, "model version of the archive, if it has several")
    latents: Any = option(None, "latents files; the same as data")
    where: str | None = option(None, "an SQL condition on the columns, such as DT > 2 and lat < 0")
    format: Any = option(
        ["geoparquet"],
        "formats: geoparquet, stac (which describes the others), zarr, lance",
        (f"one or a list of {', '.join(FORMATS)}", _is_formats),
    )
    dtype: str = option("float32", "type of the published latents", one_of("float32", "float16", "int8"))
    geometry: str = option(
        "point", "geometry: the centre, or the footprint from height_km and width_km", one_of("point", "footprint")
    )
    partition: Any = option(
        None,
        "what GeoParquet files are divided by: year, cell (HEALPix), columns of few values, or []; default year",
        ("a name or a list of names", _is_names),
    )
    title: str | None = option(None, "title of the STAC collection; default the name of the folder")
    license: str = option("various", "licence of the latents for STAC: its SPDX name, such as CC-BY-4.0", _LICENSE)
    side: int = option(1, "cells along an edge of HEALPix's twelve base cells (partition=cell)", one_of(1, 2, 4, 8))
