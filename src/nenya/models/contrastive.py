"""The LightningModule: wires network, loss and schedule to Lightning's loops; and a module with loaded weights."""

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nenya.data.clouds import clear_epochs
from nenya.errors import CheckpointError, MissingCheckpointError, NenyaError, OptionError
from nenya.latents import metrics
from nenya.models.backbones.make import FIRST_LAYERS
from nenya.models.checkpoint import Checkpoint, load_checkpoint, load_weights
from nenya.models.clouds import Guide, TwoSchedules, guided_loss, with_clouds
from nenya.models.inference import Runner, make_runner, obstacle
from nenya.models.losses import gather_views
from nenya.models.objectives.methods import described, make_objective
from nenya.models.optimizers import make_optimizer
from nenya.models.parts import in_parts
from nenya.models.resnet import ContrastiveNet
from nenya.models.schedule import Schedule
from nenya.models.weights.named import Named, find_weights
from nenya.models.weights.said import say_differences, with_said
from nenya.options.flat import flat_view, warm_up
from nenya.options.sections import Options
from nenya.runtime.lightning import pl
from nenya.runtime.trainer import ledger_of
from nenya.storage.paths import is_s3, temporary_copy
from nenya.storage.s3.service import store
from nenya.storage.shipped import AVAILABLE

log = logging.getLogger(__name__)

MONITORED_ROWS = 2048
_STEPS_THAT_REPAY = (
    3000  # an estimate, of a GPU: a minute or two of compiling against some hundredths of a second a step
)

_Asked = tuple[str, int, int, int, bool]  # ssl_model, feat_dim, nchannels, width, mask_channel

_KEPT = 2  # networks of 100 MB kept in memory


def check_mask_channel(options: Options) -> None:
    """Check that the network sees a mask if, and only if, the cutouts are read with one.

    Raises:
        OptionError: Only one of two options sets it.
    """
    channel, masked = options.model.mask_channel, options.preprocess.masked
    if channel and masked != "mask":
        raise OptionError(f"model.mask_channel=true with preprocess.masked={masked}: set preprocess.masked=mask")
    if masked == "mask" and not channel:
        raise OptionError(
            "preprocess.masked=mask needs a network with a mask channel: set model.mask_channel=true, or "
            "preprocess.masked=fill"
        )


