"""Configurations that Hydra has composed in this process, kept for the next command with the same groups."""

import copy
from collections.abc import Callable, Hashable, Sequence
from typing import Any

_KEPT: dict[Hashable, Any] = {}

Compose = Callable[[Sequence[str]], Any]


def composed(command: Hashable, overrides: Sequence[str], groups: Sequence[str], compose: Compose) -> Any:
    """Return what Hydra makes of overrides; config files are read once for each choice of groups.

    Hydra merges config files first and then sets values in the order of their overrides, which is done here in the
    same way. Anything but plain values, and every error, is left to Hydra.

    Args:
        command: the command of these options; its config files are read.
        overrides: in Hydra's form, groups first.
        groups: names of the config groups.
        compose: Hydra's own way, from overrides to the configuration.

    Returns:
        A configuration of the caller's own.

    Raises:
        HydraException: An override does not parse, or its value does not fit.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    chosen = [override for override in overrides if override.partition("=")[0] in groups]
    if (key := (command, *chosen)) not in _KEPT:
        _KEPT[key] = compose(chosen)
    config = copy.deepcopy(_KEPT[key])
    try:
        for change in OverridesParser.create().parse_overrides(list(overrides[len(chosen) :])):
            if change.type != OverrideType.CHANGE or change.is_sweep_override() or change.package is not None:
                return compose(overrides)
            OmegaConf.update(config, change.key_or_group, change.value(), merge=True)
    except (HydraException, OmegaConfBaseException):
        return compose(overrides)
    return config
