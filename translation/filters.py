"""Which sentence pairs are kept, and what became of the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from translation.corpus import Pair


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What a pair must be; a word is a token of what the pieces are learned from.

    Attributes:
        max_length: of either side; None for any number.
        max_ratio: of the longer side's words to the shorter side's.
        held_out: whether pairs stay of which one side is also a sentence of validation or test: ``drop`` or ``keep``.
    """

    max_length: int | None = None
    max_ratio: float | None = None
    held_out: str = "drop"


@dataclass
class Dropped:
    """How many pairs went for each reason, and the first one's line."""

    reasons: dict[str, list[int]] = field(default_factory=dict)

    def add(self, reason: str, line: int, count: int = 1) -> None:
        found = self.reasons.setdefault(reason, [0, line])
        found[0] += count
        found[1] = min(found[1], line)

    @property
    def count(self) -> int:
        return sum(count for count, _ in self.reasons.values())

    def __str__(self) -> str:
        parts = [f"{count} {reason} (the first is line {line})" for reason, (count, line) in self.reasons.items()]
        return ", ".join(parts) or "nothing"


def kept(
    pairs: Sequence[Pair],
    filters: Filters,
    held_out: Iterable[Pair] = (),
    max_words: int | None = None,
    lines: Sequence[int] | None = None,
) -> tuple[list[int], Dropped]:
    """The places of the pairs to keep.

    Args:
        pairs: in tokens between spaces.
        held_out: the pairs of validation and test, alike.
        max_words: of the source alone.
        lines: where in its file each pair is, from 1; by default they are all of it.
    """
    reserved = list(held_out) if filters.held_out == "drop" else []
    sources, targets = ({pair[side] for pair in reserved} for side in (0, 1))
    dropped, places = Dropped(), []
    for place, (source, target) in enumerate(pairs):
        reason = _reason(source, target, filters, max_words)
        if reason is None and (source in sources or target in targets):
            reason = "with a sentence of validation or test"
        if reason is None:
            places.append(place)
        else:
            dropped.add(reason, place + 1 if lines is None else lines[place])
    return places, dropped


def _reason(source: str, target: str, filters: Filters, max_words: int | None) -> str | None:
    short, long = sorted((len(source.split()), len(target.split())))
    if not short:
        return "with an empty side"
    if max_words is not None and len(source.split()) > max_words:
        return f"whose source has more than {max_words} words"
    if filters.max_length is not None and long > filters.max_length:
        return f"longer than {filters.max_length} words"
    if filters.max_ratio is not None and long > filters.max_ratio * short:
        return f"of which one side is more than {filters.max_ratio:g} times the other"
    return None
