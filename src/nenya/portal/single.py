"""The portal of one image and a table, by the names in users' scripts."""

import copy
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from bokeh.layouts import column
from bokeh.models import Div
from bokeh.plotting import figure
from bokeh.server.server import Server
from numpy.typing import ArrayLike, NDArray

from nenya.errors import InputFileError, OptionError
from nenya.io import load_main_table
from nenya.portal.dataset import Cutouts, Dataset, open_dataset
from nenya.portal.state import View
from nenya.storage.paths import key_of, local_path
from nenya.storage.texts import printed
from nenya.tables.key_columns import read_keys

log = logging.getLogger(__name__)

__all__ = ["Image", "OSSinglePortal", "Server"]


class Image:
    """An image and its place.

    Args:
        image: (H, W), (1, H, W) or (1, 1, H, W), K.
        Us: its UMAP coordinates.
        DT: its temperature difference, K.
        lat: degrees north.
        lon: degrees east.

    Raises:
        InputFileError: Another shape, or not two coordinates.
    """

    def __init__(
        self, image: ArrayLike, Us: ArrayLike, DT: float, lat: float | None = None, lon: float | None = None
    ) -> None:
        self.image, self.DT, self.lat, self.lon = np.asarray(image), DT, lat, lon
        places = np.asarray(Us, np.float64).ravel()
        if places.shape != (2,):
            raise InputFileError(f"Us: expected two UMAP coordinates, got {places.size}")
        self.Us = (float(places[0]), float(places[1]))
        if self.image.ndim < 2 or self.image.size != np.prod(self.image.shape[-2:]):
            raise InputFileError(f"expected an image of shape (H, W), got {self.image.shape}")

    def copy(self) -> "Image":
        """Return a copy."""
        return copy.deepcopy(self)


