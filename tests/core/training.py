"""The distributed run that is held against the naive one; importable by the spawned ranks."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from codistill_ext import CodistillConfig, CodistillParallel, ModelGroups
from codistill_ext.exchange import ModelDescription
from codistill_ext.parallel import DataParallel
from tests.naive import Net

LR = 0.05
FSDP_SINCE = (2, 9)
needs_fsdp = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < FSDP_SINCE, reason="with gloo this FSDP2 does not average"
)


ALIKE, UNLIKE = (12, 12, 12, 12), (12, 16, 9, 20)


def build(index: int, widths: tuple[int, ...] = ALIKE) -> Net:
    torch.manual_seed(100 + index)
    return Net(width=widths[index])


def batches(update: int, model: int, rank: int, *, coordinated: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7919 * update + 31 * rank + (0 if coordinated else 1000003 * (model + 1)))
    return torch.randn(6, 8, generator=generator), torch.randint(0, 5, (6,), generator=generator)


def shard(module: nn.Module, groups: ModelGroups) -> nn.Module:
    """FSDP2, with one layer apart and the root; tied layers must stay together."""
    fully_shard(module.first, mesh=groups.model_mesh)
    fully_shard(module, mesh=groups.model_mesh)
    return module


def whole(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a state with all tensors in full. All ranks of the model must call it."""
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()
        for name, tensor in state.items()
    }


def train(
    rank: int,
    options: dict[str, Any],
    updates: int,
    widths: tuple[int, ...] = ALIKE,
    data_parallel: DataParallel | None = None,
) -> dict[str, Any]:
    """Train as a user would; returns this rank's model index, state and what the coupling says."""
    config = CodistillConfig(**options)
    groups = ModelGroups.create(config)
    module = build(groups.model_index, widths)
    model = CodistillParallel(
        module,
        groups,
        config,
        description=ModelDescription("net", {"width": widths[groups.model_index]}),
        build_peer=lambda peer: Net(width=peer.values["width"]),
        data_parallel=data_parallel,
    )
    return run(model, updates)


def run(model: CodistillParallel, updates: int) -> dict[str, Any]:
    """Train this model to its end; returns as ``train`` does."""
    groups, config = model.groups, model.config
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    terms = []
    for update in range(updates):
        x, y = batches(update, groups.model_index, groups.data_rank, coordinated=config.coordinated)
        logits = model(x)
        term = model.codistill(x, logits)
        loss = F.cross_entropy(logits, y) + term.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_update()
        terms.append((term.divergence.item(), term.peers))
    model.leave()
    model.close()
    return {
        "model": groups.model_index,
        "state": whole(model.state_dict()),
        "terms": terms,
        "traffic": model.exchange.traffic.to_dict() if model.exchange is not None else {},
    }
