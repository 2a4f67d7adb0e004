"""(fairseq) From fairseq's command line to a job of several models; every patch of fairseq with its reason.

``install`` puts ``call_main`` in the place of fairseq's. It acts only when the criterion is ours.
"""

import contextlib
import functools
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq import options as fairseq_options
from fairseq.distributed import utils as distributed_utils
from fairseq_cli import train as fairseq_train
from hydra.core.hydra_config import HydraConfig
from hydra.utils import to_absolute_path
from omegaconf import OmegaConf, open_dict

from codistill_ext.config import CodistillConfig
from codistill_ext.criterions.codistill_label_smoothed_ce import regularisation
from codistill_ext.fairseq_plugin import checkpoints
from codistill_ext.fairseq_plugin.command_line import CRITERIONS, parse_args_and_arch, with_settings
from codistill_ext.fairseq_plugin.models import plain_values
from codistill_ext.fairseq_plugin.refused import refuse_what_does_not_go, refuse_what_mixes_models
from codistill_ext.fairseq_plugin.trainer import CodistillTrainer, replaced
from codistill_ext.groups import ModelGroups, model_directory
from codistill_ext.job import failures
from codistill_ext.job.rendezvous import INIT_METHOD
from codistill_ext.job.resume import take_possession
from codistill_ext.job.runlog import RunLog
from codistill_ext.job.settings import read_settings
from codistill_ext.sampling import model_seed

logger = logging.getLogger(__name__)

Main = Callable[..., None]
_fairseq_call_main = distributed_utils.call_main
_current_groups: ModelGroups | None = None


def install(main: Main) -> None:
    """Patch fairseq, once. fairseq-train imports the plug-in while parsing, before it calls this.

    Args:
        main: runs ``train_one_model``. It is unpickled by the processes that fairseq spawns, which have not
            parsed --user-dir, so its module registers all of the plug-in.
    """
    distributed_utils.call_main = functools.partial(call_main, main)
    fairseq_options.parse_args_and_arch = parse_args_and_arch


def call_main(own_main: Main, cfg: Any, main: Main, **kwargs: Any) -> None:
    """In place of ``fairseq.distributed.utils.call_main``: the process group differs on CPU."""
    if getattr(cfg.criterion, "_name", None) not in CRITERIONS or not _is_training(main):
        return _fairseq_call_main(cfg, main, **kwargs)
    _prepare_and_call(own_main, cfg, **kwargs)
    return None


@failures.command("codistillation")
def _prepare_and_call(own_main: Main, cfg: Any, **kwargs: Any) -> None:
    prepare(cfg)
    _fairseq_call_main(cfg, own_main, **kwargs)


def _is_training(main: Main) -> bool:
    """Also when fairseq_cli.train was started with -m, which makes a second copy of its functions."""
    code, known = main.__code__, fairseq_train.main.__code__
    return (code.co_filename, code.co_name) == (known.co_filename, known.co_name)


def options_of(cfg: Any) -> CodistillConfig:
    return CodistillConfig.from_flat(dict(cfg.criterion))


