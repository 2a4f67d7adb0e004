"""Small data and small runs for the tests of the picture trainer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from codistill_ext.job.storage import load_checkpoint
from tests.states import without
from vision import datasets
from vision.options import build_parser, parse_options
from vision.run import prepare

CIFAR = ["--dataset", "cifar10", "--model", "resnet8_stride2", "--device", "cpu", "-b", "8", "--lr", "0.05"]
PLAIN = [*CIFAR, "--epochs", "3", "--lr-scheduler", "cosineannealinglr", "--print-freq", "2"]
BATCHES_AN_EPOCH = 5


def small_cifar10(root: Path | None = None) -> dict[str, Tensor]:
    """38 training pictures, 5 batches of 8 with the last one short, and 21 for validation."""
    generator = torch.Generator().manual_seed(5)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        pictures = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return pictures, torch.arange(count, dtype=torch.uint8) % 10

    train_images, train_labels = draw(38)
    test_images, test_labels = draw(21)
    return {
        "train_images": train_images,
        "train_labels": train_labels,
        "test_images": test_images,
        "test_labels": test_labels,
    }


def run(argv: Sequence[str]) -> int:
    """What ``vision.train`` does, without starting a process group, on small data; the program's status."""
    options = parse_options(build_parser(), argv)
    with mock.patch.object(datasets, "load_cifar10", small_cifar10):
        return prepare(options)()


def run_rank(rank: int, *argvs: Sequence[str]) -> None:
    """For ``run_ranks``: one run after the other."""
    for argv in argvs:
        run(argv)
        dist.barrier()  # or a rank would look for files that another still writes


def final_state(directory: Path, model: int = 0) -> dict[str, Any]:
    """The last checkpoint without what time and place leave in it."""
    state: dict[str, Any] = load_checkpoint(directory / f"model{model}" / "checkpoint.pt")
    del state["seconds"]
    return without(state, ("taken_at",))


def write_folders(root: Path, *, train: int = 6, val: int = 4, size: int = 40) -> None:
    """An ImageFolder with two classes of noise."""
    generator = torch.Generator().manual_seed(7)
    for split, count in (("train", train), ("val", val)):
        for name in ("cat", "dog"):
            directory = root / split / name
            directory.mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(0, 256, (size, size, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(directory / f"{index}.png")
