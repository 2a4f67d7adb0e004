"""Files that are there whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

_TEMPORARY = ".tmp"


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
