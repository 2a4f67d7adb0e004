"""Fetching over a network that lapses: what is worth another try, how often, and after which pause.

Imports the standard library alone: ``recipes/lib/pip_install.py`` uses it before anything is installed.
"""

from __future__ import annotations

import enum
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TypeVar

TRIES = 9  # with their pauses they last about four minutes
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 60.0

T = TypeVar("T")
Pause = Callable[[float], object]


class Failure(enum.IntEnum):
    """What went wrong; the value is how often a source may fail in this way until that is final."""

    REFUSED = 1  # no such package, no right, no room: the answer would be the same again
    DOUBTFUL = 2  # a wrong checksum, an unknown message: once it may have been the network
    LAPSED = TRIES


class FetchError(Exception):
    """A source did not deliver; says why."""

    def __init__(self, message: str, failure: Failure) -> None:
        super().__init__(message)
        self.failure = failure


def first_delivered(what: str, sources: Mapping[str, Callable[[], T]], pause: Pause = time.sleep) -> T:
    """What the first source delivers. When all fail, those that may do better are tried again, with a line a try.

    Raises:
        FetchError: every source failed for good, or the tries are used up.
    """
    counts: Counter[tuple[str, Failure]] = Counter()
    failures: dict[str, str] = {}
    left = dict(sources)
    attempt = 0
    while True:
        attempt += 1
        for name, source in list(left.items()):
            try:
                return source()
            except FetchError as error:
                failures[name] = str(error)
                counts[name, error.failure] += 1
                if counts[name, error.failure] >= error.failure or attempt == TRIES:
                    del left[name]
        if not left:
            tries = "1 try" if attempt == 1 else f"{attempt} tries"
            raise FetchError(f"{what} could not be fetched in {tries}: {_together(failures)}", Failure.REFUSED)
        seconds = pause_s(attempt)
        retried = _together(failures if attempt == 1 else {name: failures[name] for name in left})
        print(f"{what}: try {attempt} of {TRIES} failed, the next in {seconds:.0f} s: {retried}", file=sys.stderr)
        pause(seconds)


def pause_s(attempt: int) -> float:
    """Seconds after a try that failed: doubled from one to the next, and uneven, lest a cluster knocks all at once."""
    return min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S) * random.uniform(0.75, 1.25)


def _together(failures: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {message}" for name, message in failures.items())
