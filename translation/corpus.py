"""Parallel text: one sentence a line, one file a language, plain or xz; and the corpus shipped here."""

from __future__ import annotations

import lzma
from pathlib import Path

SPLITS = ("train", "valid", "test")
SHIPPED = Path(__file__).parent / "data" / "libreoffice-help-en-de"

Pair = tuple[str, str]


def shipped_prefix(split: str) -> Path:
    """The prefix of a split of the shipped corpus: `prefix.en` and `prefix.de` are its two sides."""
    if split not in SPLITS:
        raise ValueError(f"the shipped corpus has the splits {', '.join(SPLITS)}, not {split!r}")
    return SHIPPED / split


def side_path(prefix: Path, language: str) -> Path:
    """The file of one language: `prefix.language` or `prefix.language.xz`."""
    plain = prefix.with_name(f"{prefix.name}.{language}")
    packed = plain.with_name(plain.name + ".xz")
    for path in (plain, packed):
        if path.is_file():
            return path
    raise FileNotFoundError(f"no parallel text: neither {plain} nor {packed} exists")


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text, without their line ends. Only a newline ends a line."""
    raw = lzma.open(path).read() if path.suffix == ".xz" else path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte {error.start} cannot be read") from error
    return text.removesuffix("\n").split("\n") if text else []


def read_pairs(prefix: Path, source_lang: str, target_lang: str, max_words: int | None = None) -> list[Pair]:
    """The (source, target) pairs of a prefix, in order; with `max_words`, only sources of no more words.

    A word is what stands between white space. ValueError for sides of unequal length and for empty lines.
    """
    paths = side_path(prefix, source_lang), side_path(prefix, target_lang)
    source, target = (read_lines(path) for path in paths)
    if len(source) != len(target):
        raise ValueError(
            f"the two sides do not pair up: {paths[0]} has {len(source)} lines, {paths[1]} has {len(target)}"
        )
    for path, lines in zip(paths, (source, target), strict=True):
        empty = next((number for number, line in enumerate(lines, 1) if not line.strip()), None)
        if empty is not None:
            raise ValueError(f"{path} line {empty} is empty: drop the pair from both sides")
    pairs = list(zip(source, target, strict=True))
    if max_words is not None:
        pairs = [pair for pair in pairs if len(pair[0].split()) <= max_words]
    if not pairs:
        limit = "" if max_words is None else f" of at most {max_words} source words"
        raise ValueError(f"{paths[0]} and {paths[1]} hold no pairs{limit}")
    return pairs
