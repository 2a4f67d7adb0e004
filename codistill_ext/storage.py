"""Files that are there whole or not at all."""

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint could not be read whole, and the one before it is used."""


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write into a temporary neighbour, flush it to the disk and rename it to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's files are private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Make a rename survive a power cut, where the file system knows how."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems cannot sync a directory
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: _write(file, text.encode()))


def _write(file: IO[bytes], data: bytes) -> None:
    file.write(data)


def previous_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_checkpoint(obj: Any, path: Path) -> None:
    """Save with ``torch.save``, whole or not at all, and keep the one before as ``*.previous.*``."""
    new = path.with_name(path.name + ".new")
    write_atomically(new, lambda file: torch.save(obj, file))
    write_text(_digest_path(new), _digest(new))
    for suffix in ("", ".sha256"):
        current = path.with_name(path.name + suffix)
        if current.exists():
            previous = previous_path(path)
            os.replace(current, previous.with_name(previous.name + suffix))
    os.replace(_digest_path(new), _digest_path(path))
    os.replace(new, path)
    _sync_directory(path.parent)


def load_checkpoint(path: Path, map_location: str = "cpu") -> Any:
    """Load what ``save_checkpoint`` wrote, without unpickling classes; if damaged, the one before it.

    Raises:
        FileNotFoundError: neither is there.
        RuntimeError: neither is whole.
    """
    # The last two are what an interruption between the renames of save_checkpoint leaves behind.
    candidates = [path, path.with_name(path.name + ".new"), previous_path(path)]
    problems: list[str] = []
    for candidate in candidates:
        if not candidate.exists():
            continue
        try:
            loaded = _load_whole(candidate, map_location)
        except Exception as error:  # torch.load raises many kinds for damaged files
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


def _load_whole(path: Path, map_location: str) -> Any:
    digest_path = _digest_path(path)
    if digest_path.exists() and digest_path.read_text().strip() != _digest(path):
        raise ValueError("checksum mismatch, the file is not what was written")
    return torch.load(path, map_location=map_location, weights_only=True)
