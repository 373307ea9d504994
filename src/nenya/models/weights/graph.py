"""A network as a graph for other programs, any number of cutouts at once: ONNX, or the program of torch.export.

torch.export is what torch keeps: TorchScript is deprecated. A graph is written only after its latents were found to be
those of nenya, within 1e-5, on seeded cutouts and on those of `data=`.

Letters: n cutouts, C channels (2 with a mask channel, else 1), H rows and W columns of pixels, D length of a latent.
"""

import dataclasses
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import nenya
from nenya.data.cutouts import CutoutFile, inspect_cutouts, partition_names
from nenya.data.masks import InputReader, network_input
from nenya.errors import CheckpointError, NenyaError, OptionError, OutputError
from nenya.models.checkpoint import Checkpoint
from nenya.models.contrastive import ContrastiveModule, demeaned
from nenya.models.resnet import ContrastiveNet, check_image_size
from nenya.models.weights.card import preprocess_words
from nenya.models.weights.folder import MODEL_KEYS
from nenya.models.weights.publish import described, input_of, latent_length
from nenya.options.export import ExportOptions
from nenya.options.extras import need
from nenya.options.sections import Options
from nenya.storage.disk import atomic_path
from nenya.storage.paths import fetch, find_sources
from nenya.storage.texts import first_words

log = logging.getLogger(__name__)

TOLERANCE = 1e-5
"""Largest difference of latents, which is of their largest number where that is above 1."""

INPUT, OUTPUT = "cutouts", "latents"
"""Names of the graph's input (n, C, H, W) and output (n, D), both float32."""


_BATCHES = (1, 2, 7)
_ROWS = 64  # of data= that are compared
_MOST_BYTES = 2 * 10**9  # of a file of protobuf

Images = NDArray[np.float32]
Run = Callable[[Images], Images]


class Graph(nn.Module):
    """The network of extraction, with or without preprocessing.

    Args:
        net: in evaluation mode.
        latent: `projection` or `encoder`.
        preprocess: `preprocess.masked` and `preprocess.file` to do first; None: the input is what the network sees.
    """

    def __init__(self, net: ContrastiveNet, latent: str, preprocess: tuple[str, str] | None) -> None:
        super().__init__()
        self.net, self.latent, self.preprocess = net, latent, preprocess

    def forward(self, cutouts: Tensor) -> Tensor:
        """Return latents (n, D): of cutouts (n, 1, H, W) with NaN at masked pixels, or of what the network sees."""
        if self.preprocess is None:
            return self._latents(cutouts)
        masked, file = self.preprocess
        if masked == "nan":
            lost = ~torch.isfinite(cutouts).flatten(1).all(dim=1)
            images = torch.where(lost[:, None, None, None], 0.0, cutouts)
        else:
            holes = torch.isnan(cutouts)
            lost = torch.isinf(cutouts).flatten(1).any(dim=1) | holes.flatten(1).all(dim=1)
            clear = torch.where(torch.isfinite(cutouts), cutouts, 0.0)
            number = (~holes).to(clear).sum(dim=(2, 3), keepdim=True).clamp(min=1.0)
            images = torch.where(holes, clear.sum(dim=(2, 3), keepdim=True) / number, clear)
            if masked == "mask":
                images = torch.cat([images, holes.to(images)], dim=1)
        if file == "demean":
            images = demeaned(images)
        return torch.where(lost[:, None], torch.nan, self._latents(images))

    def _latents(self, images: Tensor) -> Tensor:
        return self.net.encode(images) if self.latent == "encoder" else self.net(images)


