"""File systems that are full or do not answer, for tests that run as root."""

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def _mounted(kind: str, path: Path, data: str) -> Iterator[None]:
    if _libc.mount(b"test", bytes(path), kind.encode(), 0, data.encode()):
        pytest.skip(f"cannot mount {kind} here: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        _libc.umount2(bytes(path), _DETACH)


@contextlib.contextmanager
def small(path: Path, megabytes: int = 2) -> Iterator[None]:
    """A tmpfs."""
    with _mounted("tmpfs", path, f"size={megabytes}m"):
        yield


@contextlib.contextmanager
def stuck(path: Path) -> Iterator[None]:
    """A FUSE whose server never answers; what waits in it ends in an error when the context does."""
    try:
        server = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        pytest.skip(f"no FUSE here: {error}")
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, server)
        stack.enter_context(_mounted("fuse", path, f"fd={server},rootmode=40000,user_id=0,group_id=0"))
        yield


@contextlib.contextmanager
def on_a_disk(path: Path, image: Path) -> Iterator[None]:
    """An ext4 in a file, which can be frozen."""
    image.touch()
    os.truncate(image, 16 << 20)
    try:
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, path], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount an image here: {error}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@contextlib.contextmanager
def frozen(path: Path) -> Iterator[None]:
    """What is written there waits until the context ends."""
    subprocess.run(["fsfreeze", "--freeze", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", path], check=True)
