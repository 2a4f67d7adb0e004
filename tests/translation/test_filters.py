"""Each reason for which a training pair goes, with the line that is named."""

import pytest

from translation.filters import Filters, kept

PAIRS = [
    ("a b", "a b"),
    ("", "a"),
    ("a b c d", "a b c d"),
    ("a b c", "a"),
    ("held out", "x y"),
    ("x y", "out held"),
    ("a", " "),
]


@pytest.mark.parametrize(
    ("filters", "places", "said"),
    [
        (Filters(held_out="keep"), [0, 2, 3, 4, 5], "2 with an empty side (the first is line 2)"),
        (Filters(held_out="keep", max_length=3), [0, 3, 4, 5], "1 longer than 3 words (the first is line 3)"),
        (Filters(held_out="keep", max_ratio=2.5), [0, 2, 4, 5], "more than 2.5 times the other (the first is line 4)"),
        (Filters(held_out="keep", max_ratio=3), [0, 2, 3, 4, 5], "2 with an empty side"),
        (Filters(), [0, 2, 3], "2 with a sentence of validation or test (the first is line 5)"),
    ],
)
def test_reasons(filters: Filters, places: list[int], said: str) -> None:
    found, dropped = kept(PAIRS, filters, [("held out", "out held")])
    assert found == places
    assert dropped.count == len(PAIRS) - len(places) and said in str(dropped)


def test_source_words_and_nothing() -> None:
    found, dropped = kept(PAIRS[:1], Filters(), [], max_words=1)
    assert found == [] and str(dropped) == "1 whose source has more than 1 words (the first is line 1)"
    assert str(kept(PAIRS[:1], Filters(), [])[1]) == "nothing"


def test_the_first_line_is_the_files_and_not_the_first_of_what_was_left() -> None:
    _, dropped = kept(PAIRS[3:5], Filters(max_ratio=2), [("held out", "")], lines=[40, 70])
    assert "(the first is line 40)" in str(dropped) and "validation or test (the first is line 70)" in str(dropped)
    dropped.add("with a sentence of validation or test", 12, count=3)
    assert "4 with a sentence of validation or test (the first is line 12)" in str(dropped)
