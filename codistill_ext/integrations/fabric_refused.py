"""What Fabric would do to models that codistil, and is refused: each with the reason and what to change."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from codistill_ext.exchange.wire.shards import is_sharded
from codistill_ext.groups import ModelGroups, model_directory
from codistill_ext.parallel import CodistillParallel
from codistill_ext.sampling import CodistillSampler


def check_seeds(groups: ModelGroups, seed: str | None) -> None:
    """Every rank of the job must call it; ``seed`` is what ``seed_everything`` was last given.

    Raises:
        ValueError: on every rank: two models have the same.
    """
    models = {index: told for index, told in groups.gather((groups.model_index, seed)) if told is not None}
    if len(set(models.values())) < len(models):
        raise ValueError(
            f"seed_everything gave models the same seed ({models}), so they would start alike: leave it out, "
            f"the strategy's seed gives each model its own at fabric.launch()"
        )


def check_optimizers(module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Whether the optimizers still have the module's parameters: ``fully_shard`` puts others in their place."""
    own = {id(parameter) for parameter in module.parameters()}
    held = [held for optimizer in optimizers for group in optimizer.param_groups for held in group["params"]]
    if not all(id(parameter) in own for parameter in held):
        raise ValueError(
            "the optimizer holds parameters that data_parallel has replaced, and would train nothing: set up the "
            "module first (fabric.setup_module), then make its optimizer and call fabric.setup_optimizers"
        )


def check_loader(loader: Any) -> None:
    """Fabric would shard a CodistillSampler's share once more, and counts its epochs from 0 also in a resumed run."""
    if any(isinstance(sampler, CodistillSampler) for sampler in _samplers(loader)):
        raise ValueError(
            "CodistillSampler gives each rank its share already, and Fabric would shard it once more and reset its "
            "epoch and position: iterate over the DataLoader itself, and move its batches with fabric.to_device"
        )


def _samplers(loader: Any) -> Iterator[Any]:
    """With what Fabric's own sampler is around."""
    for sampler in (getattr(loader, "sampler", None), getattr(loader.batch_sampler, "sampler", None)):
        yield sampler
        yield getattr(getattr(sampler, "dataset", None), "_sampler", None)


def check_path(path: Path, groups: ModelGroups, coupling: CodistillParallel | None) -> None:
    """Whether a checkpoint is this model's alone, and can be written by one rank."""
    name = model_directory(Path(), groups.model_index).name
    if groups.num_models > 1 and name not in path.absolute().parts:
        raise ValueError(
            f"each model has a rank zero, and all would write {path}: save below a directory {name} of this model's "
            f"own, such as strategy.directory(run) gives"
        )
    if coupling is not None and is_sharded(coupling.module):
        raise ValueError(
            "fabric.save writes the shards of one rank only: save with save_sharded(run, strategy.coupling, "
            "optimizer) and resume with load_sharded (docs/fsdp.md)"
        )
