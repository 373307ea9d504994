"""The weights of an extraction: their location, and a shared copy in memory."""

import dataclasses
from functools import lru_cache
from pathlib import Path

from nenya.errors import CheckpointError, OptionError
from nenya.models.checkpoint import Checkpoint, load_checkpoint, load_weights
from nenya.models.contrastive import ContrastiveModule
from nenya.models.resnet import ContrastiveNet
from nenya.options.sections import Options
from nenya.storage.paths import expand, temporary_copy
from nenya.storage.s3.service import is_s3, store

_KEPT = 2  # networks of 100 MB kept in memory


def weights_source(options: Options, ckpt: str | None) -> str:
    """Return the local path or s3:// address of the weights: `ckpt`, or `model.weights`.

    Raises:
        OptionError: Neither is given, or it names an environment variable that is not set.
    """
    source = ckpt or options.model.weights
    if not source:
        raise OptionError(f"ckpt= is required: model {options.model.name} has no published weights")
    if is_s3(source):
        return source
    try:
        return expand(source)
    except OptionError as error:
        if ckpt:
            raise
        raise OptionError(f"weights of model {options.model.name}: {error}, or give the weights with ckpt=") from error


def load_model(options: Options, ckpt: str | None) -> tuple[Checkpoint, ContrastiveModule]:
    """Return the checkpoint of `ckpt`, or of `model.weights`, and the network with its weights.

    Repeated calls in a process for the same file return the same network, read once.

    Raises:
        OptionError: Neither is given, or it names an environment variable that is not set.
        CheckpointError: The file is missing, damaged, refused, or of another architecture.
        StorageError: An S3 service does not deliver it.
    """
    source, stamp = _stamped(weights_source(options, ckpt))
    model = options.model
    architecture = (model.ssl_model, model.feat_dim, model.nchannels, model.width)
    # Lightning converts a network to half precision in place, so it is not shared between precisions.
    checkpoint, net = _load(source, stamp, architecture, options.trainer.precision, options.loader.cache_dir)
    return checkpoint, ContrastiveModule(options, net)


def checkpoint_of(options: Options, ckpt: str | None) -> Checkpoint:
    """Return the checkpoint of `ckpt`, or of `model.weights`, of whatever architecture.

    Raises:
        OptionError: Neither is given, or it names an environment variable that is not set.
        CheckpointError: The file is missing, damaged, or refused.
        StorageError: An S3 service does not deliver it.
    """
    return _read(*_stamped(weights_source(options, ckpt)), options.loader.cache_dir)


def _stamped(source: str) -> tuple[str, tuple[object, ...]]:
    """Return the address of weights, and what changes when they are replaced."""
    if is_s3(source):
        found = store().head(source)
        if found is None:
            raise CheckpointError(f"checkpoint {source} does not exist: check the address")
        stamp: tuple[object, ...] = (found.etag, found.size)
    else:
        path = Path(source)
        status = path.stat() if path.is_file() else None  # load_checkpoint raises the error
        source = str(path.absolute()) if status else source
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns) if status else ()
    return source, stamp


@lru_cache(maxsize=1)
def _read(source: str, stamp: tuple[object, ...], cache_dir: str | None) -> Checkpoint:
    """Read weights; `stamp` only distinguishes them."""
    if is_s3(source):
        with temporary_copy(source, cache_dir) as path:
            return load_checkpoint(path)
    return load_checkpoint(source)


@lru_cache(maxsize=_KEPT)
def _load(
    source: str,
    stamp: tuple[object, ...],
    architecture: tuple[str, int, int, int],
    precision: str,
    cache_dir: str | None,
) -> tuple[Checkpoint, ContrastiveNet]:
    """Read the weights into a network; `stamp` and `precision` only distinguish cached networks."""
    checkpoint = _read(source, stamp, cache_dir)
    _read.cache_clear()
    net = ContrastiveNet(*_with_channels_of(checkpoint, architecture))
    load_weights(net, checkpoint)
    # The network's own tensors, so that there is one copy in memory.
    return dataclasses.replace(checkpoint, state_dict=net.state_dict()), net


def _with_channels_of(checkpoint: Checkpoint, architecture: tuple[str, int, int, int]) -> tuple[str, int, int, int]:
    """Return the architecture with the channels of the checkpoint's first convolution: latents do not depend on it."""
    ssl_model, feat_dim, _, width = architecture
    first = checkpoint.state_dict.get("encoder.conv1.weight")
    nchannels = first.shape[1] if first is not None and first.ndim == 4 else 0
    return (ssl_model, feat_dim, nchannels, width) if nchannels in (1, 3) else architecture
