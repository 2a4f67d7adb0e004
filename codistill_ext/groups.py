"""Who trains which model, and who talks to whom."""

import datetime
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from codistill_ext.config import CodistillConfig

try:
    from torch.distributed.distributed_c10d import set_timeout
except ImportError:  # its name before torch 2.14
    from torch.distributed.distributed_c10d import _set_pg_timeout as set_timeout

MODEL_DIM, DATA_DIM = "codistill", "dp_shard"
# Dimensions along which ranks read the same batch, by the names of torchtitan and accelerate.
_SAME_BATCH_DIMS = ("tp", "etp", "cp", "sp")
Answer = TypeVar("Answer")
_FOREVER = datetime.timedelta(days=365)


def place_ranks(world_size: int, models: int, placement: str = "contiguous") -> torch.Tensor:
    """Lay the ranks out as a table of shape (models, ranks a model).

    Raises:
        ValueError: the models do not divide the world.
    """
    if world_size % models:
        raise ValueError(
            f"{models} models need a world size that is a multiple of {models}, but it is {world_size}: "
            f"change --codistill-models or the number of processes"
        )
    ranks = torch.arange(world_size)
    if placement == "contiguous":
        return ranks.view(models, -1)
    return ranks.view(-1, models).T.contiguous()


def model_directory(directory: Path, model_index: int) -> Path:
    """Where, under the directory of a run or of an exchange, what belongs to one model is kept."""
    return directory / f"model{model_index}"


