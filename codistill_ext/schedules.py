"""Hyper-parameters as functions of the update: one notation for every scheduled option of both trainers.

    0.1                      a constant
    1e-4,1e-5,0              the next value at each decay of the learning rate
    1e-4,1e-5@18ep,0@38ep    the next value from a place on
    0~1@1000up               a straight line from the value before, which arrives at the place
    0.1,0.1@10ep~0@50%       the two combined: constant until epoch 10, then down to 0

Places: ``18ep`` is an epoch, as the trainer's option for the length of the run counts them; ``1000up`` an update,
literally; ``50%`` a share of the run; ``18of45`` a share as a fraction: epoch 18 if the run had 45 epochs.
"""

import bisect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

_UNITS = "18ep, 2000up, 50% or 18of45"
_PLACE = re.compile(r"(?P<amount>[^a-z%]+?)\s*(?P<unit>ep|up|%|of\s*(?P<whole>.+))?", re.IGNORECASE)
_NOTATION = "0.1 or 1e-4,1e-5,0 or 1e-4,1e-5@18ep or 0.1~0@50%"


@dataclass(frozen=True)
class Place:
    """A point of a run, whose length is not yet known: ``unit`` is ep, up, % or of (then of ``whole``)."""

    amount: float
    unit: str
    whole: float = 100.0

    @classmethod
    def parse(cls, text: str, *, unit: str | None = None) -> "Place":
        """Read ``18ep``; a bare number has the default ``unit`` if there is one.

        Raises:
            ValueError: it is no place.
        """
        match = _PLACE.fullmatch(text.strip())
        found = None if match is None else (match["unit"] or unit)
        if match is None or found is None:
            raise ValueError(f"a place is written {_UNITS}, not {text.strip()!r}")
        amount = _number(match["amount"], f"a place such as {_UNITS}")
        if match["whole"] is None:
            return cls(amount, found.lower())
        whole = _number(match["whole"], f"a place such as {_UNITS}")
        if not amount <= whole:
            raise ValueError(f"a place is inside the run, but {text.strip()} is behind its end")
        return cls(amount, "of", whole)

    def __str__(self) -> str:
        return f"{_text(self.amount)}{self.unit}{_text(self.whole) if self.unit == 'of' else ''}"


@dataclass(frozen=True, kw_only=True)
class Horizon:
    """What places refer to; what is None is not known.

    Attributes:
        updates: of the whole run.
        updates_an_epoch: of what the user calls an epoch.
        decays: the updates at which the learning rate decays.
    """

    updates: int | None = None
    updates_an_epoch: float | None = None
    decays: Sequence[float] | None = None

    def position(self, place: Place) -> float:
        """The place in updates.

        Raises:
            ValueError: the run's length in that unit is not known.
        """
        if place.unit == "up":
            return place.amount
        if place.unit == "ep":
            if self.updates_an_epoch is None:
                raise ValueError(f"the place {place} needs the updates of an epoch, which are not known here: use 'up'")
            return round(place.amount * self.updates_an_epoch, 6)  # 0.1 * 30 is to be 3
        if self.updates is None:
            raise ValueError(f"the place {place} needs the length of the run, which is not known here: use 'up'")
        return round(place.amount / place.whole * self.updates, 6)


@dataclass(frozen=True)
class Step:
    """A value, and where it comes into force: ``place`` None is the next decay (or the beginning)."""

    value: float
    place: Place | None = None
    glides: bool = False


