"""Options of single models: one file for both trainers, with the trainer's own option names.

# settings.yaml: model 0 is as the command line says
1:
  model: resnet56
  lr: 0.05
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


def read_settings(path: str, models: int) -> list[dict[str, Any]]:
    """The settings of each model, by index; all empty without a file.

    Raises:
        ValueError: the file cannot be read, or is not a mapping of model indices to options.
    """
    settings: list[dict[str, Any]] = [{} for _ in range(models)]
    if not path:
        return settings
    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"--codistill-settings {path} cannot be read: {error}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"--codistill-settings {path} must map model indices to options, but holds {loaded!r}")
    for index, options in loaded.items():
        if not isinstance(index, int) or not 0 <= index < models:
            raise ValueError(f"--codistill-settings {path} has settings of model {index!r}; models are 0..{models - 1}")
        if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
            raise ValueError(f"--codistill-settings {path}: model {index} needs options by name, not {options!r}")
        settings[index] = {name.replace("-", "_"): value for name, value in options.items()}
    return settings


def to_flags(options: Mapping[str, Any]) -> list[str]:
    """Options as one would type them: ``{"lr": 0.1, "amp": true}`` is ``--lr 0.1 --amp``.

    Raises:
        ValueError: a switch is set to false, which no command line can say.
    """
    flags: list[str] = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is False:
            raise ValueError(f"{flag} is a switch: leave it out of the settings, or take it off the command line")
        flags.append(flag)
        if isinstance(value, list):
            flags += [str(item) for item in value]
        elif value is not True:
            flags.append(str(value))
    return flags
