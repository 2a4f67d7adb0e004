"""The random states of a model's ranks, for a resume with the same bits."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from codistill_ext.groups import ModelGroups

RandomState: TypeAlias = dict[str, Tensor | None]


def random_states(groups: ModelGroups, device: torch.device) -> list[RandomState]:
    """Of each rank of the model, by its place there. All of them must call it."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return groups.gather_in_model({"cpu": torch.get_rng_state(), "cuda": cuda})


def restore_random_state(states: Sequence[RandomState], groups: ModelGroups, device: torch.device) -> None:
    mine = states[groups.rank_in_model]
    cpu, cuda = mine["cpu"], mine["cuda"]
    assert cpu is not None
    torch.set_rng_state(cpu)
    if device.type == "cuda" and cuda is not None:
        torch.cuda.set_rng_state(cuda, device)