@failures.mistakes()
def prepare(cfg: Any) -> None:
    """Check the whole configuration and fill in what fairseq would get wrong, before anything starts.

    Raises:
        ValueError: what was expected, what came, what to change.
    """
    config = options_of(cfg)
    regularisation(cfg.criterion)
    if config.models > 1:
        refuse_what_mixes_models(cfg)
    if HydraConfig.initialized():
        with open_dict(cfg):  # hydra gives every rank a working directory of its own
            cfg.checkpoint.save_dir = to_absolute_path(cfg.checkpoint.save_dir)
            if cfg.common.tensorboard_logdir:
                cfg.common.tensorboard_logdir = to_absolute_path(cfg.common.tensorboard_logdir)
    for index, options in enumerate(read_settings(config.settings, config.models)):
        refuse_what_does_not_go(with_settings(cfg, index, options), config)  # argparse ends the program at a mistake
    with open_dict(cfg):
        _set_process_group(cfg)
        if config.active and config.exchange == "predictions":
            cfg.common.amp_batch_retries = 0  # a batch that one model tries twice has no counterpart
        if config.models > 1:
            # fairseq broadcasts a checkpoint from the world's rank 0, which other models do not have
            cfg.checkpoint.load_checkpoint_on_all_dp_ranks = True
    world_size = cfg.distributed_training.distributed_world_size
    if config.exchange == "files":
        return  # this job trains one model, whatever its size
    if world_size % config.models or world_size < config.models:
        raise ValueError(
            f"{config.models} models need a multiple of {config.models} processes, but the world size is "
            f"{world_size}: start with torchrun --nproc-per-node {config.models} (or a multiple), or change "
            f"--codistill-models"
        )