def make_net(options: Options) -> ContrastiveNet:
    """Return the network of the options, with the original's initialisation drawn from `options.seed`.

    Raises:
        OptionError: An option of the network is invalid.
    """
    check_mask_channel(options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        o = options.model
        return ContrastiveNet(o.ssl_model, o.feat_dim, o.nchannels, o.width, mask_channel=o.mask_channel)


def demeaned(images: Tensor) -> Tensor:
    """Return images (n, C, H, W) without the mean of the first channel; a second one, the mask, stays."""
    if images.shape[1] != 2:
        return images - images.mean(dim=(-2, -1), keepdim=True)
    return torch.cat([images[:, :1] - images[:, :1].mean(dim=(-2, -1), keepdim=True), images[:, 1:]], dim=1)


class ContrastiveModule(pl.LightningModule):
    """Self-supervised training, validation and extraction of latents with one network.

    Args:
        options: all options; `model`, `loss`, `optim`, `preprocess` and batch sizes are used.
        net: the network; by default a new one.
        trained: whether it will be trained, so that the options of its learning rate are checked now.
    """

    def __init__(self, options: Options, net: ContrastiveNet | None = None, *, trained: bool = True) -> None:
        super().__init__()
        self.options = options
        self.net = make_net(options) if net is None else net
        self.on_rows: Callable[[int], None] | None = None
        self.batch_shape: int | None = None
        self.backend = "eager"
        self._runner: tuple[tuple[Any, ...], Runner] | None = None
        self._monitored: list[Tensor] = []
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self._guide, self._clear_epochs = Guide(), clear_epochs(options)
        if trained:
            _ = self.schedule
            self.objective = make_objective(options, self.net)

    @functools.cached_property
    def schedule(self) -> Schedule | TwoSchedules:
        """The learning rate of a training."""
        optim = self.options.optim
        schedule = Schedule(
            learning_rate=optim.learning_rate,
            epochs=self.options.trainer.max_epochs,
            cosine=optim.cosine,
            warm=warm_up(self.options),
            lr_decay_rate=optim.lr_decay_rate,
            lr_decay_epochs=tuple(optim.lr_decay_epochs),
        )
        return with_clouds(schedule, self.options, self._clear_epochs)

    def forward(self, images: Tensor) -> Tensor:
        """Return the latents (B, D) of images (B, C, H, W), as `model.latent` says.

        In the predict loop `backend` computes them; one runner is kept, as nearly all batches have one shape.
        """
        if self.backend != "eager" and self._trainer is not None and self.trainer.predicting:
            key = (self.backend, images.shape, images.device)
            if self._runner is None or self._runner[0] != key:
                began = time.monotonic()
                self._runner = key, self.runner(images.shape, half=self.options.trainer.precision == "bf16-true")
                latents = self._runner[1](images)  # the first time, it compiles
                if self.backend == "compiled":
                    ledger_of(self.trainer).add("prepare", time.monotonic() - began, within="forward")
                return latents
            return self._runner[1](images)
        if self.options.model.latent == "encoder":
            return self.net.encode(images)
        return self.net(images)  # type: ignore[no-any-return]

    def runner(self, shape: tuple[int, ...], *, half: bool) -> Runner:
        """Return the function from images of a shape to latents by `backend`; `half` is bfloat16, by `packed` only."""
        half = half and self.backend == "packed"
        return make_runner(self.net, self.options.model.latent, self.backend, shape, half=half)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer of network and objective; its rate is set before each step."""
        trained = nn.ModuleList([self.net, self.objective])
        return make_optimizer(self.options, trained, on_gpu=self.device.type == "cuda")

    def on_fit_start(self) -> None:
        """Lay out the weights channels last, as convolutions of a GPU want them; compile where that pays."""
        if self._channels_last():
            for net in {self.net, self.objective.teacher or self.net}:
                net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self._compiling_pays():
            reason = obstacle("compiled", self.device.type, self.options.trainer.precision)
            if reason is None:
                forward = self.net.forward if self.objective.normalised else self.net.project
                self._compiled = torch.compile(forward, dynamic=False)
            else:
                log.warning("training without compilation (%s)", reason)

    def _channels_last(self) -> bool:
        return self.device.type == "cuda" or self.options.model.layout == "channels_last"

    def _compiling_pays(self) -> bool:
        """Return whether to compile the training: as requested, or on a GPU for many steps."""
        if self.options.optim.micro_batch:
            return False
        if self.options.model.backend != "auto":
            return self.options.model.backend == "compiled"
        return self.device.type == "cuda" and self.trainer.estimated_stepping_batches >= _STEPS_THAT_REPAY

    def _encode(self, views: Tensor) -> Tensor:
        """Return the features (V, D) of views (V, C, H, W); full batches go through the compiled network."""
        forward: Callable[[Tensor], Tensor] = self.net if self.objective.normalised else self.net.project
        if not self.training:
            return forward(views)
        if self._compiled is not None and len(views) == 2 * self._share_of_a_batch():
            return self._compiled(views)
        if part := self.options.optim.micro_batch:
            return in_parts(forward, self.net, views, 2 * part)
        return forward(views)

    def _share_of_a_batch(self) -> int:
        """Return the cutouts of a full batch that one process sees."""
        return self.options.loader.batch_size_train // max(1, self.trainer.world_size)

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Set the learning rate of this step."""
        steps = int(self.trainer.num_training_batches)
        rate = self.schedule.at_step(batch["epoch"] + 1, batch["index"], steps)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        self.log("train/learning_rate", rate, batch_size=1)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of one batch of views, over all processes."""
        loss = self._loss(batch)
        self.log("train/loss", loss.detach(), batch_size=batch["total"])
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Log the loss of one batch of fixed views; keep some latents for the figures that show a collapse."""
        loss = self._loss(batch)
        self.log("valid/loss", loss, batch_size=batch["total"], on_epoch=True, sync_dist=True)
        if sum(map(len, self._monitored)) < MONITORED_ROWS:
            self._monitored.append(self.objective.latents(self.net, batch["images"]).float().cpu())
        return loss

    def _loss(self, batch: dict[str, Any]) -> Tensor:
        """Return the loss of the views of all processes."""
        views = batch["views"]
        if "clear" in batch:
            self._guide.take(self.net)  # before the running means of batch norm see a cloud
        images = views.flatten(0, 1)
        if self._channels_last():
            images = images.contiguous(memory_format=torch.channels_last)
        features = self._encode(images).reshape(*views.shape[:2], -1)
        if "clear" in batch:
            clear = gather_views(self._guide.latents(batch["clear"]))[0]
            return self.options.loss.clear_weight * guided_loss(gather_views(features)[0], clear)
        features, labels = gather_views(features, batch.get("labels"))
        loss: Tensor = self.objective(features, self._targets(views), labels)
        return loss

    @torch.no_grad()
    def _targets(self, views: Tensor) -> Tensor | None:
        """Return the teacher's features (B, V, D) of the views of all processes; None without a teacher."""
        teacher = self.objective.teacher
        if teacher is None:
            return None
        forward = teacher if self.objective.normalised else teacher.project
        images = views.flatten(0, 1)
        parts = torch.split(images, 2 * (self.options.optim.micro_batch or len(images)))
        features = torch.cat([forward(part) for part in parts])
        return gather_views(features.reshape(*views.shape[:2], -1))[0]

    def optimizer_step(self, *args: Any, **named: Any) -> None:
        """Make a step, and let the teacher follow before anything is saved."""
        super().optimizer_step(*args, **named)
        steps = max(1.0, float(self.trainer.estimated_stepping_batches))
        self.objective.after_step(self.net, (self.trainer.global_step + 1) / steps)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Change the gradients as the objective needs it."""
        self.objective.before_step(self.trainer.current_epoch)

    @property
    def extracted(self) -> ContrastiveNet:
        """The network of extraction: the one that is trained, its teacher, or one with a changed head."""
        return self.objective.kept(self.net)

    def on_validation_epoch_end(self) -> None:
        """Log spread, effective rank and uniformity of the validation latents."""
        if not self._monitored:
            return
        latents = torch.cat(self._monitored)[:MONITORED_ROWS]
        self._monitored.clear()
        for name in ("feature_std", "rankme", "uniformity"):
            value = getattr(metrics, name)(latents)
            self.log(f"valid/{name}", torch.tensor(value, device=self.device), sync_dist=True)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the latents (n, D), float32 on the CPU, of a block of cutouts (n, C, H, W).

        C is 2 with a mask channel, else 1. Each forward pass has the same shape, the last one being padded, so that a
        row's bits do not depend on the block it is in. A cutout with non-finite pixels gives a row of NaN.
        """
        images = batch["images"]
        finite = torch.isfinite(images).flatten(1).all(dim=1)
        all_finite = bool(finite.all())
        if not all_finite:
            images = torch.where(finite[:, None, None, None], images, 0.0)
        if self.options.preprocess.file == "demean":
            images = demeaned(images)
        size = self.batch_shape or self.options.loader.batch_size_valid
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            padded = part
            if len(part) < size:
                padded = torch.nn.functional.pad(part, (0, 0) * 3 + (0, size - len(part)))
            parts.append(self(padded)[: len(part)].float().cpu())
            if self.on_rows is not None:
                self.on_rows(len(part))
        latents = torch.cat(parts)
        lost = ~torch.isfinite(latents).all(dim=1) & finite.cpu()
        if bool(lost.any()):
            raise CheckpointError(
                f"{int(lost.sum())} of {len(latents)} cutouts without missing pixels have latents that are not "
                "finite: the weights are damaged or of another network, or overflow (trainer.precision=32-true "
                "computes in float32)"
            )
        if not all_finite:
            latents[~finite.cpu()] = torch.nan
        return latents

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the options, as plain types, and the state of the clouds, if any, to Lightning's checkpoint."""
        checkpoint["opt"] = {**flat_view(self.options), **described(self.options)}
        if self.options.augment.clouds:
            checkpoint["clouds"] = {"clear_epochs": self._clear_epochs, "guide": self._guide.state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resume with the guide of the checkpoint, and with clouds from the same epoch."""
        if not self.options.augment.clouds:
            return
        found = checkpoint.get("clouds", {})
        self._clear_epochs = found.get("clear_epochs", self._clear_epochs)
        self.__dict__.pop("schedule", None)
        needed = self.options.loss.clear_weight > 0 and checkpoint["epoch"] >= self._clear_epochs
        self._guide.restore(found.get("guide"), self.net, needed=needed)

    def check_finite(self, loss: Tensor, epoch: int) -> None:
        """Stop the training if a loss is not finite.

        Raises:
            NenyaError: The loss is NaN or infinite.
        """
        if not bool(torch.isfinite(loss).all()):
            raise NenyaError(
                f"the loss became {float(loss[~torch.isfinite(loss)][0])} in epoch {epoch}: lower "
                f"optim.learning_rate (now {self.options.optim.learning_rate}) or use trainer.precision=32-true; "
                "nothing has been saved since, so checkpoints/last.ckpt in the run folder is from before"
            )


def find_weights_of(options: Options, ckpt: str | None) -> Named:
    """Return the weights of `ckpt`, or of `model.weights`; those of the Hub and the web are fetched.

    Raises:
        OptionError: Neither is given, it is no such name, or it names an environment variable that is not set.
        CheckpointError: The published weights are absent, those that come with nenya are damaged, or the file has
            another sha256 than expected.
        InputFileError: A file beside the weights is damaged.
        StorageError: A hub or a server does not deliver it.
    """
    source = ckpt or options.model.weights
    if not source:
        raise OptionError(f"ckpt= is required: model {options.model.name} has no published weights; {AVAILABLE}")
    try:
        found = find_weights(source, getattr(options, "sha256", None), options.loader.cache_dir)
    except OptionError as error:
        if ckpt:
            raise
        raise OptionError(
            f"weights of model {options.model.name}: {error}, or give the weights with ckpt=; {AVAILABLE}"
        ) from error
    if not ckpt and not is_s3(found.place) and not Path(found.place).is_file():
        raise MissingCheckpointError(
            f"weights of model {options.model.name} not found at {found.place}: give them with ckpt=; {AVAILABLE}"
        )
    return found


def weights_source(options: Options, ckpt: str | None) -> str:
    """Return the local path or s3:// address of the weights: `ckpt`, or `model.weights`; see `find_weights_of`."""
    return find_weights_of(options, ckpt).place


def load_model(options: Options, ckpt: str | None) -> tuple[Checkpoint, ContrastiveModule]:
    """Return the checkpoint of `ckpt`, or of `model.weights`, and the network with its weights.

    Repeated calls in a process for the same file return the same network, read once.

    Raises:
        OptionError: Neither is given, or it names an environment variable that is not set.
        CheckpointError: The file is missing, damaged, refused, or of another architecture.
        StorageError: An S3 service, a hub or a server does not deliver it.
    """
    named = find_weights_of(options, ckpt)
    model = options.model
    architecture = (model.ssl_model, model.feat_dim, model.nchannels, model.width, model.mask_channel)
    with _by_name(named):
        source, stamp = _stamped(named.place)
        # Lightning converts a network to half precision in place, so it is not shared between precisions.
        checkpoint, net = _load(source, stamp, architecture, options.trainer.precision, options.loader.cache_dir)
        named.check(checkpoint.sha256)
    check_mask_channel(options)
    say_differences(named, options)
    return with_said(checkpoint, named), ContrastiveModule(options, net, trained=False)


def checkpoint_of(options: Options, ckpt: str | None) -> Checkpoint:
    """Return the checkpoint of `ckpt`, or of `model.weights`, of whatever architecture.

    Raises:
        OptionError: Neither is given, or it names an environment variable that is not set.
        CheckpointError: The file is missing, damaged, or refused.
        StorageError: An S3 service, a hub or a server does not deliver it.
    """
    return read_weights(find_weights_of(options, ckpt), options.loader.cache_dir)


def read_weights(named: Named, cache_dir: str | None) -> Checkpoint:
    """Return the checkpoint of weights, with what is stated of them beside the file; see `checkpoint_of`."""
    with _by_name(named):
        checkpoint = _read(*_stamped(named.place), cache_dir)
        named.check(checkpoint.sha256)
    return with_said(checkpoint, named)


@contextlib.contextmanager
def _by_name(named: Named) -> Iterator[None]:
    """Let errors of fetched weights name what the user gave, not the copy in a cache."""
    try:
        yield
    except NenyaError as error:
        if not named.origin:
            raise
        raise type(error)(str(error).replace(named.place, named.text)) from error


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
    architecture: _Asked,
    precision: str,
    cache_dir: str | None,
) -> tuple[Checkpoint, ContrastiveNet]:
    """Read the weights into a network; `stamp` and `precision` only distinguish cached networks."""
    checkpoint = _read(source, stamp, cache_dir)
    _read.cache_clear()
    ssl_model, feat_dim, nchannels, width, mask_channel = architecture
    nchannels = 1 if mask_channel else _channels_of(checkpoint) or nchannels
    net = ContrastiveNet(ssl_model, feat_dim, nchannels, width, mask_channel=mask_channel)
    load_weights(net, checkpoint)
    # The network's own tensors, so that there is one copy in memory.
    return dataclasses.replace(checkpoint, state_dict=net.state_dict()), net


def _channels_of(checkpoint: Checkpoint) -> int:
    """Return the channels of a checkpoint's first convolution, on which latents do not depend; 0 if unusual."""
    first = next((checkpoint.state_dict[name] for name in FIRST_LAYERS if name in checkpoint.state_dict), None)
    nchannels = first.shape[1] if first is not None and first.ndim == 4 else 0
    return nchannels if nchannels in (1, 3) else 0