class OSSinglePortal:
    """Opens the portal on a table, at the row that is nearest to an image in the UMAP.

    Called with a Bokeh document, it shows the image there, and a link to the portal, which it serves on this machine.

    Args:
        table_file: the table with US0 and US1.
        input_Image: the image; by default the row nearest to `init_Us`.
        init_Us: UMAP coordinates to begin with; by default the median of the table.
        images: cutout files in the form of `data=`; default those that the table names, where they are found: as
            named, beside the table, or in $OS_SST/<sensor>/PreProc.

    Raises:
        InputFileError: The table cannot be read, or has no coordinates.
        OptionError: `init_Us` are not two numbers.
    """

    def __init__(
        self,
        table_file: str | Path,
        input_Image: Image | None = None,
        init_Us: ArrayLike | None = None,
        *,
        images: Any = None,
    ) -> None:
        self.table_file = local_path(str(table_file))
        self.umap_tbl = load_main_table(self.table_file, verbose=False)
        missing = [name for name in ("US0", "US1") if name not in self.umap_tbl]
        if missing:
            raise InputFileError(f"{self.table_file}: no column {' or '.join(missing)}: nenya embed writes US0 and US1")
        self._places = self.umap_tbl[["US0", "US1"]].to_numpy(np.float64, na_value=np.nan)
        if not np.isfinite(self._places).all(axis=1).any():
            raise InputFileError(f"{table_file}: no row has UMAP coordinates: run nenya embed")
        self._files = images if images is not None else self._found_files()
        self.dataset: Dataset = open_dataset(self.table_file, None, self._files or None)
        self.match_idx: list[int] = []
        self._portal: Any = None
        if input_Image is None:
            places = np.nanmedian(self._places, axis=0) if init_Us is None else np.asarray(init_Us, np.float64).ravel()
            if places.shape != (2,):
                raise OptionError(f"init_Us: expected two UMAP coordinates, got {places.size}")
            input_Image = self._image_of(self.find_closest_U(places))
        self.input_Image = input_Image
        self.primary_Image = input_Image.copy()
        self.img_Us = self.match_Us = input_Image.Us

    def _found_files(self) -> list[str]:
        """Return the cutout files of the table that are on this machine."""
        keys = read_keys(self.umap_tbl)
        folders = [self.table_file.parent]
        if os.environ.get("OS_SST"):
            folders += sorted(local_path("$OS_SST").glob("*/PreProc"))
        found = []
        for name in sorted(set(map(str, keys.names if keys.names is not None else ()))):
            places = [Path(name), *(folder / f"{key_of(name)}.h5" for folder in folders)]
            found += [str(place) for place in places if ("://" not in name and place.is_file()) or place.is_file()][:1]
        if not found:
            log.warning("%s: none of its cutout files is found: the portal shows no cutouts", self.table_file)
        return found

    @property
    def row(self) -> int:
        """Row of the table that is nearest to the primary image in the UMAP."""
        return self.find_closest_U(self.primary_Image.Us)

    def find_closest_U(self, Us: ArrayLike) -> int:
        """Return the row of the table that is nearest to UMAP coordinates."""
        return int(np.nanargmin(((self._places - np.asarray(Us, np.float64).ravel()) ** 2).sum(axis=1)))

    def set_matched(self, radius: float) -> None:
        """Set `match_idx` to the rows within a radius of the image in the UMAP, the nearest first."""
        distance = ((self._places - np.asarray(self.match_Us)) ** 2).sum(axis=1)
        rows = np.flatnonzero(distance < radius**2)
        self.match_idx = rows[np.argsort(distance[rows], kind="stable")].tolist()

    def load_images(self, tbl_idx: Any) -> tuple[list[NDArray[Any]], list[str]]:
        """Return the cutouts of rows of the table, (H, W) each, and titles; zeros for a row below 0 or without one."""
        rows = np.asarray(list(tbl_idx), np.int64)
        cutouts: Cutouts | None = self.dataset.cutouts
        good = np.flatnonzero(rows >= 0)
        found = dict(zip(good.tolist(), cutouts.of(rows[good]), strict=True)) if cutouts is not None else {}
        images = [found.get(i) for i in range(len(rows))]
        return [self.get_im_empty() if image is None else np.squeeze(image) for image in images], [
            str(row) if row >= 0 else " " for row in rows
        ]

    def get_im_empty(self) -> NDArray[np.uint8]:
        """Return an image of zeros in the size of the cutouts."""
        side = self.dataset.cutouts.side if self.dataset.cutouts is not None else 64
        return np.zeros((side, side), np.uint8)

    def set_primary_by_objID(self, obj_ID: int) -> None:
        """Make a row of the table the primary image."""
        self.primary_Image = self._image_of(obj_ID)
        self.img_Us = self.match_Us = self.primary_Image.Us

    def _image_of(self, row: int) -> Image:
        record = self.umap_tbl.iloc[row]
        known = {key: float(record[key]) for key in ("lat", "lon") if key in record}
        DT = next((float(record[key]) for key in ("DT40", "DT") if key in record), float("nan"))
        return Image(self.load_images([row])[0][0], self._places[row], DT, **known)

    def address(self) -> str:
        """Return the address of the portal at the row of the image; served from the first call on, by this process."""
        from nenya.portal.holding import Portal
        from nenya.portal.server import make_server

        if self._portal is None:
            server = make_server(Portal(self.dataset, self.table_file.name), "127.0.0.1", 0, [])
            server.start()
            self._portal = server
        view = View(row=self.row).to_text()
        return f"http://127.0.0.1:{self._portal.port}/?view={view}"

    def __call__(self, doc: Any) -> None:
        """Show the image and the link in a Bokeh document."""
        image = self.input_Image
        pixels: NDArray[Any] = np.asarray(image.image, np.float64).reshape(image.image.shape[-2:])
        plot = figure(width=420, height=400, title="input image", match_aspect=True)
        plot.image([pixels], x=0, y=0, dw=int(pixels.shape[-1]), dh=len(pixels), palette="Plasma256")
        place = "" if image.lat is None or image.lon is None else f", {image.lat:.3f} N, {image.lon:.3f} E"
        text = f"DT {image.DT:.3g} K, US0 {image.Us[0]:.3f}, US1 {image.Us[1]:.3f}{place}; nearest row: {self.row}"
        link = f'<a href="{self.address()}" target="_blank">Open the portal at this row</a>'
        doc.add_root(column(Div(text=f"{printed(text)}<br>{link}"), plot))
        doc.title = "Nenya portal"
