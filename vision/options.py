"""The command line: flags are named as torchvision's reference trainer names them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codistill_ext.config import CodistillConfig
from codistill_ext.job.failures import Parser
from codistill_ext.job.option_types import fraction
from codistill_ext.job.settings import read_settings, to_flags
from codistill_ext.schedules import Place, Schedule
from vision.budget import BUDGETS
from vision.checks import check_options
from vision.hyperparameters import GOYAL_MILESTONES
from vision.models import INITS, STRIDES
from vision.optim import OPTIMIZERS
from vision.option_presets import PRESETS, describe_preset, preset_flags

DATASETS = ("imagenet", "cifar10")
SCHEDULERS = ("multisteplr", "cosineannealinglr")
# What --codistill-settings may say of a single model; the rest is the job's: data, length, files.
OWN_OPTIONS = (
    "model stride_in init seed lr lr_scaling lr_scheduler lr_milestones lr_gamma lr_min lr_warmup_epochs "
    "lr_warmup_decay opt momentum weight_decay norm_weight_decay label_smoothing"
).split()

EPILOG = """
Learning rate: --lr is the rate after the warm-up, as it is used. With --lr-scaling linear it is that of
256 images: the rate is --lr * batch / 256, and above 256 images the warm-up begins at --lr. The batch is one
model's: --batch-size times --accumulate times the ranks of that model.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="vision.train",
        description="Train one or several codistilled picture classifiers. Start with torchrun for several.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_data(parser)
    _add_model(parser)
    _add_optimizer(parser)
    _add_schedule(parser)
    _add_run(parser)
    CodistillConfig.add_arguments(parser)
    return parser


@dataclass(frozen=True)
class Options:
    """The command line, and what of it differs between the models.

    Attributes:
        args: of the job; ``models``: of each model, by index.
        preset: what --preset has set, for the user to see; empty without one.
    """

    args: argparse.Namespace
    models: list[argparse.Namespace]
    config: CodistillConfig
    preset: str


def parse_options(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> Options:
    """Read and check the command line; a mistake ends the program with a message and status 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parse_one(parser, argv)
    try:
        config = CodistillConfig.from_args(args)
        settings = read_settings(config.settings, config.models)
        for index, options in enumerate(settings):
            _check_own(index, options)
        # A later flag replaces an earlier one, so each model's options are the job's and then its own.
        models = [_parse_one(parser, [*argv, *to_flags(options)]) for options in settings]
    except ValueError as error:
        parser.error(str(error))
    preset = describe_preset(args.preset, _given(argv), args.lr_scheduler) if args.preset else ""
    return Options(args, models, config, preset)


def _parse_one(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    args, given = parser.parse_args(argv), _given(argv)
    if args.preset:
        args = parser.parse_args([*preset_flags(args.preset, given, _scheduler(args, given)), *argv])
    try:
        check_options(args, given)
    except ValueError as error:
        parser.error(str(error))
    if args.workers is None:
        args.workers = 0 if args.dataset == "cifar10" else 4
    return args


def _scheduler(args: argparse.Namespace, given: set[str]) -> str:
    """The run's, whether the command line says it or the preset."""
    return str(args.lr_scheduler if "lr_scheduler" in given else PRESETS[args.preset]["lr-scheduler"])


def _check_own(index: int, options: dict[str, object]) -> None:
    unknown = [name for name in options if name not in OWN_OPTIONS]
    if unknown:
        raise ValueError(
            f"--codistill-settings gives model {index} {', '.join(unknown)}, which is the same for all models; "
            f"their own can be {', '.join(OWN_OPTIONS)}"
        )


def _given(argv: Sequence[str] | None) -> set[str]:
    """Names of the options that the command line sets itself, whatever their values."""
    parser = build_parser()
    unset = object()
    occupied = argparse.Namespace(**dict.fromkeys(vars(parser.parse_args([])), unset))
    return {name for name, value in vars(parser.parse_args(argv, occupied)).items() if value is not unset}


def plain_options(args: argparse.Namespace) -> dict[str, Any]:
    """All options as numbers, texts and lists of them, for files."""
    return {name: _plain(value) for name, value in vars(args).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Schedule):
        return value.plain
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | None) else str(value)