def write_graph(out: Path, kind: str, options: ExportOptions, checkpoint: Checkpoint, net: ContrastiveNet) -> None:
    """Write a graph, and check it before it appears.

    Args:
        out: the file.
        kind: `onnx` or `torch_export`.
        options: of the command.
        checkpoint: the weights.
        net: the network that holds them.

    Raises:
        OptionError: A package is missing, the size of cutouts is unknown, or the preprocessing cannot be in a graph.
        CheckpointError: The network cannot become a graph.
        OutputError: The graph's latents differ, or it cannot be written.
    """
    if kind == "onnx":
        need("onnx", f"format={kind}")
    if options.preprocessing and options.preprocess.masked == "fill":
        raise OptionError(
            "preprocessing=true: the filling of preprocess.masked=fill cannot be part of a graph: leave preprocessing= "
            "out, and fill cutouts with nenya.data.fill.fill_cutouts first"
        )
    file = _data_of(options)
    height, width = _size_of(options, file)
    check_image_size(height, width)
    if kind == "onnx" and checkpoint_bytes(checkpoint) > _MOST_BYTES:
        raise OptionError("format=onnx: a file holds at most 2 GB, and the weights are larger: use torch_export")
    preprocess = (options.preprocess.masked, options.preprocess.file) if options.preprocessing else None
    graph = Graph(net.eval(), options.model.latent, preprocess).eval()
    channels = 1 if options.preprocessing else net.mask_channel + 1
    metadata = _metadata(options, checkpoint, net, (channels, height, width))
    with _quiet(), atomic_path(out) as path:
        try:
            run = _WRITERS[kind](graph, torch.zeros(2, channels, height, width), path, metadata)
        except NenyaError:
            raise
        except Exception as error:  # whatever an exporter finds unfit, of a class of the user's own for instance
            raise CheckpointError(
                f"{checkpoint.path.name}: cannot become a graph: {type(error).__name__}: {first_words(error)}"
            ) from error
        most = max(_differences(run, options, net, file, (channels, height, width)))
        if not most <= TOLERANCE:
            raise OutputError(
                f"{out}: latents of the graph differ from nenya's by {most:.1e}, expected at most {TOLERANCE:.0e}: not "
                "written"
            )
    log.info("%s: latents of the graph are nenya's within %.1e", out, most)


def checkpoint_bytes(checkpoint: Checkpoint) -> int:
    """Return the bytes of all weights."""
    return sum(tensor.nbytes for tensor in checkpoint.state_dict.values())


def _data_of(options: ExportOptions) -> CutoutFile | None:
    """Return the first cutout file of `data=`, None without it."""
    if not options.data:
        return None
    path = fetch(find_sources(options.data)[:1], options.loader.cache_dir)[0]
    return inspect_cutouts(path, partition_names(options), allow_external=options.loader.allow_external)


def _size_of(options: ExportOptions, file: CutoutFile | None) -> tuple[int, int]:
    """Return height and width of the cutouts of a graph, px."""
    info = None if file is None else next(iter(file.partitions.values()))
    size = options.size or (None if info else options.model.image_size)
    if size is None and info is None:
        raise OptionError("size= is needed: the side in pixels of the cutouts, which the weights do not say; or data=")
    if info is None:
        return int(size or 0), int(size or 0)
    if size is not None and (info.height, info.width) != (size, size):
        raise OptionError(f"size={size}: data= has cutouts of {info.height} x {info.width} pixels; leave one out")
    return info.height, info.width


def _metadata(
    options: ExportOptions, checkpoint: Checkpoint, net: ContrastiveNet, shape: tuple[int, int, int]
) -> dict[str, str]:
    """Return what a graph says of itself."""
    model = described(options, net)
    origin = {key.replace("checkpoint", "weights"): value for key, value in checkpoint.origin.items()}
    steps = preprocess_words(model, options.preprocess)
    return {
        "nenya_version": nenya.__version__,
        "model": json.dumps({key: getattr(model, key) for key in MODEL_KEYS}),
        "weights_sha256": checkpoint.sha256,
        **origin,
        "license": options.license or "unknown",
        "latent": model.latent,
        "latent_dim": str(latent_length(net, model.latent)),
        "preprocess": json.dumps(dataclasses.asdict(options.preprocess)),
        "preprocess_steps": json.dumps(steps),
        "preprocess_in_graph": json.dumps(options.preprocessing),
        "input": json.dumps({**input_of(model), "shape": ["n", *shape]}),
    }


