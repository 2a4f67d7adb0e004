"""What a run is evaluated on: a split of its data-bin, a test set that sacrebleu knows, or any two files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sacrebleu.dataset import DATASETS

from translation.corpus import read_lines
from translation.pieces import Pieces

RAW = "raw"  # a folder of a data-bin: fairseq guesses the languages from the names beside it
CUT = "pieces"


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """Sentences to translate, in pieces, and one or more lists of references. ``note``: what a reader must know."""

    __test__ = False  # it is not one of pytest's

    name: str
    sources: list[list[str]]
    references: list[list[str]] = field(repr=False)
    note: str = ""

    def __post_init__(self) -> None:
        for number, lines in enumerate(self.references):
            if len(lines) != len(self.sources):
                raise ValueError(
                    f"{self.name} has {len(self.sources)} sentences to translate, but reference {number + 1} has "
                    f"{len(lines)} lines: they must be of the same text, one sentence a line"
                )
        if not self.sources:
            raise ValueError(f"{self.name} has no sentences")


def of_split(data: Path, split: str, settings: dict[str, Any]) -> TestSet:
    """``valid`` or ``test`` of a data-bin, with its own text as the reference."""
    note = ""
    if settings.get("pieces") == "given":
        note = "the reference was put together from tokens: its BLEU is not that of the official test set"
    references = [_lines_of(data, RAW, split, settings["target_lang"])]
    return TestSet(name=split, sources=cut_split(data, split, settings), references=references, note=note)


def cut_split(data: Path, split: str, settings: dict[str, Any]) -> list[list[str]]:
    """The source side of a split as the data-bin has it."""
    return [line.split() for line in _lines_of(data, CUT, split, settings["source_lang"])]


def _lines_of(data: Path, folder: str, split: str, language: str) -> list[str]:
    path = data / folder / f"{split}.{language}"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: the data-bin has no {split} split, or an older version made it")
    return read_lines(path)


def of_files(source: Path, references: Sequence[Path], pieces: Pieces, settings: dict[str, Any]) -> TestSet:
    """Any text in the run's own direction."""
    language = settings["source_lang"]
    sources = [pieces.encode(line, language) for line in read_lines(source)]
    return TestSet(name=_as_name(source), sources=sources, references=[read_lines(path) for path in references])


def of_references(data: Path, split: str, references: Sequence[Path], settings: dict[str, Any]) -> TestSet:
    """A split of the data-bin, with references from other files."""
    lines = [read_lines(path) for path in references]
    return TestSet(name=_as_name(references[0]), sources=cut_split(data, split, settings), references=lines)


def of_sacrebleu(name: str, data: Path, pieces: Pieces, settings: dict[str, Any]) -> TestSet:
    """A test set by sacrebleu's name, such as ``wmt14/full``, which must have been fetched before.

    Raises:
        ValueError: there is no such test set in this direction.
        FileNotFoundError: it is not on this machine.
    """
    direction = f"{settings['source_lang']}-{settings['target_lang']}"
    if name not in DATASETS:
        raise ValueError(f"sacrebleu knows no test set {name}: `sacrebleu --list` shows their names")
    dataset = DATASETS[name]
    if direction not in dataset.langpairs:
        raise ValueError(f"{name} has no {direction}, but {', '.join(sorted(dataset.langpairs))}")
    fields = [one for one in dataset.fieldnames(direction) if one == "src" or one.startswith("ref")]
    files = {one: Path(dataset._get_txt_file_path(direction, one)) for one in fields}
    if missing := [path for path in files.values() if not path.is_file()]:
        raise FileNotFoundError(
            f"{name} {direction} is not on this machine (no {missing[0]}): with a network, "
            f"`sacrebleu -t {name} -l {direction} --echo src` fetches it; or name files with --source and --reference"
        )
    references = [read_lines(path) for one, path in files.items() if one != "src"]
    try:
        sources = [pieces.encode(line, settings["source_lang"]) for line in read_lines(files["src"])]
    except ValueError:  # cut elsewhere: then it must be the same text
        sources = cut_split(data, "test", settings)
    return TestSet(name=re.sub(r"\W+", "-", name), sources=sources, references=references)


def _as_name(path: Path) -> str:
    return re.sub(r"[^\w.]+", "-", path.name.removesuffix(".xz").removesuffix(".gz"))
