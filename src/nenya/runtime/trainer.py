"""Lightning's Trainer, the logger of a run, and the time spent in each stage, so that its limit can be seen."""

import logging
import os
import socket
import threading
import time
import urllib.parse
import warnings
from collections import defaultdict
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import nenya
from nenya.errors import OptionError
from nenya.options.declare import for_records
from nenya.options.sections import Options, TrainerOptions
from nenya.runtime.lightning import Profiler, pl
from nenya.runtime.process import from_environment, git_commit, is_main_process, srun_tasks
from nenya.storage.texts import first_words

if TYPE_CHECKING:
    from lightning.pytorch.loggers import WandbLogger

log = logging.getLogger(__name__)

STAGES = {
    "prepare": "preparing or compiling the network",
    "wait": "waiting for cutouts",
    "read": "reading cutouts",
    "transfer": "transferring cutouts to the device",
    "augment": "generating views",
    "forward": "forward pass",
    "backward": "backward pass",
    "optimizer": "updating the weights",
    "write": "writing results",
}
_ACTIONS = {  # suffix of the name of Lightning's action -> stage
    "_next": "wait",
    ".batch_to_device": "transfer",
    ".on_after_batch_transfer": "augment",
    "Strategy.training_step": "forward",
    "Strategy.validation_step": "forward",
    "Strategy.predict_step": "forward",
    "Strategy.backward": "backward",
    ".optimizer_step": "optimizer",
    "save_checkpoint": "write",
    "LatentsWriter.on_predict_batch_end": "write",
    "LatentsWriter.teardown": "write",
    "LearningCurve.on_train_epoch_end": "write",
}
_MOST_EVENTS = 4096


def make_trainer(options: TrainerOptions, **settings: Any) -> "pl.Trainer":
    """Return Lightning's Trainer for the `trainer` options; its profiler is a `Ledger`.

    Args:
        options: passed on under the same names.
        settings: further arguments of the Trainer: callbacks, logger ...

    Raises:
        OptionError: Lightning refuses a setting, or there are fewer devices.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    _quieten_libraries()
    ledger = Ledger()
    arguments = {**asdict(options), "profiler": ledger, **settings}
    arguments["enable_progress_bar"] = False  # nenya shows its own
    if not options.deterministic and not torch.are_deterministic_algorithms_enabled():
        arguments["deterministic"] = None  # False would load torch's compiler to switch off what is off
    if environment := _environment():
        arguments["plugins"] = [*arguments.get("plugins", []), environment]
    try:
        trainer = pl.Trainer(
            use_distributed_sampler=False, num_sanity_val_steps=0, enable_model_summary=False, **arguments
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        raise OptionError(f"invalid trainer options on this machine: {first_words(error)}") from error
    if trainer.strategy.root_device.type == "cpu" and trainer.num_devices > (cores := max(os.cpu_count() or 1, 8)):
        raise OptionError(
            f"trainer.devices={options.devices}: expected at most {cores}, the CPU cores of this machine: each device "
            "of a CPU is a process with its own copy of the network"
        )
    ledger.device = trainer.strategy.root_device
    return trainer


def _environment() -> Any:
    """Return Lightning's plug-in that says which processes work together; None if no variable of SLURM is set."""
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    if "SLURM_NTASKS" not in os.environ or "RANK" in os.environ:
        return None
    if srun_tasks() > 1:
        # Lightning's handler of SIGUSR1 would save and requeue itself; nenya exits with 75 and the job script requeues.
        return SLURMEnvironment(auto_requeue=False) if SLURMEnvironment.detect() else None
    if from_environment("SLURM_NTASKS", 1) > 1 and "LOCAL_RANK" not in os.environ:
        _warn_of_tasks(os.environ["SLURM_NTASKS"])
    return LightningEnvironment()


@lru_cache(maxsize=1)
def _warn_of_tasks(tasks: str) -> None:
    """Say once that the tasks of an allocation are not used."""
    log.warning(
        "SLURM has %s tasks, but srun did not start this process: working with the devices of this machine only; "
        "'srun nenya ...' with trainer.devices= and trainer.num_nodes= uses all tasks",
        tasks,
    )


def check_trainer(options: TrainerOptions) -> int:
    """Check that Lightning accepts the `trainer` options, before any output is created.

    Returns:
        The number of processes that will work together.

    Raises:
        OptionError: It refuses an option.
    """
    return int(make_trainer(options, logger=False, enable_checkpointing=False).world_size)


def _quieten_libraries() -> None:
    """Silence Lightning's warnings about deliberate choices."""
    for text in (
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*No positive `every_n_epochs`.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*lr_scheduler.step.*",
        ".*You are using a custom batch sampler.*",
        ".*could not find the monitored key.*",
        ".*GPU available but not used.*",
        ".*Total length of .DataLoader. across ranks is zero.*",
    ):
        warnings.filterwarnings("ignore", message=text)
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)


