"""What the types of options take, and what they say of the rest."""

import argparse

import pytest

from codistill_ext.job.option_types import at_least, fraction, ratio


@pytest.mark.parametrize(
    ("text", "value"), [("1/8", "1/8"), ("0.125", "1/8"), ("2/16", "1/8"), ("1", "1"), ("1.0", "1")]
)
def test_fractions(text: str, value: str) -> None:
    assert fraction(text) == value


@pytest.mark.parametrize("text", ["0", "-1/2", "9/8", "1/0", "half", "nan", "inf"])
def test_what_is_no_fraction(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"above 0 and at most 1, such as 1/8, not {text}"):
        fraction(text)


def test_whole_numbers() -> None:
    assert at_least(2)("2") == 2
    for text in ("1", "-3", "2.0", "two", ""):
        with pytest.raises(argparse.ArgumentTypeError, match=f"must be a whole number of at least 2, not {text}"):
            at_least(2)(text)


def test_ratios() -> None:
    assert ratio("1.5") == 1.5
    for text in ("0.9", "inf", "nan", "much"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"must be a finite number of at least 1, not {text}"):
            ratio(text)
