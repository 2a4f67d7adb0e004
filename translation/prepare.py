"""Parallel text to a fairseq `data-bin`: `python -m translation.prepare --dest DIR`.

Learns one set of pieces from both languages, cuts the text into them and has fairseq-preprocess binarize it with one
dictionary for both sides. What was dropped is said, and why. DIR also gets what scoring needs: the pieces, and
validation and test text as it was. It appears whole or not at all, and is reused when settings and input are the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from fractions import Fraction
from pathlib import Path

from codistill_ext.job.failures import Parser
from translation.corpus import SPLITS, shipped_prefix
from translation.cutting import KINDS
from translation.databin import Settings, prepare
from translation.pieces import STAMP


def part(text: str) -> str:
    """``1/8``, as it was written."""
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be a fraction above 0 and at most 1, such as 1/8, not {text}")
    return text


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m translation.prepare", description=__doc__)
    parser.add_argument("--dest", type=Path, required=True, help="the data-bin to make")
    parser.add_argument("--train-prefix", type=Path, help="PREFIX.LANG[.xz|.gz]; default: the shipped corpus")
    parser.add_argument("--valid-prefix", type=Path)
    parser.add_argument("--test-prefix", type=Path)
    parser.add_argument("--source-lang", default="en")
    parser.add_argument("--target-lang", default="de")
    parser.add_argument("--workers", type=int, default=1, help="processes for tokens, pieces and numbers")
    _add_pieces(parser.add_argument_group("pieces"))
    _add_filters(parser.add_argument_group("filters of the training pairs"))
    return parser


def _add_pieces(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--pieces",
        choices=KINDS,
        default="bpe",
        help="bpe and unigram of sentencepiece, on raw text; "
        "subword-nmt's codes on tokens; given: the text is in such pieces (default: bpe)",
    )
    group.add_argument(
        "--vocab-size", type=int, default=4000, help="pieces, or codes of subword-nmt, of both languages"
    )
    group.add_argument("--moses", action="store_true", help="subword-nmt: tokens of Moses, not what spaces part")
    group.add_argument("--lowercase", action="store_true", help="subword-nmt: all of it in lower case")
    group.add_argument(
        "--split-dashes", action="store_true", help="dashes inside words are tokens, as in Google's WMT'16"
    )
    group.add_argument("--codes", help="take these codes of subword-nmt, do not learn any")
    group.add_argument("--pieces-of", help="take pieces and dictionary of this data-bin")
    group.add_argument("--dictionary-size", type=int, default=0, help="the most frequent pieces only (default: all)")


def _add_filters(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--max-words", type=int, help="of all splits: drop pairs whose source has more words")
    group.add_argument("--max-length", type=int, help="words of either side")
    group.add_argument("--max-ratio", type=float, help="of the longer side's words to the shorter side's")
    group.add_argument(
        "--held-out",
        choices=("drop", "keep"),
        default="drop",
        help="training pairs with a sentence of validation or test (default: drop)",
    )
    group.add_argument("--valid-every", type=int, default=0, help="validate on every so many training pairs")
    group.add_argument("--train-part", type=part, default="1", help="of the training pairs, such as 1/8")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.valid_prefix and options.valid_every:
        parser.error("--valid-every makes a validation split: leave out --valid-prefix")
    given = bool(options.valid_prefix or options.valid_every)
    if bool(options.train_prefix) != given or (options.test_prefix and not options.train_prefix):
        parser.error(
            "text of your own needs --train-prefix and --valid-prefix (or --valid-every); --test-prefix is optional"
        )
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.train_prefix is None:
        prefixes = {split: shipped_prefix(split) for split in SPLITS}
    else:
        given = {split: getattr(options, f"{split}_prefix") for split in SPLITS}
        prefixes = {split: prefix for split, prefix in given.items() if prefix is not None}
    settings = Settings(**{one.name: getattr(options, one.name) for one in fields(Settings)})
    try:
        made = prepare(options.dest, settings, prefixes, options.workers)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"translation.prepare: {error}")
    stamp = json.loads((options.dest / STAMP).read_text())
    print(f"{options.dest}: {'made' if made else 'reused'}; pairs: {stamp['pairs']}; dropped: {stamp['dropped']}")


if __name__ == "__main__":
    main()
