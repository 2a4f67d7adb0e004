"""Logits that are spread over ranks by output, as tensor parallelism over a vocabulary leaves them (DTensors).

Legend for shapes: N rows, C outputs that this rank has.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate


@dataclass(frozen=True)
class Spread:
    """Which ranks have the outputs of the same rows.

    Attributes:
        mesh: of the DTensor that the logits were.
        group: the ranks that have the other outputs, or None if each has all of them.
        outputs: how many there are in all.
    """

    mesh: DeviceMesh
    group: dist.ProcessGroup | None
    outputs: int

    def replicated(self, value: Tensor) -> DTensor:
        """What each rank has computed alike, to be added to a loss that is a DTensor."""
        return DTensor.from_local(value, self.mesh, [Replicate()] * self.mesh.ndim, run_check=False)


def own_outputs(logits: Tensor) -> tuple[Tensor, Spread | None]:
    """What this rank has of logits of shape (..., outputs), with its gradient, and where the rest is.

    Raises:
        ValueError: they are spread in another way than by their last dimension.
    """
    if not isinstance(logits, DTensor):
        return logits, None
    last = logits.ndim - 1
    spread = [index for index, placement in enumerate(logits.placements) if placement.is_shard(last)]
    if len(spread) > 1 or any(not (p.is_replicate() or p.is_shard(last)) for p in logits.placements):
        raise ValueError(
            f"logits may be spread over ranks by their last dimension alone, and along one dimension of a mesh, but "
            f"these are {logits.placements} of shape {tuple(logits.shape)}: redistribute them first"
        )
    local, outputs = logits.to_local(), logits.size(-1)
    group = logits.device_mesh.get_group(spread[0]) if spread else None
    if spread and outputs < dist.get_world_size(group):
        raise ValueError(f"{outputs} outputs cannot be spread over {dist.get_world_size(group)} ranks")
    return local, Spread(logits.device_mesh, group, outputs)


def log_softmax(logits_NC: Tensor, spread: Spread | None) -> Tensor:
    """Over all outputs, of those that this rank has; every rank that has others must call it."""
    if spread is None or spread.group is None:
        return F.log_softmax(logits_NC, dim=-1)
    own_N1 = logits_NC.logsumexp(dim=-1, keepdim=True)
    largest_N1 = own_N1.detach().clone()
    dist.all_reduce(largest_N1, op=dist.ReduceOp.MAX, group=spread.group)
    total_N1: Tensor = _Sum.apply((own_N1 - largest_N1).exp(), spread.group, True)
    return logits_NC - (largest_N1 + total_N1.log())


def sum_outputs(values_NC: Tensor, spread: Spread | None) -> Tensor:
    """Sum over all outputs, of shape (N,), alike on every rank that has some of them; all of these must call it."""
    own_N = values_NC.sum(dim=-1)
    if spread is None or spread.group is None:
        return own_N
    total_N: Tensor = _Sum.apply(own_N, spread.group, False)
    return total_N


class _Sum(torch.autograd.Function):
    """Sum over ranks. Its gradient is one rank's alone where all use the result alike, else the sum over them."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: dist.ProcessGroup, used_differently: bool) -> Tensor:
        ctx.group, ctx.used_differently = group, used_differently
        total = own.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        if ctx.used_differently:
            grad = grad.clone()
            dist.all_reduce(grad, group=ctx.group)
        return grad, None, None
