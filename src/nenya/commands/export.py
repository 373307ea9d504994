"""`nenya export`: writes weights to files that hold no code."""

import logging
from pathlib import Path

from nenya.errors import OptionError
from nenya.models.checkpoint import save_pth, save_safetensors
from nenya.models.contrastive import load_model, weights_source
from nenya.options.commands import ExportOptions
from nenya.options.flat import flat_view
from nenya.storage.disk import check_output, check_room
from nenya.storage.paths import is_s3, local_path

log = logging.getLogger(__name__)


def run(options: ExportOptions) -> int:
    """Write the weights of `options.ckpt` as `.safetensors`, or in the users' `.pth` layout.

    Returns:
        0.

    Raises:
        NenyaError: The weights cannot be read or do not fit the model, or the output cannot be written.
    """
    weights = weights_source(options, options.ckpt)
    if is_s3(weights) and not options.out:
        raise OptionError(f"expected out=, a local .safetensors or .pth file, as the weights are {weights}")
    out = local_path(options.out) if options.out else Path(weights).with_suffix(".safetensors")
    if out.suffix not in (".safetensors", ".pth"):
        raise OptionError(f"out={out}: expected a file ending in .safetensors or .pth")
    check_output(out, options.clobber)
    checkpoint, module = load_model(options, options.ckpt)
    check_room(out.parent, sum(t.nbytes for t in checkpoint.state_dict.values()), "the weights file")
    if out.suffix == ".pth":
        save_pth(out, module.net, options=checkpoint.options or flat_view(options), epoch=checkpoint.epoch or 0)
    else:
        save_safetensors(out, checkpoint, {"source_sha256": checkpoint.sha256})
    log.info("%s: %d tensors of %s", out, len(checkpoint.state_dict), weights)
    return 0
