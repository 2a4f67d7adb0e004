"""What ``translation.prepare`` does: a data-bin from parallel text."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path

from translation.corpus import SPLITS, Pair, read_pairs, read_sides, side_path
from translation.cutting import cut_tokens, files_of, known, learned, mapped, tokens_of
from translation.filters import Dropped, Filters, kept
from translation.pieces import CODES, STAMP, Pieces, pieces_of
from translation.testset import CUT, RAW

# What a data-bin whose pieces are taken decides.
OF_PIECES = ("pieces", "vocab_size", "moses", "lowercase", "split_dashes", "codes", "dictionary_size")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the data-bin depends on, besides the text itself.

    Attributes:
        pieces: a way to learn them, or ``given``: the text is in pieces already.
        moses, lowercase, split_dashes: how text is brought into tokens before; see ``SubwordPieces``.
        max_words: of all splits; ``max_length`` and what follows are of the training pairs, see ``Filters``.
        valid_every: every so many training pairs one goes to validation instead; 0 if there is text for that.
        train_part: of what is left.
        codes, pieces_of: a file of subword-nmt, and a data-bin, whose pieces to take; with the data-bin's come its
            dictionary and how text is brought into tokens, whatever is said here about them.
        dictionary_size: symbols at most, the most frequent ones; 0 for all.
    """

    source_lang: str
    target_lang: str
    vocab_size: int = 4000
    pieces: str = "bpe"
    moses: bool = False
    lowercase: bool = False
    split_dashes: bool = False
    max_words: int | None = None
    max_length: int | None = None
    max_ratio: float | None = None
    held_out: str = "drop"
    valid_every: int = 0
    train_part: str = "1"
    codes: str | None = None
    pieces_of: str | None = None
    dictionary_size: int = 0

    @property
    def languages(self) -> tuple[str, str]:
        return self.source_lang, self.target_lang

    def check(self) -> None:
        """
        Raises:
            ValueError: the settings do not go together.
        """
        if self.source_lang == self.target_lang:
            raise ValueError(f"source and target language are both {self.source_lang!r}")
        if self.pieces in ("bpe", "unigram") and (self.moses or self.lowercase or self.split_dashes or self.codes):
            raise ValueError(
                f"--pieces {self.pieces} is of raw text: --moses, --lowercase, --split-dashes and --codes go with "
                f"--pieces subword-nmt or given"
            )
        if self.split_dashes and not self.moses:
            raise ValueError("--split-dashes is a manner of the tokenizer: it needs --moses")

    def resolved(self) -> Settings:
        """With the manners of ``pieces_of``, if it names a data-bin: its pieces fit no other text.

        Raises:
            ValueError: nobody knows how that data-bin's text was cut, or this one is said to be cut otherwise.
        """
        if self.pieces_of is None:
            return self
        _, theirs = pieces_of(Path(self.pieces_of))
        manners = {name: theirs[name] for name in OF_PIECES if name != "codes"}
        if self.pieces == "given" and theirs["pieces"] in ("given", "subword-nmt"):
            manners["pieces"] = "given"
        elif self.pieces == "given":
            raise ValueError(f"--pieces given are of subword-nmt, and those of {self.pieces_of} of sentencepiece")
        elif theirs["pieces"] == "given":  # there the text was, which says nothing of this one
            if not (Path(self.pieces_of) / CODES).is_file():
                raise ValueError(
                    f"the text of {self.pieces_of} was cut elsewhere and its codes are not known: other text must "
                    f"be in the same pieces (--pieces given)"
                )
            manners["pieces"] = "subword-nmt"
        return replace(self, **manners)


@dataclass
class Text:
    """A split: ``raw`` pairs, and the same in tokens."""

    raw: list[Pair]
    tokens: list[Pair]

    def at(self, places: Sequence[int]) -> Text:
        return Text([self.raw[place] for place in places], [self.tokens[place] for place in places])


def fingerprint(settings: Settings, prefixes: Mapping[str, Path]) -> dict[str, object]:
    """The settings and the checksum of every input file: equal stamps mean equal data-bins."""
    files = {
        f"{split}.{language}": side_path(prefix, language)
        for split, prefix in prefixes.items()
        for language in settings.languages
    }
    files |= {"codes": Path(settings.codes)} if settings.codes else {}
    files |= {"pieces_of": Path(settings.pieces_of) / STAMP} if settings.pieces_of else {}
    sums = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    return {"settings": asdict(settings), "sha256": sums}


def read_text(settings: Settings, prefixes: Mapping[str, Path], workers: int) -> tuple[dict[str, Text], str]:
    """All splits, filtered; and what was dropped of each.

    Raises:
        ValueError: text that does not pair up, or nothing is left of a split.
    """
    text: dict[str, Text] = {}
    dropped: dict[str, Dropped] = {}
    for split, prefix in prefixes.items():
        # An empty line of training text is one more pair to drop; of a test set it is a mistake in the file.
        pairs = (read_sides if split == "train" else read_pairs)(prefix, *settings.languages)
        sides = [
            mapped(tokens_of(settings, language), [pair[side] for pair in pairs], workers)
            for side, language in enumerate(settings.languages)
        ]
        text[split] = Text(pairs, list(zip(*sides, strict=True)))
    for split in text.keys() - {"train"}:
        places, dropped[split] = kept(text[split].tokens, Filters(), max_words=settings.max_words)
        text[split] = text[split].at(places)
    filters = Filters(max_length=settings.max_length, max_ratio=settings.max_ratio, held_out=settings.held_out)
    held_out = [pair for split in text if split != "train" for pair in text[split].tokens]
    places, dropped["train"] = kept(text["train"].tokens, filters, held_out, settings.max_words)
    text["train"] = text["train"].at(places)
    if settings.valid_every:
        _hold_out(text, settings, dropped["train"], [place + 1 for place in places])
    text["train"] = part_of(text["train"], Fraction(settings.train_part))
    told = "; ".join(f"{split}: {dropped[split]}" for split in SPLITS if split in dropped and dropped[split].count)
    for split, rows in text.items():
        if not rows.raw:
            where = prefixes.get(split, prefixes["train"])
            raise ValueError(f"nothing is left of the {split} split ({where}); dropped: {told or 'nothing'}")
    return text, told or "nothing"


