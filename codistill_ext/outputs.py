"""Logits that are spread over ranks by output, as tensor parallelism over a vocabulary leaves them (DTensors).

Legend for shapes: N rows, C outputs that this rank has.
"""

from dataclasses import dataclass

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
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

    @property
    def most_outputs(self) -> int:
        """That any of these ranks has."""
        return self.outputs if self.group is None else -(-self.outputs // dist.get_world_size(self.group))

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
    """Over all outputs, of those that this rank has, without a gradient; every rank that has others must call it."""
    if spread is None or spread.group is None:
        return F.log_softmax(logits_NC, dim=-1)
    own_N1 = logits_NC.logsumexp(dim=-1, keepdim=True)
    largest_N1 = own_N1.clone()
    dist.all_reduce(largest_N1, op=dist.ReduceOp.MAX, group=spread.group)
    total_N1 = (own_N1 - largest_N1).exp()
    dist.all_reduce(total_N1, group=spread.group)
    return logits_NC - (largest_N1 + total_N1.log())


def sum_outputs(values_NC: Tensor, spread: Spread | None) -> Tensor:
    """Sum over all outputs, of shape (N,), alike on every rank that has some of them; all of these must call it.

    It has a gradient only where this rank has all outputs.
    """
    total_N = values_NC.sum(dim=-1)
    if spread is not None and spread.group is not None:
        dist.all_reduce(total_N, group=spread.group)
    return total_N
