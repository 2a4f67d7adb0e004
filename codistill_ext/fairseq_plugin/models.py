"""(fairseq) Models as plain values: what a checkpoint or a peer may hold, and the way back."""

import argparse
import contextlib
import hashlib
import re
from functools import cache
from typing import Any

import numpy as np
import torch
from fairseq.models import ARCH_MODEL_REGISTRY, build_model
from omegaconf import OmegaConf
from torch import nn

from codistill_ext.exchange import ModelDescription

_OF_FILES = ("path", "file", "pretrained", "checkpoint", "load", "dir")  # in the names of options
_WORDS = re.compile(r"[\w.+-]*(,[\w.+-]*)*", re.ASCII)
# Read by fairseq's models although they are options of the task.
_OF_THE_TASK = ("arch", "_name", "max_source_positions", "max_target_positions")


def plain_values(value: Any) -> Any:
    """Turn argparse's and numpy's classes into what ``torch.load(weights_only=True)`` reads."""
    if isinstance(value, argparse.Namespace):
        return plain_values(vars(value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    if isinstance(value, dict):
        return type(value)((key, plain_values(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(plain_values(item) for item in value)
    return value


def vocabularies(task: Any) -> dict[str, str]:
    """What the inputs and outputs of a task's models mean: a digest of each dictionary, symbols in their order."""
    digests = {}
    for side in ("source", "target"):
        with contextlib.suppress(NotImplementedError):  # it has no such side
            dictionary = getattr(task, f"{side}_dictionary", None)
            if dictionary is not None:
                digests[side] = hashlib.sha256("\n".join(dictionary.symbols).encode()).hexdigest()
    return digests


def describe_model(cfg: Any, task: Any) -> ModelDescription:
    """How a peer builds the model again: its architecture's name and options, and what its tokens mean.

    Args:
        cfg: fairseq's ``cfg.model``, an argparse namespace for architectures of the command line.
        task: whose dictionaries the model has.
    """
    values: dict[str, Any]
    if isinstance(cfg, argparse.Namespace):
        own = _options_of(cfg._name) | set(_OF_THE_TASK)
        values = {name: value for name, value in vars(cfg).items() if name in own}
    else:
        container: Any = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
        values = dict(container)
    structured = not isinstance(cfg, argparse.Namespace)
    options = _without_files(plain_values(values))
    return ModelDescription(
        str(cfg._name), {"structured": structured, "options": options, "vocabularies": vocabularies(task)}
    )


@cache
def _options_of(arch: str) -> frozenset[str]:
    """The options that an architecture adds to the command line."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    ARCH_MODEL_REGISTRY[arch].add_args(parser)
    return frozenset(action.dest for action in parser._actions)


def _without_files(options: dict[str, Any]) -> dict[str, Any]:
    """Without the names of files, such as of pretrained embeddings: the weights cross anyway."""
    return {name: None if _names_a_file(name, value) else _nested(value) for name, value in options.items()}


def _names_a_file(option: str, value: Any) -> bool:
    return isinstance(value, str) and any(word in option for word in _OF_FILES)


def _nested(value: Any) -> Any:
    return _without_files(value) if isinstance(value, dict) else value


def _check_plain(value: Any, option: str) -> None:
    """Whether fairseq's models may have it: some of them run ``eval`` on texts.

    Raises:
        ValueError: it is more than a number, a word or a list of these.
    """
    if isinstance(value, dict):
        for name, item in value.items():
            _check_plain(name, option)
            _check_plain(item, name)
    elif isinstance(value, list):
        for item in value:
            _check_plain(item, option)
    elif isinstance(value, str) and _WORDS.fullmatch(value) is None:
        raise ValueError(
            f"the peer's option {option} is {value!r:.60}: only words and numbers are taken, with commas between"
        )


def build_described(description: ModelDescription, task: Any) -> nn.Module:
    """Build a peer's model from its description, which may come from a file.

    Raises:
        ValueError: the architecture is not registered, a value is not one it takes, or the peer has other dictionaries.
    """
    options = description.values.get("options")
    if description.name not in ARCH_MODEL_REGISTRY:
        raise ValueError(f"the peer's architecture {description.name!r} is not registered with fairseq")
    if not isinstance(options, dict) or options.get("_name") != description.name:
        raise ValueError(f"the peer's architecture {description.name} comes without its options")
    if description.values.get("vocabularies", {}) != vocabularies(task):
        raise ValueError(
            "the peer's dictionaries have other symbols or another order: prepare the data of all models with the "
            "same ones (fairseq-preprocess --srcdict and --tgtdict), or copy one data directory"
        )
    options = _without_files(options)
    _check_plain(options, description.name)
    cfg = OmegaConf.create(options) if description.values.get("structured") else argparse.Namespace(**options)
    try:
        model: nn.Module = build_model(cfg, task)
    except Exception as error:  # whatever fairseq raises for a value it does not take
        raise ValueError(f"fairseq cannot build the peer's {description.name} as described: {error!r}") from error
    return model
