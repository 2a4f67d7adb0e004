"""(fairseq) From fairseq's command line to a job of several models; every patch of fairseq with its reason.

``install`` puts ``call_main`` in the place of fairseq's. It acts only when the criterion is ours.
"""

import contextlib
import copy
import functools
import json
import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from fairseq import checkpoint_utils
from fairseq import options as fairseq_options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import utils as distributed_utils
from fairseq_cli import train as fairseq_train
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import to_absolute_path
from omegaconf import OmegaConf, open_dict

from codistill_ext.config import CodistillConfig
from codistill_ext.criterions.codistill_label_smoothed_ce import regularisation
from codistill_ext.fairseq_plugin import checkpoints
from codistill_ext.fairseq_plugin.models import plain_values
from codistill_ext.fairseq_plugin.trainer import CodistillTrainer, replaced
from codistill_ext.groups import ModelGroups, model_directory
from codistill_ext.job import failures
from codistill_ext.job.rendezvous import INIT_METHOD
from codistill_ext.job.resume import take_possession
from codistill_ext.job.runlog import RunLog
from codistill_ext.job.settings import read_settings, to_flags
from codistill_ext.sampling import model_seed

logger = logging.getLogger(__name__)

# What --codistill-settings cannot say of one model alone, by beginning or by name.
_SHARED_BEGINNINGS = ("codistill", "criterion.codistill", "distributed")
_SHARED = (
    "ddp_backend",
    "save_dir",
    "data",
    "criterion",
    "task",
    "user_dir",
    "cpu",
    "task.data",
    "checkpoint.save_dir",
)
_NOTHING = object()
CRITERIONS = ("codistill_label_smoothed_ce",)
Main = Callable[..., None]
_fairseq_call_main = distributed_utils.call_main
_fairseq_parse_args_and_arch = fairseq_options.parse_args_and_arch
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


def parse_args_and_arch(parser: Any, input_args: list[str] | None = None, *args: Any, **kwargs: Any) -> Any:
    """In place of ``fairseq.options.parse_args_and_arch``: a wrong option is refused without fairseq's long usage."""
    parser.error = functools.partial(_refuse_option, parser, input_args)
    parsed = _fairseq_parse_args_and_arch(parser, input_args, *args, **kwargs)
    options = parsed[0] if isinstance(parsed, tuple) else parsed
    if getattr(options, "criterion", None) in CRITERIONS:
        for module in r"hydra\.", "sys":  # 20 lines for each process about how fairseq uses hydra
            warnings.filterwarnings("ignore", category=UserWarning, module=module)
        try:
            CodistillConfig.from_args(options)
        except ValueError as error:
            parser.error(str(error))
    return parsed


def _refuse_option(parser: Any, input_args: list[str] | None, message: str) -> NoReturn:
    if "unrecognized arguments: " in message and "--codistill-" in message:
        criterion = parser.parse_known_args(input_args)[0].criterion
        if criterion not in CRITERIONS:
            message = f"options of codistillation need --criterion {CRITERIONS[0]}, not {criterion}"
    failures.refuse(parser, message)


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
        _refuse(cfg)
    if HydraConfig.initialized():
        with open_dict(cfg):  # hydra gives every rank a working directory of its own
            cfg.checkpoint.save_dir = to_absolute_path(cfg.checkpoint.save_dir)
    for index, options in enumerate(read_settings(config.settings, config.models)):
        with_settings(cfg, index, options)  # argparse ends the program at a mistake
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


def with_settings(cfg: Any, index: int, options: dict[str, Any]) -> Any:
    """The configuration of one model: the job's, with its own options.

    Options by their names on fairseq-train's command line are put behind the job's, as if they had
    been typed; names with a dot, such as ``optimization.lr``, are of fairseq's configuration.

    Raises:
        ValueError: an option is not one that can differ, or the job has no command line of flags.
    """
    shared = [name for name in options if name.startswith(_SHARED_BEGINNINGS) or name in _SHARED]
    if shared:
        raise ValueError(
            f"--codistill-settings gives model {index} {', '.join(shared)}: that is the job's, not a model's"
        )
    flags = to_flags({name: value for name, value in options.items() if "." not in name})
    dotted = {name: value for name, value in options.items() if "." in name}
    if flags:
        cfg = _parsed_again(cfg, flags)
    elif dotted:
        cfg = copy.deepcopy(cfg)
    for name, value in dotted.items():
        if OmegaConf.select(cfg, name, default=_NOTHING) is _NOTHING:
            raise ValueError(f"--codistill-settings gives model {index} {name}, which the configuration does not have")
        OmegaConf.update(cfg, name, value)
    return cfg


def _parsed_again(cfg: Any, flags: list[str]) -> Any:
    if GlobalHydra.instance().is_initialized():
        raise ValueError("settings by flag are for fairseq-train; with hydra name them as it does: optimization.lr")
    parser = fairseq_options.get_training_parser()
    own = convert_namespace_to_omegaconf(fairseq_options.parse_args_and_arch(parser, [*sys.argv[1:], *flags]))
    with open_dict(own):
        own.distributed_training = cfg.distributed_training
        own.checkpoint.load_checkpoint_on_all_dp_ranks = cfg.checkpoint.load_checkpoint_on_all_dp_ranks
        own.common.amp_batch_retries = cfg.common.amp_batch_retries
    return own


def _refuse(cfg: Any) -> None:
    """What would average gradients over the whole world, and so mix the models."""
    training = cfg.distributed_training
    mixing = {
        "--ddp-backend slowmo": training.ddp_backend == "slowmo",
        "--ddp-backend fully_sharded": training.ddp_backend == "fully_sharded",
        "--use-bmuf": cfg.optimization.use_bmuf,
        "--pipeline-model-parallel": training.pipeline_model_parallel,
        "--model-parallel-size": cfg.common.model_parallel_size > 1,
        "--tpu": cfg.common.tpu,
    }
    for option, given in mixing.items():
        if given:
            raise ValueError(
                f"{option} works on the whole job and would mix the {cfg.criterion.codistill_models} models: "
                f"use --ddp-backend pytorch_ddp or legacy_ddp without it"
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
    log = RunLog(cfg.checkpoint.save_dir, groups)
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
        name = Path(cfg.checkpoint.save_dir).name
        for option in ("tensorboard_logdir", "log_file"):
            path = getattr(cfg.common, option)
            if path and groups.num_models > 1:
                path = Path(path)
                path = path / name if option == "tensorboard_logdir" else path.with_stem(f"{path.stem}.{name}")
                setattr(cfg.common, option, str(path))


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
        if tracking_best:  # of the first subset alone
            trainer.log_validation(stats)
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
