"""Short pairs of the shipped corpus, for whatever trains on real text."""

from translation.corpus import Pair, read_pairs, shipped_prefix


def short_pairs(split: str, count: int | None = None, max_words: int = 12) -> list[Pair]:
    """The first pairs of a split whose English side has no more words."""
    pairs = read_pairs(shipped_prefix(split), "en", "de")
    return [pair for pair in pairs if len(pair[0].split()) <= max_words][:count]
