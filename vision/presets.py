"""Transforms of the two datasets; what is normalised is a whole batch, on its device."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10_MEAN, CIFAR10_STD = (0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)


def imagenet_train(crop_size: int) -> v2.Transform:
    """Random-size crop and flip (Goyal et al., section 5.1), as uint8."""
    return v2.Compose([v2.RandomResizedCrop(crop_size, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()])


def imagenet_val(resize_size: int, crop_size: int) -> v2.Transform:
    return v2.Compose([v2.Resize(resize_size, antialias=True), v2.CenterCrop(crop_size), v2.PILToTensor()])


class Normalise:
    """Pixels 0..255 of shape (B, 3, H, W) to floats with mean 0 and standard deviation 1 over the dataset.

    A quarter of the bytes cross to the workers' parent and to the device, and no worker touches a float.
    """

    def __init__(self, dataset: str, device: torch.device) -> None:
        mean, std = (CIFAR10_MEAN, CIFAR10_STD) if dataset == "cifar10" else (IMAGENET_MEAN, IMAGENET_STD)
        self._mean_C11 = (torch.tensor(mean).view(3, 1, 1) * 255).to(device)
        self._scale_C11 = (1 / (torch.tensor(std).view(3, 1, 1) * 255)).to(device)

    def __call__(self, pixels_BCHW: Tensor) -> Tensor:
        return (pixels_BCHW - self._mean_C11) * self._scale_C11
