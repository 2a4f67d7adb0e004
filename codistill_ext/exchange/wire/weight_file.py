"""Weights in a file that somebody else may have made: written whole, and read without running anything of it.

A header says how to build the model, of what update it is, and a checksum.
"""

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from codistill_ext.exchange.wire.description import ModelDescription
from codistill_ext.exchange.wire.whole_files import write_bytes

FORMAT_VERSION = 2
_DIGITS = 10  # of the update in a file's name
# What a file that somebody else made can bring about; deeply nested JSON is a RuntimeError.
_UNREADABLE = (OSError, KeyError, TypeError, ValueError, OverflowError, RuntimeError, safetensors.SafetensorError)


def file_name(update: int) -> str:
    return f"{update:0{_DIGITS}d}.safetensors"


def files_in(directory: Path) -> list[Path]:
    """The files of weights of one model, oldest first."""
    return sorted(directory.glob(f"{'[0-9]' * _DIGITS}.safetensors"))


class UnusableFileError(ValueError):
    """A file of weights that cannot be used; names it and why."""


@dataclass(frozen=True)
class WeightFile:
    """What a file holds, checked against its checksum but not against any architecture."""

    description: ModelDescription
    update: int
    taken_at: float
    finished: bool
    tensors: Mapping[str, Tensor]


def write_weights(
    path: Path, tensors: Mapping[str, Tensor], description: ModelDescription, *, seed: int, finished: bool, update: int
) -> int:
    """Write a file whole or not at all; its size in bytes."""
    header: dict[str, Any] = {
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


def read_weights(path: Path) -> WeightFile:
    """Read a file without running anything that it brings along.

    Raises:
        UnusableFileError: it is damaged, of another format version, or holds NaN.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["codistill"])
            if header["version"] != FORMAT_VERSION:
                raise ValueError(f"its format version is {header['version']}, this program reads {FORMAT_VERSION}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        if _checksum({key: value for key, value in header.items() if key != "sha256"}, tensors) != header["sha256"]:
            raise ValueError("its checksum does not fit its contents")
        _check_header(header, path)
        for name, tensor in tensors.items():
            if tensor.isnan().any():  # a buffer may well be infinite, such as an attention mask
                raise ValueError(f"{name} has values that are not numbers")
        return WeightFile(
            description=ModelDescription.from_json(header["description"]),
            update=header["update"],
            taken_at=header["taken_at"],
            finished=header["finished"],
            tensors=tensors,
        )
    except _UNREADABLE as error:
        raise UnusableFileError(f"{path}: {error}") from error


def _check_header(header: Mapping[str, Any], path: Path) -> None:
    """Whoever makes a file can also make its checksum, so nothing in it is taken for granted."""
    for name, kind in ("update", int), ("taken_at", float), ("finished", bool), ("description", str):
        if type(header[name]) is not kind:
            raise ValueError(f"{name} in its header should be of type {kind.__name__}, but is {header[name]!r:.40}")
    if file_name(header["update"]) != path.name:
        raise ValueError(f"its header says update {header['update']}, unlike its name")
    if not math.isfinite(header["taken_at"]):
        raise ValueError(f"taken_at in its header is {header['taken_at']}")


def _checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
