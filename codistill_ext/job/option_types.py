"""Types of options on the command lines: what a number may be, said before anything is read."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from fractions import Fraction


def at_least(minimum: int) -> Callable[[str], int]:
    """The type of whole numbers that are not smaller."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {minimum}, not {text}")
        return value

    return parse


def ratio(text: str) -> float:
    """The type of what divides a larger number by a smaller one."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a finite number of at least 1, not {text}")
    return value


def fraction(text: str) -> str:
    """The type of a part of the data, ``1/8`` or ``0.125``, in lowest terms."""
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        value = Fraction(0)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be a fraction above 0 and at most 1, such as 1/8, not {text}")
    return str(value)
