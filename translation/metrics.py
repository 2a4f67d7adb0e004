"""Scores of translations: sacreBLEU and chrF of plain text, and the tokenised figure that papers of 2018 report."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

References = Sequence[Sequence[str]]  # one sequence of sentences a reference translation
_TOKENIZE_13A: Callable[[str], str] = Tokenizer13a()  # type: ignore[no-untyped-call]


def bleu(
    hypotheses: Sequence[str], references: References, tokenize: str | None = None, *, lowercase: bool = False
) -> dict[str, Any]:
    """Corpus BLEU in points, with sacrebleu's signature."""
    metric = BLEU(tokenize=tokenize, force=tokenize == "none", lowercase=lowercase)
    score = metric.corpus_score(hypotheses, references).score
    return {"bleu": score, "signature": str(metric.get_signature())}


def chrf(hypotheses: Sequence[str], references: References, *, lowercase: bool = False) -> dict[str, Any]:
    """Corpus chrF2 in points, with sacrebleu's signature."""
    metric = CHRF(lowercase=lowercase)
    score = metric.corpus_score(hypotheses, references).score
    return {"chrf": score, "signature": str(metric.get_signature())}


def compound_split(sentence: str, tokenize: Callable[[str], str] = _TOKENIZE_13A) -> str:
    """Tokens with hyphenated compounds in three: `E-Mail` is `E ##AT##-##AT## Mail`."""
    return re.sub(r"(\S)-(\S)", r"\1 ##AT##-##AT## \2", tokenize(sentence))


def compound_split_bleu(
    hypotheses: Sequence[str],
    references: References,
    tokenizer: tuple[str, Callable[[str], str]] | None = None,
    lowercase: bool = False,
) -> dict[str, Any]:
    """Tokenised BLEU with split compounds, which is higher than that of plain text and not comparable with it.

    Args:
        tokenizer: its name, and what it makes of a sentence; sacrebleu's 13a if there is none.
    """
    name, tokenize = tokenizer or ("13a", _TOKENIZE_13A)
    split = [compound_split(sentence, tokenize) for sentence in hypotheses]
    split_references = [[compound_split(line, tokenize) for line in lines] for lines in references]
    score = bleu(split, split_references, tokenize="none", lowercase=lowercase)
    return {"bleu": score["bleu"], "signature": f"{score['signature']} of {name} tokens, compounds split"}


def paired_bootstrap(
    systems: Sequence[tuple[str, Sequence[str]]], references: References, samples: int, *, lowercase: bool = False
) -> list[dict[str, Any]]:
    """sacrebleu's paired bootstrap of BLEU and chrF: a row a system, of which the first is the baseline.

    ``bleu_p`` is the share of resamples at least as far from the baseline by chance.
    """
    test = PairedTest(
        list(systems),
        {"BLEU": BLEU(lowercase=lowercase), "chrF2": CHRF(lowercase=lowercase)},
        references,
        test_type="bs",
        n_samples=samples,
    )
    _, scores = test()
    rows = []
    for number, (name, _) in enumerate(systems):
        found: dict[str, Any] = {"system": name}
        for metric, key in (("BLEU", "bleu"), ("chrF2", "chrf")):
            result: Any = scores[metric][number]
            values = {"": result.score, "_mean": result.mean, "_ci": result.ci, "_p": result.p_value}
            found |= {key + end: None if value is None else float(value) for end, value in values.items()}
        rows.append(found)
    return rows
