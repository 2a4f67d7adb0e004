"""The format of a file of weights: what is written is read, and nothing else is."""

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from codistill_ext.exchange.wire import weight_file
from codistill_ext.exchange.wire.description import ModelDescription
from codistill_ext.exchange.wire.foreign_files import ForeignFile, open_directory
from codistill_ext.exchange.wire.weight_file import UnusableFileError, WeightFile, read_weights, write_weights
from codistill_ext.exchange.wire.weights import WeightPacker
from tests.exchange.odd_files import ODD
from tests.naive import Net

DESCRIPTION = ModelDescription("tests.naive.Net", {})
HEADER = {"version": weight_file.FORMAT_VERSION, "description": DESCRIPTION.to_json()}
HEADER |= {"update": 2, "taken_at": 1.5, "finished": False}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    directory = tmp_path / "shared/model1"
    directory.mkdir(parents=True)
    return directory / "0000000002.safetensors"


def tensors_of(module: nn.Module, *, half: bool = False) -> dict[str, torch.Tensor]:
    packer = WeightPacker(module, half=half)
    return packer.views(packer.pack(module))


def write(path: Path, module: nn.Module, *, half: bool = False) -> int:
    return write_weights(path, tensors_of(module, half=half), DESCRIPTION, seed=0, finished=False, update=2)


def read(path: Path, module: nn.Module | None, *, half: bool = False) -> WeightFile:
    with open_directory(path.parent) as directory:
        return read_weights(path, directory, lambda _: None if module is None else WeightPacker(module, half=half))


def sealed(path: Path, header: dict[str, Any], module: nn.Module) -> None:
    """A file whose checksum is right, whatever its header says."""
    tensors = tensors_of(module)
    header["sha256"] = weight_file._checksum(header, tensors)
    safetensors.torch.save_file(tensors, path, metadata={"codistill": json.dumps(header)})


class Mixed(nn.Module):
    """Of many types, with a scalar and an empty one."""

    def __init__(self) -> None:
        super().__init__()
        for dtype in torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool:
            self.register_buffer(f"of_{dtype}".replace(".", "_"), torch.arange(7).to(dtype))
        self.register_buffer("scalar", torch.tensor(3))
        self.register_buffer("empty", torch.empty(0, 3))
        self.register_buffer("infinite", torch.tensor([math.inf, -math.inf]))
        self.weight = nn.Parameter(torch.randn(5, 3))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", [Net, Mixed])
def test_what_is_written_is_read(path: Path, kind: type[nn.Module], half: bool) -> None:
    module = kind()
    size = write(path, module, half=half)
    file = read(path, module, half=half)
    assert file.row is not None and torch.equal(file.row, WeightPacker(module, half=half).pack(module))
    assert (file.update, file.finished, file.description) == (2, False, DESCRIPTION)
    assert file.size == size == path.stat().st_size
    library = safetensors.torch.load_file(path)
    tensors = tensors_of(module, half=half)
    assert library.keys() == tensors.keys() and "third.weight" not in library, "tied weights cross once"
    assert all(torch.equal(library[name], tensor) for name, tensor in tensors.items())


def test_the_names_of_types_are_those_of_the_library() -> None:
    for name, dtype in weight_file._DTYPES.items():
        data = safetensors.torch.save({"a": torch.zeros(2).to(dtype)})
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        assert header["a"]["dtype"] == name


def test_of_an_unknown_architecture_the_header_alone_is_read(path: Path) -> None:
    write(path, Net())
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(UnusableFileError, match="bytes by its header, but has"):
        read(path, None)
    write(path, Net())
    file = read(path, None)
    assert file.row is None and file.description == DESCRIPTION and file.update == 2


@pytest.mark.parametrize(("make", "message"), ODD.values(), ids=ODD)
def test_what_is_no_file_of_weights_is_named(path: Path, make: Callable[[Path], None], message: str) -> None:
    make(path)
    with pytest.raises(UnusableFileError, match=re.escape(f"{path}: ") + ".*" + re.escape(message)):
        read(path, Net())