def _set_process_group(cfg: Any) -> None:
    """fairseq divides by the number of GPUs under torchrun, and never looks at it when there is one process."""
    training = cfg.distributed_training
    on_cpu = cfg.common.cpu or not torch.cuda.is_available()
    under_torchrun = all(name in os.environ for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK"))
    if training.distributed_init_method is None and under_torchrun and int(os.environ["WORLD_SIZE"]) > 1:
        training.distributed_init_method = INIT_METHOD
        training.distributed_world_size = int(os.environ["WORLD_SIZE"])
        training.distributed_rank = int(os.environ["RANK"])
        training.device_id = 0 if on_cpu else int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
        training.distributed_no_spawn = True
    elif on_cpu and training.distributed_init_method is None:
        # Without a GPU fairseq spawns no process at all and ends with success.
        training.distributed_world_size = 1
    if on_cpu:
        training.distributed_backend = "gloo"
    elif training.distributed_init_method is None:
        distributed_utils.infer_init_method(training)  # SLURM, or one process a GPU


def train_one_model(cfg: Any, **kwargs: Any) -> None:
    """In place of ``fairseq_cli.train.main``, in each process: main for this rank's model."""
    config = options_of(cfg)
    seed = cfg.common.seed
    on_cuda = torch.cuda.is_available() and not cfg.common.cpu
    with failures.mistakes():
        groups = ModelGroups.create(config, "cuda" if on_cuda else "cpu")
        settings = read_settings(config.settings, config.models)[groups.model_index]
        cfg = with_settings(cfg, groups.model_index, settings)
        take_possession(model_directory(Path(cfg.checkpoint.save_dir), groups.model_index), groups)
        log = RunLog(
            cfg.checkpoint.save_dir,
            groups,
            tensorboard=cfg.common.tensorboard_logdir or "",
            wandb_project=cfg.common.wandb_project or "",
        )
    log.write_config(plain_values(OmegaConf.to_container(cfg, enum_to_str=True)))
    _describe_own_job(cfg, groups, seed)
    _show_every_model(groups)
    trainers: list[CodistillTrainer] = []

    def build_trainer(*args: Any) -> CodistillTrainer:
        trainers.append(CodistillTrainer(*args, config=config, groups=groups, log=log, seed=seed))
        return trainers[0]

    with _inside_model_group(groups, build_trainer):
        fairseq_train.main(cfg, **kwargs)
    trainers[0].model.close()
    _write_summary(trainers[0], log, groups)
    log.close()


def _describe_own_job(cfg: Any, groups: ModelGroups, seed: int) -> None:
    """Let ``cfg`` describe this model's job as if it were alone: its ranks, its seed, its directory.

    Master checks, file names, statistics and the fp16 scale window then come out right by themselves.
    """
    with open_dict(cfg):
        cfg.distributed_training.distributed_world_size = groups.data_size
        cfg.distributed_training.distributed_rank = groups.data_rank
        if cfg.common.seed == seed:  # else the model has one of its own
            cfg.common.seed = model_seed(seed, groups.model_index)
        cfg.checkpoint.save_dir = str(model_directory(Path(cfg.checkpoint.save_dir), groups.model_index))
        # The log shows all models in one run; fairseq would begin one for each.
        cfg.common.tensorboard_logdir = cfg.common.wandb_project = None
        if cfg.common.log_file and groups.num_models > 1:
            path = Path(cfg.common.log_file)
            cfg.common.log_file = str(path.with_stem(f"{path.stem}.model{groups.model_index}"))


def _show_every_model(groups: ModelGroups) -> None:
    """fairseq lets only the world's rank 0 speak."""
    root = logging.getLogger()
    root.setLevel(logging.INFO if groups.is_lead else logging.WARNING)
    if groups.num_models > 1:
        text = f"%(asctime)s | model{groups.model_index} | %(levelname)s | %(name)s | %(message)s"
        for handler in root.handlers:
            handler.setFormatter(logging.Formatter(text, datefmt="%Y-%m-%d %H:%M:%S"))


@contextlib.contextmanager
def _inside_model_group(groups: ModelGroups, build_trainer: Callable[..., CodistillTrainer]) -> Iterator[None]:
    """The patches of fairseq that hold while ``main`` runs."""
    global _current_groups
    get_valid_stats, validate_and_save = fairseq_train.get_valid_stats, fairseq_train.validate_and_save
    trainers: list[CodistillTrainer] = []

    def keep_trainer(*args: Any) -> CodistillTrainer:
        trainers.append(build_trainer(*args))
        return trainers[0]

    def copy_whole(source: str, target: str, overwrite: bool = False) -> bool:
        return trainers[0].files.copy(source, target, overwrite)

    def logged_valid_stats(cfg: Any, trainer: CodistillTrainer, stats: Any, tracking_best: bool) -> Any:
        stats = get_valid_stats(cfg, trainer, stats, tracking_best)
        trainer.log_validation(stats, first=tracking_best)
        return stats

    _current_groups = groups
    try:
        with (
            # Everything in fairseq asks this for world size, rank, shards, statistics and gradients.
            replaced(distributed_utils, "get_data_parallel_group", lambda: groups.model_group),
            replaced(fairseq_train, "Trainer", keep_trainer),  # main names the class itself
            replaced(fairseq_train, "get_valid_stats", logged_valid_stats),  # validation has no hook
            # Saved and resumed as if no kill could ever come; see checkpoints.py.
            replaced(checkpoint_utils, "load_checkpoint", checkpoints.load_checkpoint),
            replaced(checkpoint_utils, "load_checkpoint_to_cpu", checkpoints.load_to_cpu),
            replaced(checkpoint_utils.PathManager, "copy", copy_whole),
            replaced(fairseq_train, "validate_and_save", checkpoints.at_updates_tried(validate_and_save)),
        ):
            yield
    finally:
        _current_groups = None


def current_groups() -> ModelGroups | None:
    """The groups of the job that is running in this process, if any: for tasks, whose setup gets none."""
    return _current_groups


def _write_summary(trainer: CodistillTrainer, log: RunLog, groups: ModelGroups) -> None:
    """Every model's figures, and the bytes between the models, summed over a model's ranks."""
    mine = {
        "model": groups.model_index,
        "updates": trainer.get_num_updates(),
        "valid": trainer.valid_stats,
        "traffic": trainer.model.exchange.traffic.to_dict() if trainer.model.exchange is not None else {},
    }
    models: dict[int, dict[str, Any]] = {}
    for one in groups.gather(mine):  # by rank, so each model's lead comes first
        model = models.setdefault(one["model"], one | {"traffic": Counter()})
        model["traffic"].update(one["traffic"])
    found = [model | {"traffic": dict(model["traffic"])} for _, model in sorted(models.items())]
    log.write_summary({"models": found, "reported_model": 0})
    logger.info("models: %s", json.dumps(found))
