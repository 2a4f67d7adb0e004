"""Files in a directory where somebody else may put anything: regular ones alone are opened, and no link is followed.

Whatever can hang here hangs outside of the interpreter's lock, so that other threads run on.
"""

import contextlib
import heapq
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

_BLOCK_BYTES = 1 << 24
# A FIFO is opened without waiting for its writer, and what took a regular file's place meanwhile is not followed.
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}


class ForeignFile:
    """An open regular file that may change while it is read.

    Attributes:
        size: in bytes, when it was opened.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._opened = os.fstat(descriptor)
        self.size = self._opened.st_size

    def read_into(self, view: memoryview) -> None:
        """Fill a view of bytes with what follows.

        Raises:
            ValueError: the file ends before.
        """
        filled = 0
        while filled < len(view):
            count = os.readv(self._descriptor, [view[filled : filled + _BLOCK_BYTES]])
            if count == 0:
                raise ValueError(f"it ended {len(view) - filled} bytes too early")
            filled += count

    def read(self, count: int) -> bytearray:
        """The bytes that follow; the caller knows that ``count`` is no more than memory can take."""
        data = bytearray(count)
        self.read_into(memoryview(data))
        return data

    def check_unchanged(self) -> None:
        """Compare size and time with those at the opening.

        Raises:
            ValueError: somebody wrote to it meanwhile.
        """
        now = os.fstat(self._descriptor)
        if (now.st_size, now.st_mtime_ns) != (self.size, self._opened.st_mtime_ns):
            raise ValueError(f"it changed while it was read ({self.size} bytes before, {now.st_size} now)")


@contextlib.contextmanager
def open_file(name: str, directory: int) -> Iterator[ForeignFile]:
    """Open a file of a directory that is open.

    Raises:
        ValueError: it is not a regular file.
    """
    descriptor = _open(name, stat.S_IFREG, directory=directory)
    try:
        os.set_blocking(descriptor, True)
        yield ForeignFile(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def open_directory(path: Path) -> Iterator[int]:
    """A descriptor of a directory, whose parents may be links but not it itself.

    Raises:
        ValueError: it is something else.
    """
    descriptor = _open(str(path), stat.S_IFDIR)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def newest_names(directory: int, pattern: re.Pattern[str], count: int) -> list[str]:
    """The last ``count`` of a directory's names that match, in falling order, however many there are."""
    with os.scandir(directory) as entries:
        return heapq.nlargest(count, (entry.name for entry in entries if pattern.fullmatch(entry.name)))


def _open(name: str, kind: int, *, directory: int | None = None) -> int:
    # Looked at before, because to open a device can do something, and after, because it may be another one then.
    _check_kind(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode, kind)
    descriptor = os.open(name, _FLAGS, dir_fd=directory)
    try:
        _check_kind(os.fstat(descriptor).st_mode, kind)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_kind(mode: int, kind: int) -> None:
    found = stat.S_IFMT(mode)
    if found != kind:
        raise ValueError(f"it should be {_KINDS[kind]}, but is {_KINDS.get(found, 'something else')}")
