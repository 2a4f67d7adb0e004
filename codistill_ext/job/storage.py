"""Checkpoints that are there whole or not at all, with the one before beside them."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from codistill_ext.exchange.wire.whole_files import put_in_place, write_atomically


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint could not be read whole, and the one before it is used."""


def previous_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def keep_previous(path: Path) -> None:
    """Let the checkpoint at ``path`` also be its own previous one, before another takes its place."""
    if path.exists():
        put_in_place(path, previous_path(path))


def save_checkpoint(obj: Any, path: Path) -> None:
    """Save with ``torch.save``, whole or not at all, and keep the one before as ``*.previous.*``.

    Killed at any moment it leaves a whole file at ``path``, the old or the new one.
    """
    write_atomically(path, lambda file: torch.save(obj, file), before_rename=lambda: keep_previous(path))


def check_whole(path: Path) -> None:
    """Compare a file of ``torch.save`` with the checksums inside it (it is a zip archive; torch does not look).

    Raises:
        ValueError: the file is truncated or has changed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # which kind depends on where the damage is
        raise ValueError(f"not whole: {error}") from error
    if damaged is not None:
        raise ValueError(f"checksum mismatch in {damaged}")


def load_checkpoint(path: Path, map_location: str = "cpu") -> Any:
    """Load what ``save_checkpoint`` wrote, without unpickling classes; if damaged, the one before it.

    Raises:
        FileNotFoundError: neither is there.
        RuntimeError: neither is whole.
    """
    problems: list[str] = []
    for candidate in (path, previous_path(path)):
        if not candidate.exists():
            continue
        try:
            loaded = load_whole(candidate, map_location)
        except Exception as error:  # torch.load raises many kinds
            problems.append(f"{candidate.name}: {type(error).__name__}: {error}")
            continue
        if problems:
            warnings.warn(
                f"damaged checkpoint ({'; '.join(problems)}): using {candidate.name} in {path.parent} instead",
                DamagedCheckpointWarning,
                stacklevel=2,
            )
        return loaded
    if problems:
        raise RuntimeError(f"no whole checkpoint in {path.parent}: {'; '.join(problems)}")
    raise FileNotFoundError(f"no checkpoint {path}")


def load_whole(path: Path, map_location: str = "cpu") -> Any:
    """Load this very file, without unpickling classes.

    Raises:
        ValueError: it is damaged.
    """
    check_whole(path)
    return torch.load(path, map_location=map_location, weights_only=True)
