"""Optimizer and learning rate of Goyal et al."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import nn

from codistill_ext.schedules import warmup_cosine_lr, warmup_steps_lr

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)


def build_optimizer(
    model: nn.Module, *, lr: float, momentum: float, weight_decay: float, norm_weight_decay: float
) -> torch.optim.SGD:
    """SGD with Nesterov momentum; normalisation layers have a weight decay of their own."""
    norms: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in model.modules():
        owned = [p for p in module.parameters(recurse=False) if p.requires_grad]
        (norms if isinstance(module, _NORMS) else others).extend(owned)
    groups = [
        {"params": others, "weight_decay": weight_decay},
        {"params": norms, "weight_decay": norm_weight_decay},
    ]
    return torch.optim.SGD([g for g in groups if g["params"]], lr=lr, momentum=momentum, nesterov=True)


def build_schedule(args: argparse.Namespace) -> Callable[[float], float]:
    """The learning rate as a function of progress in epochs, fractions included."""
    warmup_start = args.lr * args.lr_warmup_decay

    def steps(progress: float) -> float:
        return warmup_steps_lr(
            progress,
            base=args.lr,
            milestones=args.lr_milestones,
            gamma=args.lr_gamma,
            warmup=args.lr_warmup_epochs,
            warmup_start=warmup_start,
        )

    def cosine(progress: float) -> float:
        return warmup_cosine_lr(
            progress,
            base=args.lr,
            total=args.epochs,
            warmup=args.lr_warmup_epochs,
            warmup_start=warmup_start,
            minimum=args.lr_min,
        )

    return steps if args.lr_scheduler == "multisteplr" else cosine


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
