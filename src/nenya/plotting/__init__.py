"""Figures of cutouts, their latents and positions, of spectra and of training, drawn without a display.

The suffix of a file sets its format: .png, .pdf, .svg; a list of files gives several. Temperatures in one figure share
one scale, in K. `style=Style(size="single")` draws for a page; `docs/plotting.md` has an example of each figure.
"""

from nenya.plotting.curves import learning_curve, power_spectra, read_losses, variance_spectrum
from nenya.plotting.cutouts import (
    GAP,
    closest_strip,
    contact_sheet,
    eigen_images,
    eigen_sheet,
    gallery,
    mosaic,
    nearest_to_centres,
)
from nenya.plotting.from_files import closest_latents, learn_curve, plot_from_file, plot_spectrum, umap_gallery
from nenya.plotting.paper import central_limits, save_figure
from nenya.plotting.planes import (
    map_categories,
    map_density,
    map_metric,
    umap_categories,
    umap_density,
    umap_metric,
)
from nenya.plotting.style import Style

__all__ = [
    "GAP",
    "Style",
    "central_limits",
    "closest_latents",
    "closest_strip",
    "contact_sheet",
    "eigen_images",
    "eigen_sheet",
    "gallery",
    "learn_curve",
    "learning_curve",
    "map_categories",
    "map_density",
    "map_metric",
    "mosaic",
    "nearest_to_centres",
    "plot_from_file",
    "plot_spectrum",
    "power_spectra",
    "read_losses",
    "save_figure",
    "umap_categories",
    "umap_density",
    "umap_gallery",
    "umap_metric",
    "variance_spectrum",
]