def _to_onnx(graph: Graph, example: Tensor, path: Path, metadata: dict[str, str]) -> Run:
    """Write an ONNX file; return a function that runs it."""
    import onnxruntime  # type: ignore[import-untyped]

    program: Any = torch.onnx.export(
        _exported(graph, example), (), input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False
    )
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run([OUTPUT], {INPUT: images})[0], np.float32)


def _to_program(graph: Graph, example: Tensor, path: Path, metadata: dict[str, str]) -> Run:
    """Write a program of torch.export; return a function that runs it."""
    written = io.BytesIO()
    torch.export.save(_exported(graph, example), written, extra_files={"nenya.json": json.dumps(metadata)})
    path.write_bytes(written.getbuffer())
    written.seek(0)
    module = torch.export.load(written).module()

    def run(images: Images) -> Images:
        with torch.no_grad():
            return np.asarray(module(torch.from_numpy(images)))

    return run


_WRITERS: dict[str, Callable[[Graph, Tensor, Path, dict[str, str]], Run]] = {
    "onnx": _to_onnx,
    "torch_export": _to_program,
}


def _exported(graph: Graph, example: Tensor) -> Any:
    any_number = {0: torch.export.Dim("n", min=1)}
    with torch.no_grad():
        return torch.export.export(graph, (example,), dynamic_shapes=(any_number,))


def _differences(
    run: Run, options: ExportOptions, net: ContrastiveNet, file: CutoutFile | None, shape: tuple[int, int, int]
) -> Iterator[float]:
    """Yield the largest difference from nenya's latents in each batch, over the tolerance if a NaN differs."""
    rng = np.random.default_rng(0)
    module = ContrastiveModule(options, net, trained=False).eval()
    for n in _BATCHES:
        cutouts = rng.normal(0.5, 1, (n, 1, *shape[1:])).astype(np.float32)
        cutouts[::3, :, : shape[1] // 4, : shape[2] // 3] = np.nan
        if not options.preprocessing and options.preprocess.masked == "nan":
            cutouts = np.nan_to_num(cutouts)
        yield _difference(run, module, cutouts, options)
    for partition in file.partitions if file is not None else ():
        assert file is not None
        with file.reader(partition) as reader:
            stored = "nan" if options.preprocess.masked == "nan" else "holes"
            cutouts = InputReader(reader, stored).read(0, min(_ROWS, file.partitions[partition].rows))
        yield _difference(run, module, cutouts, options)


def _difference(run: Run, module: ContrastiveModule, cutouts: Images, options: Options) -> float:
    """Return the largest difference between a graph's latents and nenya's, of cutouts with NaN at masked pixels."""
    seen = network_input(cutouts.copy(), None, options.preprocess.masked)
    with torch.no_grad():
        wanted = module.predict_step({"images": torch.from_numpy(seen.copy())}, 0).numpy()
        if not getattr(options, "preprocessing", False):
            finite = np.isfinite(seen).all(axis=(1, 2, 3))
            seen, wanted = seen[finite], wanted[finite]
            images = torch.from_numpy(seen)
            seen = (demeaned(images) if options.preprocess.file == "demean" else images).numpy()
        else:
            seen = cutouts
    if not len(seen):
        return 0.0
    found = run(np.ascontiguousarray(seen))
    if found.shape != wanted.shape or (np.isnan(found) != np.isnan(wanted)).any():
        return float("inf")
    size = max(1.0, float(np.nanmax(np.abs(wanted), initial=0)))
    return float(np.nanmax(np.abs(found - wanted), initial=0)) / size


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' own lines out of ours."""
    logger = logging.getLogger("torch")
    others = [logging.getLogger(name) for name in ("onnxscript", "onnx_ir", "torch.onnx", "torch.export")]
    levels = [(one, one.level) for one in (logger, *others)]
    for one, _ in levels:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in levels:
            one.setLevel(level)
