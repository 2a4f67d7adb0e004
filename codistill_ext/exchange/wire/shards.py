"""Modules of which a rank holds a part: FSDP2's, tensor-parallel ones, and other modules with DTensor parameters."""

import contextlib
import copy
import datetime
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.placement_types import Placement

from codistill_ext.groups import ModelGroups

Spec: TypeAlias = tuple[DeviceMesh, tuple[Placement, ...]]
"""Over which ranks a tensor is spread, and how."""


def is_sharded(module: nn.Module) -> bool:
    """Whether ranks hold parts of the module; while it computes, FSDP2 shows parameters as plain ones."""
    if any(isinstance(child, FSDPModule) for child in module.modules()):
        return True
    return any(isinstance(parameter, DTensor) for parameter in module.parameters())


def check_not_offloaded(module: nn.Module) -> None:
    """
    Raises:
        ValueError: shards are on another device than their mesh computes on, as CPUOffloadPolicy leaves them.
    """
    for name, parameter in module.named_parameters():
        if isinstance(parameter, DTensor) and parameter.to_local().device.type != parameter.device_mesh.device_type:
            raise ValueError(
                f"the shards of {name} are on {parameter.to_local().device.type}, but their mesh is of "
                f"{parameter.device_mesh.device_type}: leave out FSDP2's CPUOffloadPolicy, since what the ranks of a "
                f"model tell each other about an exchange goes where its parameters are"
            )


def reshard(module: nn.Module) -> None:
    """Free what FSDP2 has gathered for a forward pass, so that the parameters are the shards."""
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.reshard()


@contextlib.contextmanager
def without_reduction(module: nn.Module) -> Iterator[None]:
    """FSDP2's gradients stay on their ranks, in full, until a backward pass outside of it."""
    shards = [child for child in module.modules() if isinstance(child, FSDPModule)]
    for child in shards:
        child.set_requires_gradient_sync(False, recurse=False)
    try:
        yield
    finally:
        for child in shards:
            child.set_requires_gradient_sync(True, recurse=False)


def spec_of(tensor: Tensor) -> Spec | None:
    return (tensor.device_mesh, tuple(tensor.placements)) if isinstance(tensor, DTensor) else None


def local_part(tensor: Tensor, spec: Spec | None = None) -> Tensor:
    """What this rank holds of a tensor; of one that is here in full, what it would hold. Moves nothing."""
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    if spec is None:
        return tensor
    mesh, placements = spec
    everywhere = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=placements).to_local()


def as_dtensor(part: Tensor, whole: torch.Size, spec: Spec) -> DTensor:
    """The tensor of shape ``whole`` that this rank holds ``part`` of; shares its memory on the mesh's device."""
    mesh, placements = spec
    stride = torch.empty(whole, device="meta").stride()
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=whole, stride=stride)


def skeleton(module: nn.Module) -> nn.Module:
    """A copy without memory for what is in the ``state_dict``: parameters and persistent buffers on the meta device."""
    names = module.state_dict().keys()
    tensors = [tensor for name, tensor in module.named_buffers(remove_duplicate=False) if name in names]
    memo: dict[int, Tensor] = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors}
    for parameter in module.parameters():
        empty = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        memo[id(parameter)] = empty
    return copy.deepcopy(module, memo)


@torch.no_grad()
def materialise(module: nn.Module, device: torch.device) -> None:
    """Give tensors on the meta device memory, of any content.

    Raises:
        ValueError: one of them is in no ``state_dict``, so nothing would ever fill it.
    """
    names = module.state_dict().keys()
    for name, buffer in module.named_buffers():
        if buffer.is_meta and name not in names:
            raise ValueError(
                f"buffer {name} of a teacher is not persistent and still on the meta device: let data_parallel or "
                f"build_peer give it its values, as for the model itself"
            )
    if any(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()]):
        kept = {name: buffer for name, buffer in module.named_buffers() if not buffer.is_meta}
        module.to_empty(device=device)
        for name, buffer in module.named_buffers():
            if name in kept:
                buffer.copy_(kept[name])


@dataclass(frozen=True)
class Replicas:
    """The ranks of a model that hold the same bytes: all of them, or those with the same shards.

    Attributes:
        rank, size: this rank's place among them.
        group: theirs, or None for one rank.
    """

    rank: int
    size: int
    group: dist.ProcessGroup | None

    @classmethod
    def find(cls, module: nn.Module, groups: ModelGroups, *, timeout_s: float) -> "Replicas":
        """Every rank of the job must call it."""
        holders: dict[tuple[int, str], list[int]] = {}
        mine = (groups.model_index, _shard_key(module))
        for rank, key in enumerate(groups.gather(mine)):
            holders.setdefault(key, []).append(rank)
        group: dist.ProcessGroup | None = None
        for key in sorted(holders):
            ranks = holders[key]
            if len(ranks) in (1, groups.ranks_a_model):
                continue
            created = dist.new_group(ranks, timeout=datetime.timedelta(seconds=timeout_s))
            if isinstance(created, dist.ProcessGroup):  # else this rank is not in it
                group = created
        ranks = holders[mine]
        if len(ranks) == groups.ranks_a_model:
            group = groups.model_group
        return cls(ranks.index(groups.rank), len(ranks), group)


def _shard_key(module: nn.Module) -> str:
    """Equal on two ranks of a model if they hold the same shard of every parameter."""
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        spec = spec_of(parameter)
        if spec is not None:
            mesh, placements = spec
            place = mesh.get_coordinate() or ()
            shards = [index for index, placement in zip(place, placements, strict=True) if not placement.is_replicate()]
            digest.update(f"{name} {shards};".encode())
    return digest.hexdigest()