@dataclass(frozen=True)
class Schedule:
    """A scheduled option as it was written. ``resolve`` makes it a function of the update."""

    steps: tuple[Step, ...]

    @classmethod
    def parse(cls, text: "str | float | Schedule") -> "Schedule":
        """Read the notation at the top of this module; a number is a constant.

        Raises:
            ValueError: what was expected and what came.
        """
        if isinstance(text, Schedule):
            return text
        first, *rest = re.split(r"([,~])", str(text))
        if "@" in first:
            raise ValueError(f"{text}: the first value is in force from the beginning, without a place: {_NOTATION}")
        steps = [Step(_number(first, _NOTATION))]
        for separator, item in zip(rest[::2], rest[1::2], strict=True):
            value, at, place = item.partition("@")
            where = Place.parse(place) if at else None
            steps.append(Step(_number(value, _NOTATION), where, glides=separator == "~"))
        schedule = cls(tuple(steps))
        schedule._check_places()
        return schedule

    def _check_places(self) -> None:
        with_place = [step.place is not None for step in self.steps[1:]]
        if any(with_place) and not all(with_place):
            raise ValueError(f"{self}: give all values behind the first a place such as {_UNITS}, or none of them")
        if any(step.glides and step.place is None for step in self.steps):
            raise ValueError(f"{self}: a value behind '~' needs the place where the line arrives, such as {_UNITS}")

    def __str__(self) -> str:
        text = _text(self.steps[0].value)
        for step in self.steps[1:]:
            place = "" if step.place is None else f"@{step.place}"
            text += f"{'~' if step.glides else ','}{_text(step.value)}{place}"
        return text

    @property
    def plain(self) -> float | str:
        """A number if it is a constant, else its text: for files and comparisons; ``parse`` reads both."""
        return self.steps[0].value if len(self.steps) == 1 else str(self)

    @property
    def values(self) -> tuple[float, ...]:
        """All values; what lies on a line between two of them is between them."""
        return tuple(step.value for step in self.steps)

    def resolve(self, horizon: Horizon, option: str) -> "Curve":
        """The function of the update for a run of this length.

        Raises:
            ValueError: names the ``option``; a place that is unknown, out of order or never reached, values without
                a decay to begin at.
        """
        try:
            return Curve(tuple(self._points(horizon)))
        except ValueError as error:
            raise ValueError(f"{option} {self}: {error}") from None

    def _points(self, horizon: Horizon) -> list[tuple[float, float, bool]]:
        positions = self._positions(horizon)
        if any(later <= earlier for earlier, later in zip(positions, positions[1:], strict=False)):
            raise ValueError(f"the places must come one after the other, but are updates {_listed(positions)}")
        for position, step in zip(positions, self.steps, strict=True):
            end = math.inf if horizon.updates is None else horizon.updates
            if position > end or (position == end and not step.glides):
                raise ValueError(f"{step.place} is never reached: it is update {position:g} of a run of {end}")
        return [(position, step.value, step.glides) for position, step in zip(positions, self.steps, strict=True)]

    def _positions(self, horizon: Horizon) -> list[float]:
        if all(step.place is None for step in self.steps):
            decays = horizon.decays
            if len(self.steps) > 1 and not decays:
                raise ValueError(
                    f"{len(self.steps)} values without places change where the learning rate decays, but "
                    f"{'where it does is not known here' if decays is None else 'it has no decays in this run'}: give "
                    f"the values places such as {_UNITS}"
                )
            if len(self.steps) - 1 > len(decays or ()):
                raise ValueError(
                    f"{len(self.steps)} values need {len(self.steps) - 1} decays of the learning rate to change at, "
                    f"but it has {len(decays or ())} in this run, at updates {_listed(decays or ())}"
                )
            return [0.0, *(decays or ())][: len(self.steps)]
        return [0.0 if step.place is None else horizon.position(step.place) for step in self.steps]


@dataclass(frozen=True)
class Curve:
    """A function of the update, from 0. ``points`` are (update, value, whether a straight line leads there)."""

    points: tuple[tuple[float, float, bool], ...]

    def __call__(self, update: float) -> float:
        index = bisect.bisect_right([position for position, _, _ in self.points], update)
        begin, value, _ = self.points[index - 1]
        if index < len(self.points):
            end, target, glides = self.points[index]
            if glides:
                return value + (target - value) * (update - begin) / (end - begin)
        return value


def _number(text: str, expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"expected finite numbers of 0 or more, as in {expected}; got {text.strip()!r}")
    return value


def _text(value: float) -> str:
    return f"{value:.15g}"


def _listed(positions: Sequence[float]) -> str:
    return ", ".join(f"{position:g}" for position in positions)


def _warm_up(target: float, progress: float, warmup: float, start: float) -> float | None:
    if progress >= warmup:
        return None
    return start + (target - start) * progress / warmup


def warmup_steps_lr(
    progress: float,
    *,
    base: float,
    milestones: Sequence[float],
    gamma: float = 0.1,
    warmup: float = 0.0,
    warmup_start: float = 0.0,
) -> float:
    """Linear warm-up, then a factor ``gamma`` at each milestone (Goyal et al., section 2.2).

    Args:
        progress, milestones, warmup: in the same unit, for example epochs (fractions included).
        base: learning rate after the warm-up; ``warmup_start``: at its beginning.
    """
    warming = _warm_up(base, progress, warmup, warmup_start)
    if warming is not None:
        return warming
    return base * gamma ** sum(progress >= milestone for milestone in milestones)


def warmup_cosine_lr(
    progress: float,
    *,
    base: float,
    total: float,
    warmup: float = 0.0,
    warmup_start: float = 0.0,
    minimum: float = 0.0,
) -> float:
    """Linear warm-up, then half a cosine from ``base`` down to ``minimum`` at ``total``."""
    warming = _warm_up(base, progress, warmup, warmup_start)
    if warming is not None:
        return warming
    done = min(1.0, (progress - warmup) / max(total - warmup, 1e-12))
    return minimum + (base - minimum) * 0.5 * (1.0 + math.cos(math.pi * done))
