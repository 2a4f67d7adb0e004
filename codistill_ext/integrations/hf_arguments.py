"""TrainingArguments of one model among others: what becomes its own, and what is refused."""

import copy
import os
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset, Subset

from codistill_ext.groups import model_directory
from codistill_ext.integrations.own_world import OwnWorld, check_seen
from codistill_ext.sampling import data_seed, model_seed, own_part


def own_arguments(args: Any, world: OwnWorld) -> Any:
    """A copy of the arguments with this model's directory, seeds and name."""
    if args is None:
        raise ValueError("CodistillTrainer needs TrainingArguments, made after join")
    own, groups = copy.copy(args), world.groups
    own.output_dir = str(model_directory(Path(args.output_dir), groups.model_index))
    own.seed = model_seed(args.seed, groups.model_index)
    own.data_seed = data_seed(world.config, groups, _job_seed(args))
    if args.run_name:
        own.run_name = f"{args.run_name}-model{groups.model_index}"
    own.log_on_each_node = False  # else only the models that have a node's first rank would log
    return own


def _job_seed(args: Any) -> int:
    return int(args.seed if args.data_seed is None else args.data_seed)


def own_part_of(dataset: Any, world: OwnWorld, args: Any) -> Any:
    """The part of the training data that no other model sees, with disjoint data; else all of it.

    Args:
        args: of the job.

    Raises:
        ValueError: it has no length.
    """
    if not world.config.disjoint or dataset is None:
        return dataset
    if isinstance(dataset, IterableDataset):
        raise ValueError("disjoint data needs a dataset with a length: an iterable one must be cut by its maker")
    samples = own_part(len(dataset), world.config, world.groups, _job_seed(args)).tolist()
    return dataset.select(samples) if hasattr(dataset, "select") else Subset(dataset, samples)


def check_trainer(trainer: Any, world: OwnWorld) -> None:
    """Refuse what would mix the models, or break their coupling without words.

    Raises:
        ValueError: names it and says why.
    """
    args = trainer.args
    check_seen(world, args.process_index, args.world_size, args.device.type, "TrainingArguments")
    if world.config.models == 1:
        return
    for refused, why in _refused(trainer, world):
        if refused:
            raise ValueError(f"with {world.config.models} models: {why}")


def _refused(trainer: Any, world: OwnWorld) -> list[tuple[bool, str]]:
    args, config = trainer.args, world.config
    shards = [args.fsdp, args.deepspeed, args.parallelism_config]
    strategy = args.train_sampling_strategy
    return [
        (
            any(shards) or getattr(trainer, "is_distributed_loading_by_transformers", False),
            "fsdp, deepspeed and parallelism_config shard or replace the model after the coupling was made, so its "
            "weights could not cross: leave them out, or use a loop of your own with FSDP2 (docs/fsdp.md)",
        ),
        (args.n_gpu > 1, "nn.DataParallel has several replicas in a process: start one process a GPU with torchrun"),
        (args.auto_find_batch_size, "auto_find_batch_size starts one model over while the others go on"),
        (args.push_to_hub, "push_to_hub has one repository for all models: push each model's directory afterwards"),
        (args.save_on_each_node, "save_on_each_node saves by the node's first rank, which is of one model only"),
        (
            args.save_total_limit == 1,
            "save_total_limit=1 deletes a model's last checkpoint before the others have theirs: keep at least 2",
        ),
        (
            "TENSORBOARD_LOGGING_DIR" in os.environ,
            "TENSORBOARD_LOGGING_DIR is one directory for all models: leave it out, and each logs in its output_dir",
        ),
        (args.use_liger_kernel, "use_liger_kernel returns no logits, which are what models exchange"),
        (
            config.active and config.coordinated and strategy == "group_by_length",
            "group_by_length draws its order from each model's own random state, but the models must read the same "
            "mini-batches: use another train_sampling_strategy, or --codistill-exchange checkpoints",
        ),
        (
            config.active and not config.coordinated and strategy in ("sequential", "batch_rebalance"),
            f"train_sampling_strategy {strategy} is the same order for all models, but the data is to be "
            f"{config.data}: use another one, or --codistill-data coordinated",
        ),
    ]
