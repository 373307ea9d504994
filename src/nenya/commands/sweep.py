"""`nenya extract --multirun`: one job per file, with any of Hydra's launchers."""

import logging
import os
from collections.abc import Sequence
from typing import Any

from nenya.commands import compose as composing
from nenya.commands.hydra_errors import first_cause
from nenya.commands.network import model_arguments, with_network
from nenya.errors import Interrupted, NenyaError, OptionError
from nenya.extraction.shard import find_shard, share
from nenya.options.commands import ExtractOptions
from nenya.options.extras import need
from nenya.options.files import config_dir
from nenya.options.sections import build_options
from nenya.storage.disk import temporary_folder
from nenya.storage.paths import find_sources

log = logging.getLogger(__name__)

FLAGS = ("--multirun", "-m")


def run(name: str, args: Sequence[str]) -> int:
    """Run one job for each file of `data=`.

    Args:
        name: the command; only `extract` processes files independently.
        args: its overrides, `--multirun`, and Hydra's own, such as `hydra/launcher=slurm`.

    Returns:
        0 if all files are done, 1 if some failed.

    Raises:
        OptionError: The command is another, an option is invalid, or the launcher is not installed.
        NenyaError: A file does not exist.
    """
    if name != "extract":
        raise OptionError(
            f"--multirun applies to extract (one job per file); nenya {name} is one job: leave --multirun out"
        )
    hydras = [arg for arg in args if arg.startswith(("hydra.", "hydra/", "+hydra", "++hydra"))]
    rest = [arg for arg in args if arg not in (*hydras, *FLAGS)]
    options = composing.compose(name, rest)
    chosen = with_network(options, rest)
    if chosen is not options:  # each job composes its own options
        rest, options = [*rest, *model_arguments(chosen)], chosen
    launcher = next((arg for arg in hydras if arg.startswith("hydra/launcher=")), "")
    _check_launcher(options, launcher)
    places = [str(source) for source in find_sources(options.data)]
    shard = find_shard(options.shard, options.data)
    if shard[1] > 1:
        every, places = len(places), share(places, *shard)
        log.info("shard %d/%d: %d of %d files", *shard, len(places), every)
        if not places:
            return 0
    data = ",".join(composing.quote(place) for place in places)
    overrides = [o for o in composing.prepare(name, rest) if not o.startswith(("data=", "shard="))]
    with temporary_folder("nenya-sweep-") as unused:  # without a launcher there are no logs to keep
        where = [] if launcher else [f"hydra.sweep.dir={composing.quote(str(unused))}"]
        results = _launch(name, [*overrides, *hydras, *where, f"data={data}"])
    failed = [(place, line) for place, (code, line) in zip(places, results, strict=True) if code]
    for place, line in failed:
        log.error("  failed   %s: %s", place, line)
    log.info("%d jobs: %d done, %d failed", len(places), len(places) - len(failed), len(failed))
    return 1 if failed else 0


def _check_launcher(options: ExtractOptions, launcher: str) -> None:
    """Refuse options that would restart the complete sweep in each process of a job."""
    from nenya.runtime.trainer import check_trainer

    if not launcher and check_trainer(options.trainer) > 1:
        raise OptionError(
            "--multirun runs its jobs in one process, but trainer.devices starts several: leave out --multirun, "
            "set trainer.devices=1, or choose a launcher (hydra/launcher=local, hydra/launcher=slurm)"
        )
    if launcher:
        need("slurm", launcher)


def _launch(name: str, overrides: Sequence[str]) -> list[tuple[int, str]]:
    """Run the jobs by Hydra; return exit code and message of each, in order."""
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    composing.store_schema(name)
    GlobalHydra.instance().clear()
    hydra = Hydra.create_main_hydra2(task_name=name, config_search_path=create_config_search_path(str(config_dir())))
    try:
        batches = hydra.multirun(config_name=name, task_function=_job, overrides=list(overrides))
    except HydraException as error:
        raise OptionError(first_cause(error)) from error
    except RuntimeError as error:
        if "srun" not in str(error):
            raise
        raise OptionError(
            "hydra/launcher=slurm: this machine has no SLURM (no srun): run the command on a submit node, or use "
            "hydra/launcher=local"
        ) from error
    except submitit_errors() as error:
        raise NenyaError(f"a job ended abnormally ({str(error).strip().splitlines()[0]}): see its log") from error
    finally:
        GlobalHydra.instance().clear()
    return [job.return_value for batch in batches for job in batch]


def submitit_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions by which the launcher reports a job that died."""
    try:
        from submitit.core.utils import FailedJobError, UncompletedJobError
    except ImportError:
        return ()
    return FailedJobError, UncompletedJobError


def _job(config: Any) -> tuple[int, str]:
    """Extract one file, in a process of the launcher; return exit code and message."""
    from omegaconf import OmegaConf

    from nenya.extraction import batch

    composing.set_up_logging()
    _join_tasks()
    values = OmegaConf.to_container(config)
    assert isinstance(values, dict)
    try:
        options = build_options(ExtractOptions, {str(key): value for key, value in values.items()})
        return batch.run(options), ""
    except Interrupted as error:
        if "SUBMITIT_EXECUTOR" in os.environ:
            raise  # so that the launcher sees an interrupted job
        return error.exit_code, str(error)
    except NenyaError as error:
        return error.exit_code, str(error)
    except Exception as error:
        log.exception("%s", error)
        return 2, f"{type(error).__name__}: {error}"


def _join_tasks() -> None:
    """Connect the tasks of one job where a launcher has started several."""
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return
    import submitit

    if submitit.JobEnvironment().num_tasks > 1:
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
