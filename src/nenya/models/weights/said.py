"""Statements on weights beside their file, held against the weights themselves and against the options."""

import dataclasses
import logging
from functools import cache

from nenya.errors import CheckpointError
from nenya.models.checkpoint import Checkpoint
from nenya.models.weights.folder import PREPROCESS
from nenya.models.weights.named import Named
from nenya.options.sections import Options

log = logging.getLogger(__name__)

_IN_LATENTS = ("file", "masked")


def with_said(checkpoint: Checkpoint, named: Named) -> Checkpoint:
    """Return a checkpoint with what is stated beside it, and where it is from.

    Raises:
        CheckpointError: Its tensors are of another network than is stated.
    """
    if named.said:
        options = {**checkpoint.options, **named.said}
        checkpoint = dataclasses.replace(checkpoint, options=options)
        found = {"mask_channel": False, **checkpoint.architecture}
        for key, value in found.items():
            if named.said.get(key, value) != value:
                raise CheckpointError(
                    f"checkpoint {named.text}: its config.json says {key} {named.said[key]}, its weights are of "
                    f"{value}: take an undamaged copy of the folder"
                )
    return dataclasses.replace(checkpoint, origin=named.origin)


def say_differences(named: Named, options: Options) -> None:
    """Warn if cutouts will be preprocessed in another way than the weights were published with."""
    for key in _IN_LATENTS:
        said, used = named.said.get(PREPROCESS[key]), getattr(options.preprocess, key)
        if said is not None and said != used:
            _warn_once(
                f"{named.text} says preprocess.{key}={said}, but preprocess.{key}={used} is set: latents differ from "
                "those of others who use these weights"
            )


@cache
def _warn_once(text: str) -> None:
    log.warning("%s", text)
