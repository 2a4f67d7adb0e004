"""Pack a tree of pictures into a few large files: ``python -m vision.pack SRC DEST``.

SRC has train/CLASS/* and val/CLASS/*; ``vision.train --data-path DEST`` then reads the pack. The files of the pictures
are taken as they are, so every picture has the same pixels, label and place as in SRC. --resize-shorter
makes large pictures smaller first, which saves most of the decoding; that changes pixels.

DEST appears at the end, whole and compared with what was read, or not at all. What a killed run has finished,
in a hidden directory beside it, is used by the next one.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import io
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
from PIL import Image
from torchvision.datasets import ImageFolder
from tqdm import tqdm

from codistill_ext.exchange.wire.whole_files import write_text
from codistill_ext.job.failures import Parser
from vision.packed import (
    INDEX,
    MANIFEST,
    VERSION,
    Row,
    digest,
    read_index,
    read_manifest,
    rows_in,
)

SPLITS = ("train", "val")
_SCHEMA = pyarrow.schema([("name", pyarrow.string()), ("label", pyarrow.int32()), ("image", pyarrow.binary())])
_INDEX_SCHEMA = pyarrow.schema([("label", pyarrow.int32())])
_PLAN = "plan.json"
_JPEG_QUALITY = 95


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What goes into one file: pictures by path below ``source`` and label."""

    source: Path
    pictures: list[tuple[str, int]]
    resize_shorter: int | None
    path: Path

    @property
    def note(self) -> Path:
        """Beside the file, once it is whole."""
        return self.path.with_suffix(".json")


def pack(source: Path, dest: Path, *, resize_shorter: int | None, shard_mb: int, workers: int) -> dict[str, Any]:
    """Pack ``source`` into ``dest``, or go on with a run that was killed; the manifest.

    Raises:
        ValueError: ``source`` is no tree of pictures, ``dest`` is there, or another process is packing it.
    """
    if dest.exists():
        raise ValueError(f"{dest} is there already: choose another place, or remove it")
    folders = {split: _list(source / split) for split in SPLITS}
    if folders["train"].classes != folders["val"].classes:
        raise ValueError(f"{source}: train and val must have the same class directories")
    building = dest.with_name(f".{dest.name}.packing")
    with _alone(building.with_suffix(".lock")):
        shards = {split: _cut(folders[split], building / split, resize_shorter, shard_mb) for split in SPLITS}
        _keep_what_is_of_this_plan(building, shards)
        written = _write_all(shards, workers)
        manifest = {
            "version": VERSION,
            "classes": folders["train"].classes,
            "resize_shorter": resize_shorter,
            "splits": written,
        }
        for split, folder in folders.items():
            _write_index(building / split / INDEX, folder.targets)
            for shard in shards[split]:
                shard.note.unlink()
        (building / _PLAN).unlink()
        write_text(building / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        os.rename(building, dest)
    return manifest


def _list(directory: Path) -> ImageFolder:
    if not directory.is_dir():
        raise ValueError(f"{directory} is not a directory: SRC must hold train/CLASS/* and val/CLASS/*")
    try:
        return ImageFolder(str(directory))
    except FileNotFoundError as error:
        raise ValueError(f"{directory} must hold a directory of pictures for each class: {error}") from error


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends, however it ends
        except BlockingIOError:
            raise ValueError(f"another process holds {path}: it is packing the same directory") from None
        yield
        path.unlink()


def _cut(folder: ImageFolder, directory: Path, resize_shorter: int | None, shard_mb: int) -> list[Shard]:
    """Neighbours into files of about ``shard_mb`` MB, by the sizes that the pictures have now."""
    groups: list[list[tuple[str, int]]] = [[]]
    size = 0
    for name, label in folder.samples:
        if size > shard_mb * 10**6:
            groups.append([])
            size = 0
        groups[-1].append((os.path.relpath(name, folder.root), label))
        size += os.path.getsize(name)
    return [
        Shard(
            source=Path(folder.root),
            pictures=pictures,
            resize_shorter=resize_shorter,
            path=directory / f"{number:05d}.arrow",
        )
        for number, pictures in enumerate(groups)
    ]


def _keep_what_is_of_this_plan(building: Path, shards: dict[str, list[Shard]]) -> None:
    """Remove what a run with another source or other options has left."""
    listing = [(str(s.source.absolute()), s.pictures, s.resize_shorter) for split in SPLITS for s in shards[split]]
    plan = json.dumps({"version": VERSION, "sha256": hashlib.sha256(json.dumps(listing).encode()).hexdigest()})
    path = building / _PLAN
    if not path.exists() or path.read_text(encoding="utf-8") != plan:
        shutil.rmtree(building, ignore_errors=True)
        write_text(path, plan)


def _write_all(shards: dict[str, list[Shard]], workers: int) -> dict[str, list[dict[str, Any]]]:
    everything = [shard for split in SPLITS for shard in shards[split]]
    with contextlib.ExitStack() as stack:
        if workers > 1:
            # Not by fork: Arrow has threads.
            context = multiprocessing.get_context("forkserver")
            each: Any = stack.enter_context(ProcessPoolExecutor(workers, mp_context=context)).map
        else:
            each = map
        notes = iter(list(tqdm(each(write_shard, everything), total=len(everything), unit="file", desc="packing")))
    return {split: [next(notes) for _ in shards[split]] for split in SPLITS}


def write_shard(shard: Shard) -> dict[str, Any]:
    """Write a file, read it again and compare; what the manifest says of it.

    Raises:
        ValueError: a file is no picture, or what was written is not what was read.
    """
    if shard.note.exists():
        note: dict[str, Any] = json.loads(shard.note.read_text(encoding="utf-8"))
        return note
    shard.path.parent.mkdir(parents=True, exist_ok=True)
    with pyarrow.OSFile(str(shard.path), "wb") as file, pyarrow.ipc.new_file(file, _SCHEMA) as writer:
        wanted = digest(_written(_read_pictures(shard), writer))
    _flush(shard.path)
    if digest(rows_in(shard.path)) != wanted:
        raise ValueError(f"{shard.path} does not hold what was written into it: look after the disk")
    note = {
        "file": shard.path.name,
        "rows": len(shard.pictures),
        "bytes": shard.path.stat().st_size,
        "sha256": wanted,
    }
    write_text(shard.note, json.dumps(note))
    return note


def _written(rows: Iterator[Row], writer: pyarrow.RecordBatchFileWriter) -> Iterator[Row]:
    for row in rows:
        writer.write_batch(pyarrow.record_batch([[value] for value in row], schema=_SCHEMA))
        yield row


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _read_pictures(shard: Shard) -> Iterator[Row]:
    for name, label in shard.pictures:
        path = shard.source / name
        data = path.read_bytes()
        try:
            with Image.open(io.BytesIO(data)) as picture:
                yield name, label, _smaller(picture, data, shard.resize_shorter)
        except OSError as error:
            raise ValueError(f"{path} is no picture ({error}): remove it from SRC or replace it") from error


def _smaller(picture: Image.Image, data: bytes, shorter: int | None) -> bytes:
    """The file as it is, unless the picture is to be smaller; it is read to its end in any case.

    Raises:
        OSError: it breaks off.
    """
    if shorter is None or min(picture.size) <= shorter:
        picture.draft(picture.mode, (1, 1))  # of a JPEG only what is needed to know that it is whole
        picture.load()
        return data
    scale = shorter / min(picture.size)
    width, height = (round(side * scale) for side in picture.size)
    buffer = io.BytesIO()
    picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _write_index(path: Path, labels: Sequence[int]) -> None:
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, _INDEX_SCHEMA) as writer:
        writer.write_batch(pyarrow.record_batch([pyarrow.array(labels, pyarrow.int32())], schema=_INDEX_SCHEMA))
    _flush(path)


