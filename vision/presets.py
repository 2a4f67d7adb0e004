"""Transforms of the two datasets."""

from __future__ import annotations

import torch
from torchvision.transforms import v2

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10_MEAN, CIFAR10_STD = (0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)


def _to_normalised_tensor() -> list[v2.Transform]:
    return [
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD)),
    ]


def imagenet_train(crop_size: int) -> v2.Transform:
    """Random-size crop and flip (Goyal et al., section 5.1)."""
    return v2.Compose(
        [v2.RandomResizedCrop(crop_size, antialias=True), v2.RandomHorizontalFlip(), *_to_normalised_tensor()]
    )


def imagenet_val(resize_size: int, crop_size: int) -> v2.Transform:
    return v2.Compose([v2.Resize(resize_size, antialias=True), v2.CenterCrop(crop_size), *_to_normalised_tensor()])
