"""Options of the export of weights."""

import re
from dataclasses import dataclass
from typing import ClassVar

from nenya.options.declare import one_of, option, within
from nenya.options.sections import Options

LICENCE = (
    "an identifier such as cc-by-4.0",
    lambda value: re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,59}", value) is not None,
)


@dataclass
class ExportOptions(Options):
    """Options of the export of weights."""

    uses: ClassVar[tuple[str, ...]] = ("model", "preprocess", "loader", "data", "out", "clobber", "sha256")
    positional: ClassVar = "ckpt"

    ckpt: str | None = option(None, "weights to export; default model.weights")
    format: str | None = option(
        None,
        "hub: a folder with weights, config.json, preprocessor.json and model card; safetensors, pth: a file of "
        "weights; onnx, torch_export: a graph; default by out=",
        one_of("hub", "safetensors", "pth", "onnx", "torch_export"),
    )
    license: str | None = option(
        None,
        "licence of the weights, such as cc-by-4.0; default unknown (format=hub, onnx, torch_export)",
        LICENCE,
    )
    preprocessing: bool = option(
        False, "preprocessing within the graph, which then takes cutouts with NaN at masked pixels (format=onnx, ...)"
    )
    size: int | None = option(
        None, "side in pixels of the cutouts of a graph; default model.image_size, or that of data=", within(8, 4096)
    )
