"""Weights in a file that somebody else may have made: written whole, and read without running anything of it.

The format is that of safetensors. A header says how to build the model, of what update it is, and a
checksum. What the library would do with a path, it does while it holds the interpreter, so the file is
read here, straight to where the weights are wanted, once its header is known to fit.
"""

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from codistill_ext.exchange.wire.description import ModelDescription
from codistill_ext.exchange.wire.foreign_files import ForeignFile, open_file
from codistill_ext.exchange.wire.weights import WeightPacker
from codistill_ext.exchange.wire.whole_files import write_bytes

FORMAT_VERSION = 2
_DIGITS = 10  # of the update in a file's name
FILE_NAME = re.compile(rf"[0-9]{{{_DIGITS}}}\.safetensors")
_LENGTH_BYTES = 8  # of the length of the header, which they precede
_MOST_HEADER_BYTES = 16 << 20  # some 100 bytes a tensor are needed
# What a file that somebody else made can bring about; deeply nested JSON is a RuntimeError.
_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError, MemoryError)
_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool},
}

LayoutOf = Callable[[ModelDescription], WeightPacker | None]
"""The layout of an architecture, or None if it is not known yet."""


def file_name(update: int) -> str:
    return f"{update:0{_DIGITS}d}.safetensors"


class UnusableFileError(ValueError):
    """A file of weights that cannot be used; names it and why."""


@dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    Attributes:
        size: of the file, in bytes.
        row: the weights, checked against the file's checksum, in the layout of their architecture;
            None if that was not known, and then no more than the header was read.
    """

    description: ModelDescription
    update: int
    taken_at: float
    finished: bool
    size: int
    row: Tensor | None


class _Entry(NamedTuple):
    """A tensor as the header declares it; ``begin`` and ``end`` count bytes behind the header."""

    dtype: Any
    shape: tuple[Any, ...]
    begin: int
    end: int


def write_weights(
    path: Path,
    tensors: Mapping[str, Tensor],
    description: ModelDescription,
    *,
    seed: int,
    finished: bool,
    update: int,
) -> int:
    """Write a model's weights, whole or not at all; the size in bytes."""
    header = {
        "version": FORMAT_VERSION,
        "description": description.to_json(),
        "update": update,
        "taken_at": time.time(),
        "seed": seed,
        "finished": finished,
    }
    header["sha256"] = _checksum(header, tensors)
    data = safetensors.torch.save(dict(tensors), metadata={"codistill": json.dumps(header)})
    write_bytes(path, data)
    return len(data)


def read_weights(path: Path, directory: int, layout_of: LayoutOf) -> WeightFile:
    """Read a file; no more is allocated than its architecture needs, whatever its size.

    Args:
        directory: a descriptor of the one that it is in.

    Raises:
        UnusableFileError: it is not a regular file, does not fit its architecture, is damaged, of another
            format version, or holds NaN. OSError: it could not be read.
    """
    try:
        with open_file(path.name, directory) as file:
            header, entries = _read_header(file)
            _check_header(header, path)
            description = ModelDescription.from_json(header["description"])
            packer = layout_of(description)
            row = None
            if packer is not None:
                row = _read_row(file, entries, packer)
                _check_contents(header, packer.views(row))
        return WeightFile(description, header["update"], header["taken_at"], header["finished"], file.size, row)
    except _UNREADABLE as error:
        raise UnusableFileError(f"{path}: {error}") from error


def _read_header(file: ForeignFile) -> tuple[dict[str, Any], dict[str, _Entry]]:
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if not 0 < length <= min(_MOST_HEADER_BYTES, file.size - _LENGTH_BYTES):
        raise ValueError(f"its header cannot have {length} of its {file.size} bytes")
    declared = json.loads(file.read(length).decode())
    metadata = declared.pop("__metadata__", {})
    if "codistill" not in metadata:
        raise ValueError("it has no header of this program")
    entries = {
        name: _Entry(_DTYPES.get(entry["dtype"], entry["dtype"]), tuple(entry["shape"]), *entry["data_offsets"])
        for name, entry in declared.items()
    }
    expected = _LENGTH_BYTES + length + max((entry.end for entry in entries.values()), default=0)
    if file.size != expected:
        raise ValueError(f"it should have {expected} bytes by its header, but has {file.size}")
    return json.loads(metadata["codistill"]), entries


def _read_row(file: ForeignFile, entries: Mapping[str, _Entry], packer: WeightPacker) -> Tensor:
    """The weights behind the header; what is declared is compared before anything is allocated."""
    packer.check_fits({name: (entry.shape, entry.dtype) for name, entry in entries.items()})
    places = {name: (offset, shape.numel() * dtype.itemsize) for name, shape, dtype, offset in packer.entries}
    names = sorted(entries, key=lambda name: (entries[name].begin, entries[name].end))
    position = 0
    for name in names:
        begin, position = position, position + places[name][1]
        if (entries[name].begin, entries[name].end) != (begin, position):
            raise ValueError(f"{name} should be at bytes {begin} to {position} behind its header, but is elsewhere")
    row = torch.zeros(packer.total_bytes, dtype=torch.uint8)
    view = row.numpy().data
    for name in names:
        offset, size = places[name]
        file.read_into(view[offset : offset + size])
    file.check_unchanged()
    return row


def _check_header(header: Mapping[str, Any], path: Path) -> None:
    """Whoever makes a file can also make its checksum, so nothing in it is taken for granted."""
    if header["version"] != FORMAT_VERSION:
        raise ValueError(f"its format version is {header['version']!r:.40}, this program reads {FORMAT_VERSION}")
    for name, kind in ("update", int), ("taken_at", float), ("finished", bool), ("description", str):
        if type(header[name]) is not kind:
            raise ValueError(f"{name} in its header should be of type {kind.__name__}, but is {header[name]!r:.40}")
    if file_name(header["update"]) != path.name:
        raise ValueError(f"its header says update {header['update']}, unlike its name")
    if not math.isfinite(header["taken_at"]):
        raise ValueError(f"taken_at in its header is {header['taken_at']}")


def _check_contents(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    if _checksum({key: value for key, value in header.items() if key != "sha256"}, tensors) != header["sha256"]:
        raise ValueError("its checksum does not fit its contents")
    for name, tensor in tensors.items():
        if tensor.isnan().any():  # a buffer may well be infinite, such as an attention mask
            raise ValueError(f"{name} has values that are not numbers")


def _checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
