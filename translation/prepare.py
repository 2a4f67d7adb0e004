"""Parallel text to a fairseq `data-bin`: `python -m translation.prepare --dest DIR`.

Trains one sentencepiece model on both languages, cuts the text into pieces and has fairseq-preprocess
binarize them with one dictionary for both sides. DIR also gets what scoring needs: the sentencepiece
model and the raw text. It appears whole or not at all, and is reused when settings and input are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import sentencepiece

from codistill_ext.job.failures import Parser
from translation.corpus import Pair, read_pairs, shipped_prefix, side_path

STAMP = "prepare.json"
SPM_MODEL = "spm.model"
RAW = "raw"  # a folder: fairseq guesses the languages from the names beside it


@dataclass(frozen=True)
class Settings:
    """What the data-bin depends on, besides the text itself."""

    source_lang: str
    target_lang: str
    vocab_size: int
    model_type: str
    max_words: int | None


def fingerprint(settings: Settings, prefixes: dict[str, Path]) -> dict[str, object]:
    """The settings and the checksum of every input file: equal stamps mean equal data-bins."""
    languages = (settings.source_lang, settings.target_lang)
    sums = {
        f"{split}.{language}": hashlib.sha256(side_path(prefix, language).read_bytes()).hexdigest()
        for split, prefix in prefixes.items()
        for language in languages
    }
    return {"settings": asdict(settings), "sha256": sums}


def train_pieces(sentences: Iterable[str], vocab_size: int, model_type: str) -> bytes:
    """A serialized sentencepiece model; one thread, so the same text gives the same bytes."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            character_coverage=1.0,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"these sentences do not make {vocab_size} sentencepiece pieces: choose another size ({error})"
        ) from error
    return model.getvalue()


def write_side(prefix: Path, language: str, lines: list[str]) -> None:
    """Writes `prefix.language`, one line an entry."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{line}\n" for line in lines)
    prefix.with_name(f"{prefix.name}.{language}").write_text(text, encoding="utf-8")


def binarize(pieces: Path, dest: Path, settings: Settings, splits: list[str]) -> None:
    """Runs fairseq-preprocess with a joined dictionary."""
    command = [sys.executable, "-m", "fairseq_cli.preprocess", "--joined-dictionary", "--workers", "1"]
    command += ["--source-lang", settings.source_lang, "--target-lang", settings.target_lang]
    for split in splits:
        command += [f"--{split}pref", str(pieces / split)]
    done = subprocess.run([*command, "--destdir", str(dest)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"fairseq-preprocess failed:\n{(done.stdout + done.stderr)[-2000:]}")
    (dest / "preprocess.log").unlink(missing_ok=True)  # times and temporary paths: the rest is reproducible


def build(work: Path, settings: Settings, pairs: dict[str, list[Pair]]) -> Path:
    """Makes the data-bin inside the scratch folder `work`; returns it."""
    dest = work / "data-bin"
    both_sides = (sentence for pair in pairs["train"] for sentence in pair)
    model = train_pieces(both_sides, settings.vocab_size, settings.model_type)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    for split, rows in pairs.items():
        for side, language in enumerate((settings.source_lang, settings.target_lang)):
            text = [row[side] for row in rows]
            pieces = processor.encode(text, out_type=str)
            write_side(work / "pieces" / split, language, [" ".join(line) for line in pieces])
            if split != "train":
                write_side(dest / RAW / split, language, text)
    binarize(work / "pieces", dest, settings, list(pairs))
    (dest / SPM_MODEL).write_bytes(model)
    return dest


def read_stamp(dest: Path) -> dict[str, object] | None:
    """The stamp of an earlier preparation, None where there is nothing. A foreign folder is an error."""
    if (dest / STAMP).is_file():
        stamp: dict[str, object] = json.loads((dest / STAMP).read_text())
        return stamp
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise ValueError(f"{dest} exists and was not made by translation.prepare: choose another --dest")
    return None


def prepare(dest: Path, settings: Settings, prefixes: dict[str, Path]) -> bool:
    """Makes `dest` from the parallel text at `prefixes` (by split). False if it was there already."""
    if settings.source_lang == settings.target_lang:
        raise ValueError(f"source and target language are both {settings.source_lang!r}")
    stamp = fingerprint(settings, prefixes)
    earlier = read_stamp(dest)
    if earlier is not None and all(earlier.get(key) == value for key, value in stamp.items()):
        return False
    pairs = {
        split: read_pairs(prefix, settings.source_lang, settings.target_lang, settings.max_words)
        for split, prefix in prefixes.items()
    }
    stamp["pairs"] = {split: len(rows) for split, rows in pairs.items()}
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=dest.parent, prefix=f".{dest.name}.") as scratch:
        made = build(Path(scratch), settings, pairs)
        (made / STAMP).write_text(json.dumps(stamp, indent=2) + "\n")
        if dest.exists():
            shutil.move(dest, Path(scratch) / "replaced")
        made.rename(dest)
    return True


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="python -m translation.prepare", description=__doc__)
    parser.add_argument("--dest", type=Path, required=True, help="the data-bin to make")
    parser.add_argument("--train-prefix", type=Path, help="PREFIX.LANG[.xz]; default: the shipped corpus")
    parser.add_argument("--valid-prefix", type=Path)
    parser.add_argument("--test-prefix", type=Path)
    parser.add_argument("--source-lang", default="en")
    parser.add_argument("--target-lang", default="de")
    parser.add_argument("--vocab-size", type=int, default=4000, help="pieces, both languages together")
    parser.add_argument("--model-type", choices=("unigram", "bpe"), default="bpe")
    parser.add_argument("--max-words", type=int, help="drop pairs whose source has more words")
    options = parser.parse_args(arguments)
    given = [options.train_prefix, options.valid_prefix, options.test_prefix]
    if any(given) and not all(given[:2]):
        parser.error("text of your own needs --train-prefix and --valid-prefix (--test-prefix is optional)")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.train_prefix is None:
        prefixes = {split: shipped_prefix(split) for split in ("train", "valid", "test")}
    else:
        prefixes = {"train": options.train_prefix, "valid": options.valid_prefix}
        if options.test_prefix is not None:
            prefixes["test"] = options.test_prefix
    settings = Settings(
        source_lang=options.source_lang,
        target_lang=options.target_lang,
        vocab_size=options.vocab_size,
        model_type=options.model_type,
        max_words=options.max_words,
    )
    try:
        made = prepare(options.dest, settings, prefixes)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"translation.prepare: {error}")
    counts = json.loads((options.dest / STAMP).read_text())["pairs"]
    print(f"{options.dest}: {'made' if made else 'reused'}; pairs: {counts}")


if __name__ == "__main__":
    main()