def make_logger(options: Options, folder: Path, name: str) -> "WandbLogger | None":
    """Return the wandb logger if requested; offline, with a warning, if there is no key or no network.

    Args:
        options: all are recorded as its configuration.
        folder: parent folder of its files, `wandb/`.
        name: of the run, after that of the model.
    """
    if options.logger.name != "wandb":
        return None
    from lightning.pytorch.loggers import WandbLogger

    offline = options.logger.offline
    if offline is None:
        reason = _why_offline()
        offline = bool(reason)
        if reason:
            log.warning(
                "wandb: offline, because %s; 'wandb sync %s/wandb/offline-run-*' uploads the run later", reason, folder
            )
    logger = WandbLogger(
        name=f"{options.model.name}/{name}",
        save_dir=folder.absolute(),  # wandb's own process keeps the working folder of the first run
        project=options.logger.project,
        entity=options.logger.entity,
        offline=offline,
        id=options.logger.id,
        resume="allow",
        config={**for_records(options), "nenya_version": nenya.__version__, "git_commit": git_commit()},
    )
    if is_main_process():
        _ = logger.experiment
    return logger


def _why_offline() -> str:
    """Return why wandb cannot be reached, or an empty string."""
    mode = os.environ.get("WANDB_MODE", "")
    if mode in ("offline", "disabled", "dryrun"):
        return f"WANDB_MODE={mode}"
    host = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    import netrc

    try:
        known = netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        known = {}
    if not os.environ.get("WANDB_API_KEY") and host.hostname not in known:
        return "there is no key (WANDB_API_KEY or 'wandb login')"
    try:
        socket.create_connection((host.hostname or "", host.port or 443), timeout=3).close()
    except OSError:
        return f"{host.hostname} cannot be reached"
    return ""


class Ledger(Profiler):
    """Measures the seconds of each stage of a run, as Lightning's profiler.

    The time of an inner stage is not added to the outer one. On a GPU, which works asynchronously, the seconds are
    those of the device. Work of other threads and processes is counted in `beside`.

    Args:
        device: device of the network.

    Attributes:
        beside: stage -> seconds of concurrent work in other threads and processes.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        super().__init__()
        self.device = device or torch.device("cpu")
        self.beside: defaultdict[str, float] = defaultdict(float)
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._stack: list[tuple[str, str]] = []
        self._thread = threading.get_ident()
        self._began = self._since = time.monotonic()
        self._events: list[tuple[str, Any]] = []

    def start(self, action_name: str) -> None:
        """Enter a stage, if the action belongs to one."""
        stage = _stage(action_name)
        if stage and threading.get_ident() == self._thread:
            self._switch()
            self._stack.append((stage, action_name))

    def stop(self, action_name: str) -> None:
        """Leave a stage, if the action belongs to one, and inner stages left open by an error."""
        if threading.get_ident() == self._thread and any(action_name == action for _, action in self._stack):
            self._switch()
            while self._stack.pop()[1] != action_name:
                pass

    def _switch(self) -> None:
        """Add the time since the last change to the current stage."""
        stage = self._stack[-1][0] if self._stack else "rest"
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._events.append((stage, event))
            if len(self._events) > _MOST_EVENTS:
                self._settle()
        else:
            now = time.monotonic()
            self._seconds[stage] += now - self._since
            self._since = now

    def _settle(self) -> None:
        """Read the device's clock."""
        if not self._events:
            return
        self._events[-1][1].synchronize()
        for (_, before), (stage, event) in zip(self._events, self._events[1:], strict=False):
            self._seconds[stage] += before.elapsed_time(event) / 1e3
        del self._events[:-1]

    def add(self, stage: str, seconds: float, *, within: str | None = None) -> None:
        """Add seconds that were measured elsewhere.

        Args:
            stage: the stage they belong to.
            seconds: the time.
            within: the stage they were counted for so far; None for concurrent work.
        """
        if within is None:
            self.beside[stage] += seconds
        else:
            self._seconds[stage] += seconds
            self._seconds[within] -= seconds

    @property
    def wall(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    def seconds(self) -> dict[str, float]:
        """Return stage -> seconds so far, in the order of `STAGES`; `rest` is all other time."""
        self._settle()
        found = {stage: self._seconds[stage] for stage in STAGES if self._seconds[stage] > 0}
        return {**found, "rest": max(0.0, self.wall - sum(found.values()))}

    def summary(self) -> str:
        """Return one line: the fraction of each stage, the concurrent work, and the longest stage."""
        seconds = self.seconds()
        total = max(sum(seconds.values()), 1e-9)
        shares = [f"{stage} {part / total:.0%}" for stage, part in seconds.items() if part / total >= 0.005]
        beside = [f"{stage} {part:.1f} s" for stage, part in self.beside.items() if part >= 0.05]
        limit = max(seconds, key=lambda stage: seconds[stage])
        return (
            f"time: {', '.join(shares)} of {total:.1f} s"
            + (f"; concurrently {', '.join(beside)}" if beside else "")
            + f"; longest: {STAGES.get(limit, 'other work, such as opening files and starting loops')}"
        )

    def describe(self) -> None:
        """Print nothing: the closing line of the run does."""


def _stage(action: str) -> str | None:
    return next((stage for end, stage in _ACTIONS.items() if action.endswith(end)), None)


def ledger_of(trainer: Any) -> Ledger:
    """Return the ledger of a Lightning Trainer; an unused one if it has none."""
    found = getattr(trainer, "profiler", None)
    return found if isinstance(found, Ledger) else Ledger()


def count_read(trainer: Any, batch: dict[str, Any], *, beside: bool) -> None:
    """Move the seconds of reading from a batch to the ledger of the run."""
    ledger_of(trainer).add("read", batch.pop("read_seconds", 0.0), within=None if beside else "wait")
