"""What may lie where a file of weights should be, and what is said about it."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

TERABYTE = 1 << 40


def _link_out(path: Path) -> None:
    outside = path.parents[2] / "outside"
    outside.write_bytes(b"not for others")
    path.symlink_to(outside)


def _device(path: Path) -> None:
    try:
        os.mknod(path, 0o020666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root can make a device")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path is short
        try:
            end.bind(path.name)
        finally:
            os.chdir(here)


def _long_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 100)


def _huge_header(path: Path) -> None:
    """Of a file that would have room for it."""
    path.write_bytes((17 << 20).to_bytes(8, "little"))
    os.truncate(path, 32 << 20)


def _sparse(path: Path, header: bytes = b"") -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, TERABYTE)


def _sparse_and_sealed(path: Path) -> None:
    """Its header declares a terabyte, and the file has that."""
    about = {
        "version": 2,
        "description": '{"name": "tests.naive.Net", "values": {}}',
        "update": int(path.stem),
        "taken_at": 1.5,
        "finished": False,
    }
    start = 8 + 1024
    tensor = {"dtype": "U8", "shape": [TERABYTE - start], "data_offsets": [0, TERABYTE - start]}
    header = json.dumps({"__metadata__": {"codistill": json.dumps(about)}, "first.bias": tensor})
    _sparse(path, header.encode().ljust(1024))


ODD: dict[str, tuple[Callable[[Path], None], str]] = {
    "FIFO": (os.mkfifo, "it should be a regular file, but is a FIFO"),
    "directory": (os.mkdir, "it should be a regular file, but is a directory"),
    "link out": (_link_out, "it should be a regular file, but is a symbolic link"),
    "link to dev zero": (lambda path: path.symlink_to("/dev/zero"), "but is a symbolic link"),
    "dev zero": (_device, "it should be a regular file, but is a character device"),
    "socket": (_socket, "it should be a regular file, but is a socket"),
    "empty": (Path.touch, "it ended 8 bytes too early"),
    "sparse terabyte": (_sparse, f"its header cannot have 0 of its {TERABYTE} bytes"),
    "long header": (_long_header, f"its header cannot have {2**64 - 1} of its 100 bytes"),
    "header of 17 MiB": (_huge_header, f"its header cannot have {17 << 20} of its {32 << 20} bytes"),
    "sparse terabyte with a header": (
        _sparse_and_sealed,
        "first.bias should be ((12,), torch.float32), but is ((1099511626744,), torch.uint8)",
    ),
}
