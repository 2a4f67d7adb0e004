"""What the command line must fulfil before anything runs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from codistill_ext.job.failures import nearest
from vision.models import has_bottlenecks, is_resnet, model_names

_IMAGE_SIZES = ("val_resize_size", "val_crop_size", "train_crop_size")
_TRAINING = (
    "preset train_fraction accumulate init compile sync_bn ema_decay budget epochs max_updates "
    "lr lr_scaling lr_scheduler lr_milestones lr_gamma lr_min lr_warmup_epochs lr_warmup_decay "
    "opt momentum weight_decay norm_weight_decay label_smoothing eval_every save_every_updates print_freq"
).split()
_FLAGS = {"weight_decay": "--weight-decay"}


def check_options(args: argparse.Namespace, given: set[str]) -> None:
    """Check values, and that each of the ``given`` options has an effect.

    Raises:
        ValueError: says what was expected, what came and what to change.
    """
    _check_values(args)
    _check_model(args.model)
    _check_effects(args, given)
    _check_device(args.device)
    if args.dataset == "imagenet" and args.data_path is None:
        raise ValueError("--dataset imagenet needs --data-path, a directory with train/CLASS/* and val/CLASS/*")
    if args.test_only and not args.resume:
        raise ValueError("--test-only needs --resume: the directory of the run to evaluate, or auto")


def _check_values(args: argparse.Namespace) -> None:
    for name, value in vars(args).items():
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ValueError(f"{_flag(name)} must be a finite number, not {value}")
    for name in ("batch_size", "accumulate", "eval_every", "print_freq", "max_updates", "save_every_updates"):
        _require(args, name, "at least 1", lambda value: value >= 1)
    for name in _IMAGE_SIZES:
        _require(args, name, "at least 1", lambda value: value >= 1)
    for name in ("workers", "seed", "lr_min", "lr_warmup_epochs"):
        _require(args, name, "0 or more", lambda value: value >= 0)
    for name in ("lr", "epochs"):
        _require(args, name, "more than 0", lambda value: value > 0)
    if args.opt == "sgd_nesterov":
        _require(args, "momentum", "between 0 and 1, both excluded (Nesterov)", lambda value: 0 < value < 1)
    _require(args, "momentum", "0 or more and less than 1", lambda value: 0 <= value < 1)
    _require(args, "label_smoothing", "less than 1 throughout", lambda schedule: max(schedule.values) < 1)
    _require(args, "ema_decay", "between 0 and 1, both excluded", lambda value: 0 < value < 1)
    _require(args, "lr_gamma", "more than 0", lambda value: value > 0)
    _require(args, "lr_warmup_decay", "between 0 and 1", lambda value: 0 <= value <= 1)
    _require(args, "lr_min", f"at most --lr {args.lr}", lambda value: value <= args.lr)
    _require(args, "lr_warmup_epochs", f"at most --epochs {args.epochs:g}", lambda value: value <= args.epochs)
    if args.val_resize_size < args.val_crop_size:
        raise ValueError(
            f"--val-resize-size must be at least --val-crop-size, not {args.val_resize_size} and "
            f"{args.val_crop_size}: give both"
        )


def _require(args: argparse.Namespace, name: str, wanted: str, holds: Callable[[Any], bool]) -> None:
    value = getattr(args, name)
    if value is not None and not holds(value):
        raise ValueError(f"{_flag(name)} must be {wanted}, not {value}")


def _check_effects(args: argparse.Namespace, given: set[str]) -> None:
    def refuse(names: Iterable[str], circumstance: str) -> None:
        useless = [_flag(name) for name in names if name in given]
        if useless:
            verb = "has" if len(useless) == 1 else "have"
            raise ValueError(f"{', '.join(useless)} {verb} no effect {circumstance}: leave it out")

    if args.dataset == "cifar10":
        refuse(_IMAGE_SIZES, "with --dataset cifar10, whose pictures are 32x32")
    if args.test_only:
        keeps = "codistill_models codistill_placement codistill_timeout codistill_exchange codistill_dir".split()
        keeps.append("codistill_model_index")
        coupling = [name for name in given if name.startswith("codistill_") and name not in keeps]
        refuse([*_TRAINING, *sorted(coupling)], "with --test-only")
        if args.resume != "auto":
            refuse(["output_dir"], "with --test-only, which writes nothing")
    if args.lr_scheduler == "multisteplr":
        refuse(["lr_min"], "with --lr-scheduler multisteplr")
    else:
        refuse(["lr_milestones", "lr_gamma"], f"with --lr-scheduler {args.lr_scheduler}")
    if args.lr_scaling == "linear":
        refuse(["lr_warmup_decay"], "with --lr-scaling linear, whose warm-up begins at --lr")
    if not is_resnet(args.model):
        refuse(["init"], f"with --model {args.model}, which is none of torchvision's ResNets")
    if not has_bottlenecks(args.model):
        refuse(["stride_in"], f"with --model {args.model}, which has no bottlenecks of torchvision's ResNets")
    if args.lr_warmup_epochs == 0:
        refuse(["lr_warmup_decay"], "without --lr-warmup-epochs")
    if not args.amp:
        refuse(["amp_dtype"], "without --amp")
    unreached = [place for place in args.lr_milestones if place.unit == "ep" and place.amount >= args.epochs]
    if "lr_milestones" in given and unreached:
        raise ValueError(
            f"--lr-milestones {' '.join(map(str, unreached))} has no effect in {args.epochs:g} epochs: "
            "leave it out or train longer"
        )


def _check_model(name: str) -> None:
    names = model_names()
    if name not in names:
        near = nearest(name, names)
        known = "a torchvision classification model, or a resnet for small pictures"
        raise ValueError(f"--model {name} is unknown: " + (f"did you mean {near}?" if near else f"give {known}"))


def _check_device(name: str) -> None:
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device is auto, cuda or cpu, not {name}: torchrun gives each its GPU")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda, but PyTorch sees no GPU here: use --device cpu or check the driver")


def _flag(name: str) -> str:
    return _FLAGS.get(name, "--" + name.replace("_", "-"))