def _hold_out(text: dict[str, Text], settings: Settings, dropped: Dropped, lines: Sequence[int]) -> None:
    """Make a validation split of every so many training pairs; what is the same in the rest goes too."""
    train, every = text["train"], settings.valid_every
    text["valid"] = train.at(range(every - 1, len(train.raw), every))
    others = [place for place in range(len(train.raw)) if (place + 1) % every]
    rest = train.at(others)
    same = Filters(held_out=settings.held_out)
    places, more = kept(rest.tokens, same, text["valid"].tokens, lines=[lines[place] for place in others])
    for reason, (count, line) in more.reasons.items():
        dropped.add(reason, line, count)
    text["train"] = rest.at(places)


def part_of(text: Text, part: Fraction) -> Text:
    """A part of the pairs, in their order: always the same ones, and a smaller part is inside a larger one."""
    if part == 1:
        return text
    digests = [hashlib.sha256("\t".join(pair).encode()).digest() for pair in text.raw]
    order = sorted(range(len(digests)), key=digests.__getitem__)
    return text.at(sorted(order[: max(1, round(len(order) * part))]))


def pieces_for(settings: Settings, train: Sequence[Pair]) -> tuple[Pieces, dict[str, bytes]]:
    """The pieces, learned or known, and the file that holds them."""
    if settings.pieces_of is not None:
        files = files_of(Path(settings.pieces_of))
        return known(files, settings), files
    if settings.codes is not None:
        files = {CODES: Path(settings.codes).read_bytes()}
        return known(files, settings), files
    if settings.pieces == "given":
        return known({}, settings), {}
    return learned(train, settings)


def build(work: Path, settings: Settings, text: Mapping[str, Text], workers: int = 1) -> Path:
    """Makes the data-bin inside the scratch folder `work`; returns it."""
    dest = work / "data-bin"
    pieces, files = pieces_for(settings, text["train"].tokens)
    for split, rows in text.items():
        for side, language in enumerate(settings.languages):
            tokens = [pair[side] for pair in rows.tokens]
            cut = tokens if settings.pieces == "given" else mapped(cut_tokens(pieces, language), tokens, workers)
            write_side(work / "text" / split, language, cut)
            if split != "train":
                raw = [pair[side] for pair in rows.raw]
                if settings.pieces == "given":
                    raw = [pieces.decode(line.split(), language) for line in raw]
                write_side(dest / RAW / split, language, raw)
                write_side(dest / CUT / split, language, cut)
    binarize(work / "text", dest, settings, list(text), workers)
    for name, content in files.items():
        (dest / name).write_bytes(content)
    return dest


def write_side(prefix: Path, language: str, lines: Sequence[str]) -> None:
    """Writes `prefix.language`, one line an entry."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{line}\n" for line in lines)
    prefix.with_name(f"{prefix.name}.{language}").write_text(text, encoding="utf-8")


def binarize(text: Path, dest: Path, settings: Settings, splits: Sequence[str], workers: int) -> None:
    """Runs fairseq-preprocess with a joined dictionary."""
    command = [sys.executable, "-m", "fairseq_cli.preprocess", "--joined-dictionary", "--workers", str(workers)]
    command += ["--source-lang", settings.source_lang, "--target-lang", settings.target_lang]
    if settings.pieces_of is not None:
        command += ["--srcdict", str(Path(settings.pieces_of) / f"dict.{settings.source_lang}.txt")]
    elif settings.dictionary_size:
        command += ["--nwordssrc", str(settings.dictionary_size), "--nwordstgt", str(settings.dictionary_size)]
    for split in splits:
        command += [f"--{split}pref", str(text / split)]
    done = subprocess.run([*command, "--destdir", str(dest)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"fairseq-preprocess failed:\n{(done.stdout + done.stderr)[-2000:]}")
    (dest / "preprocess.log").unlink(missing_ok=True)  # times and temporary paths: the rest is reproducible


def read_stamp(dest: Path) -> dict[str, object] | None:
    """The stamp of an earlier preparation, None where there is nothing. A foreign folder is an error."""
    if (dest / STAMP).is_file():
        stamp: dict[str, object] = json.loads((dest / STAMP).read_text())
        return stamp
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise ValueError(f"{dest} exists and was not made by translation.prepare: choose another --dest")
    return None


def prepare(dest: Path, settings: Settings, prefixes: Mapping[str, Path], workers: int = 1) -> bool:
    """Makes `dest` from the parallel text at `prefixes` (by split). False if it was there already."""
    settings.check()
    settings = settings.resolved()
    stamp = fingerprint(settings, prefixes)
    earlier = read_stamp(dest)
    if earlier is not None and all(earlier.get(key) == value for key, value in stamp.items()):
        return False
    text, dropped = read_text(settings, prefixes, workers)
    stamp["pairs"] = {split: len(rows.raw) for split, rows in text.items()}
    stamp["dropped"] = dropped
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=dest.parent, prefix=f".{dest.name}.") as scratch:
        made = build(Path(scratch), settings, text, workers)
        (made / STAMP).write_text(json.dumps(stamp, indent=2) + "\n")
        if dest.exists():
            shutil.move(dest, Path(scratch) / "replaced")
        made.rename(dest)
    return True
