"""Latents of untrained networks: what the architecture alone gives."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nenya.errors import InputFileError
from nenya.options.sections import Options

if TYPE_CHECKING:
    from nenya.data.table_images import TableImages

_READ_ROWS = 256


def read_as(masked: str) -> str:
    """Return what is read of masked pixels for a network with `preprocess.masked`: one with a mask takes NaN for it."""
    return "holes" if masked == "mask" else masked


def untrained_latents(
    options: Options, images: "TableImages", width: int
) -> Callable[[NDArray[np.int64]], NDArray[np.float32]]:
    """Return a function that gives latents of an untrained network for rows of a table, (n, D) float32.

    Args:
        options: of the network, its preprocessing and its seed.
        images: the cutouts of the table.
        width: D of the latents beside which it stands.

    Raises:
        InputFileError: A row has no cutout, or the network has latents of another length.
    """
    import torch

    from nenya.latents_extraction import calc_latent
    from nenya.models.contrastive import ContrastiveModule, make_net

    check_all_known(images)
    torch.manual_seed(options.seed)
    gpu = torch.cuda.is_available()
    net = ContrastiveModule(options, make_net(options), trained=False).to("cuda" if gpu else "cpu").eval()

    def encode(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        parts = []
        for start in range(0, len(rows), _READ_ROWS):
            cutouts = torch.from_numpy(images.read(rows[start : start + _READ_ROWS]))[:, None]
            if options.preprocess.file == "demean":
                cutouts = cutouts - cutouts.mean((2, 3), keepdim=True)
            parts.append(calc_latent(net, cutouts, gpu))
        found = np.concatenate(parts)
        if found.shape[1] != width:
            raise InputFileError(
                f"expected a network with latents of {width} dimensions, as in the file, got {found.shape[1]}"
            )
        return found

    return encode


def check_all_known(images: "TableImages") -> None:
    """Refuse cutout files that lack cutouts of the table.

    Raises:
        InputFileError: A row has no cutout.
    """
    if not images.known.all():
        raise InputFileError(
            f"images=: {int((~images.known).sum())} of {len(images.known)} rows have no cutout: {images.note}"
        )
