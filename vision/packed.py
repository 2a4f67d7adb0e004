"""Pictures packed into a few large files and read by index: those of a tree, in the same order.

    pack.json               classes, how it was packed, and rows, size and checksum of each shard; written last
    train/index.arrow       the label of each picture
    train/00000.arrow       name, label and image (the bytes of the file), one record batch a picture

The files are Arrow's IPC files, uncompressed. One picture a batch lets a reader take exactly its bytes, by ``pread``:
a mapped file would end the process when the disk fails, where this is an exception.
"""

from __future__ import annotations

import bisect
import hashlib
import io
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

MANIFEST = "pack.json"
INDEX = "index.arrow"
VERSION = 1
_IMAGE = 2  # its column, behind name and label
Row = tuple[str, int, Any]  # the image as bytes, or as a buffer of Arrow's


class PackedFolder:
    """One split of a pack, in the place of torchvision's ImageFolder.

    Attributes:
        classes: names, by label; ``targets``: the label of each picture.

    Raises:
        ValueError: it is half, damaged, or of another version.
    """

    def __init__(self, root: Path, split: str, transform: Callable[[Image.Image], Any]) -> None:
        manifest = read_manifest(root)
        shards = manifest["splits"][split]
        self.classes: list[str] = manifest["classes"]
        self.targets: list[int] = read_index(root / split / INDEX)
        self._paths = [root / split / shard["file"] for shard in shards]
        self._starts = [0, *itertools.accumulate(shard["rows"] for shard in shards)]
        self._transform = transform
        self._readers: dict[tuple[int, int], Any] = {}
        if len(self.targets) != self._starts[-1]:
            raise ValueError(
                f"{root / split}: {len(self.targets)} labels for {self._starts[-1]} pictures: pack it again"
            )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self._batch(index).column(_IMAGE)[0].as_buffer()
        with Image.open(io.BytesIO(image)) as picture:
            return self._transform(picture.convert("RGB")), self.targets[index]

    def row(self, index: int) -> Row:
        """Name, label and encoded image of a picture."""
        return _row_of(self._batch(index))

    def _batch(self, index: int) -> Any:
        shard = bisect.bisect_right(self._starts, index) - 1
        return self._reader(shard).get_batch(index - self._starts[shard])

    def _reader(self, shard: int) -> Any:
        """Each process opens the files for itself."""
        key = (os.getpid(), shard)
        if key not in self._readers:
            self._readers[key] = open_arrow(self._paths[shard])
        return self._readers[key]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": {}}


def open_arrow(path: Path) -> Any:
    """A reader of record batches by number."""
    import pyarrow  # takes long enough to be left out where no pack is read

    return pyarrow.ipc.open_file(pyarrow.OSFile(str(path)), options=pyarrow.ipc.IpcReadOptions(use_threads=False))


def _row_of(batch: Any) -> Row:
    name, label, image = batch.columns
    return name[0].as_py(), label[0].as_py(), image[0].as_buffer()


def rows_in(path: Path) -> Iterator[Row]:
    reader = open_arrow(path)
    return (_row_of(reader.get_batch(number)) for number in range(reader.num_record_batches))


def read_index(path: Path) -> list[int]:
    """The label of each picture of a split.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        labels: list[int] = open_arrow(path).read_all().column("label").to_pylist()
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}): copy the pack again, or pack again") from error
    return labels


def digest(rows: Iterator[Row]) -> str:
    """SHA-256 over names, labels and images; the images' lengths keep them apart."""
    total = hashlib.sha256()
    for name, label, image in rows:
        total.update(f"{name}\0{label}\0{len(image)}\0".encode())
        total.update(image)
    return total.hexdigest()


def read_manifest(root: Path) -> dict[str, Any]:
    """What a pack says of itself, compared with the files that are there.

    Raises:
        ValueError: no pack, of another version, or files are missing or have another size.
    """
    try:
        manifest: dict[str, Any] = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{root} is no whole pack ({error}): make it with python -m vision.pack") from error
    if version != VERSION:
        raise ValueError(f"{root} is a pack of version {version}, this program reads {VERSION}: pack it again")
    for split, shards in manifest["splits"].items():
        for shard in shards:
            path = root / split / shard["file"]
            size = path.stat().st_size if path.exists() else None
            if size != shard["bytes"]:
                there = "is missing" if size is None else f"has {size} bytes and should have {shard['bytes']}"
                raise ValueError(f"{path} {there}: copy the pack again, or pack again")
    return manifest