class ModelGroups:
    """This rank's place among ``models`` x ``ranks a model``: a DeviceMesh with names of the field.

    The *model group* holds the ranks that train the same model, the *peer group* the ranks with
    the same place in their model, one of each model.

    Attributes:
        rank: in the whole job.
        world_size: ranks of the whole job.
        model_index: which model this rank trains.
        num_models: how many there are.
        rank_in_model: this rank's place among the ranks of its model.
        ranks_a_model: how many these are.
        data_rank: which share of its model's data this rank reads.
        data_size: how many shares there are; fewer than ranks where some read the same batch (tensor and context
            parallelism).
        separate_jobs: whether the other models are trained by jobs of their own (exchange of files).
        mesh: dimension ``codistill`` and those inside a model, or None for one process alone.
        model_mesh: the part of it inside this model, for ``fully_shard`` and the like.
        model_group: process group of the device's backend, or None for a group of one.
        peer_group: the same.
    """

    def __init__(
        self,
        table: torch.Tensor,
        rank: int,
        mesh: DeviceMesh | None,
        apart: tuple[int, int] | None = None,
        *,
        dim: str = MODEL_DIM,
        data_dims: Sequence[str] | None = None,
    ) -> None:
        self._table = table
        self.rank = rank
        self.world_size = table.numel()
        models_here, self.ranks_a_model = table.shape
        (row, self.rank_in_model) = (table == rank).nonzero()[0].tolist()
        self.separate_jobs = apart is not None
        self.model_index: int
        self.num_models: int
        self.model_index, self.num_models = (row, models_here) if apart is None else apart
        self.mesh = mesh
        inner = () if mesh is None else tuple(name for name in mesh.mesh_dim_names or () if name != dim)
        self.model_mesh = mesh[inner] if mesh is not None and inner else None
        self.data_rank, self.data_size = _place(self.model_mesh, data_dims)
        self.model_group = _group_of_rows(table, self.model_mesh) if self.ranks_a_model > 1 else None
        self.peer_group = mesh.get_group(dim) if mesh is not None and models_here > 1 else None
        # Models may end hours apart, so the last meeting has no time limit.
        self._end_group: Any = dist.new_group(backend="gloo", timeout=_FOREVER) if models_here > 1 else None

    @classmethod
    def create(cls, config: CodistillConfig, device_type: str = "cpu") -> "ModelGroups":
        """Build the groups. Every rank of the job must call it, with the same configuration.

        The mesh is ``codistill`` x ``dp_shard``. Without an initialised process group the job is one process with
        one model.

        Raises:
            ValueError: ``config.models`` does not divide the world size.
        """
        apart = _apart(config)
        models_here = 1 if apart is not None else config.models
        if not dist.is_initialized():
            if models_here > 1:
                raise ValueError(
                    f"{config.models} models need at least {config.models} processes, but there is one: start "
                    f"with torchrun --nproc-per-node {config.models} (and call init_process_group)"
                )
            return cls(torch.zeros(1, 1, dtype=torch.long), rank=0, mesh=None, apart=apart)
        table = place_ranks(dist.get_world_size(), models_here, config.placement)
        return cls.from_mesh(DeviceMesh(device_type, table, mesh_dim_names=(MODEL_DIM, DATA_DIM)), config)

    @classmethod
    def from_mesh(
        cls,
        mesh: DeviceMesh,
        config: CodistillConfig | None = None,
        *,
        dim: str = MODEL_DIM,
        data_dims: Sequence[str] | None = None,
    ) -> "ModelGroups":
        """Take the groups from a mesh of the whole job. Every rank of the job must call it, with the same one.

        Args:
            mesh: its dimension ``dim`` counts the models, all others are inside a model: ``dp_replicate``,
                ``dp_shard``, ``tp`` and so on. Ranks with the same place in all others are each other's peers.
            config: gives the groups of the mesh its time limit. With the exchange of files, where a job is one
                model, it says which, and the mesh needs no ``dim``.
            data_dims: dimensions along which ranks read different data; all inside a model unless given, but for
                ``tp``, ``etp``, ``cp`` and ``sp``.

        Raises:
            ValueError: the mesh has no such dimension, another number of models than ``config``, or the stages of
                a pipeline.
        """
        apart = None if config is None else _apart(config)
        names = mesh.mesh_dim_names or ()
        table = _table(mesh, dim, needed=apart is None)
        models = 1 if apart is not None else len(table) if config is None else config.models
        if len(table) != models:
            raise ValueError(f"dimension {dim!r} of the mesh has size {len(table)}, but there are {models} models here")
        unknown = set(data_dims or ()) - {name for name in names if name != dim}
        if unknown:
            raise ValueError(f"data_dims {sorted(unknown)} are not dimensions inside a model; the mesh has {names}")
        groups = cls(table, dist.get_rank(), mesh, apart, dim=dim, data_dims=data_dims)
        if config is not None:
            named = [mesh.get_group(name) for index, name in enumerate(names) if mesh.size(index) > 1]
            extra = [] if groups.model_group is None or groups.model_group in named else [groups.model_group]
            _prepare(named + extra, config)
        return groups

    @property
    def is_lead(self) -> bool:
        """Whether this rank writes files and logs for its model."""
        return bool(self.rank_in_model == 0)

    @property
    def name(self) -> str:
        return self.describe(self.model_index)

    def describe(self, model_index: int) -> str:
        """How messages call this rank's counterpart in a model."""
        if self.separate_jobs:
            own = f" (rank {self.rank} of its job)" if model_index == self.model_index else " (a job of its own)"
            return f"model {model_index}{own}"
        return f"model {model_index} (rank {self.counterpart(model_index)})"

    def counterpart(self, model_index: int) -> int:
        """World rank of the process of ``model_index`` that has this rank's place in its model."""
        return int(self._table[model_index, self.rank_in_model])

    def new_peer_group(self, timeout_s: float) -> dist.ProcessGroup:
        """A further gloo group of this rank's peers. Every rank of the job must call it."""
        mine: dist.ProcessGroup | None = None
        for ranks in self._table.T.tolist():
            timeout = datetime.timedelta(seconds=timeout_s)
            group = dist.new_group(ranks, backend="gloo", timeout=timeout)
            if isinstance(group, dist.ProcessGroup):  # else this rank is not in it
                mine = group
        assert mine is not None
        return mine

    def check_equal(self, what: str, value: dict[str, Any]) -> None:
        """Compare a mapping with every other rank's. Every rank of the job must call it.

        Raises:
            ValueError: on every rank, if the values differ; names the keys, values and ranks.
        """
        everyone = self.gather(value)
        for rank, other in enumerate(everyone):
            keys = [key for key in everyone[0] | other if everyone[0].get(key) != other.get(key)]
            if keys:
                differences = "; ".join(f"{key}: {everyone[0].get(key)!r} and {other.get(key)!r}" for key in keys)
                raise ValueError(f"{what} must be the same everywhere, but ranks 0 and {rank} differ: {differences}")

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank. Every rank of the job must call it."""
        return _gather(value, self.world_size, group=None)

    def ask_leads(self, question: Callable[[], Answer]) -> dict[int, Answer]:
        """What the lead of each model answers, by model. Every rank of the job must call it.

        Raises:
            ValueError: on every rank, when ``question`` raised a ValueError or an OSError on a lead: its words.
        """
        answers: dict[int, Answer] = {}
        mine: tuple[Answer | None, str | None] | None = None
        if self.is_lead:
            try:
                mine = question(), None
            except (ValueError, OSError) as error:
                mine = None, str(error)
        for index, found in self.gather((self.model_index, mine)):
            if found is None:  # not a lead
                continue
            answer, problem = found
            if problem is not None:
                raise ValueError(problem)
            answers[index] = answer
        return answers

    def gather_in_model(self, value: Any) -> list[Any]:
        """The value of every rank of this model, by its place there. Every rank of the model must call it."""
        return _gather(value, self.ranks_a_model, group=self.model_group)

    def wait_for_all(self) -> None:
        """Wait until every rank of the job has come here, however long the other models train."""
        if self._end_group is not None:
            dist.barrier(group=self._end_group)

    def agree(self, flag: bool, device: torch.device) -> bool:
        """Whether ``flag`` is true on every rank of this model. Every rank of the model must call it."""
        if self.model_group is None:
            return flag
        votes = torch.tensor([float(flag)], device=device)
        dist.all_reduce(votes, op=dist.ReduceOp.MIN, group=self.model_group)
        return not math.isclose(votes.item(), 0.0)


def _apart(config: CodistillConfig) -> tuple[int, int] | None:
    """Index and number of the models if this job trains one of them, whatever its size (exchange of files)."""
    return (config.model_index, config.models) if config.exchange == "files" and config.models > 1 else None


def _table(mesh: DeviceMesh, dim: str, *, needed: bool) -> torch.Tensor:
    """Ranks by model and place in the model, of a mesh of the whole job."""
    names = mesh.mesh_dim_names or ()
    if dim not in names and needed:
        raise ValueError(f"the mesh needs a dimension {dim!r} that counts the models, but has {names}")
    if mesh.size() != dist.get_world_size():
        raise ValueError(
            f"the groups need the mesh of the whole job ({dist.get_world_size()} ranks), not a part of it with "
            f"{mesh.size()}"
        )
    if "pp" in names and mesh["pp"].size() > 1:
        raise ValueError("the stages of a pipeline hold no whole model: use a mesh without a dimension 'pp'")
    table = mesh.mesh.movedim(names.index(dim), 0) if dim in names else mesh.mesh.unsqueeze(0)
    table = table.flatten(1) if table.ndim > 1 else table.unsqueeze(1)
    if not (table.diff(dim=1) > 0).all():
        raise ValueError(f"the ranks of a model must stand in ascending order in the mesh, not as {table.tolist()}")
    return table


def _place(mesh: DeviceMesh | None, data_dims: Sequence[str] | None) -> tuple[int, int]:
    """Which share of its model's data this rank reads, of how many."""
    rank, size = 0, 1
    if mesh is not None:
        for index, name in enumerate(mesh.mesh_dim_names or ()):
            if name in data_dims if data_dims is not None else name not in _SAME_BATCH_DIMS:
                rank, size = rank * mesh.size(index) + mesh.get_local_rank(name), size * mesh.size(index)
    return rank, size


def _group_of_rows(table: torch.Tensor, model_mesh: DeviceMesh | None) -> dist.ProcessGroup | None:
    """The group of this rank's model. Every rank of the job must call it."""
    if model_mesh is not None and model_mesh.ndim == 1:
        return model_mesh.get_group()
    group, _ = dist.new_subgroups_by_enumeration(table.tolist())
    assert isinstance(group, dist.ProcessGroup)
    return group


def _prepare(groups: Iterable[dist.ProcessGroup], config: CodistillConfig) -> None:
    for group in groups:
        # A rank may wait for a peer as long as the option says, and its model for it.
        set_timeout(datetime.timedelta(seconds=config.timeout), group)
        if "nccl" in dist.get_backend_config(group):  # also where a job has named no backend, or one for each device
            # Its first use needs all its ranks, and the first exchange may be without some models.
            dist.all_reduce(torch.zeros(1, device="cuda"), group=group)


def _gather(value: Any, size: int, *, group: dist.ProcessGroup | None) -> list[Any]:
    if size == 1:
        return [value]
    everyone: list[Any] = [None] * size
    dist.all_gather_object(everyone, value, group=group)
    return everyone
