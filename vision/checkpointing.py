"""Checkpoints of a run: one file a model, and all models resume at the same update."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from codistill_ext.exchange.wire.whole_files import put_in_place
from codistill_ext.groups import ModelGroups, model_directory
from codistill_ext.job.randomness import random_states
from codistill_ext.job.resume import Saved, agree, make_current
from codistill_ext.job.storage import load_whole, previous_path, save_checkpoint, save_whole, writing
from vision.datasets import Data
from vision.models import STRIDE_BEFORE
from vision.options import plain_options

# What must be the same for a resumed run to be the same run.
_FIXED = (
    "dataset train_fraction batch_size accumulate train_crop_size seed "
    "model stride_in init amp amp_dtype compile sync_bn channels_last ema_decay "
    "opt momentum weight_decay norm_weight_decay label_smoothing budget epochs eval_every "
    "lr lr_scaling lr_scheduler lr_milestones lr_gamma lr_min lr_warmup_epochs lr_warmup_decay"
).split()
_FIXED_IN_TESTS = ("dataset", "model", "stride_in", "classes")
# What a checkpoint was made with that is older than the option.
BEFORE = {"stride_in": STRIDE_BEFORE, "opt": "sgd_nesterov"}


def checkpoint_path(directory: Path, model_index: int) -> Path:
    return model_directory(directory, model_index) / "checkpoint.pt"


def identity(args: argparse.Namespace, data: Data) -> dict[str, Any]:
    """The options and the data that a checkpoint belongs to; the coupling checks models and ranks itself."""
    options = plain_options(args)
    values = {name: options[name] for name in _FIXED}
    return values | {"classes": data.num_classes, "training_samples": len(data.train)}


def save(path: Path, state: dict[str, Any], groups: ModelGroups, device: torch.device) -> None:
    """Save one model with the random state of each of its ranks. All ranks of the job must call it.

    The models wait for each other first, so the last or the last but one file of each is of the
    same update, whenever the job is killed.
    """
    state = state | {"random": random_states(groups, device)}
    if dist.is_initialized():
        dist.barrier()
    if groups.is_lead:
        save_checkpoint(state, path)


def save_weights(path: Path, module: nn.Module) -> None:
    """A module's state alone, in host memory: for ``torch.load`` with ``weights_only``, and ``load_state_dict``.

    Raises:
        StorageError: it cannot be written, and the old file stays.
    """
    state = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    save_whole(state, path)


def load(directory: Path, groups: ModelGroups, *, continued: bool) -> dict[str, Any] | None:
    """This model's checkpoint at the newest update that all models have; None at the beginning of training.

    Every rank of the job must call it.

    Args:
        continued: the run goes on in the same directory.

    Raises:
        ValueError: the models have no update in common, or no whole file.
    """
    path = checkpoint_path(directory, groups.model_index)
    paths = [path, previous_path(path)]
    chosen = agree(paths, _describe, groups)
    if continued:
        make_current(chosen, paths, groups)
    if chosen.path is None:
        return None
    state: dict[str, Any] = load_whole(path if continued else chosen.path)
    return state


def bring_best(source: Path, directory: Path, groups: ModelGroups) -> None:
    """For a run that goes on in another directory: the best weights so far, which it may never surpass."""
    if not groups.is_lead:
        return
    for name in ("best.pt", "ema_best.pt"):
        path = model_directory(source, groups.model_index) / name
        if path.is_file():
            target = model_directory(directory, groups.model_index) / name
            with writing(target):
                put_in_place(path, target)


def _describe(path: Path, state: dict[str, Any]) -> Saved:
    return Saved(path=path, update=state["update"], cut=state["update"], models=state["codistill"]["config"]["models"])


def check_identity(saved: dict[str, Any], now: dict[str, Any], *, test_only: bool) -> None:
    """Compare what was trained with what is to be continued.

    Raises:
        ValueError: they differ; names the options.
    """
    saved = BEFORE | saved
    names = _FIXED_IN_TESTS if test_only else tuple(now)
    differences = [f"{n}: {saved.get(n)!r} then, {now[n]!r} now" for n in names if saved.get(n) != now[n]]
    if differences:
        raise ValueError(
            f"the run to resume was made with other options ({'; '.join(differences)}): "
            "use the same ones, or another --output-dir for a new run"
        )
