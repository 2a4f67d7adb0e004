"""Files that are there whole or not at all."""

import contextlib
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

_TEMPORARY = ".tmp"


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint could not be read whole, and the one before it is used."""


def write_atomically(
    path: Path, write: Callable[[IO[bytes]], None], *, before_rename: Callable[[], None] | None = None
) -> None:
    """Write into a temporary neighbour, flush it to the disk and rename it to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary_neighbour(path) as temporary:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if before_rename is not None:
            before_rename()
        os.replace(temporary, path)
    _sync_directory(path.parent)


@contextlib.contextmanager
def _temporary_neighbour(path: Path) -> Iterator[Path]:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_TEMPORARY, dir=path.parent)
    os.close(descriptor)
    os.chmod(name, 0o644)  # mkstemp's files are private
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def remove_leftovers(directory: Path) -> None:
    """Remove what killed writers left behind; nobody may be writing there."""
    for path in directory.glob(f".*{_TEMPORARY}"):
        path.unlink(missing_ok=True)


def put_in_place(source: Path, target: Path, *, before_rename: Callable[[], None] | None = None) -> None:
    """Let ``target`` be the same file as ``source``, at once: a second name, or where that is impossible a copy.

    Files of this module are replaced and never written to, so that both names keep their contents.
    """
    with _temporary_neighbour(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:  # the file system has no hard links
            shutil.copyfile(source, temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        if before_rename is not None:
            before_rename()
        os.replace(temporary, target)
    _sync_directory(target.parent)


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
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    def write(file: IO[bytes]) -> None:
        file.write(data)

    write_atomically(path, write)


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
