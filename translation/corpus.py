"""Parallel text: one sentence a line, one file a language, plain, xz or gz; and the corpus shipped here."""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

SPLITS = ("train", "valid", "test")
SHIPPED = Path(__file__).parent / "data" / "libreoffice-help-en-de"

PACKED: dict[str, Callable[..., Any]] = {".xz": lzma.open, ".gz": gzip.open}

Pair = tuple[str, str]


def shipped_prefix(split: str) -> Path:
    """The prefix of a split of the shipped corpus: `prefix.en` and `prefix.de` are its two sides."""
    if split not in SPLITS:
        raise ValueError(f"the shipped corpus has the splits {', '.join(SPLITS)}, not {split!r}")
    return SHIPPED / split


def side_path(prefix: Path, language: str) -> Path:
    """The file of one language: `prefix.language`, or with `.xz` or `.gz` behind it."""
    plain = prefix.with_name(f"{prefix.name}.{language}")
    paths = [plain, *(plain.with_name(plain.name + ending) for ending in PACKED)]
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(f"no parallel text: none of {', '.join(str(path) for path in paths)} exists")


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text, without their line ends. Only a newline ends a line.

    Raises:
        ValueError: it is not UTF-8, or a packed file is damaged.
    """
    try:
        with PACKED.get(path.suffix, open)(path, "rb") as file:
            raw: bytes = file.read()
    except (lzma.LZMAError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}") from error
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte {error.start} cannot be read") from error
    return text.removesuffix("\n").split("\n") if text else []


def read_sides(prefix: Path, source_lang: str, target_lang: str) -> list[Pair]:
    """The pairs of a prefix as they are, also with empty sides.

    Raises:
        ValueError: sides of unequal length.
    """
    paths = side_path(prefix, source_lang), side_path(prefix, target_lang)
    source, target = (read_lines(path) for path in paths)
    if len(source) != len(target):
        raise ValueError(
            f"the two sides do not pair up: {paths[0]} has {len(source)} lines, {paths[1]} has {len(target)}"
        )
    return list(zip(source, target, strict=True))


def read_pairs(prefix: Path, source_lang: str, target_lang: str) -> list[Pair]:
    """The (source, target) pairs of a prefix, in order, none of them with an empty side.

    Raises:
        ValueError: sides of unequal length, an empty line, or no line at all.
    """
    pairs = read_sides(prefix, source_lang, target_lang)
    paths = side_path(prefix, source_lang), side_path(prefix, target_lang)
    for side, path in enumerate(paths):
        empty = next((number for number, pair in enumerate(pairs, 1) if not pair[side].strip()), None)
        if empty is not None:
            raise ValueError(f"{path} line {empty} is empty: drop the pair from both sides")
    if not pairs:
        raise ValueError(f"{paths[0]} and {paths[1]} hold no pairs")
    return pairs
