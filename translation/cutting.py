"""Learning pieces from training text and cutting text into them, for ``translation.prepare``."""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import sentencepiece
from subword_nmt.learn_bpe import learn_bpe

from translation.corpus import Pair
from translation.pieces import CODES, SPM_MODEL, Pieces, SentencePieces, SubwordPieces

SENTENCEPIECE = ("bpe", "unigram")
KINDS = (*SENTENCEPIECE, "subword-nmt", "given")
_CHUNK = 1000  # lines that a process gets at once
_mapped: Callable[[str], str] | None = None  # of a pool's process


class Wanted(Protocol):
    """What of translation.prepare's settings is about pieces."""

    @property
    def pieces(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def moses(self) -> bool: ...
    @property
    def lowercase(self) -> bool: ...
    @property
    def split_dashes(self) -> bool: ...


def tokens_of(wanted: Wanted, language: str) -> Callable[[str], str] | None:
    """What becomes of a sentence before it is cut; None if nothing does."""
    if wanted.pieces in (*SENTENCEPIECE, "given"):
        return None
    manners = _subwords(None, wanted)
    return lambda sentence: " ".join(manners.tokens(sentence, language))


def learned(pairs: Sequence[Pair], wanted: Wanted) -> tuple[Pieces, dict[str, bytes]]:
    """Pieces of both sides together, and the file of a data-bin that holds them.

    Raises:
        ValueError: so little text does not make so many pieces.
    """
    if wanted.pieces in SENTENCEPIECE:
        both_sides = (sentence for pair in pairs for sentence in pair)
        model = train_sentencepieces(both_sides, wanted.vocab_size, wanted.pieces)
        return SentencePieces(model), {SPM_MODEL: model}
    codes = io.StringIO()
    learn_bpe((f"{sentence}\n" for pair in pairs for sentence in pair), codes, wanted.vocab_size)
    return _subwords(codes.getvalue(), wanted), {CODES: codes.getvalue().encode()}


def known(files: dict[str, bytes], wanted: Wanted) -> Pieces:
    """Pieces that are there already, from the file of a data-bin that holds them."""
    if SPM_MODEL in files:
        return SentencePieces(files[SPM_MODEL])
    return _subwords(files[CODES].decode() if CODES in files else None, wanted)


def files_of(data: Path) -> dict[str, bytes]:
    """The file of a data-bin that holds its pieces, if it has one."""
    return {name: (data / name).read_bytes() for name in (SPM_MODEL, CODES) if (data / name).is_file()}


def _subwords(codes: str | None, wanted: Wanted) -> SubwordPieces:
    return SubwordPieces(codes, moses=wanted.moses, lowercase=wanted.lowercase, split_dashes=wanted.split_dashes)


def train_sentencepieces(sentences: Iterable[str], vocab_size: int, model_type: str) -> bytes:
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


def cut_tokens(pieces: Pieces, language: str) -> Callable[[str], str]:
    """A sentence in tokens to its pieces, with spaces between them."""
    if isinstance(pieces, SubwordPieces):
        return pieces.cut_tokens
    return lambda sentence: " ".join(pieces.encode(sentence, language))


def mapped(function: Callable[[str], str] | None, lines: Sequence[str], workers: int) -> list[str]:
    """The function of each line, in order, by several processes if there are many lines."""
    if function is None:
        return list(lines)
    if workers == 1 or len(lines) <= _CHUNK:
        return [function(line) for line in lines]
    # Forked, so that the function needs no pickling.
    with multiprocessing.get_context("fork").Pool(workers, _remember, (function,)) as pool:
        return pool.map(_apply, lines, chunksize=_CHUNK)


def _remember(function: Callable[[str], str]) -> None:
    global _mapped
    _mapped = function


def _apply(line: str) -> str:
    assert _mapped is not None
    return _mapped(line)
