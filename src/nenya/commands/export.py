"""`nenya export`: writes weights to files that hold no code: a folder for the Hub, a file of weights, or a graph."""

import logging
from pathlib import Path

from nenya.errors import OptionError
from nenya.models.checkpoint import Checkpoint, save_pth, save_safetensors
from nenya.models.contrastive import find_weights_of, load_model
from nenya.models.resnet import ContrastiveNet
from nenya.options.export import ExportOptions
from nenya.options.flat import flat_view
from nenya.storage.disk import check_output, check_room
from nenya.storage.paths import is_s3, local_path

log = logging.getLogger(__name__)

_SUFFIXES = {".safetensors": "safetensors", ".pth": "pth", ".onnx": "onnx", ".pt2": "torch_export"}
_GRAPHS = ("onnx", "torch_export")


def run(options: ExportOptions) -> int:
    """Write the weights of `options.ckpt` in the format of `options.format`, or of `out`.

    Returns:
        0.

    Raises:
        NenyaError: The weights cannot be read or do not fit the model, or the output cannot be written.
    """
    weights = find_weights_of(options, options.ckpt)
    fetched = is_s3(weights.place) or bool(weights.origin)
    if fetched and not options.out:
        raise OptionError(f"expected out=, a local file or a folder/, as the weights are {weights.text}")
    if options.out is None and options.format == "hub":
        raise OptionError("format=hub: expected out=, the folder to write")
    out, kind = _output(options, Path(weights.place))
    _check_effects(options, kind)
    if options.model.mask_channel and options.preprocess.masked == "nan":
        options.preprocess.masked = "mask"  # nothing else goes with this network
    if kind == "hub":
        from nenya.models.weights.publish import check_place

        check_place(out, options.model.name, clobber=options.clobber)
    else:
        check_output(out, options.clobber)
    checkpoint, module = load_model(options, options.ckpt)
    size = sum(tensor.nbytes for tensor in checkpoint.state_dict.values())
    check_room(out if kind == "hub" else out.parent, size, "the weights file")
    _write(options, out, kind, checkpoint, module.net)
    log.info("%s: %d tensors of %s", options.out or out, len(checkpoint.state_dict), weights.text)
    return 0


def _write(options: ExportOptions, out: Path, kind: str, checkpoint: Checkpoint, net: ContrastiveNet) -> None:
    """Write the output."""
    if kind == "hub":
        from nenya.models.weights.publish import write_folder

        write_folder(out, options, checkpoint, net, options.license or "unknown")
    elif kind in _GRAPHS:
        from nenya.models.weights.graph import write_graph

        write_graph(out, kind, options, checkpoint, net)
    elif kind == "pth":
        save_pth(out, net, options=checkpoint.options or flat_view(options), epoch=checkpoint.epoch or 0)
    else:
        save_safetensors(out, checkpoint, {"source_sha256": checkpoint.sha256})


def _output(options: ExportOptions, weights: Path) -> tuple[Path, str]:
    """Return the place and the format of the output.

    Raises:
        OptionError: They do not agree, or the format is not told.
    """
    endings = {kind: suffix for suffix, kind in _SUFFIXES.items()}
    if not options.out:
        usual = options.format or "safetensors"
        return weights.with_suffix(endings[usual]), usual
    out, kind = local_path(options.out), options.format
    found = "hub" if options.out.endswith("/") or out.is_dir() else _SUFFIXES.get(out.suffix)
    if kind is None and found is None:
        raise OptionError(
            f"out={options.out}: expected a file ending in {', '.join(_SUFFIXES)}, or a folder/ for a hub"
        )
    if kind is not None and found != kind and not (kind == "hub" and found is None):
        wanted = "a folder/" if kind == "hub" else f"a file ending in {endings[kind]}"
        raise OptionError(f"out={options.out}: expected {wanted} with format={kind}")
    return out, kind or str(found)


def _check_effects(options: ExportOptions, kind: str) -> None:
    """Refuse options that have no effect on a format."""
    graph = kind in _GRAPHS
    for name, value, good in (
        ("license", options.license, graph or kind == "hub"),
        ("preprocessing", options.preprocessing, graph),
        ("size", options.size, graph),
        ("data", options.data, graph),
    ):
        if value and not good:
            wanted = "onnx or torch_export" if name != "license" else "hub, onnx or torch_export"
            raise OptionError(f"{name}={value}: has an effect only with format={wanted}; leave it out")
