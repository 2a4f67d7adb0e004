"""From a sentence to the pieces that a model reads, and back: sentencepiece, or byte-pair codes on tokens of Moses."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import sentencepiece
from sacremoses import MosesDetokenizer, MosesTokenizer
from subword_nmt.apply_bpe import BPE

STAMP = "prepare.json"
SPM_MODEL = "spm.model"
CODES = "bpe.codes"
JOINER = "@@"
_SPLIT_DASH, _ATT_DASH = "@-@", "##AT##-##AT##"  # of Moses; of the WMT'16 text that Google prepared


class Pieces(Protocol):
    """How the text of one data-bin is cut."""

    def encode(self, sentence: str, language: str) -> list[str]: ...

    def decode(self, pieces: Sequence[str], language: str) -> str: ...


class SentencePieces:
    """Pieces of raw text, which they give back exactly.

    Args:
        model: a serialized sentencepiece model.
    """

    def __init__(self, model: bytes) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    def encode(self, sentence: str, language: str) -> list[str]:
        pieces: list[str] = self._processor.encode(sentence, out_type=str)
        return pieces

    def decode(self, pieces: Sequence[str], language: str) -> str:
        text: str = self._processor.decode_pieces(list(pieces))
        return text


class SubwordPieces:
    """Byte-pair codes on tokens, as subword-nmt writes them: ``Katz@@ e``.

    Args:
        codes: a file of subword-nmt; None where text was cut by others who did not leave it.
        moses: whether the tokens are those of Moses, and not what stands between spaces.
        lowercase: whether the pieces are; what was upper case does not come back.
        split_dashes: whether dashes inside words are tokens, written as in Google's WMT'16 text.
    """

    def __init__(
        self, codes: str | None, *, moses: bool = True, lowercase: bool = False, split_dashes: bool = False
    ) -> None:
        self._bpe = None if codes is None else BPE(io.StringIO(codes), separator=JOINER)
        self._moses, self._lowercase, self._split_dashes = moses, lowercase, split_dashes

    def tokens(self, sentence: str, language: str) -> list[str]:
        """What the codes are learned from and applied to."""
        words: list[str] = sentence.split()
        if self._moses:
            words = moses_tokenizer(language).tokenize(sentence, aggressive_dash_splits=self._split_dashes)
            words = [_ATT_DASH if word == _SPLIT_DASH else word for word in words]
        return [word.lower() for word in words] if self._lowercase else words

    def encode(self, sentence: str, language: str) -> list[str]:
        """
        Raises:
            ValueError: nobody knows the codes.
        """
        if self._bpe is None:
            raise ValueError(
                "the text of this data-bin was cut into pieces elsewhere, so no other text can be cut alike: "
                "prepare it again with --codes FILE, or translate its own --subset"
            )
        return self.cut_tokens(" ".join(self.tokens(sentence, language))).split()

    def cut_tokens(self, sentence: str) -> str:
        """Of a sentence that is in tokens already; as it is if nobody knows the codes."""
        return sentence if self._bpe is None else " ".join(self._bpe.segment_tokens(sentence.split()))

    def decode(self, pieces: Sequence[str], language: str) -> str:
        text = " ".join(pieces).replace(f"{JOINER} ", "").removesuffix(JOINER)
        if not self._moses:
            return text
        text = text.replace(f" {_ATT_DASH} ", "-").replace(f" {_SPLIT_DASH} ", "-")
        detokenized: str = _moses_detokenizer(language).detokenize(text.split())
        return detokenized


@functools.cache
def moses_tokenizer(language: str) -> Any:
    return MosesTokenizer(lang=language)


@functools.cache
def _moses_detokenizer(language: str) -> Any:
    return MosesDetokenizer(lang=language)


def pieces_of(data: Path) -> tuple[Pieces, dict[str, Any]]:
    """The pieces of a data-bin, and the settings that it was prepared with.

    Raises:
        FileNotFoundError: translation.prepare did not make it.
    """
    if not (data / STAMP).is_file():
        raise FileNotFoundError(f"{data} has no {STAMP}: make it with python -m translation.prepare")
    settings: dict[str, Any] = json.loads((data / STAMP).read_text(encoding="utf-8"))["settings"]
    if (data / SPM_MODEL).is_file():
        return SentencePieces((data / SPM_MODEL).read_bytes()), settings
    codes = (data / CODES).read_text(encoding="utf-8") if (data / CODES).is_file() else None
    manners = {name: bool(settings[name]) for name in ("moses", "lowercase", "split_dashes")}
    return SubwordPieces(codes, **manners), settings


def tokenizer_of(pieces: Pieces, language: str) -> tuple[str, Callable[[str], str]] | None:
    """The tokenizer of a tokenised score, where it is not sacrebleu's own: a name, and a function of a sentence."""
    if not isinstance(pieces, SubwordPieces):
        return None
    return "moses", lambda sentence: str(moses_tokenizer(language).tokenize(sentence, return_str=True))
