"""CIFAR-10 (Krizhevsky, 2009) in one checked file outside the checkout, fetched when it is missing."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from codistill_ext.exchange.wire.whole_files import write_atomically
from vision.cifar10_sources import SOURCES, FetchError

# Of the pictures and labels themselves, so it holds for every source and every file format.
DIGEST = "32e5966899bde482c0ef7d076bf69809b4b1488c806f657a814cfca4646ec493"
PARTS = ("train_images", "train_labels", "test_images", "test_labels")
SPACE_NEEDED = 700_000_000


def load_cifar10(root: Path | None = None) -> dict[str, Tensor]:
    """All of CIFAR-10, uint8: ``train_images`` (50000, 3, 32, 32), ``train_labels`` (50000,), ``test_*``.

    Any number of processes may call it at once: one fetches, the others wait.

    Args:
        root: where to keep it; by default $CODISTILL_DATA, else ~/.cache/codistill.

    Raises:
        ValueError: it is not there and cannot be fetched; says what to do.
    """
    path = cache_path(root)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot keep CIFAR-10 in {path.parent} ({error}): choose another --data-path") from error
    with _locked(path.with_suffix(".lock")):
        found = _read(path)
        return found if found is not None else _fetch(path)


def cache_path(root: Path | None = None) -> Path:
    chosen = root or os.environ.get("CODISTILL_DATA") or "~/.cache/codistill"
    return Path(chosen).expanduser() / "cifar10" / "cifar10.pt"


def digest(parts: Mapping[str, Tensor]) -> str:
    """SHA-256 over the bytes of the four tensors."""
    total = hashlib.sha256()
    for name in PARTS:
        total.update(parts[name].contiguous().numpy().data)
    return total.hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the process ends, however it ends
        yield


def _read(path: Path) -> dict[str, Tensor] | None:
    """The cached tensors, or None when they are missing or damaged."""
    if not path.exists():
        return None
    try:
        # Mapped, so that the processes of a machine share one copy.
        parts = torch.load(path, weights_only=True, mmap=True)
        if digest(parts) == DIGEST:
            return dict(parts)
    except Exception:  # torch.load raises many kinds for damaged files
        pass
    print(f"{path} is damaged: fetching CIFAR-10 again", file=sys.stderr)
    return None


def _fetch(path: Path) -> dict[str, Tensor]:
    free = shutil.disk_usage(path.parent).free
    if free < SPACE_NEEDED:
        raise ValueError(
            f"CIFAR-10 needs {SPACE_NEEDED // 10**6} MB in {path.parent}, which has {free // 10**6} MB free: "
            "make room or choose another --data-path"
        )
    failures = []
    for name, source in SOURCES.items():
        print(f"fetching CIFAR-10 by {name} into {path.parent}", file=sys.stderr)
        try:
            with _scratch(path.parent) as scratch:
                parts = source(scratch)
        except FetchError as error:
            failures.append(f"{name}: {error}")
            continue
        if digest(parts) != DIGEST:
            failures.append(f"{name}: what came is not CIFAR-10 (checksum {digest(parts)[:16]}, not {DIGEST[:16]})")
            continue
        write_atomically(path, lambda file, parts=parts: torch.save(parts, file))  # type: ignore[misc]
        return parts
    raise ValueError(
        "CIFAR-10 is not here and could not be fetched: "
        + "; ".join(failures)
        + f". Connect to the network, or copy cifar10.pt from another machine to {path}"
    )


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A directory that is gone afterwards; what a killed process left behind goes too."""
    directory = parent / "fetching"  # one name is enough: the lock is held
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
