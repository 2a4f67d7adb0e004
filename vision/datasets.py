"""Datasets whose augmentation depends on the sample and the epoch, not on the process that loads it.

A training sample is asked for by its *key* ``(index, seed)``, where the sampler derives the seed from
the data seed, the pass over the data and the index. The key alone determines the tensor, so ranks, workers and
resumed runs need no common state to see the same pictures.
Shapes: N pictures, B batch, C channels, H and W height and width.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from codistill_ext.sampling import CodistillSampler, sample_seed
from vision import presets
from vision.cifar10 import load_cifar10
from vision.packed import MANIFEST, PackedFolder

Key = tuple[int, int]


class Folder(Protocol):
    """Pictures by index, as torchvision's ImageFolder and a pack of it have them."""

    classes: list[str]
    targets: list[int]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Any, int]: ...


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a run reads: training data by key, validation data by index; pixels are uint8."""

    train: SeededFolder | SeededCrops
    valid: Folder | Pictures
    num_classes: int
    image_sizes: tuple[int, ...]  # in training, in validation


class KeySampler(Sampler[Key]):
    """A CodistillSampler that yields keys."""

    def __init__(self, sampler: CodistillSampler) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Key]:
        seed = self.sampler.seed
        return ((index, sample_seed(seed, number, index)) for index, number in self.sampler.with_passes())


class SeededFolder(Dataset[tuple[Tensor, int]]):
    """A folder whose random transforms are seeded sample by sample."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.labels: list[int] = folder.targets

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        index, seed = key
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reseed the GPUs too, and with them the model's dropout.
            torch.default_generator.manual_seed(seed)
            sample: tuple[Tensor, int] = self.folder[index]
            return sample


class Pictures(Dataset[tuple[Tensor, int]]):
    """Pictures in memory, uint8 (N, C, H, W)."""

    def __init__(self, pictures_NCHW: Tensor, labels_N: Tensor) -> None:
        self.pictures_NCHW = pictures_NCHW
        self.labels = labels_N.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        return self._labelled(self.pictures_NCHW[list(indices)], indices)

    def _labelled(self, pictures_BCHW: Tensor, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        return list(zip(pictures_BCHW, (self.labels[i] for i in indices), strict=True))


class SeededCrops(Pictures):
    """Random crops of the padded picture, and flips, drawn sample by sample.

    torchvision's transforms cost 0.4 ms a sample when each is seeded, more than a small net's
    own time on a GPU; a batch at once costs a twentieth of it.
    """

    def __init__(self, pictures_NCHW: Tensor, labels_N: Tensor, *, padding: int = 4) -> None:
        super().__init__(pictures_NCHW, labels_N)
        self.padding = padding

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:  # type: ignore[override]
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[tuple[Tensor, int]]:  # type: ignore[override]
        indices = [index for index, _ in keys]
        crops_BCHW = self._crop(self.pictures_NCHW[indices], _draw([seed for _, seed in keys]))
        return self._labelled(crops_BCHW, indices)

    def _crop(self, pictures_BCHW: Tensor, uniform_B3: Tensor) -> Tensor:
        batch, channels, height, width = pictures_BCHW.shape
        padded_BCHW = F.pad(pictures_BCHW, (self.padding,) * 4)
        top_B, left_B = (uniform_B3[:, :2] * (2 * self.padding + 1)).long().unbind(1)
        rows_BH = top_B[:, None] + torch.arange(height)
        columns_BW = left_B[:, None] + torch.arange(width)
        flip_B = uniform_B3[:, 2] < 0.5
        columns_BW = torch.where(flip_B[:, None], columns_BW.flip(1), columns_BW)
        pixels_BHW = rows_BH[:, :, None] * padded_BCHW.shape[3] + columns_BW[:, None, :]
        flat_BCP = padded_BCHW.flatten(2)
        pixels_BCP = pixels_BHW.flatten(1)[:, None, :].expand(-1, channels, -1)
        return flat_BCP.gather(2, pixels_BCP).view(batch, channels, height, width)


def _draw(seeds: Sequence[int]) -> Tensor:
    """Uniform numbers (B, 3) for top, left and flip, a row from each sample's own seed."""
    generator = torch.Generator()
    uniform_B3 = torch.empty(len(seeds), 3)
    for row, seed in zip(uniform_B3, seeds, strict=True):
        row.uniform_(generator=generator.manual_seed(seed))
    return uniform_B3


def load_data(args: argparse.Namespace) -> Data:
    """Open the dataset of the command line.

    Raises:
        ValueError: it is not there, or not as it should be.
    """
    if args.dataset == "cifar10":
        return _load_cifar10(args.data_path)
    return _load_imagenet(args)


def _load_cifar10(root: Path | None) -> Data:
    cifar = load_cifar10(root)
    return Data(
        train=SeededCrops(cifar["train_images"], cifar["train_labels"]),
        valid=Pictures(cifar["test_images"], cifar["test_labels"]),
        num_classes=10,
        image_sizes=(32,),
    )


def _load_imagenet(args: argparse.Namespace) -> Data:
    train = open_split(args.data_path, "train", presets.imagenet_train(args.train_crop_size))
    valid = open_split(args.data_path, "val", presets.imagenet_val(args.val_resize_size, args.val_crop_size))
    if train.classes != valid.classes:
        odd = sorted(set(train.classes) ^ set(valid.classes))
        raise ValueError(
            f"{args.data_path}: train and val must have the same class directories; only one has {odd[:5]}"
        )
    return Data(
        train=SeededFolder(train),
        valid=valid,
        num_classes=len(train.classes),
        image_sizes=(args.train_crop_size, args.val_crop_size),
    )


def open_split(root: Path, split: str, transform: v2.Transform) -> Folder:
    path = root / split
    if (root / MANIFEST).exists() or any(path.glob("*.arrow")):
        return PackedFolder(root, split, transform)
    if not path.is_dir():
        raise ValueError(f"{path} is not a directory: --data-path must hold train/CLASS/* and val/CLASS/*")
    try:
        return ImageFolder(str(path), transform=transform)
    except FileNotFoundError as error:
        raise ValueError(f"{path} must hold a directory of pictures for each class: {error}") from error
