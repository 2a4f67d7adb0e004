"""The same key gives the same tensor, in any process; another epoch another one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from codistill_ext import CodistillConfig
from codistill_ext.groups import ModelGroups
from codistill_ext.sampling import CodistillSampler
from tests.vision.small import small_cifar10, write_folders
from vision import presets
from vision.datasets import KeySampler, Pictures, SeededCrops, SeededFolder, load_data
from vision.options import build_parser, parse_options


def _folder(tmp_path: Path) -> SeededFolder:
    write_folders(tmp_path)
    return SeededFolder(ImageFolder(str(tmp_path / "train"), transform=presets.imagenet_train(24)))


def _crops() -> SeededCrops:
    cifar = small_cifar10()
    return SeededCrops(cifar["train_images"], cifar["train_labels"])


def _epochs(dataset: Any, workers: int, *, count: int = 2, position: int = 0) -> list[list[Tensor]]:
    groups = ModelGroups.create(CodistillConfig())
    sampler = CodistillSampler(len(dataset), groups, CodistillConfig(), seed=3)
    loader = DataLoader(
        dataset,
        batch_size=4,
        sampler=KeySampler(sampler),
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator(),
    )
    epochs = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        sampler.set_position(position)
        epochs.append([images for images, _ in loader])
    return epochs


@pytest.mark.parametrize("kind", ["folder", "crops"])
def test_workers_make_no_difference_and_the_main_random_state_is_kept(kind: str, tmp_path: Path) -> None:
    dataset = _folder(tmp_path) if kind == "folder" else _crops()
    before = torch.get_rng_state()
    alone = _epochs(dataset, workers=0)
    assert torch.equal(torch.get_rng_state(), before)
    helped = _epochs(dataset, workers=2)
    for first, second in zip(alone, helped, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", ["folder", "crops"])
def test_the_epoch_changes_the_augmentation(kind: str, tmp_path: Path) -> None:
    dataset: Any = _folder(tmp_path) if kind == "folder" else _crops()
    again, other = dataset[(0, 11)][0], dataset[(0, 12)][0]
    assert torch.equal(dataset[(0, 11)][0], again)
    assert not torch.equal(again, other)


def test_an_epoch_that_begins_in_the_middle_ends_the_same() -> None:
    whole = _epochs(_crops(), workers=0, count=1)[0]
    rest = _epochs(_crops(), workers=0, count=1, position=8)[0]
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], rest, strict=True))


def test_crops_are_windows_of_the_padded_picture() -> None:
    cifar = small_cifar10()
    dataset, plain = _crops(), Pictures(cifar["train_images"], cifar["train_labels"])
    padded = torch.nn.functional.pad(cifar["train_images"][5], (4, 4, 4, 4))
    candidates = torch.stack([padded[:, i : i + 32, j : j + 32] for i in range(9) for j in range(9)])
    candidates = torch.cat([candidates, candidates.flip(-1)])
    found = set()
    for seed in range(400):
        image, label = dataset[(5, seed)]
        matches = (candidates == image).flatten(1).all(dim=1).nonzero().flatten().tolist()
        assert len(matches) == 1 and label == plain[5][1]
        found.add(matches[0])
    assert len(found) > 120  # of 162; 400 uniform draws miss 14 on average


@pytest.mark.parametrize(
    "dataset,mean,std",
    [
        ("cifar10", presets.CIFAR10_MEAN, presets.CIFAR10_STD),
        ("imagenet", presets.IMAGENET_MEAN, presets.IMAGENET_STD),
    ],
)
def test_normalisation_is_that_of_torchvision(dataset: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    pixels = small_cifar10()["test_images"]
    expected = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean=mean, std=std)])(pixels)
    normalise = presets.Normalise(dataset, torch.device("cpu"))
    torch.testing.assert_close(normalise(pixels), expected)
    last = normalise(pixels.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last) and torch.equal(last, normalise(pixels))


def test_labels_are_known_without_opening_a_picture(tmp_path: Path) -> None:
    assert _folder(tmp_path).labels == 6 * [0] + 6 * [1]
    assert _crops().labels == [index % 10 for index in range(38)]


def test_missing_and_odd_folders(tmp_path: Path) -> None:
    args = parse_options(build_parser(), ["--data-path", str(tmp_path)]).args
    with pytest.raises(ValueError, match="train is not a directory: --data-path must hold train/CLASS"):
        load_data(args)
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="must hold a directory of pictures for each class"):
        load_data(args)
    (tmp_path / "train").rmdir()
    write_folders(tmp_path)
    (tmp_path / "val" / "dog").rename(tmp_path / "val" / "hog")
    with pytest.raises(ValueError, match=r"same class directories; only one has \['dog', 'hog'\]"):
        load_data(args)
