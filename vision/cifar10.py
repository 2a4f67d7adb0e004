"""CIFAR-10 (Krizhevsky, 2009) in one checked file outside the checkout, fetched when it is missing.

``python -m vision.cifar10 [--data-path DIR]`` fetches it beforehand, for machines without a network.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from codistill_ext.exchange.wire.whole_files import write_atomically
from codistill_ext.job.failures import Parser
from vision.cifar10_sources import SOURCES, Source
from vision.fetch_once import fetch_once
from vision.retrying import Failure, FetchError, Pause, first_delivered

# Of the pictures and labels themselves, so it holds for every source and every file format.
DIGEST = "32e5966899bde482c0ef7d076bf69809b4b1488c806f657a814cfca4646ec493"
PARTS = ("train_images", "train_labels", "test_images", "test_labels")
SPACE_NEEDED = 700_000_000


def load_cifar10(root: Path | None = None, *, pause: Pause = time.sleep) -> dict[str, Tensor]:
    """All of CIFAR-10, uint8: ``train_images`` (50000, 3, 32, 32), ``train_labels`` (50000,), ``test_*``.

    Any number of processes may call it at once: one fetches, the others wait for it.

    Args:
        root: where to keep it; by default $CODISTILL_DATA, else ~/.cache/codistill.
        pause: waits so many seconds between two tries.

    Raises:
        ValueError: it is not there and cannot be fetched; says what to do.
    """
    path = cache_path(root)
    return fetch_once(path, lambda: _read(path), lambda: _fetch(path, pause))


def cache_path(root: Path | None = None) -> Path:
    chosen = root or os.environ.get("CODISTILL_DATA") or "~/.cache/codistill"
    return Path(chosen).expanduser() / "cifar10" / "cifar10.pt"


def digest(parts: Mapping[str, Tensor]) -> str:
    """SHA-256 over the bytes of the four tensors."""
    total = hashlib.sha256()
    for name in PARTS:
        total.update(parts[name].contiguous().numpy().data)
    return total.hexdigest()


def _read(path: Path) -> dict[str, Tensor] | None:
    """The cached tensors, or None when they are missing or damaged."""
    try:
        # Mapped, so that the processes of a machine share one copy.
        parts = torch.load(path, weights_only=True, mmap=True)
        return dict(parts) if digest(parts) == DIGEST else None
    except Exception:  # torch.load raises many kinds for damaged files
        return None


def _fetch(path: Path, pause: Pause) -> None:
    """Put it at ``path``. What a try that failed leaves in ``fetching/`` is used by the next, of any later start."""
    if path.exists():
        print(f"{path} is damaged: fetching CIFAR-10 again", file=sys.stderr)
    _check_room(path.parent)
    print(f"fetching CIFAR-10 (up to 171 MB) into {path.parent}", file=sys.stderr)
    scratch = path.parent / "fetching"
    sources = {name: functools.partial(_checked, source, scratch) for name, source in SOURCES.items()}
    try:
        parts = first_delivered("CIFAR-10", sources, pause)
    except FetchError as error:
        raise ValueError(
            f"{error}. Start again when the network is back, fetch it beforehand with `python -m vision.cifar10`, "
            f"or copy cifar10.pt from another machine to {path}"
        ) from error
    try:
        write_atomically(path, lambda file: torch.save(parts, file))
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's, when the disk is full
        raise ValueError(f"CIFAR-10 came but could not be written to {path}: {error}") from error
    shutil.rmtree(scratch, ignore_errors=True)


def _check_room(directory: Path) -> None:
    free = shutil.disk_usage(directory).free
    if free < SPACE_NEEDED:
        raise ValueError(
            f"CIFAR-10 needs {SPACE_NEEDED // 10**6} MB in {directory}, which has {free // 10**6} MB free: "
            "make room or choose another --data-path"
        )


def _checked(source: Source, scratch: Path) -> dict[str, Tensor]:
    parts = source(scratch)
    found = digest(parts)
    if found != DIGEST:
        raise FetchError(f"what came is not CIFAR-10 (checksum {found[:16]}, not {DIGEST[:16]})", Failure.DOUBTFUL)
    return parts


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(
        prog="python -m vision.cifar10", description="Fetch CIFAR-10, or check that it is there, and say where."
    )
    parser.add_argument(
        "--data-path", type=Path, metavar="DIR", help="default: $CODISTILL_DATA, else ~/.cache/codistill"
    )
    root = parser.parse_args(argv).data_path
    try:
        load_cifar10(root)
    except ValueError as error:
        sys.exit(f"stopped: {error}")
    print(f"CIFAR-10 is in {cache_path(root)}")


if __name__ == "__main__":
    main()
