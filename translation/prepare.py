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
from pathlib import Path

from codistill_ext.job.failures import Parser
from codistill_ext.job.option_types import at_least, fraction, ratio
from translation.corpus import SPLITS, shipped_prefix
from translation.cutting import KINDS
from translation.databin import OF_PIECES, Settings, prepare
from translation.pieces import STAMP


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m translation.prepare", description=__doc__)
    parser.add_argument("--dest", type=Path, required=True, help="the data-bin to make")
    parser.add_argument("--train-prefix", type=Path, help="PREFIX.LANG[.xz|.gz]; default: the shipped corpus")
    parser.add_argument("--valid-prefix", type=Path)
    parser.add_argument("--test-prefix", type=Path)
    parser.add_argument("--source-lang", default="en")
    parser.add_argument("--target-lang", default="de")
    parser.add_argument("--workers", type=at_least(1), default=1, help="processes for tokens, pieces and numbers")
    _add_pieces(parser.add_argument_group("pieces"))
    _add_filters(parser.add_argument_group("filters of the training pairs"))
    return parser


def _add_pieces(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--pieces",
        choices=KINDS,
        help="bpe and unigram of sentencepiece, on raw text; "
        "subword-nmt's codes on tokens; given: the text is in such pieces (default: bpe)",
    )
    group.add_argument(
        "--vocab-size", type=at_least(1), help="pieces, or codes of subword-nmt, of both languages (default: 4000)"
    )
    group.add_argument("--moses", action="store_true", help="subword-nmt: tokens of Moses, not what spaces part")
    group.add_argument("--lowercase", action="store_true", help="subword-nmt: all of it in lower case")
    group.add_argument(
        "--split-dashes", action="store_true", help="dashes inside words are tokens, as in Google's WMT'16"
    )
    group.add_argument("--codes", help="take these codes of subword-nmt, do not learn any")
    group.add_argument("--pieces-of", help="take pieces and dictionary of this data-bin, in its manner")
    group.add_argument("--dictionary-size", type=at_least(1), help="the most frequent pieces only (default: all)")


def _add_filters(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--max-words", type=at_least(1), help="of all splits: drop pairs whose source has more words")
    group.add_argument("--max-length", type=at_least(1), help="words of either side")
    group.add_argument("--max-ratio", type=ratio, help="of the longer side's words to the shorter side's")
    group.add_argument(
        "--held-out",
        choices=("drop", "keep"),
        default="drop",
        help="training pairs with a sentence of validation or test (default: drop)",
    )
    group.add_argument("--valid-every", type=at_least(2), help="validate on every so many training pairs")
    group.add_argument("--train-part", type=fraction, default="1", help="of the training pairs, such as 1/8")


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
    _check_pieces(parser, options)
    return options


def _check_pieces(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """An option that another one makes void is a mistake."""
    known = "pieces_of" if options.pieces_of else "codes" if options.codes else None
    if known == "pieces_of":
        void = [name for name in OF_PIECES if getattr(options, name) and getattr(options, name) != "given"]
    else:
        void = ["vocab_size"] if (known or options.pieces == "given") and options.vocab_size else []
    if void:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in void)
        where = f"--{known.replace('_', '-')}" if known else "--pieces given"
        parser.error(f"with {where} the pieces are known: leave out {flags}")


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.train_prefix is None:
        prefixes = {split: shipped_prefix(split) for split in SPLITS}
    else:
        given = {split: getattr(options, f"{split}_prefix") for split in SPLITS}
        prefixes = {split: prefix for split, prefix in given.items() if prefix is not None}
    said = {one.name: getattr(options, one.name) for one in fields(Settings)}
    settings = Settings(**{name: value for name, value in said.items() if value is not None})
    try:
        made = prepare(options.dest, settings, prefixes, options.workers)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"translation.prepare: {error}")
    stamp = json.loads((options.dest / STAMP).read_text())
    print(f"{options.dest}: {'made' if made else 'reused'}; pairs: {stamp['pairs']}; dropped: {stamp['dropped']}")


if __name__ == "__main__":
    main()
