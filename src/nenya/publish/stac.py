"""STAC: a collection of the published latents, an item for each file, and an item of the model.

The files follow the embeddings extension 0.0.1; its schema requires STAC 1.0.0. Further extensions are mlm 1.5.2, table
1.2.0, processing 1.2.0 and file 2.1.0. All links are relative, so the folder can be moved or uploaded as it is.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nenya.errors import InputFileError
from nenya.latents.index import TABLE
from nenya.latents.index_rows import VECTOR
from nenya.publish.about import ABOUT, moment
from nenya.publish.encoding import SCALE
from nenya.publish.geoparquet import FOLDER as GEOPARQUET
from nenya.publish.geoparquet import MEDIA_TYPE as PARQUET_TYPE
from nenya.publish.geoparquet import PartFile
from nenya.publish.lance_table import FOLDER as LANCE
from nenya.publish.lance_table import MEDIA_TYPE as LANCE_TYPE
from nenya.publish.rows import BOUNDS, EXTENTS, GEOMETRY, Rows
from nenya.publish.zarr_store import FOLDER as ZARR
from nenya.publish.zarr_store import MEDIA_TYPE as ZARR_TYPE

FOLDER = "stac"
VERSION = "1.0.0"
EMBEDDINGS = "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"
MODEL = "https://stac-extensions.github.io/mlm/v1.5.2/schema.json"
COLUMNS = "https://stac-extensions.github.io/table/v1.2.0/schema.json"
PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"
FILES = "https://stac-extensions.github.io/file/v2.1.0/schema.json"

_COLLECTION, _MODEL = "collection.json", "model/model.json"
_WHOLE = {"zarr": (ZARR, ZARR_TYPE, "Zarr store"), "lance": (LANCE, LANCE_TYPE, f"LanceDB database, table {TABLE}")}
_SHA256 = "1220"  # of 32 bytes, as a multihash begins


def check_rows(rows: Rows) -> None:
    """Refuse rows that STAC cannot describe: every item needs a place and a time.

    Raises:
        InputFileError: No row has a place, or none has a time.
    """
    for unknown, what in ((rows.without_place, "place (lat, lon)"), (rows.without_time, "time (datetime)")):
        if unknown == len(rows):
            raise InputFileError(f"format=stac: no row has a {what}, which a STAC item needs; leave stac out")


class Stac:
    """Writes the description of published latents.

    Args:
        folder: the published folder.
        about: what it says of itself.
        files: name -> entry with `size` and `sha256`, of the files that are complete.
        words: `title` and `license` of the collection.
    """

    def __init__(
        self, folder: Path, about: dict[str, Any], files: Mapping[str, dict[str, Any]], words: Mapping[str, str]
    ) -> None:
        self.folder, self.about, self.files, self.words = folder / FOLDER, about, files, words
        self.id = _plain(words["title"])

    def write(self, rows: Rows, parts: Sequence[PartFile], formats: Sequence[str]) -> None:
        """Write collection and items.

        Args:
            rows: that were published.
            parts: the GeoParquet files; without them one item describes all rows.
            formats: that were written.
        """
        items: list[tuple[str, dict[str, Any]]] = []
        for part in parts:
            name = self._item_name(rows, part)
            if name in dict(items):  # of other values: some characters cannot be in a folder's name
                name = f"{name}-{part.code}"
            items.append((name, self._item(name, rows, part, self._asset(f"{GEOPARQUET}/{part.name}"))))
        if not items:
            first = next(name for name in _WHOLE if name in formats)
            whole = PartFile("", 0, len(rows), self.about["bbox"])
            items.append(("all", self._item("all", rows, whole, self._whole(first, "../.."))))
        for name, item in items:
            _write(self.folder / name / f"{name}.json", item)
        _write(self.folder / _MODEL, self._model())
        _write(self.folder / _COLLECTION, self._collection(rows, [name for name, _ in items], formats))

    def _item_name(self, rows: Rows, part: PartFile) -> str:
        """Return the id of the item of a file: `year-2012`, or `year-2012-part-1` for a further file."""
        title = rows.partitions.title(part.code)
        number = Path(part.name).stem.removeprefix("part-")
        return _plain(f"{title or 'all'}{'' if number == '0' else f' part {number}'}")

    def _item(self, name: str, rows: Rows, part: PartFile, asset: dict[str, Any]) -> dict[str, Any]:
        about = self.about
        times = [moment(part.first), moment(part.last)] if part.first is not None and part.last is not None else None
        columns = [{"name": column, "type": told["type"]} for column, told in about["columns"].items()]
        columns += [{"name": VECTOR, "type": f"fixed_size_list<{about['stored']['dtype']}>[{about['dim']}]"}]
        columns += [{"name": SCALE, "type": "float"}] if about["stored"]["dtype"] == "int8" else []
        geometry = {"table:primary_geometry": GEOMETRY} if part.name else {}
        if part.name:
            columns = [one for one in columns if one["name"] not in rows.partitions.names]
            columns += [{"name": GEOMETRY, "type": "binary"}, {"name": BOUNDS, "type": "struct"}]
        return {
            "type": "Feature",
            "stac_version": VERSION,
            "stac_extensions": [EMBEDDINGS, COLUMNS, PROCESSING, FILES],
            "id": f"{self.id}-{name}",
            "collection": self.id,
            **_place(part.bounds),
            "properties": {
                "title": rows.partitions.title(part.code) or self.words["title"],
                **_time(times or about["times"]),
                **({} if times else {"description": "The times of these rows are unknown."}),
                "processing:datetime": about["date"],
                "processing:software": {"nenya": about["nenya_version"]},
                "emb:runtime_parameters": {
                    key: value for key, value in about["model"].items() if value not in ({}, "")
                },
                "emb:preprocessing": {"format": "nenya", "expression": self._preprocessing()},
                **self._quantization(),
                "table:columns": columns,
                "table:row_count": part.rows,
                **geometry,
            },
            "links": [*_links("../", "collection"), {"rel": "emb:model", "href": f"../{_MODEL}", "type": _GEOJSON}],
            "assets": {"embeddings": asset},
        }

    def _preprocessing(self) -> dict[str, Any]:
        model = self.about["model"]
        return {"file": model.get("preprocessing", "unknown"), **model.get("preprocess", {})}

    def _quantization(self) -> dict[str, Any]:
        """Return how the latents are stored, and what that costs."""
        stored = self.about["stored"]
        found: dict[str, Any] = {"nenya:stored": stored}
        if stored["dtype"] == "float32":
            return found
        method = f"linear, symmetric, one scale for each row in {SCALE}" if stored["dtype"] == "int8" else "rounding"
        found["emb:quantization"] = {
            "method": method,
            "original_dtype": "float32",
            "quantized_dtype": stored["dtype"],
        }
        if stored["neighbours_lost"] is not None:
            found["emb:uncertainty"] = {
                "method": "nearest neighbours by cosine before and after quantization",
                "description": f"{100 * stored['neighbours_lost']:.3g} % of the {stored['k']} nearest rows change "
                f"({stored['queries']} rows among {stored['among']}, seed {stored['seed']})",
            }
        return found

    def _collection(self, rows: Rows, items: Sequence[str], formats: Sequence[str]) -> dict[str, Any]:
        about = self.about
        dtype, dim = about["stored"]["dtype"], about["dim"]
        version = about["model"].get("model_version", "")
        assets = {name: self._whole(name, "..") for name in _WHOLE if name in formats}
        assets["about"] = {
            "href": f"../{ABOUT}",
            "type": "application/json",
            "roles": ["metadata"],
            "title": "what was published, from what, and how",
        }
        return {
            "type": "Collection",
            "stac_version": VERSION,
            "stac_extensions": [EMBEDDINGS, FILES],
            "id": self.id,
            "title": self.words["title"],
            "description": f"Latents of {about['rows']} cutouts of ocean images, {dim} dimensions, made by nenya"
            f"{f' with the model version {version}' if version else ''}.",
            "license": self.words["license"],
            "extent": {"spatial": {"bbox": [about["bbox"]]}, "temporal": {"interval": [about["times"]]}},
            "emb:type": "chip",
            "emb:dimensions": dim,
            "data_type": dtype,
            **_extent(rows),
            "summaries": {"emb:type": ["chip"], "emb:dimensions": [dim], "data_type": [dtype]},
            "links": [
                {"rel": "root", "href": f"./{_COLLECTION}", "type": "application/json"},
                *({"rel": "item", "href": f"./{name}/{name}.json", "type": _GEOJSON} for name in items),
                {"rel": "emb:model", "href": f"./{_MODEL}", "type": _GEOJSON},
                {
                    "rel": "emb:source-data",
                    "href": f"../{ABOUT}",
                    "type": "application/json",
                    "title": f"names of the {len(about['sources'])} cutout files, under `sources`",
                },
            ],
            "assets": assets,
        }

    def _model(self) -> dict[str, Any]:
        """Return the item of the model; its weights are named by their hash, and not published."""
        about = self.about
        model, settings = about["model"], about["model"].get("model", {})
        side = int(text) if (text := str(model.get("image_size", ""))).isdigit() else -1
        shape = [-1, settings.get("nchannels", 1), side, side]
        return {
            "type": "Feature",
            "stac_version": VERSION,
            "stac_extensions": [MODEL],
            "id": f"{self.id}-model",
            "collection": self.id,
            **_place(None),
            "properties": {
                **_time(about["times"]),
                "description": "The network that made the latents; its weights are named by their sha256.",
                "mlm:name": model.get("model_version") or "unknown",
                "mlm:architecture": settings.get("ssl_model") or "unknown",
                "mlm:framework": "PyTorch",
                **({"mlm:framework_version": model["torch_version"]} if "torch_version" in model else {}),
                "mlm:tasks": ["similarity-search"],
                "mlm:input": [
                    {
                        "name": "cutout",
                        "input": {
                            "shape": shape,
                            "dim_order": ["batch", "channel", "height", "width"],
                            "data_type": "float32",
                        },
                        "pre_processing_function": {"format": "nenya", "expression": self._preprocessing()},
                    }
                ],
                "mlm:output": [
                    {
                        "name": VECTOR,
                        "tasks": ["similarity-search"],
                        "result": {
                            "shape": [-1, about["dim"]],
                            "dim_order": ["batch", "channel"],
                            "data_type": "float32",
                        },
                    }
                ],
                "nenya:checkpoint": model.get("checkpoint"),
                "nenya:checkpoint_sha256": model.get("checkpoint_sha256"),
                "nenya:version": model.get("nenya_version"),
            },
            "links": _links("../", "collection"),
            "assets": {},
        }

    def _asset(self, name: str) -> dict[str, Any]:
        entry = self.files[name]
        return {
            "href": f"../../{name}",
            "type": PARQUET_TYPE,
            "roles": ["data"],
            "title": "GeoParquet",
            "file:size": entry["size"],
            "file:checksum": f"{_SHA256}{entry['sha256']}",
        }

    def _whole(self, format: str, up: str) -> dict[str, Any]:
        place, kind, title = _WHOLE[format]
        return {"href": f"{up}/{place}", "type": kind, "roles": ["data"], "title": title}


_GEOJSON = "application/geo+json"


def _links(up: str, parent: str) -> list[dict[str, str]]:
    return [
        {"rel": rel, "href": f"{up}{_COLLECTION}", "type": "application/json"} for rel in ("root", "parent", parent)
    ]


def _place(bounds: Sequence[float] | None) -> dict[str, Any]:
    """Return geometry and bbox of an item."""
    if bounds is None:
        return {"geometry": None}
    west, south, east, north = bounds
    if (west, south) == (east, north):
        return {"geometry": {"type": "Point", "coordinates": [west, south]}, "bbox": list(bounds)}
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"geometry": {"type": "Polygon", "coordinates": [ring]}, "bbox": list(bounds)}


def _time(times: Sequence[str]) -> dict[str, Any]:
    first, last = times
    if first == last:
        return {"datetime": first}
    return {"datetime": None, "start_datetime": first, "end_datetime": last}


def _extent(rows: Rows) -> dict[str, float]:
    """Return the extent of a cutout in metres, if known."""
    if not set(EXTENTS) <= set(rows.table.column_names):
        return {}
    sides = np.concatenate([rows.table[name].to_numpy() for name in EXTENTS])
    known = sides[np.isfinite(sides)]
    return {"gsd": float(1000 * np.median(known))} if len(known) else {}


def _plain(text: str) -> str:
    """Return a text as the id and folder of an item."""
    return re.sub(r"[^\w.]+", "-", text).strip("-.") or "latents"


def _write(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