def check(root: Path) -> dict[str, Any]:
    """Compare every byte of a pack with its checksums; the manifest.

    Raises:
        ValueError: something has changed; names the file.
    """
    manifest = read_manifest(root)
    for split, shards in manifest["splits"].items():
        labels: list[int] = []
        for shard in tqdm(shards, unit="file", desc=f"checking {split}"):
            path = root / split / shard["file"]
            try:
                found = digest(_noting_labels(rows_in(path), labels))
            except (pyarrow.ArrowException, OSError) as error:
                raise ValueError(f"{path} is damaged ({error}): copy it again, or pack again") from error
            if found != shard["sha256"]:
                raise ValueError(f"{path} is damaged (its checksum differs): copy it again, or pack again")
        if read_index(root / split / INDEX) != labels:
            raise ValueError(f"{root / split / INDEX} has other labels than the pictures: copy it again, or pack again")
    return manifest


def _noting_labels(rows: Iterator[Row], labels: list[int]) -> Iterator[Row]:
    for row in rows:
        labels.append(row[1])
        yield row


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="vision.pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC", help="the tree; with --check a pack")
    parser.add_argument("dest", type=Path, metavar="DEST", nargs="?", help="the pack, which is not there yet")
    parser.add_argument("--resize-shorter", type=int, metavar="N", help="no side shorter than N (default: as they are)")
    parser.add_argument("--shard-mb", type=int, default=1024, help="megabytes a file (default: 1024)")
    parser.add_argument("-j", "--workers", type=int, default=4, help="processes (default: 4)")
    parser.add_argument("--check", action="store_true", help="compare the pack SRC with its checksums, and stop")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    for name in ("resize_shorter", "shard_mb", "workers"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")
    if (args.dest is None) != args.check:
        parser.error("give SRC and DEST to pack, or --check and a pack")
    try:
        if args.check:
            where, manifest = args.source, check(args.source)
        else:
            where, manifest = (
                args.dest,
                pack(
                    args.source,
                    args.dest,
                    resize_shorter=args.resize_shorter,
                    shard_mb=args.shard_mb,
                    workers=args.workers,
                ),
            )
    except (ValueError, OSError) as error:
        parser.exit(1, f"vision.pack: {error}\n")
    print(_describe(where, manifest))


def _describe(where: Path, manifest: dict[str, Any]) -> str:
    splits = manifest["splits"].items()
    parts = [f"{split} {sum(s['rows'] for s in shards)} pictures in {len(shards)} files" for split, shards in splits]
    size = sum(shard["bytes"] for _, shards in splits for shard in shards)
    return f"{where}: {', '.join(parts)}, {size / 1e9:.3g} GB, {len(manifest['classes'])} classes"


if __name__ == "__main__":
    main()
