"""What a trainer is put together from: the module, the wrapper around it, and the training data in its order."""

from __future__ import annotations

import argparse
from fractions import Fraction
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from codistill_ext.config import CodistillConfig
from codistill_ext.groups import ModelGroups
from codistill_ext.job.partition import check_partition
from codistill_ext.parallel import CodistillParallel
from codistill_ext.sampling import CodistillSampler
from codistill_ext.schedules import Horizon
from vision.datasets import Data, KeySampler
from vision.device import Place
from vision.models import build_described, build_model, describe_model
from vision.preemption import ignore_signals
from vision.subset import training_samples
from vision.sync_bn import check_sync_bn, with_sync_bn


def build_module(args: argparse.Namespace, data: Data, groups: ModelGroups, place: Place) -> nn.Module:
    """New weights from the global random state, on the device.

    Raises:
        ValueError: the model does not fit the pictures or the device.
    """
    if args.sync_bn:
        check_sync_bn(groups, place.device)
    module = build_model(
        args.model,
        num_classes=data.num_classes,
        image_sizes=data.image_sizes,
        init=args.init,
        stride_in=args.stride_in,
    )
    module = place.put_module(module)
    return with_sync_bn(module, groups) if args.sync_bn else module


def wrap(
    module: nn.Module,
    args: argparse.Namespace,
    data: Data,
    groups: ModelGroups,
    place: Place,
    config: CodistillConfig,
    horizon: Horizon,
) -> CodistillParallel:
    """The module among its ranks and its peers, compiled if it is to be. All ranks of the job must call it."""
    model = CodistillParallel(
        module,
        groups,
        config,
        description=describe_model(
            args.model, num_classes=data.num_classes, image_sizes=data.image_sizes, stride_in=args.stride_in
        ),
        build_peer=lambda peer: place.put_module(build_described(peer, num_classes=data.num_classes)),
        horizon=horizon,
    )
    if args.compile:
        model.module.compile()  # in place: names in states and copies for teachers stay as they are
    return model


def build_sampler(
    args: argparse.Namespace, data: Data, groups: ModelGroups, config: CodistillConfig, seed: int
) -> CodistillSampler:
    """The order of this rank's samples. All ranks of the job must call it.

    An epoch is as long as the full data whatever a model has of it, and so are schedules and the number of updates:
    --epochs E with 1/k of the data is E times k passes.
    """
    samples = training_samples(data.train.labels, Fraction(args.train_fraction), seed)
    check_partition(samples, config, groups, seed)
    total = len(data.train)
    return CodistillSampler(total, groups, config, seed=seed, samples=samples, epoch_samples=total)


def train_loader(sampler: CodistillSampler, args: argparse.Namespace, data: Data, place: Place) -> Any:
    return DataLoader(
        data.train,
        batch_size=args.batch_size,
        sampler=KeySampler(sampler),
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        pin_memory=place.pin_memory,
        worker_init_fn=ignore_signals,
        generator=torch.Generator(),  # or it would draw from the state that dropout uses
    )
