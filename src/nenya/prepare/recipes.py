"""The recipes of `nenya prepare`: what each is for, and which fits a file."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from nenya.options.files import config_dir
from nenya.prepare.units import plain_text

if TYPE_CHECKING:
    import xarray


def recipe_lines() -> dict[str, str]:
    """Return recipe -> a line on what it is for: the first comment in its file after Hydra's own."""
    found = {}
    for path in sorted((config_dir() / "sensor").glob("*.yaml")):
        comments = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        found[path.stem] = next((line for line in comments if not line.startswith("@package")), "")
    return found


def _has(*names: str) -> Callable[["xarray.Dataset"], bool]:
    """Return a function that is true for a file that has one of these variables or dimensions."""
    return lambda dataset: bool({*map(str, dataset.variables), *map(str, dataset.dims)} & set(names))


def _says(*words: str) -> Callable[["xarray.Dataset"], bool]:
    """Return a function that is true for a file whose global attributes have one of these words."""
    return lambda dataset: any(word in " ".join(map(plain_text, dataset.attrs.values())).lower() for word in words)


_FITS: dict[str, tuple[Callable[["xarray.Dataset"], bool], ...]] = {
    "swot_l2": (_has("ssha_karin"),),
    "swot_l3": (_has("ssha_filtered"),),
    "goes": (_has("SST"), _has("DQF", "goes_imager_projection")),
    "ghrsst": (_has("quality_level"), _has("sea_surface_temperature")),
    "hycom": (_has("water_temp"),),
    "roms": (_has("temp"), _has("s_rho", "mask_rho", "lon_rho", "eta_rho")),
    "glorys": (_has("thetao"), _has("latitude", "lat"), _says("mercator", "cmems", "copernicus", "glorys")),
    "oisst": (_has("sst"), _says("oisst", "optimum interpolation", "oiv2")),
    "era5": (_has("sst"), _says("ecmwf", "era5")),
    "modis": (_has("sst", "sst4"), _has("qual_sst"), _says("modis")),
    "viirs": (_has("sst"), _has("qual_sst"), _says("viirs")),
    "nemo": (_has("nav_lat"), _has("tos", "sosstsst", "thetao", "votemper")),
    "llc": (_has("Theta", "THETA"), _has("face", "tile")),
}
"""Recipe -> conditions on a file; the first recipe with all conditions met fits."""


def fitting(dataset: "xarray.Dataset") -> str:
    """Return the recipe that fits a file: that of its product, else `ssh` for heights alone and `grid` for the rest.

    Args:
        dataset: as opened.
    """
    for name, conditions in _FITS.items():
        if all(condition(dataset) for condition in conditions):
            return name
    names = {plain_text(v.attrs.get("standard_name", "")) for v in dataset.variables.values()}
    heights = any(name.startswith("sea_surface_height") for name in names)
    return "ssh" if heights and not any("temperature" in name for name in names) else "grid"
