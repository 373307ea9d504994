"""`nenya demo`: generates cutouts of a turbulent ocean, trains a model, extracts latents and draws a gallery."""

import dataclasses
import logging
import shlex
from pathlib import Path

from nenya import train
from nenya.commands.generate import write_ocean
from nenya.commands.network import model_arguments
from nenya.data.hdf5_open import open_hdf5
from nenya.errors import OptionError
from nenya.extraction import batch
from nenya.io import read_table
from nenya.latents.components import fit_pca
from nenya.latents.embed import Fit, embed_table, projector_place
from nenya.latents.files import Latents
from nenya.options.commands import ExtractOptions, TrainOptions
from nenya.options.sections import Options
from nenya.plotting import gallery, learning_curve
from nenya.prepare.ocean import OceanOptions
from nenya.storage.disk import check_room
from nenya.storage.paths import local_path

log = logging.getLogger(__name__)

_FOLDER = Path("outputs/demo")
_TRAIN, _VALID, _SIZE = 1536, 384, 32


def run(options: TrainOptions) -> int:
    """Generate cutouts, train, extract and draw, into `options.out` (default `outputs/demo`).

    Args:
        options: of the training.

    Returns:
        0.

    Raises:
        NenyaError: An option is not possible, or the folder cannot be written.
    """
    if options.data or options.resume:
        raise OptionError("the demo generates its own data: leave out data= and resume=, or use nenya train")
    folder = local_path(options.out) if options.out else _FOLDER
    cutouts, run_folder = folder / "demo_preproc.h5", folder / "run"
    check_room(folder, 2**26, "the demo")
    log.info("1 of 5: simulate a turbulent ocean and cut it up")
    write_ocean(cutouts, {"train": _TRAIN, "valid": _VALID}, options.seed, OceanOptions(_SIZE))
    log.info("2 of 5: train (model=%s)", options.model.name)
    train.run(dataclasses.replace(options, data=str(cutouts), out=str(run_folder), clobber=True))
    log.info("3 of 5: extract the latents")
    shared = {f.name: getattr(options, f.name) for f in dataclasses.fields(Options)}
    weights = str(run_folder / "last.pth")
    extraction = ExtractOptions(**{**shared, "data": str(cutouts), "out": str(folder), "clobber": True}, ckpt=weights)
    batch.run(extraction)
    latents = Path(batch.output_places([cutouts], str(folder), debug=options.debug)[0])
    log.info("4 of 5: fit a UMAP and place the latents in it")
    table = folder / "demo_umap.parquet"
    given = read_table(cutouts.with_suffix(".parquet"))
    if options.debug:
        given = given[Latents([latents]).join(given).number >= 0]
    embed_table(Latents([latents]), given, table, Fit(seed=options.seed), projector_place(table), clobber=True)
    log.info("5 of 5: draw the learning curve and the gallery")
    draw(cutouts, latents, run_folder, folder)
    shown = [f"table={table}", f"latents={latents}", f"images={cutouts}", *model_arguments(options)]
    shown += [f"ckpt={weights}", f"projector={projector_place(table)}"]
    log.info(
        "\nLook at\n  %s   the cutouts, arranged by their latents\n"
        "  %s   the loss of each epoch\n  %s   the latents, one row per cutout\n"
        "See them in a browser (UMAP, map, gallery, similar cutouts):\n"
        "  python scripts/portal.py %s\n"
        "Then try your own cutouts:\n"
        "  python scripts/train.py   model=v5 data=/path/to/cutouts_preproc.h5\n"
        "  python scripts/extract.py model=v5 data=/path/to/cutouts_preproc.h5 ckpt=/path/to/weights",
        folder / "gallery.png",
        folder / "learning_curve.png",
        latents,
        " ".join(shlex.quote(argument) for argument in shown),
    )
    return 0


def draw(cutouts: Path, latents: Path, run_folder: Path, folder: Path) -> None:
    """Write `gallery.png` (validation cutouts by their first two principal components) and `learning_curve.png`."""
    with open_hdf5(latents) as h5, open_hdf5(cutouts) as images:
        pca = fit_pca(h5["train"], n_components=2)
        share = 100 * pca.explained_variance_ratio
        gallery(
            images["valid"][: len(h5["valid"])],  # in a debug run there are latents of the first ones only
            pca.transform(h5["valid"][()]),
            folder / "gallery.png",
            title="Generated sea-surface temperature, arranged by latent vectors",
            labels=(f"latent PC 1 ({share[0]:.0f} % of variance)", f"latent PC 2 ({share[1]:.0f} % of variance)"),
        )
    curve = next((run_folder / "learning_curve").glob("*.csv"))
    learning_curve(curve, folder / "learning_curve.png", title="Contrastive loss")
