"""Checkpoints of sharded models, by ``torch.distributed.checkpoint``: every rank writes its own shards.

    DIR/model0/0000000500/    model, optimizer, and weights of the coupling, as shards
                  coupling.pt     what is not a shard: rounds, ages, random states, the user's values

A directory appears under its name when it is whole; the last two of each model are kept.
"""

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from codistill_ext.exchange.periodic import PeriodicExchange
from codistill_ext.groups import ModelGroups, model_directory
from codistill_ext.job.randomness import random_states, restore_random_state
from codistill_ext.job.resume import BEGINNING, Saved, choose
from codistill_ext.job.storage import load_whole, save_checkpoint
from codistill_ext.parallel import CodistillParallel

_KEPT = 2
_COUPLING = "coupling.pt"
_NAME = re.compile(r"\d{10}")


def save_sharded(
    directory: Path,
    model: CodistillParallel,
    optimizers: Optimizer | Sequence[Optimizer],
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Save every model of the job after the same update. Every rank of the job must call it.

    Args:
        directory: of the run; shared by the ranks of a model.
        optimizers: of this model's parameters.
        extra: plain values and tensors that come back from ``load_sharded``; the lead's are saved.

    Returns:
        the directory of this model's checkpoint.
    """
    groups = model.groups
    path = model_directory(directory, groups.model_index) / f"{model.updates:010d}"
    unfinished = path.with_name(f".{path.name}.unfinished")
    coupling = model.codistill_state_dict()
    weights = {key: arrival.pop("weights") for key, (_, arrival) in _arrivals(coupling).items()}
    facts = {
        "coupling": coupling,
        "random": random_states(groups, _device(model)),
        "extra": dict(extra or {}),
    }
    if groups.is_lead:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    # The models wait for each other, so the last or the last but one of each are of one update.
    groups.wait_for_all()
    groups.gather_in_model(None)  # of one model alone the ranks do, for the directory
    _agree_on_buffers(model)
    module_state, optimizer_state = get_state_dict(model.plain, optimizers)
    state = {"model": module_state, "optimizer": optimizer_state, "weights": weights}
    save(state, checkpoint_id=unfinished, **_among(groups))
    if groups.is_lead:
        save_checkpoint(facts, unfinished / _COUPLING)
        _put_in_place(unfinished, path)
    groups.gather_in_model(None)
    return path


def _put_in_place(unfinished: Path, path: Path) -> None:
    if path.exists():  # of this run before it was resumed
        shutil.rmtree(path)
    os.replace(unfinished, path)
    for old in _checkpoints(path.parent)[_KEPT:]:
        shutil.rmtree(old)


def _checkpoints(directory: Path) -> list[Path]:
    """Newest first."""
    if not directory.is_dir():
        return []
    return sorted((path for path in directory.iterdir() if _NAME.fullmatch(path.name)), reverse=True)


def load_sharded(
    directory: Path,
    model: CodistillParallel,
    optimizers: Optimizer | Sequence[Optimizer],
    *,
    other_ranks: bool = False,
) -> dict[str, Any] | None:
    """Continue every model from the newest update that all have saved. Every rank of the job must call it.

    Args:
        other_ranks: go on though the run was saved with another number of ranks a model: everything is sharded
            anew, but sums are made in another order and random states start anew, so the bits will differ.

    Returns:
        what was saved as ``extra``, or None when nothing has been saved yet.

    Raises:
        ValueError: the models have no update in common, or the run was saved with other options, or with another
            number of ranks a model and not ``other_ranks``.
    """
    groups = model.groups
    own = model_directory(directory, groups.model_index)
    chosen = choose(groups.ask_leads(lambda: [*map(_saved, _checkpoints(own)), BEGINNING]), groups)
    if chosen.path is None:
        return None
    facts = load_whole(chosen.path / _COUPLING)
    model.check_codistill_state(facts["coupling"], other_ranks=other_ranks)
    module_state, optimizer_state = get_state_dict(model.plain, optimizers)
    weights: dict[str, dict[str, Tensor]] = {}
    for key, (peer, arrival) in _arrivals(facts["coupling"]).items():
        assert isinstance(model.exchange, PeriodicExchange)
        weights[key] = model.exchange.room_for_weights(peer, arrival["description"])
    state: dict[str, Any] = {"model": module_state, "optimizer": optimizer_state, "weights": weights}
    load(state, checkpoint_id=chosen.path, **_among(groups))
    set_state_dict(model.plain, optimizers, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    for key, (_, arrival) in _arrivals(facts["coupling"]).items():
        arrival["weights"] = weights[key]
    model.load_codistill_state_dict(facts["coupling"], other_ranks=other_ranks)
    if len(facts["random"]) == groups.ranks_a_model:
        restore_random_state(facts["random"], groups, _device(model))
    extra: dict[str, Any] = facts["extra"]
    return extra


def _saved(path: Path) -> Saved:
    update = int(path.name)
    return Saved(path=path, update=update, cut=update)


def _arrivals(coupling: Mapping[str, Any]) -> dict[str, tuple[int, dict[str, Any]]]:
    """Each peer's weights in a state of the coupling: its teacher, and those on their way."""
    exchange = coupling["exchange"] or {}
    found = {f"teacher{peer}": (peer, arrival) for peer, arrival in exchange.get("teachers", {}).items()}
    for number, flight in enumerate(exchange.get("flights", [])):
        found |= {f"flight{number}_{peer}": (peer, arrival) for peer, arrival in flight["arrivals"].items()}
    return found


def _agree_on_buffers(model: CodistillParallel) -> None:
    """FSDP2 leaves running statistics to each rank; those of the lead are saved, and all go on with them."""
    group = model.groups.model_group
    for buffer in model.plain.buffers():
        if group is not None and not isinstance(buffer, DTensor):
            dist.broadcast(buffer, dist.get_global_rank(group, 0), group=group)


def _among(groups: ModelGroups) -> dict[str, Any]:
    """The ranks that save and load together; without a group they would be those of all models."""
    return {"process_group": groups.model_group} if groups.model_group is not None else {"no_dist": True}


def _device(model: CodistillParallel) -> torch.device:
    return next(model.plain.parameters()).device
