"""Fabric's data-parallel strategy in which one model is the whole world, of several in the job."""

from typing import Any

import torch.distributed as dist
from lightning_fabric.strategies import DDPStrategy
from lightning_fabric.utilities.seed import seed_everything
from torch import Tensor

from codistill_ext.config import CodistillConfig
from codistill_ext.groups import ModelGroups
from codistill_ext.sampling import data_seed, model_seed


class OneModelStrategy(DDPStrategy):
    """Rank, world, collectives, seeds and samplers are those of this rank's model.

    Args:
        options: of ``DDPStrategy``.

    Attributes:
        groups: who trains which model, once Fabric is launched.
    """

    def __init__(self, config: CodistillConfig, seed: int, **options: Any) -> None:
        if "process_group" in options:
            raise ValueError("gradients are averaged over the ranks of each model: leave process_group out")
        super().__init__(**options)
        self.config, self.seed = config, seed
        self._groups: ModelGroups | None = None

    @property
    def groups(self) -> ModelGroups:
        if self._groups is None:
            raise ValueError("who trains which model is not known yet: call fabric.launch() first")
        return self._groups

    @property
    def global_rank(self) -> int:
        """Of this rank in its model, so that each model has a rank zero; before the launch in the job."""
        return int(super().global_rank) if self._groups is None else self._groups.rank_in_model

    @property
    def world_size(self) -> int:
        return int(super().world_size) if self._groups is None else self._groups.ranks_a_model

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        if self.config.disjoint:
            raise ValueError("Fabric's sampler knows no disjoint data: use CodistillSampler in a plain DataLoader")
        seed = data_seed(self.config, self.groups, self.seed)
        return {"num_replicas": self.groups.data_size, "rank": self.groups.data_rank, "seed": seed}

    def setup_environment(self) -> None:
        super().setup_environment()
        self._groups = ModelGroups.create(self.config, self.root_device.type)
        seed_everything(model_seed(self.seed, self._groups.model_index), verbose=False)

    def all_reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        own = self._own(group)
        return tensor if own is None else super().all_reduce(tensor, own, reduce_op)

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        own = self._own(group)
        return tensor if own is None else super().all_gather(tensor, own, sync_grads)

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        if self.groups.model_group is not None:
            dist.barrier(self.groups.model_group, device_ids=self._determine_ddp_device_ids())

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return self.groups.gather_in_model(obj)[src]

    def _own(self, group: Any) -> Any:
        """Fabric asks for the whole job where the user has not named a group."""
        return self.groups.model_group if group in (None, dist.group.WORLD) else group
