"""names of the first nenya: spectra; defined in `nenya.data.ensemble_spectra` and `nenya.plotting`."""

from nenya.data.ensemble_spectra import (
    compute_2d_spectrum,
    compute_ensemble_spectrum_batched,
    compute_ensemble_spectrum_parallel,
    get_wavenumber_grids,
    load_images,
    orig_compute_ensemble_spectrum_parallel,
    preprocess_image,
    radial_average,
)
from nenya.plotting import plot_from_file, plot_spectrum

__all__ = [
    "compute_2d_spectrum",
    "compute_ensemble_spectrum_batched",
    "compute_ensemble_spectrum_parallel",
    "get_wavenumber_grids",
    "load_images",
    "orig_compute_ensemble_spectrum_parallel",
    "plot_from_file",
    "plot_spectrum",
    "preprocess_image",
    "radial_average",
]
