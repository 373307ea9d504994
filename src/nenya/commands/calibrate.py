"""`nenya calibrate`: the known error of latents of masked cutouts."""

import logging

from nenya.errors import OptionError
from nenya.options.calibration import CalibrateOptions
from nenya.storage.disk import check_output
from nenya.storage.paths import fetch, find_sources, local_path

log = logging.getLogger(__name__)


def run(options: CalibrateOptions) -> int:
    """Calibrate a network, and write the calibration beside its weights or to `out`.

    Args:
        options: of `scripts/calibrate.py`.

    Returns:
        0.

    Raises:
        NenyaError: An option, a file or the weights cannot be used, there are too few cutouts, or the output exists.
    """
    from nenya.extraction.calibrate import calibrate, files_of
    from nenya.extraction.clearness import default_place
    from nenya.latents.calibration_file import save
    from nenya.models.contrastive import find_weights_of, load_model

    if options.preprocess.masked == "nan":
        raise OptionError(
            "calibrate expects a network that sees masked cutouts, got preprocess.masked=nan: set "
            "preprocess.masked=fill, mean or mask, as for nenya extract"
        )
    weights = find_weights_of(options, options.ckpt)
    place = local_path(options.out) if options.out else default_place(options, weights.place)
    if place is None or (weights.origin and not options.out):
        raise OptionError(f"the weights {weights.text} are not a local file: give out=, a file for the calibration")
    if place.suffix not in (".h5", ".hdf5"):
        raise OptionError(f"out={options.out}: expected an HDF5 file (.h5)")
    check_output(place, options.clobber)
    cache = options.loader.cache_dir
    files = files_of(fetch(find_sources(options.data), cache), options)
    clouds = files_of(fetch(find_sources(options.cloud_masks), cache), options) if options.cloud_masks else []
    checkpoint, module = load_model(options, options.ckpt)
    made = calibrate(options, files, clouds, checkpoint, module)
    save(made, place)
    for line in made.lines():
        log.info("%s", line)
    log.info("%s", place)
    return 0
