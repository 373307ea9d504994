"""Lightning's Trainer and the logger of a run."""

import logging
import os
import socket
import urllib.parse
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nenya
from nenya.errors import OptionError
from nenya.options.declare import to_dict
from nenya.options.sections import Options, TrainerOptions
from nenya.runtime.process import git_commit, is_main_process, srun_tasks
from nenya.storage.texts import first_words

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import WandbLogger

log = logging.getLogger(__name__)


def make_trainer(options: TrainerOptions, **settings: Any) -> "Trainer":
    """Return Lightning's Trainer for the `trainer` options; its profiler is a `Ledger`.

    Args:
        options: passed on under the same names.
        settings: further arguments of the Trainer: callbacks, logger ...

    Raises:
        OptionError: Lightning refuses a setting, such as more devices than exist.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Trainer

    from nenya.runtime.ledger import Ledger

    _quieten_libraries()
    ledger = Ledger()
    arguments = {**to_dict(options), "profiler": ledger, **settings}
    arguments["enable_progress_bar"] = False  # nenya shows its own
    try:
        if environment := _environment():
            arguments["plugins"] = [*arguments.get("plugins", []), environment]
        trainer = Trainer(
            use_distributed_sampler=False, num_sanity_val_steps=0, enable_model_summary=False, **arguments
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        raise OptionError(f"invalid trainer options on this machine: {first_words(error)}") from error
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
    if int(os.environ["SLURM_NTASKS"] or 1) > 1 and "LOCAL_RANK" not in os.environ:
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
        config={**to_dict(options), "nenya_version": nenya.__version__, "git_commit": git_commit()},
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
