"""Checkpoints that are there whole or not at all, with the one before beside them."""

import contextlib
import errno
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from codistill_ext.exchange.wire.whole_files import put_in_place, write_atomically

_FULL = (errno.ENOSPC, errno.EDQUOT)


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint could not be read whole, and the one before it is used."""


class StorageError(OSError):
    """A file of a run cannot be written; says which, why, and what to do."""


def previous_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def keep_previous(path: Path) -> None:
    """Let the checkpoint at ``path`` also be its own previous one, before another takes its place."""
    if path.exists():
        put_in_place(path, previous_path(path))


def save_checkpoint(obj: Any, path: Path) -> None:
    """Save with ``torch.save``, whole or not at all, and keep the one before as ``*.previous.*``.

    Killed at any moment it leaves a whole file at ``path``, the old or the new one.

    Raises:
        StorageError: it cannot be written, and the old file stays.
    """
    save_whole(obj, path, before_rename=lambda: keep_previous(path))


def save_whole(obj: Any, path: Path, *, before_rename: Callable[[], None] | None = None) -> None:
    """The same, and keep nothing.

    Args:
        before_rename: done when the new file is whole and does not have its name yet.
    """
    with writing(path, lambda: saved_bytes(obj)):
        write_atomically(path, lambda file: torch.save(obj, file), before_rename=before_rename)


@contextlib.contextmanager
def writing(path: Path, size: Callable[[], int] | None = None) -> Iterator[None]:
    """What is done in here writes ``path``, whole or not at all.

    Args:
        size: how many bytes are to be written; asked only when the disk is full.

    Raises:
        StorageError: in place of an error of the file system.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = _file_system_error(error)
        if cause is None or isinstance(cause, StorageError):
            raise
        raise StorageError(_cannot_write(path, cause, size)) from error


def _file_system_error(error: BaseException | None) -> OSError | None:
    """torch.save ends with a RuntimeError that came up while it handled the OSError of a write."""
    while error is not None and not isinstance(error, OSError):
        error = error.__context__
    return error


def _cannot_write(path: Path, cause: OSError, size: Callable[[], int] | None) -> str:
    stays = "checkpoints that were saved before are whole"
    if cause.errno not in _FULL:
        return f"cannot write {path} ({cause}); {stays}: mend that, and start again"
    needed = "" if size is None else f"{_megabytes(size())} are needed and "
    directory = next(parent for parent in path.absolute().parents if parent.exists())
    free = _megabytes(shutil.disk_usage(directory).free)
    why = "the disk is full" if cause.errno == errno.ENOSPC else "the disk quota is used up"
    return f"cannot write {path}: {why} ({needed}{free} are free there); {stays}: make room, and start again"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


class _Counter:
    """A file that counts what is written to it."""

    size = 0

    def write(self, data: Any) -> int:
        written = memoryview(data).nbytes
        self.size += written
        return written

    def flush(self) -> None:
        pass


def saved_bytes(obj: Any) -> int:
    """The size of the file that ``torch.save`` makes."""
    counter = _Counter()
    torch.save(obj, counter)  # type: ignore[arg-type]  # it needs these two methods alone
    return counter.size


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
        ValueError: it is damaged, or holds something else.
    """
    check_whole(path)
    return load_plain(path, map_location)


def load_plain(path: Path, map_location: str = "cpu", *, mmap: bool = False) -> Any:
    """Load tensors and plain values; code that the file brings along is not run.

    Raises:
        ValueError: it is damaged, or holds something else; names what.
    """
    try:
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except OSError:
        raise
    except Exception as error:  # torch.load raises many kinds, some with the advice to run what is in the file
        raise ValueError(unreadable(path, error)) from error


def unreadable(path: Path, error: Exception) -> str:
    """Why a file was not loaded, in place of what torch says."""
    names = foreign_names(path)
    if names:
        return (
            f"{path} is not a checkpoint of tensors and plain values: it holds {', '.join(names)}, which could run any "
            f"code, and so nothing of it was loaded. Check that it is the right file, and where it comes from"
        )
    if zipfile.is_zipfile(path) or not isinstance(error, pickle.UnpicklingError | EOFError | IndexError):
        reason = str(error).partition("\n")[0]
        return f"{path} is damaged, or no checkpoint ({type(error).__name__}: {reason}): take another one"
    return f"{path} is not a checkpoint: it is no whole file of torch.save, and nothing of it was loaded"


def foreign_names(path: Path) -> list[str]:
    """The classes and functions that a file of ``torch.save`` would call; empty when it is no such file."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # whatever reading a pickle without running it can raise
        return []