def test_a_directory_that_is_a_link_is_refused(path: Path) -> None:
    write(path, Net())
    (path.parents[1] / "model2").symlink_to("model1")
    with pytest.raises(ValueError, match="it should be a directory, but is a symbolic link"):
        read(path.parents[1] / "model2" / path.name, Net())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[: len(data) // 2], r"should have \d+ bytes by its header, but has \d+"),
        (lambda data: data + b"more", r"should have \d+ bytes by its header, but has \d+"),
        (lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:], "its checksum does not fit its contents"),
        (lambda data: data[:8] + b"\x00" + data[9:], "Expecting value"),
        (lambda data: data[:8] + b"[" * 1100 + data[1108:], "recursion depth|delimiter"),  # as deep as Python goes
        (lambda data: data.replace(b'finished\\": false', b'finished\\":  true'), "its checksum does not fit"),
        (lambda data: data.replace(b'"codistill"', b'"somewhat_"'), "it has no header of this program"),
    ],
    ids=["truncated", "longer", "flipped", "no JSON", "nested", "header changed", "another program's"],
)
def test_a_damaged_file_is_refused(path: Path, change: Callable[[bytes], bytes], message: str) -> None:
    write(path, Net())
    before = path.read_bytes()
    path.write_bytes(change(before))
    assert path.read_bytes() != before
    with pytest.raises(UnusableFileError, match=re.escape(str(path)) + ": .*" + f"({message})"):
        read(path, Net())


def test_a_pickle_is_not_unpickled(path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, path)
    with pytest.raises(UnusableFileError, match="its header cannot have"):
        read(path, Net())


def test_tensors_that_overlap_are_refused(path: Path) -> None:
    write(path, Net())
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for name, place in {"first.bias": "norm.bias", "norm.bias": "first.bias"}.items():
        header[name]["data_offsets"] = [0, header[place]["data_offsets"][1]]
    changed = json.dumps(header).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + data[8 + length :])
    with pytest.raises(UnusableFileError, match="behind its header, but is elsewhere"):
        read(path, Net())


@pytest.mark.parametrize(
    ("change", "message"),
    [(1, r"it changed while it was read \(\d+ bytes before, \d+ now\)"), (-1000, r"it ended \d+ bytes too early")],
    ids=["grows", "shrinks"],
)
def test_a_file_that_changes_while_it_is_read_is_refused(
    path: Path, change: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, Net())
    read_into = ForeignFile.read_into

    def changing(file: ForeignFile, view: memoryview) -> None:
        os.truncate(path, path.stat().st_size + change)
        read_into(file, view)

    monkeypatch.setattr(ForeignFile, "read_into", changing)
    with pytest.raises(UnusableFileError, match=message):
        read(path, Net())


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("update", math.inf, "update in its header should be of type int, but is inf"),
        ("update", -2, "its header says update -2, unlike its name"),
        ("update", 10**400, "unlike its name"),
        ("update", True, "update in its header should be of type int, but is True"),
        ("taken_at", math.nan, "taken_at in its header is nan"),
        ("taken_at", "now", "taken_at in its header should be of type float, but is 'now'"),
        ("finished", "false", "finished in its header should be of type bool, but is 'false'"),
        ("description", "{}", "not a description of a model"),
    ],
)
def test_a_header_that_cannot_be_true_is_refused(path: Path, field: str, value: Any, message: str) -> None:
    sealed(path, dict(HEADER), Net())
    assert read(path, Net()).update == 2
    sealed(path, HEADER | {field: value}, Net())
    with pytest.raises(UnusableFileError, match=re.escape(message)):
        read(path, Net())


def test_weights_that_are_not_numbers_are_refused(path: Path) -> None:
    module = Net()
    nn.init.constant_(module.last.bias, math.nan)
    write(path, module)
    with pytest.raises(UnusableFileError, match="last.bias has values that are not numbers"):
        read(path, Net())


def test_a_later_format_is_refused(path: Path) -> None:
    sealed(path, HEADER | {"version": weight_file.FORMAT_VERSION + 1}, Net())
    with pytest.raises(
        UnusableFileError, match=r"0000000002\.safetensors: its format version is \d, this program reads"
    ):
        read(path, Net())
