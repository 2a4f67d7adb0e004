"""One model as the whole world, for hosts that know of one model only.

A host averages gradients and metrics, shards data, waits, and chooses who writes, over the default process group.
``join`` makes that the group of this rank's model, so all of it stays inside the model. Only what couples the models
(``coupling.py``) goes back to the whole job.
"""

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist

from codistill_ext.config import CodistillConfig
from codistill_ext.groups import ModelGroups

_joined: list["OwnWorld"] = []  # of this process, at most one


class OwnWorld:
    """The default process group is this model's, except inside ``whole_job``.

    Attributes:
        groups: who trains which model, by ranks of the whole job.
        config: the options of the method.
    """

    def __init__(self, groups: ModelGroups, config: CodistillConfig) -> None:
        """Every rank of the job must call it."""
        self.groups, self.config = groups, config
        self._job = dist.group.WORLD
        self._own = self._job if groups.ranks_a_model == groups.world_size else _group_of_model(groups)
        dist.group.WORLD = self._own

    @contextlib.contextmanager
    def whole_job(self) -> Iterator[None]:
        """In here the default process group is of all models; not for two threads at once."""
        dist.group.WORLD = self._job
        try:
            yield
        finally:
            dist.group.WORLD = self._own


def _group_of_model(groups: ModelGroups) -> dist.ProcessGroup:
    """A group for a model of one rank, too."""
    if groups.model_group is not None:
        return groups.model_group
    own, _ = dist.new_subgroups_by_enumeration([[rank] for rank in range(groups.world_size)])
    assert isinstance(own, dist.ProcessGroup)
    return own


def join(config: CodistillConfig, device_type: str | None = None) -> OwnWorld:
    """Make this rank's model the whole world of a host that is started afterwards. Every rank of the job must call it.

    It starts torch.distributed if the process comes from torchrun and has not done so. Call it once, before
    ``TrainingArguments`` or ``Accelerator``: they remember how many ranks there are.

    Args:
        device_type: ``cpu`` or ``cuda``; cuda if there is one, unless given.

    Raises:
        ValueError: a second call, or the models do not divide the number of processes.
    """
    if _joined:
        raise ValueError("this process trains a model of a job already: call join once, and keep what it returns")
    device_type = device_type or ("cuda" if torch.cuda.is_available() else "cpu")
    if not dist.is_initialized() and "WORLD_SIZE" in os.environ:
        if device_type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo")
    _joined.append(OwnWorld(ModelGroups.create(config, device_type), config))
    return _joined[0]


def check_seen(world: OwnWorld, process_index: int, num_processes: int, device_type: str, what: str) -> None:
    """Whether a host sees this model's ranks, and no others.

    Raises:
        ValueError: it does not; ``what`` is to be made after ``join``.
    """
    groups = world.groups
    if (process_index, num_processes) == (groups.rank_in_model, groups.ranks_a_model):
        return
    hint = " and, to train on CPUs, with its option for that (cpu=True, use_cpu=True)" if device_type == "cpu" else ""
    raise ValueError(
        f"{groups.name} is rank {groups.rank_in_model} of {groups.ranks_a_model} of its model, but {what} takes it for "
        f"rank {process_index} of {num_processes}: make {what} after join{hint}"
    )