def schedule(text: str) -> Schedule:
    """The type of scheduled options on the command line."""
    try:
        return Schedule.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def place(text: str) -> Place:
    """The type of places in a run; a bare number is an epoch."""
    try:
        return Place.parse(text, unit="ep")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--dataset", choices=DATASETS, default="imagenet")
    group.add_argument(
        "--data-path",
        type=Path,
        help="imagenet: directory with train/CLASS/*.jpg and val/CLASS/*.jpg, or a pack of it by python -m vision.pack "
        "(needed). cifar10: where it is "
        "cached (default: $CODISTILL_DATA, else ~/.cache/codistill)",
    )
    group.add_argument(
        "--train-fraction",
        type=fraction,
        default="1",
        metavar="1/K",
        help="train on so much of each class, chosen by --seed; epochs keep the full data's length, so each makes K "
        "passes (default: 1)",
    )
    group.add_argument("-b", "--batch-size", type=int, default=32, help="images a process (default: 32)")
    group.add_argument(
        "--accumulate", type=int, default=1, metavar="N", help="mini-batches of an update, in turn (default: 1)"
    )
    group.add_argument(
        "-j", "--workers", type=int, help="loading processes (default: 4; 0 for cifar10, which is in memory)"
    )
    group.add_argument("--val-resize-size", type=int, default=256, help="default: 256")
    group.add_argument("--val-crop-size", type=int, default=224, help="default: 224")
    group.add_argument("--train-crop-size", type=int, default=224, help="default: 224")


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default="resnet50",
        help="a torchvision classification model, or for small pictures resnet20, resnet32, resnet44, "
        "resnet56, resnet110 (He et al. 2016, section 4.2), resnet8_stride2, resnet14_stride2 (default: "
        "resnet50)",
    )
    group.add_argument(
        "--stride-in",
        choices=STRIDES,
        default="3x3",
        help="where the bottlenecks of torchvision's ResNets halve the picture: 3x3, as Goyal et al. and torchvision "
        "itself, or 1x1, as He et al. (default: 3x3)",
    )
    group.add_argument(
        "--init",
        choices=INITS,
        default="goyal",
        help="initial values of torchvision's ResNets: the last gamma of each block 0 (zero-gamma), the classifier "
        "from N(0, 0.01) (small-classifier), both (goyal), or torchvision's own (default: goyal)",
    )
    group.add_argument("--device", default="auto", help="auto (default: CUDA if there is one), cuda or cpu")
    group.add_argument("--amp", action="store_true", help="autocast: 16-bit forward passes where safe")
    group.add_argument(
        "--amp-dtype",
        choices=("bfloat16", "float16"),
        default="bfloat16",
        help="float16 has a gradient scaler (default: bfloat16)",
    )
    group.add_argument("--compile", action="store_true", help="train through torch.compile")
    group.add_argument(
        "--sync-bn", action="store_true", help="BatchNorm over the mini-batches of all ranks of a model (GPUs)"
    )
    group.add_argument(
        "--ema-decay",
        type=float,
        metavar="DECAY",
        help="validate a moving average of the weights too, which keeps so much of itself at each update",
    )
    group.add_argument("--channels-last", action="store_true", help="store pictures as NHWC")


def _add_optimizer(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("optimizer")
    group.add_argument(
        "--opt",
        choices=OPTIMIZERS,
        default="sgd_nesterov",
        help="SGD with Nesterov's momentum or with plain momentum (default: sgd_nesterov)",
    )
    group.add_argument("--momentum", type=float, default=0.9, help="default: 0.9")
    group.add_argument(
        "--wd",
        "--weight-decay",
        dest="weight_decay",
        type=schedule,
        default="1e-4",
        metavar="SCHEDULE",
        help="a number, or a schedule such as 1e-4,1e-5,0: the next value at each decay of the learning rate "
        "(default: 1e-4)",
    )
    group.add_argument(
        "--norm-weight-decay",
        type=schedule,
        default="0",
        metavar="SCHEDULE",
        help="weight decay of normalisation layers' gamma and beta (default: 0, as Goyal et al.)",
    )
    group.add_argument(
        "--label-smoothing",
        type=schedule,
        default="0",
        metavar="SCHEDULE",
        help="a number, or a schedule such as 0.1~0@50%%: a straight line (default: 0)",
    )


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("schedule (set at every update)")
    group.add_argument("--epochs", type=float, default=90.0, help="fractions are allowed (default: 90)")
    group.add_argument(
        "--budget",
        choices=BUDGETS,
        default="equal-epochs",
        help="equal-epochs: each model trains --epochs; equal-updates: n models share the work of one, so each trains "
        "1/n of --epochs, and warm-up, milestones and places in epochs shrink with it (default: equal-epochs)",
    )
    group.add_argument("--max-updates", type=int, help="stop after so many updates, wherever the epoch is")
    group.add_argument("--lr", type=float, default=0.1, help="rate after the warm-up (default: 0.1)")
    group.add_argument(
        "--lr-scaling",
        choices=("none", "linear"),
        default="none",
        help="linear: --lr is that of 256 images, see below (default: none)",
    )
    group.add_argument("--lr-scheduler", choices=SCHEDULERS, default="multisteplr", help="default: multisteplr")
    group.add_argument(
        "--lr-milestones",
        type=place,
        nargs="+",
        default=list(GOYAL_MILESTONES),
        metavar="EPOCH",
        help="multisteplr: when the rate drops, in epochs of --epochs, or as 18of45, 40%%, 2000up (default: 30 60 80)",
    )
    group.add_argument("--lr-gamma", type=float, default=0.1, help="multisteplr: factor (default: 0.1)")
    group.add_argument("--lr-min", type=float, default=0.0, help="cosineannealinglr: last (default: 0)")
    group.add_argument("--lr-warmup-epochs", type=float, default=0.0, help="linear warm-up (default: 0)")
    group.add_argument(
        "--lr-warmup-decay",
        type=float,
        default=0.01,
        help="warm-up from this times --lr (default: 0.01)",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument(
        "--preset", choices=tuple(PRESETS), help="set many options at once and print them; a flag beside it wins"
    )
    group.add_argument("--output-dir", type=Path, default=Path("runs/vision"), help="default: runs/vision")
    group.add_argument(
        "--resume",
        default="",
        metavar="auto|PATH",
        help="continue the run in --output-dir if there is one (auto), or in another run's directory",
    )
    group.add_argument("--save-every-updates", type=int, help="checkpoint within epochs too")
    group.add_argument("--eval-every", type=int, default=1, metavar="EPOCHS", help="validate and save (default: 1)")
    group.add_argument("--print-freq", type=int, default=50, help="log every so many updates (default: 50)")
    group.add_argument("--test-only", action="store_true", help="evaluate --resume PATH and stop")
    group.add_argument("--seed", type=int, default=0, help="of weights and data (default: 0)")
    group.add_argument(
        "--deterministic",
        action="store_true",
        help="the same bits each time on CUDA too, by slower algorithms; an operation that has none is an error",
    )
