"""Text to pieces and back, in each of the ways, and the ways' own manners."""

import pytest

from translation.cutting import cut_tokens, known, learned, mapped, tokens_of
from translation.databin import Settings
from translation.pieces import SubwordPieces

PAIRS = [("the e-mail is here .", "die E-Mail ist hier ."), ("the house is old .", "das Haus ist alt .")] * 20


def settings(pieces: str, **others: object) -> Settings:
    options = {"vocab_size": 60} | others
    return Settings(source_lang="en", target_lang="de", pieces=pieces, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "size"), [("bpe", 60), ("unigram", 28), ("subword-nmt", 60)])
def test_pieces_give_the_text_back_and_live_in_one_file(kind: str, size: int) -> None:
    wanted = settings(kind, vocab_size=size)
    pieces, files = learned(PAIRS, wanted)
    again = known(files, wanted)
    for pair in PAIRS[:2]:
        for sentence, language in zip(pair, ("en", "de"), strict=True):
            cut = pieces.encode(sentence, language)
            assert pieces.decode(cut, language) == sentence
            assert again.encode(sentence, language) == cut == cut_tokens(pieces, language)(sentence).split()


def test_moses_tokens_come_back_as_text() -> None:
    wanted = settings("subword-nmt", moses=True, split_dashes=True)
    tokens = tokens_of(wanted, "de")
    assert tokens is not None
    sentence = 'Die E-Mail (von "Otto") ist da, oder?'
    assert "E ##AT##-##AT## Mail" in tokens(sentence) and "&quot;" in tokens(sentence)
    pieces, _ = learned([(tokens(sentence), tokens(sentence))] * 20, wanted)
    assert pieces.decode(pieces.encode(sentence, "de"), "de") == sentence


def test_lower_case() -> None:
    assert SubwordPieces(None, lowercase=True).tokens("Der Hund.", "de") == ["der", "hund", "."]


def test_pieces_of_others_are_put_together_and_not_made() -> None:
    pieces = SubwordPieces(None)
    assert pieces.decode("Katz@@ e &amp; E ##AT##-##AT## M@@ ail .".split(), "de") == "Katze & E-Mail."
    assert pieces.decode(["abgebroch@@"], "de") == "abgebroch"
    with pytest.raises(ValueError, match="prepare it again with --codes FILE"):
        pieces.encode("Katze", "de")


def test_several_processes_keep_the_order() -> None:
    lines = [str(number) for number in range(2500)]
    assert mapped(lambda line: line * 2, lines, workers=2) == [line * 2 for line in lines]
    assert mapped(None, lines[:3], workers=2) == ["0", "1", "2"]
