"""(fairseq) The command line of fairseq-train: the options of the method, and those of single models."""

import copy
import functools
import sys
import warnings
from typing import Any, NoReturn

from fairseq import options as fairseq_options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf, gen_parser_from_dataclass
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf, open_dict

from codistill_ext.config import CodistillConfig
from codistill_ext.criterions.codistill_label_smoothed_ce import NAME, CodistillLabelSmoothedCEConfig
from codistill_ext.job import failures
from codistill_ext.job.settings import to_flags

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
    "tensorboard_logdir",
    "wandb_project",
    "task.data",
    "checkpoint.save_dir",
    "common.tensorboard_logdir",
    "common.wandb_project",
)
_NOTHING = object()
CRITERIONS = (NAME,)
_fairseq_parse_args_and_arch = fairseq_options.parse_args_and_arch


def parse_args_and_arch(parser: Any, input_args: list[str] | None = None, *args: Any, **kwargs: Any) -> Any:
    """In place of ``fairseq.options.parse_args_and_arch``: --help has the options of the method, whatever else is
    given; a wrong option is refused without fairseq's long usage; --bf16 is not only for TPUs.
    """
    parser.error = functools.partial(_refuse_option, parser, input_args)
    given = sys.argv[1:] if input_args is None else input_args
    if {"-h", "--help"} & set(given) and "--max-update" in parser._option_string_actions:
        _add_options(parser)  # fairseq prints the help before it knows the criterion
    parsed = _fairseq_parse_args_and_arch(parser, input_args, *args, **kwargs)
    options = parsed[0] if isinstance(parsed, tuple) else parsed
    if getattr(options, "criterion", None) in CRITERIONS:
        for module in r"hydra\.", "sys":  # 20 lines for each process about how fairseq uses hydra
            warnings.filterwarnings("ignore", category=UserWarning, module=module)
        if getattr(options, "bf16", False):
            options.tpu = "--tpu" in given  # fairseq takes the one for the other
        try:
            CodistillConfig.from_args(options)
        except ValueError as error:
            parser.error(str(error))
    return parsed


def _add_options(parser: Any) -> None:
    group = parser.add_argument_group(f"codistillation (--criterion {NAME})")
    gen_parser_from_dataclass(group, CodistillLabelSmoothedCEConfig())


def _refuse_option(parser: Any, input_args: list[str] | None, message: str) -> NoReturn:
    if "unrecognized arguments: " in message and "--codistill-" in message:
        criterion = parser.parse_known_args(input_args)[0].criterion
        if criterion not in CRITERIONS:
            message = f"options of codistillation need --criterion {CRITERIONS[0]}, not {criterion}"
    failures.refuse(parser, message)


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
